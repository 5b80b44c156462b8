"""Reads smiles and other attributes off pictures, independently of any VAE: what an edit is measured with.

Shapes: N examples, B batch, S image side, F features. Trained on real pictures, sharp and blurred (a VAE blurs, and
blur lowers any smile), never on reconstructions.
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

SIDE = 64  # pixels that pictures are read at
BINS, CELL, STRIDE = 8, 8, 4  # of the histograms of gradients
COARSE = 12  # side of the shrunk picture whose colours are features too
BLUR = 1.5  # pixels, standard deviation of a Gaussian
NUM_AXES = 200  # of the features, that attributes are read from
NUM_FACE = 80  # of them, that tell people apart
FOLDS = 5


def features(x: Tensor) -> Tensor:
    """Histograms of oriented gradients (Dalal & Triggs 2005) and coarse colours: (B, 3, S, S) in [0, 1] -> (B, 2, F).

    First what a face and its mirror image share, then that in which they differ, which changes sign between them.
    """
    x = _shrunk(x)
    grey = x.mean(1, keepdim=True)
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    turns = torch.arange(BINS, device=x.device)[:, None, None] * (2 * torch.pi / BINS)
    strength, angle = torch.hypot(across, down), torch.atan2(down, across)
    cells = F.avg_pool2d(strength * F.relu(torch.cos(angle - turns)) ** 4, CELL, STRIDE)  # (B, BINS, ., .)
    cells = cells / (cells.square().sum(1, keepdim=True).sqrt() + 0.05)
    colours = F.interpolate(x, (COARSE, COARSE), mode="area")
    mirrored = cells.flip(3)[:, (BINS // 2 - torch.arange(BINS)) % BINS], colours.flip(3)
    pairs = [torch.stack([a + b, a - b], 1) for a, b in zip((cells, colours), mirrored)]
    return torch.cat([pair[..., : (pair.shape[-1] + 1) // 2].flatten(2) for pair in pairs], 2)


def _in_chunks(x: Tensor, blurred: bool = False) -> np.ndarray:
    """Features of any number of pictures: (N, 3, S, S) -> (N, 2, F)."""
    chunks = (_shrunk(chunk) for chunk in x.split(256))
    return torch.cat([features(blur(chunk) if blurred else chunk) for chunk in chunks]).numpy()


def _shrunk(x: Tensor) -> Tensor:
    """Pictures as they are read: (B, 3, SIDE, SIDE), values in [0, 1]."""
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


class Reads(Protocol):
    """What an audit asks of a judge: scores of every attribute of pictures (B, 3, S, S), and what makes a face itself.

    Of an attribute with two values, 0 and 1 are the means of the faces that lack and have it; `threshold` says from
    where on a picture is called smiling, `accuracy` how often that is right for people it has not seen. Of any other
    attribute the score estimates its value, and `accuracy` is the correlation of both.
    """

    threshold: dict[str, float]
    accuracy: dict[str, float]

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Scores (B,) by attribute, "smile" among them."""
        ...

    def embed(self, x: Tensor) -> Tensor:
        """Unit vectors (B, E), nearer for pictures of one person than of two."""
        ...


# pictures (N, 3, S, S), attributes (N,) each, NaN where not known, and who they show -> a judge
MakeJudge = Callable[[Tensor, Mapping[str, np.ndarray], list[str]], Reads]


class Judge:
    """The judge that needs nothing but the training faces: histograms of gradients, and linear models on their axes.

    An attribute is read from what a face and its mirror image share, or from all there is, whichever is right more
    often for people it has not seen.
    """

    def __init__(self, x: Tensor, attributes: Mapping[str, np.ndarray], people: list[str]):
        from sklearn.decomposition import PCA

        own = _in_chunks(x)
        every = np.concatenate([own, _in_chunks(x, blurred=True)])
        self._mean, sd = every.mean(0), every.std(0)
        self._sd = np.maximum(sd, 0.5 * sd.mean(1, keepdims=True))  # what hardly varies in pictures does in a decoder's
        num = min(NUM_AXES, len(own) - 1, own.shape[2])
        self._axes = [PCA(num, random_state=0).fit(half) for half in self._standard(every)]
        codes = self._on_axes(every)
        fold = np.unique(people, return_inverse=True)[1] % FOLDS
        self.threshold: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self._models: dict[str, tuple] = {}
        for name, values in attributes.items():
            two = len(np.unique(values[np.isfinite(values)])) == 2
            found = [(_unseen(codes[:, :width], values, fold, two), width) for width in (num, 2 * num)]
            (accuracy, low, high), width = max(found, key=lambda one: one[0][0])
            if two:
                self.threshold[name] = -low / (high - low)
            rows = np.tile(np.isfinite(values), 2)
            model = _Model(two).fit(codes[rows, :width], np.tile(values, 2)[rows])
            self.accuracy[name], self._models[name] = accuracy, (model, width, low, high - low)

    def _on_axes(self, found: np.ndarray) -> np.ndarray:
        """(N, 2, F) -> (N, 2 K), the shared axes first."""
        return np.hstack([axes.transform(half) for axes, half in zip(self._axes, self._standard(found))])

    def _standard(self, found: np.ndarray) -> np.ndarray:
        """Both halves of the features, (2, N, F), of mean 0 and with variances that add up to about 1 each."""
        return np.clip((found - self._mean) / self._sd, -4, 4).swapaxes(0, 1) / np.sqrt(found.shape[2])

    def reader(self, name: str) -> "Reader":
        """This judge's reading of one attribute as plain numbers, to go with a model."""
        model, width, low, span = self._models[name]
        coefficients, bias = model.line()
        weights, num = np.zeros_like(self._mean), len(self._axes[0].components_)
        for half in range(width // num):
            weights[half] = coefficients[half * num : (half + 1) * num] @ self._axes[half].components_
            bias -= weights[half] @ self._axes[half].mean_
        mean, sd, slopes = (torch.from_numpy(part).float() for part in (self._mean, self._sd, weights / span))
        return Reader(mean, sd, slopes, float((bias - low) / span))

    def embed(self, x: Tensor) -> Tensor:
        scale = np.sqrt(self._axes[0].explained_variance_[:NUM_FACE])
        codes = self._on_axes(_in_chunks(x))[:, : len(scale)] / scale
        return F.normalize(torch.from_numpy(codes).float(), dim=1)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        codes = self._on_axes(_in_chunks(x))
        return {
            name: torch.from_numpy((model.score(codes[:, :width]) - low) / span).float()
            for name, (model, width, low, span) in self._models.items()
        }


@dataclass
class Reader:
    """One attribute read off pictures by a linear model: `mean`, `sd` and `weights` of the features, each (2, F)."""

    mean: Tensor
    sd: Tensor
    weights: Tensor
    bias: float

    def __call__(self, x: Tensor) -> Tensor:
        """Scores of pictures: (B, 3, S, S) -> (B,)."""
        found = ((features(x) - self.mean) / self.sd).clamp(-4, 4) / self.mean.shape[1] ** 0.5
        return (found * self.weights).sum((1, 2)) + self.bias

    def plain(self) -> dict[str, Any]:
        """Its plain numbers, for JSON."""
        return {k: v.tolist() if isinstance(v, Tensor) else v for k, v in vars(self).items()}


def reader_from(content: Mapping[str, Any]) -> Reader:
    """A reader from its plain numbers, as `plain` gave them. Raises ValueError, KeyError or TypeError for others."""
    shape = features(torch.zeros(1, 3, SIDE, SIDE)).shape[1:]
    mean, sd, weights = (torch.tensor(content[name], dtype=torch.float32) for name in ("mean", "sd", "weights"))
    bias = float(content["bias"])
    if any(t.shape != shape or not torch.isfinite(t).all() for t in (mean, sd, weights)) or not np.isfinite(bias):
        raise ValueError("not a reader")
    return Reader(mean, sd, weights, bias)


def _unseen(codes: np.ndarray, values: np.ndarray, fold: np.ndarray, two: bool) -> tuple[float, float, float]:
    """How right models are for people they have not seen, and the mean scores of those who lack and have it (or 0, 1).

    `codes` (2 N, K) are of sharp, then of blurred pictures; people of one `fold` (N,) are unseen together.
    """
    known = np.isfinite(values)
    rows, labels, scores = np.tile(known, 2), np.tile(values, 2), np.full(len(values), np.nan)
    for number in range(FOLDS):
        inside, mine = rows & np.tile(fold != number, 2), known & (fold == number)
        if mine.any() and len(np.unique(labels[inside])) > 1:
            scores[mine] = _Model(two).fit(codes[inside], labels[inside]).score(codes[: len(values)][mine])
    seen = known & np.isfinite(scores)
    if not two:
        return float(np.corrcoef(scores[seen], values[seen])[0, 1]), 0.0, 1.0
    low, high = (float(scores[seen & (values == v)].mean()) for v in np.unique(values[known]))
    return float(((scores > 0) == (values == values[known].max()))[seen].mean()), low, high


def outside(name: str) -> MakeJudge:
    """Somebody else's judge by its place, package.module:name. Raises ConfigError."""
    try:
        found = pkgutil.resolve_name(name)
    except Exception as error:  # whatever somebody's module raises
        raise ConfigError(
            f"judge={name} cannot be imported ({type(error).__name__}: {error}); name it as package.module:class"
        ) from None
    if not callable(found):
        raise ConfigError(f"judge={name} is no class or function; name one that gives a judge.Reads")
    return cast("MakeJudge", found)


class _Model:
    """Logistic regression for an attribute with two values, ridge regression for any other, behind one interface."""

    def __init__(self, two: bool):
        from sklearn.linear_model import LogisticRegression, Ridge

        self.two = two
        self.model = LogisticRegression(C=1.0, max_iter=1000) if two else Ridge(alpha=1.0)

    def fit(self, codes: np.ndarray, values: np.ndarray) -> "_Model":
        self.model.fit(codes, (values == values.max()).astype(int) if self.two else values)
        return self

    def line(self) -> tuple[np.ndarray, float]:
        """Coefficients (K,) and intercept of the score."""
        return np.ravel(self.model.coef_), float(np.ravel(self.model.intercept_)[0])

    def score(self, codes: np.ndarray) -> np.ndarray:
        return self.model.decision_function(codes) if self.two else self.model.predict(codes)
