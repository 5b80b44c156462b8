"""Reads attributes from landmarks alone, so it shares no feature with the attribute classifier.

Shapes: N faces, L landmarks.
"""

import numpy as np
from torch import Tensor

from smilevae.editing.classifier import Labels, Reader
from smilevae.editing.mesh import EYES

NUM_AXES = 40  # principal axes of the shapes


class GeometryReader(Reader):
    """Principal axes of points (N, L, 2). Attributes that other people cannot test are left out."""

    def __init__(self, points: np.ndarray, attributes: Labels, people: list[str]):
        from sklearn.decomposition import PCA

        shapes = upright(points)
        num = min(NUM_AXES, len(shapes) - 1)
        self._axes = PCA(num, whiten=True, random_state=0).fit(shapes)
        super().__init__(self._axes.transform(shapes), attributes, people, [num])
        for name in [name for name, accuracy in self.accuracy.items() if np.isnan(accuracy)]:
            del self.accuracy[name], self.threshold[name], self._models[name]

    def read(self, points: np.ndarray) -> dict[str, Tensor]:
        """Scores (N,) by attribute."""
        return self.scores(self._axes.transform(upright(points)))


def upright(points: np.ndarray) -> np.ndarray:
    """Points (N, L, 2) moved, turned and scaled: the eyes lie at -0.5 and 0.5. (N, 2 L)."""
    plane = points[..., 0] + 1j * points[..., 1]
    left, right = (plane[:, list(corners)].mean(1, keepdims=True) for corners in EYES)
    # A picture without a face can have both eyes at one point
    width = np.where(right == left, 1, right - left)
    plane = (plane - (left + right) / 2) / width
    return np.concatenate([plane.real, plane.imag], 1)
