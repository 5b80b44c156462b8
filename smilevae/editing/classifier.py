"""Measures attributes of images independently of any VAE. Shapes: N images, B batch, S image side, F features.

Trained on real images, sharp and blurred: a VAE blurs, and blur lowers any smile.
"""

import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.errors import ConfigError

SIDE = 64  # pixels of the images that features are computed from
BINS, CELL, STRIDE = 8, 8, 4  # of the histograms of gradients
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
    return F.conv2d(F.pad(x, (0, 0, reach, reach), mode="replicate"), kernel.transpose(2, 3), groups=3)


class Classifier(Protocol):
    """The attribute classifier that a scorecard needs.

    Two values: 0 and 1 are the mean scores of faces that lack and have the attribute, a score above `threshold` means
    that a face has it, `accuracy` is the share of other people for whom that is right. Otherwise: the score estimates
    the value, `accuracy` is their correlation.
    """

    threshold: dict[str, float]
    accuracy: dict[str, float]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of images (B, 3, S, S) by attribute."""
        ...

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors (B, E), nearer for images of one person than of two."""
        ...


# images (N, 3, S, S), attributes (N,) each, NaN where unknown, and the person of each image -> a classifier
MakeClassifier = Callable[[Tensor, Mapping[str, np.ndarray], list[str]], Classifier]


class AttributeClassifier:
    """The built-in classifier: histograms of gradients, and linear models on their principal axes.

    A model uses only the features that mirror images share, or all: whichever is more accurate for other people.
    """

    def __init__(self, x: Tensor, attributes: Mapping[str, np.ndarray], people: list[str]):
        from sklearn.decomposition import PCA

        images = [_shrunk(chunk) for chunk in x.split(CHUNK)]
        every = torch.cat([features(some) for some in images] + [features(blur(some)) for some in images])
        self._mean, sd = every.mean(0), every.std(0, correction=0)
        self._sd = sd.maximum(0.5 * sd.mean(1, keepdim=True))  # a decoder varies features that hardly vary in images
        halves = standardised(every, self._mean, self._sd).swapaxes(0, 1).double().numpy()
        num = min(NUM_AXES, len(x) - 1, every.shape[2])
        axes = [PCA(num, random_state=0).fit(half) for half in halves]
        codes = np.hstack([pca.transform(half) for pca, half in zip(axes, halves)])
        folds = np.unique(people, return_inverse=True)[1] % FOLDS
        self.threshold, self.accuracy = {}, {}
        self._meters: dict[str, Meter] = {}
        for name, values in attributes.items():
            two = len(np.unique(values[np.isfinite(values)])) == 2
            weights = independence(name, attributes)
            tried = [(validated(codes[:, :width], values, folds, two, weights), width) for width in (num, 2 * num)]
            (self.accuracy[name], low, high), width = max(tried, key=lambda trial: trial[0][0])
            if two:
                self.threshold[name] = -low / (high - low)
            rows = np.tile(np.isfinite(values), 2)
            coefficients, bias = fit_linear(
                codes[rows, :width], np.tile(values, 2)[rows], two, np.tile(weights, 2)[rows]
            )
            parts = np.pad(coefficients, (0, 2 * num - width)).reshape(2, num)
            weights = np.stack([part @ pca.components_ for part, pca in zip(parts, axes)])
            bias -= sum(weight @ pca.mean_ for weight, pca in zip(weights, axes)) + low
            slopes = torch.from_numpy(weights / (high - low)).float()
            self._meters[name] = Meter(self._mean, self._sd, slopes, float(bias / (high - low)))
        scale = np.sqrt(axes[0].explained_variance_[:NUM_IDENTITY])
        self._identity = torch.from_numpy(axes[0].components_[:NUM_IDENTITY] / scale[:, None]).float()
        self._offset = torch.from_numpy(axes[0].mean_).float()

    def meter(self, name: str) -> "Meter":
        return self._meters[name]

    def embed(self, x: Tensor) -> Tensor:
        return F.normalize((self._measured(x)[:, 0] - self._offset) @ self._identity.T, dim=1)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        standard = self._measured(x)
        return {name: meter.score(standard) for name, meter in self._meters.items()}

    def _measured(self, x: Tensor) -> Tensor:
        return torch.cat([standardised(features(chunk), self._mean, self._sd) for chunk in x.split(CHUNK)])


@dataclass
class Meter:
    """A linear model that measures one attribute: `mean`, `sd` and `weights` of the features, each (2, F)."""

    mean: Tensor
    sd: Tensor
    weights: Tensor
    bias: float

    def __call__(self, x: Tensor) -> Tensor:
        """Scores of images: (B, 3, S, S) -> (B,)."""
        return self.score(standardised(features(x), self.mean, self.sd))

    def score(self, standard: Tensor) -> Tensor:
        """Scores of standardised features: (B, 2, F) -> (B,)."""
        return standard.flatten(1) @ self.weights.flatten() + self.bias

    def plain(self) -> dict[str, Any]:
        """Values for JSON."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items()}


def standardised(x_features: Tensor, mean: Tensor, sd: Tensor) -> Tensor:
    """Features of mean 0, each half with variances that add up to about 1: (B, 2, F) -> the same."""
    return ((x_features - mean) / sd).clamp(-4, 4) / mean.shape[1] ** 0.5


def meter_from(content: Mapping[str, Any]) -> Meter:
    """A meter from the values that `plain` gave. Raises ValueError, KeyError or TypeError for others."""
    shape = features(torch.zeros(1, 3, SIDE, SIDE)).shape[1:]
    tensors = [torch.tensor(content[name], dtype=torch.float32) for name in ("mean", "sd", "weights")]
    bias = float(content["bias"])
    if any(t.shape != shape or not torch.isfinite(t).all() for t in tensors) or not np.isfinite(bias):
        raise ValueError("not a meter")
    return Meter(tensors[0], tensors[1], tensors[2], bias)


def independence(name: str, attributes: Mapping[str, np.ndarray]) -> np.ndarray:
    """Weights of faces (N,) under which an attribute does not correlate with the one it correlates most with.

    Without them a classifier of gender also reads smiles, where more women smile. Both of 0 and 1; NaN has weight 1.
    """
    own, weights, most = attributes[name], np.ones(len(attributes[name])), CORRELATED
    for other, values in attributes.items():
        known = np.isfinite(own + values)
        cells = [[known & (own == a) & (values == b) for b in (0, 1)] for a in (0, 1)]
        table = np.array([[cell.sum() for cell in row] for row in cells])
        if other == name or table.sum() != known.sum() or not table.all():
            continue
        if (strength := abs(np.corrcoef(own[known], values[known])[0, 1])) > most:
            most, weights = strength, np.ones(len(own))
            expected = table.sum(1, keepdims=True) * table.sum(0) / table.sum()
            for a, b in ((0, 0), (0, 1), (1, 0), (1, 1)):
                weights[cells[a][b]] = expected[a, b] / table[a, b]
    return weights


def validated(
    codes: np.ndarray, values: np.ndarray, folds: np.ndarray, two: bool, weights: np.ndarray
) -> tuple[float, float, float]:
    """Accuracy for people outside the training data, and the mean scores of faces that lack and have it (or 0, 1).

    `codes` (N, K), or (2 N, K) of sharp, then of blurred images; scores are of the first N. A fold whose training part
    has one class is left out, unlike in cross_val_predict. The accuracy is NaN where that leaves less than two classes.
    """
    known, times = np.isfinite(values), len(codes) // len(values)
    rows, labels, scores = np.tile(known, times), np.tile(values, times), np.full(len(values), np.nan)
    for fold in range(FOLDS):
        inside, outside = rows & np.tile(folds != fold, times), known & (folds == fold)
        if outside.any() and len(np.unique(labels[inside])) > 1:
            coefficients, bias = fit_linear(codes[inside], labels[inside], two, np.tile(weights, times)[inside])
            scores[outside] = codes[: len(values)][outside] @ coefficients + bias
    scored = known & np.isfinite(scores)
    if min(len(np.unique(some[scored])) for some in (values, scores)) < 2:
        return float("nan"), 0.0, 1.0
    if not two:
        return float(np.corrcoef(scores[scored], values[scored])[0, 1]), 0.0, 1.0
    low, high = (float(scores[scored & (values == value)].mean()) for value in np.unique(values[known]))
    if low == high:  # both classes have the same images
        return float("nan"), 0.0, 1.0
    return float(((scores > 0) == (values == values[known].max()))[scored].mean()), low, high


def fit_linear(codes: np.ndarray, values: np.ndarray, two: bool, weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Coefficients (K,) and bias of a logistic regression (`two` values) or a ridge regression."""
    from sklearn.linear_model import LogisticRegression, Ridge

    model = LogisticRegression(C=1.0, max_iter=1000) if two else Ridge(alpha=1.0)
    model.fit(codes, (values == values.max()).astype(int) if two else values, weights)
    return np.ravel(model.coef_), float(np.ravel(model.intercept_)[0])


def import_classifier(name: str) -> MakeClassifier:
    """The user's classifier, package.module:class. Raises ConfigError."""
    try:
        make = pkgutil.resolve_name(name)
    except Exception as error:  # a user's module may raise anything
        raise ConfigError(
            f"classifier={name} cannot be imported ({type(error).__name__}: {error}); pass package.module:class"
        ) from None
    if not callable(make):
        raise ConfigError(f"classifier={name} is no class or function; pass one that returns a Classifier")
    return cast("MakeClassifier", make)
