"""Measures attributes of images independently of any VAE.

Trained on real images, sharp and blurred: a VAE blurs, and blur lowers any smile.
Shapes: N images, B batch, C channels, S image side, F features, K columns of codes.
"""

from collections.abc import Mapping, Sequence

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
Labels = Mapping[str, np.ndarray]


def features(x: Tensor) -> Tensor:
    """Histograms of oriented gradients and coarse colours: (B, C, S, S) in [0, 1] -> (B, 2, F).

    Dalal & Triggs 2005.
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
    """Images of SIDE pixels with values in [0, 1]: (B, C, SIDE, SIDE)."""
    x = F.interpolate(x.cpu(), (SIDE, SIDE), mode="bilinear", antialias=True, align_corners=False)
    return x.clamp(0, 1)


def _measured(x: Tensor) -> Tensor:
    return torch.cat([features(chunk) for chunk in x.split(CHUNK)])


def blur(x: Tensor, sd: float = BLUR) -> Tensor:
    """A Gaussian blur of `sd` pixels of SIDE, the border repeated: (B, C, S, S) -> the same."""
    sd = sd * x.shape[-1] / SIDE
    reach = int(3 * sd) + 1
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=x.device) ** 2) / (2 * sd**2))
    channels = x.shape[1]
    kernel = (kernel / kernel.sum()).expand(channels, 1, 1, -1)
    x = F.conv2d(F.pad(x, (reach,) * 4, mode="replicate"), kernel, groups=channels)
    return F.conv2d(x, kernel.transpose(2, 3), groups=channels)


class Reader:
    """Logistic regressions of codes, one for each attribute (N,) of 0 and 1, NaN where unknown.

    Of other people's faces those that lack the attribute have a mean score of 0, others of 1.
    Above `threshold` a face has it; `accuracy` is the share of them for which that is right.
    A model uses as many columns of codes as is most accurate of `widths`.
    """

    def __init__(
        self, codes: np.ndarray, attributes: Labels, people: list[str], widths: Sequence[int]
    ):
        """Codes (N, K), or (2 N, K) of sharp, then of blurred images; the person of each face."""
        self.threshold: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self._models: dict[str, tuple[np.ndarray, float]] = {}
        folds = np.unique(people, return_inverse=True)[1] % FOLDS
        for name, values in attributes.items():
            known = np.isfinite(values)
            if len(np.unique(values[known])) < 2:
                continue
            weights = independence(name, attributes)
            tried = [(validated(codes[:, :k], values, folds, weights), k) for k in widths]
            (accuracy, low, high), width = max(tried, key=lambda trial: trial[0][0])
            slopes, bias = fit_linear(codes[:, :width], values, weights, known)
            self.accuracy[name] = accuracy
            self.threshold[name] = -low / (high - low)
            self._models[name] = slopes / (high - low), (bias - low) / (high - low)

    def scores(self, codes: np.ndarray) -> dict[str, Tensor]:
        """Scores (B,) of codes (B, K) by attribute."""
        return {
            name: torch.from_numpy(codes[:, : len(slopes)] @ slopes + bias).float()
            for name, (slopes, bias) in self._models.items()
        }


class AttributeClassifier(Reader):
    """Reads attributes from principal axes of the features that mirror images share, or of all."""

    def __init__(self, x: Tensor, attributes: Labels, people: list[str]):
        """Images (N, C, S, S), their attributes, the person of each image."""
        from sklearn.decomposition import PCA

        # Features of the images, sharp and blurred
        images = [_shrunk(chunk) for chunk in x.split(CHUNK)]
        every = torch.cat([features(some) for some in [*images, *map(blur, images)]])
        self._mean = every.mean(0)
        sd = every.std(0, correction=0)
        # Decoders vary what images hardly vary
        self._sd = sd.maximum(0.5 * sd.mean(1, keepdim=True))

        # Principal axes of both halves of the features; the first ones distinguish people
        num = min(NUM_AXES, len(x) - 1, every.shape[2])
        self._axes = [PCA(num, random_state=0).fit(half) for half in self._halves(every)]
        self._spread = np.sqrt(self._axes[0].explained_variance_[:NUM_IDENTITY])
        super().__init__(self._codes(every), attributes, people, (num, 2 * num))

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) of images (B, C, S, S) by attribute."""
        return self.scores(self._codes(_measured(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors (B, E) of images, nearer for images of one person than of two."""
        codes = self._codes(_measured(x))[:, : len(self._spread)]
        return F.normalize(torch.from_numpy(codes / self._spread).float(), dim=1)

    def _halves(self, each: Tensor) -> np.ndarray:
        """Features of mean 0, each half of total variance 1: (B, 2, F) -> (2, B, F)."""
        standard = ((each - self._mean) / self._sd).clamp(-4, 4) / self._mean.shape[1] ** 0.5
        return standard.swapaxes(0, 1).double().numpy()

    def _codes(self, each: Tensor) -> np.ndarray:
        """Positions of features on the principal axes of both halves: (B, 2, F) -> (B, K)."""
        return np.hstack([pca.transform(half) for pca, half in zip(self._axes, self._halves(each))])


def independence(name: str, attributes: Labels) -> np.ndarray:
    """Weights of faces (N,) under which an attribute does not correlate with the one it correlates
    most with. Faces of which one is not known have weight 1.

    Without them a classifier of gender also reads smiles, where more women smile.
    """
    own = attributes[name]
    weights = np.ones(len(own))
    most = CORRELATED
    for other, values in attributes.items():
        known = np.isfinite(own + values)
        cell = (2 * own[known] + values[known]).astype(int)
        table = np.bincount(cell, minlength=4).reshape(2, 2)
        if other == name or not table.all():
            continue
        strength = abs(np.corrcoef(own[known], values[known])[0, 1])
        if strength > most:
            most = strength
            expected = np.outer(table.sum(1), table.sum(0)) / table.sum()
            weights = np.ones(len(own))
            weights[known] = (expected / table).ravel()[cell]
    return weights


def validated(
    codes: np.ndarray, values: np.ndarray, folds: np.ndarray, weights: np.ndarray
) -> tuple[float, float, float]:
    """Accuracy for people outside the training data, and the mean scores of both classes.

    `codes` (N, K), or (2 N, K) of sharp, then of blurred images; scores are of the first N. A fold
    whose training part has one class is left out, unlike in cross_val_predict. NaN, 0 and 1 where
    that leaves less than two classes, or both have the same images.
    """
    known = np.isfinite(values)
    scores = np.full(len(values), np.nan)
    for fold in range(FOLDS):
        inside = known & (folds != fold)
        outside = np.flatnonzero(known & (folds == fold))
        if len(outside) and len(np.unique(values[inside])) == 2:
            slopes, bias = fit_linear(codes, values, weights, inside)
            scores[outside] = codes[outside] @ slopes + bias

    scored = np.isfinite(scores)
    lacks = scores[scored & (values == 0)]
    has = scores[scored & (values == 1)]
    tested = len(lacks) and len(has) and np.ptp(scores[scored]) > 1e-9  # more than rounding
    if not tested or lacks.mean() == has.mean():
        return float("nan"), 0.0, 1.0
    right = (scores > 0) == (values == 1)
    return float(right[scored].mean()), float(lacks.mean()), float(has.mean())


def fit_linear(
    codes: np.ndarray, values: np.ndarray, weights: np.ndarray, rows: np.ndarray
) -> tuple[np.ndarray, float]:
    """Slopes (K,) and bias of a logistic regression on the faces `rows` (N,), sharp and blurred."""
    from sklearn.linear_model import LogisticRegression

    times = len(codes) // len(values)
    some = np.tile(rows, times)
    model = LogisticRegression(C=1.0, max_iter=1000)
    model.fit(codes[some], np.tile(values, times)[some], np.tile(weights, times)[some])
    return model.coef_[0], float(model.intercept_[0])
