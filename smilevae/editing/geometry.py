"""Reads attributes from landmarks alone: it shares no feature with the attribute classifier. N faces, L landmarks."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from smilevae.editing.classifier import FOLDS, fit_linear, independence, validated
from smilevae.editing.mesh import EYES

NUM_AXES = 40  # principal axes of the shapes


class GeometryReader:
    """Scores as those of a Classifier: 0 and 1 are the means of other people who lack and have the attribute.

    Logistic regression on principal axes of points (N, L, 2), for attributes (N,) of 0 and 1, NaN where unknown.
    """

    def __init__(self, points: np.ndarray, attributes: Mapping[str, np.ndarray], people: list[str]):
        from sklearn.decomposition import PCA

        shapes = upright(points)
        folds = np.unique(people, return_inverse=True)[1] % FOLDS
        self._axes = PCA(min(NUM_AXES, len(shapes) - 1), whiten=True, random_state=0).fit(shapes)
        codes = self._axes.transform(shapes)
        self.threshold: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self._models: dict[str, tuple[np.ndarray, float]] = {}
        for name, values in attributes.items():
            known = np.isfinite(values)
            weights = independence(name, attributes)
            accuracy, low, high = validated(codes, values, folds, True, weights)
            if np.isnan(accuracy):
                continue  # too few people have it, or lack it
            self.accuracy[name] = accuracy
            coefficients, bias = fit_linear(codes[known], values[known], True, weights[known])
            scale = high - low
            self._models[name] = coefficients / scale, (bias - low) / scale
            self.threshold[name] = -low / (high - low)

    def read(self, points: np.ndarray) -> dict[str, Tensor]:
        """Scores (N,) by attribute."""
        codes = self._axes.transform(upright(points))
        return {
            name: torch.from_numpy(codes @ slopes + bias).float()
            for name, (slopes, bias) in self._models.items()
        }


def upright(points: np.ndarray) -> np.ndarray:
    """Points (N, L, 2) moved, turned and scaled: the eyes lie at -0.5 and 0.5. (N, 2 L)."""
    plane = points[..., 0] + 1j * points[..., 1]
    left, right = (plane[:, list(corners)].mean(1, keepdims=True) for corners in EYES)
    width = np.where(
        right == left, 1, right - left
    )  # a picture without a face can have both eyes at one point
    plane = (plane - (left + right) / 2) / width
    return np.concatenate([plane.real, plane.imag], 1)
