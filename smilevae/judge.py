"""Reads smiles and other attributes off pictures, independently of any VAE: what an edit is measured with.

Shapes: N examples, B batch, S image side, F features. Trained on real pictures, sharp and blurred (a VAE blurs, and
blur lowers any smile), never on reconstructions.
"""

import pkgutil
from collections.abc import Callable, Mapping
from typing import Protocol, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae import ConfigError

SIDE = 64  # pixels that pictures are read at
BINS, CELL, STRIDE = 8, 8, 4  # of the histograms of gradients
COARSE = 12  # side of the shrunk picture whose colours are features too
BLUR = 1.5  # pixels, standard deviation of a Gaussian
NUM_AXES = 80  # that tell people apart
FOLDS = 5


def features(x: Tensor) -> Tensor:
    """Histograms of oriented gradients (Dalal & Triggs 2005) and coarse colours: (B, 3, S, S) in [0, 1] -> (B, F).

    Each is added to its mirror image's: a face and its mirror image are one to a judge.
    """
    x = _shrunk(x)
    grey = x.mean(1, keepdim=True)
    across = F.pad(grey[..., 2:] - grey[..., :-2], (1, 1))
    down = F.pad(grey[..., 2:, :] - grey[..., :-2, :], (0, 0, 1, 1))
    turns = torch.arange(BINS, device=x.device)[:, None, None] * (2 * torch.pi / BINS)
    strength, angle = torch.hypot(across, down), torch.atan2(down, across)
    cells = F.avg_pool2d(strength * F.relu(torch.cos(angle - turns)) ** 4, CELL, STRIDE)  # (B, BINS, ., .)
    cells = cells / (cells.square().sum(1, keepdim=True).sqrt() + 0.05)
    cells = cells + cells.flip(3)[:, (BINS // 2 - torch.arange(BINS)) % BINS]
    colours = F.interpolate(x, (COARSE, COARSE), mode="area")
    halves = [part[..., : (part.shape[3] + 1) // 2].flatten(1) for part in (cells, colours + colours.flip(3))]
    return torch.cat(halves, 1)


def _in_chunks(x: Tensor, blurred: bool = False) -> np.ndarray:
    """Features of any number of pictures: (N, 3, S, S) -> (N, F)."""
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
    """The judge that needs nothing but the training faces: histograms of gradients, and linear models of them."""

    def __init__(self, x: Tensor, attributes: Mapping[str, np.ndarray], people: list[str]):
        self.threshold: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self._models: dict[str, tuple] = {}
        own = _in_chunks(x)
        self._fit(own, np.concatenate([own, _in_chunks(x, blurred=True)]), attributes, people)

    def _fit(self, own: np.ndarray, every: np.ndarray, attributes: Mapping[str, np.ndarray], people: list[str]) -> None:
        from sklearn.decomposition import PCA

        self._mean, sd = every.mean(0), every.std(0)
        self._sd = np.maximum(sd, 0.5 * sd.mean())  # what hardly varies in pictures does in a decoder's
        every, own = self._standard(every), self._standard(own)
        self._axes = PCA(min(NUM_AXES, len(own) - 1), whiten=True, random_state=0).fit(every)
        fold = np.unique(people, return_inverse=True)[1] % FOLDS
        for name, values in attributes.items():
            known = np.isfinite(values)
            two = len(np.unique(values[known])) == 2
            rows, labels = np.tile(known, 2), np.tile(values, 2)
            unseen = np.full(len(values), np.nan)
            for number in range(FOLDS):
                inside = rows & np.tile(fold != number, 2)
                mine = known & (fold == number)
                if mine.any() and len(np.unique(labels[inside])) > 1:
                    unseen[mine] = _Model(two).fit(every[inside], labels[inside]).score(own[mine])
            model = _Model(two).fit(every[rows], labels[rows])
            seen = known & np.isfinite(unseen)
            low, high = 0.0, 1.0
            if two:
                low, high = (float(unseen[seen & (values == v)].mean()) for v in np.unique(values[known]))
                self.threshold[name] = -low / (high - low)
                self.accuracy[name] = float(((unseen > 0) == (values == values[known].max()))[seen].mean())
            else:
                self.accuracy[name] = float(np.corrcoef(unseen[seen], values[seen])[0, 1])
            self._models[name] = model, low, high - low

    def _standard(self, found: np.ndarray) -> np.ndarray:
        """Features of mean 0 whose variances add up to about 1."""
        return np.clip((found - self._mean) / self._sd, -4, 4) / np.sqrt(len(self._mean))

    def embed(self, x: Tensor) -> Tensor:
        codes = self._axes.transform(self._standard(_in_chunks(x)))
        return F.normalize(torch.from_numpy(codes).float(), dim=1)

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        found = self._standard(_in_chunks(x))
        return {
            name: torch.from_numpy((model.score(found) - low) / span).float()
            for name, (model, low, span) in self._models.items()
        }


def outside(name: str) -> MakeJudge:
    """Somebody else's judge by its place, package.module:name. Raises ConfigError."""
    try:
        found = pkgutil.resolve_name(name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"judge={name} cannot be imported ({error}); name it as package.module:class") from None
    if not callable(found):
        raise ConfigError(f"judge={name} is no class or function; name one that gives a judge.Reads")
    return cast("MakeJudge", found)


class _Model:
    """Logistic regression for an attribute with two values, ridge regression for any other, behind one interface."""

    def __init__(self, two: bool):
        from sklearn.linear_model import LogisticRegression, Ridge

        self.two = two
        self.model = LogisticRegression(C=1.0, max_iter=1000) if two else Ridge(alpha=1.0)

    def fit(self, found: np.ndarray, values: np.ndarray) -> "_Model":
        self.model.fit(found, (values == values.max()).astype(int) if self.two else values)
        return self

    def score(self, found: np.ndarray) -> np.ndarray:
        return self.model.decision_function(found) if self.two else self.model.predict(found)
