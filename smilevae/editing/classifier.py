"""Measures attributes of images independently of any VAE. Shapes: N images, B batch, S image side, F features.

Trained on real images, sharp and blurred: a VAE blurs, and blur lowers any smile.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 64  # pixels of the images that features are computed from
BINS = 8  # of the histograms of gradients
CELL = 8  # pixels of a histogram
STRIDE = 4  # pixels between histograms
COARSE = 12  # side of the shrunk image whose colours are features too
BLUR = 1.5  # pixels, standard deviation of a Gaussian
NUM_AXES = 200  # principal axes of the features
NUM_IDENTITY = 80  # of them, that distinguish people
FOLDS = 5
CHUNK = 64  # images at a time
CORRELATED = 0.1


def features(x: Tensor) -> Tensor:
    """Histograms of oriented gradients (Dalal & Triggs 2005) and coarse colours: (B, 3, S, S) in [0, 1] -> (B, 2, F).

    The first half is equal for an image and its mirror image; the second half changes its sign.
    """
    x = _shrunk(x)
    grey = x.mean(1, keepdim=True)
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    strength = torch.hypot(across, down)
    angles = torch.arange(BINS // 2, device=x.device)[:, None, None] * (2 * torch.pi / BINS)
    cosines = (across * angles.cos() + down * angles.sin()) / strength.clamp(min=1e-12)
    cosines = torch.cat([cosines, -cosines], 1)  # of the gradient with each of BINS directions
    blocks = F.avg_pool2d(strength * cosines.relu().square().square(), STRIDE)
    cells = F.avg_pool2d(blocks, CELL // STRIDE, 1)  # (B, BINS, ., .)
    cells = cells / (cells.square().sum(1, keepdim=True).sqrt() + 0.05)
    colours = F.interpolate(x, (COARSE, COARSE), mode="area")
    mirrored = cells.flip(3)[:, (BINS // 2 - torch.arange(BINS)) % BINS], colours.flip(3)
    pairs = [torch.stack([a + b, a - b], 1) for a, b in zip((cells, colours), mirrored)]
    return torch.cat([pair[..., : (pair.shape[-1] + 1) // 2].flatten(2) for pair in pairs], 2)


def _shrunk(x: Tensor) -> Tensor:
    """Images of SIDE pixels with values in [0, 1]: (B, 3, SIDE, SIDE)."""
    x = x.cpu()
    if x.shape[-1] != SIDE:
        x = F.interpolate(x, (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return x.clamp(0, 1)


def blur(x: Tensor, sd: float = BLUR) -> Tensor:
    """A Gaussian blur of `sd` pixels of SIDE, the border repeated: (B, 3, S, S) -> the same."""
    sd = sd * x.shape[-1] / SIDE
    reach = int(3 * sd) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / (2 * sd**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach, reach, 0, 0), mode="replicate"), kernel, groups=3)
    return F.conv2d(
        F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3), groups=3
    )


class AttributeClassifier:
    """Histograms of gradients, and linear models on their principal axes, one for each attribute.

    A score of 0 is the mean of other people's faces that lack the attribute, 1 of those that have it.
    Above `threshold` a face has it; `accuracy` is the share of other people for whom that is right.
    For an attribute of many values the score estimates the value, `accuracy` is their correlation.
    A model uses only the features that mirror images share, or all: whichever is more accurate.
    """

    def __init__(self, x: Tensor, attributes: Mapping[str, np.ndarray], people: list[str]):
        """Images (N, 3, S, S), attributes (N,) each, NaN where unknown, the person of each image."""
        from sklearn.decomposition import PCA

        # Features of the images, sharp and blurred.
        images = [_shrunk(chunk) for chunk in x.split(CHUNK)]
        sharp = [features(some) for some in images]
        blurred = [features(blur(some)) for some in images]
        every = torch.cat(sharp + blurred)
        self._mean = every.mean(0)
        sd = every.std(0, correction=0)
        self._sd = sd.maximum(
            0.5 * sd.mean(1, keepdim=True)
        )  # decoders vary what images hardly vary

        # Principal axes of both halves of the features.
        halves = standardised(every, self._mean, self._sd).swapaxes(0, 1).double().numpy()
        num = min(NUM_AXES, len(x) - 1, every.shape[2])
        axes = [PCA(num, random_state=0).fit(half) for half in halves]
        codes = np.hstack([pca.transform(half) for pca, half in zip(axes, halves)])

        # A linear model of each attribute.
        folds = np.unique(people, return_inverse=True)[1] % FOLDS
        self.threshold: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self._models: dict[str, tuple[Tensor, float]] = {}
        for name, values in attributes.items():
            weights = independence(name, attributes)
            model = _fitted(codes, num, values, folds, weights)
            self.accuracy[name] = model.accuracy
            if model.two:
                self.threshold[name] = -model.low / (model.high - model.low)
            parts = np.pad(model.coefficients, (0, 2 * num - len(model.coefficients))).reshape(
                2, num
            )
            slopes = np.stack([part @ pca.components_ for part, pca in zip(parts, axes)])
            offset = sum(slope @ pca.mean_ for slope, pca in zip(slopes, axes)) + model.low
            scale = model.high - model.low
            bias = float((model.bias - offset) / scale)
            self._models[name] = torch.from_numpy(slopes / scale).float().flatten(), bias

        # The axes that distinguish people.
        spread = np.sqrt(axes[0].explained_variance_[:NUM_IDENTITY])
        self._identity = torch.from_numpy(
            axes[0].components_[:NUM_IDENTITY] / spread[:, None]
        ).float()
        self._offset = torch.from_numpy(axes[0].mean_).float()

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of images (B, 3, S, S) by attribute."""
        standard = self._measured(x).flatten(1)
        return {name: standard @ slopes + bias for name, (slopes, bias) in self._models.items()}

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors (B, E) of images, nearer for images of one person than of two."""
        return F.normalize((self._measured(x)[:, 0] - self._offset) @ self._identity.T, dim=1)

    def _measured(self, x: Tensor) -> Tensor:
        """Standardised features: (B, 3, S, S) -> (B, 2, F)."""
        chunks = [features(chunk) for chunk in x.split(CHUNK)]
        return torch.cat([standardised(chunk, self._mean, self._sd) for chunk in chunks])


class LinearModel(NamedTuple):
    """A linear model of codes, its accuracy on other people, the mean scores of both classes."""

    coefficients: np.ndarray
    bias: float
    accuracy: float
    low: float
    high: float
    two: bool  # whether the attribute has two values


def _fitted(
    codes: np.ndarray, num: int, values: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> LinearModel:
    """A model of the first `num` columns of codes (2 N, 2 num), or of all: the more accurate one."""
    known = np.isfinite(values)
    two = len(np.unique(values[known])) == 2
    tried = []
    for width in (num, 2 * num):
        tried.append((validated(codes[:, :width], values, folds, two, weights), width))
    (accuracy, low, high), width = max(tried, key=lambda trial: trial[0][0])
    rows = np.tile(known, 2)
    coefficients, bias = fit_linear(
        codes[rows, :width], np.tile(values, 2)[rows], two, np.tile(weights, 2)[rows]
    )
    return LinearModel(coefficients, bias, accuracy, low, high, two)


def standardised(x_features: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Features of mean 0, each half with variances that add up to about 1: (B, 2, F) -> the same."""
    return ((x_features - mean) / sd).clamp(-4, 4) / mean.shape[1] ** 0.5


def independence(name: str, attributes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Weights of faces (N,) under which an attribute does not correlate with the one it correlates
    most with. Both are of 0 and 1; faces of which one is not known have weight 1.

    Without them a classifier of gender also reads smiles, where more women smile.
    """
    own = attributes[name]
    weights = np.ones(len(own))
    most = CORRELATED
    for other, values in attributes.items():
        # The table of both attributes; it must hold every known face, and no empty cell.
        known = np.isfinite(own + values)
        cells = [[known & (own == a) & (values == b) for b in (0, 1)] for a in (0, 1)]
        table = np.array([[cell.sum() for cell in row] for row in cells])
        if other == name or table.sum() != known.sum() or not table.all():
            continue

        strength = abs(np.corrcoef(own[known], values[known])[0, 1])
        if strength > most:
            most = strength
            weights = np.ones(len(own))
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weights[cells[a][b]] = expected[a, b] / table[a, b]
    return weights


def validated(
    codes: np.ndarray, values: np.ndarray, folds: np.ndarray, two: bool, weights: np.ndarray
) -> tuple[float, float, float]:
    """Accuracy for people outside the training data, and the mean scores of both classes (or 0, 1).

    `codes` (N, K), or (2 N, K) of sharp, then of blurred images; scores are of the first N. A fold
    whose training part has one class is left out, unlike in cross_val_predict. The accuracy is NaN
    where that leaves less than two classes.
    """
    known = np.isfinite(values)
    times = len(codes) // len(values)
    rows = np.tile(known, times)
    labels = np.tile(values, times)
    scores = np.full(len(values), np.nan)
    for fold in range(FOLDS):
        inside = rows & np.tile(folds != fold, times)
        outside = known & (folds == fold)
        if outside.any() and len(np.unique(labels[inside])) > 1:
            own = np.tile(weights, times)[inside]
            coefficients, bias = fit_linear(codes[inside], labels[inside], two, own)
            scores[outside] = codes[: len(values)][outside] @ coefficients + bias

    unknown = float("nan"), 0.0, 1.0
    scored = known & np.isfinite(scores)
    if min(len(np.unique(some[scored])) for some in (values, scores)) < 2:
        return unknown
    if not two:
        return float(np.corrcoef(scores[scored], values[scored])[0, 1]), 0.0, 1.0
    least, most = np.unique(values[known])
    low = float(scores[scored & (values == least)].mean())
    high = float(scores[scored & (values == most)].mean())
    if low == high:  # both classes have the same images
        return unknown
    right = (scores > 0) == (values == most)
    return float(right[scored].mean()), low, high


def fit_linear(
    codes: np.ndarray, values: np.ndarray, two: bool, weights: np.ndarray
) -> tuple[np.ndarray, float]:
    """Coefficients (K,) and bias of a logistic regression (`two` values) or a ridge regression."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if two:
        model = LogisticRegression(C=1.0, max_iter=1000)
        model.fit(codes, (values == values.max()).astype(int), weights)
    else:
        model = Ridge(alpha=1.0)
        model.fit(codes, values, weights)
    return np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])
