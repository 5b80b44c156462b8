"""Does a face look like a double exposure, two faces in one picture? A judge that no training sees.

The kernel distance of realism.py hardly sees it (docs/results.md).
Shapes: N faces, S image side, F features.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import hash64
from smilevae.data.cache import cached
from smilevae.data.dataset import Faces, derived_key
from smilevae.editing import mesh
from smilevae.editing.classifier import blur
from smilevae.evaluation.measure import small

SHARES = (0.3, 0.5, 0.7)  # of the first of two faces
BLURS = (0.0, 0.6, 1.2, 1.7)  # sd in pixels of 64; blur alone is no double exposure
RIDGE = 1e4  # penalty of the slopes of standardised features
MOST = 800  # training faces
MOST_JUDGED = 300  # faces of a set that are judged


def double_exposures(x: Tensor, shares: Tensor, generator: torch.Generator) -> Tensor:
    """Each image of (N, C, S, S) with another one, of which it keeps its share of `shares` (N,)."""
    order = torch.randperm(len(x), generator=generator)
    other = torch.empty_like(x)
    other[order] = x[order.roll(1)]
    return other.lerp(x, shares[:, None, None, None])


class Judge:
    """A linear classifier of edges that early layers of the face mesh see.

    It learns training faces against double exposures of them, both sharp and blurred. `real` and
    `overlaid` are its scores of held-out faces and of double exposures of them.
    """

    def __init__(self, faces: Faces):
        """Fits it once for a data set. Raises DataError without OpenCV."""
        rows = np.sort(faces.sample("train", MOST))
        held_out = np.sort(faces.sample("val", MOST_JUDGED))
        key = derived_key(faces, f"overlays-{mesh.opencv().__version__}", rows, held_out)

        def build(content: np.ndarray) -> dict[str, Any]:
            self._weights = _fitted(small(faces.batch(rows))).astype(np.float32)
            content[:] = self._weights.view(np.uint8)
            x = small(faces.batch(held_out))
            shares = torch.tensor(SHARES).repeat(len(x))[: len(x)]
            generator = torch.Generator().manual_seed(hash64("exposures of held-out faces"))
            overlaid = double_exposures(x, shares, generator)
            return {"real": self(x).tolist(), "overlaid": self(overlaid).tolist()}

        content, scores = cached(key, (4 * (mesh.NUM_EDGES + 1),), build, faces.cache)
        self._weights = np.array(content).view(np.float32)
        self.real = np.array(scores["real"])
        self.overlaid = np.array(scores["overlaid"])

    def __call__(self, x: Tensor) -> np.ndarray:
        """Scores (N,) of images (N, C, S, S) in [0, 1]: above 0 where one is a double exposure."""
        x = x.clamp(0, 1)
        mean = (mesh.see_edges(x) + mesh.see_edges(x.flip(3))) / 2
        return self._weights[0] + mean @ self._weights[1:]


def _fitted(x: Tensor) -> np.ndarray:
    """Bias and slopes (1 + F,) of a ridge regression on faces (N, C, S, S)."""
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import StandardScaler

    # As many double exposures as faces, mirrored and not. A quarter of each has one of BLURS.
    generator = torch.Generator().manual_seed(hash64("exposures"))
    low, _, high = SHARES
    features = []
    labels = []
    for turn, faces in enumerate((x, x.flip(3), x, x.flip(3))):
        shares = low + (high - low) * torch.rand(len(x), generator=generator)
        for label, images in ((-1, faces), (1, double_exposures(faces, shares, generator))):
            for index, sd in enumerate(BLURS):
                some = images[(index + turn) % len(BLURS) :: len(BLURS)]
                features.append(mesh.see_edges(blur(some, sd) if sd else some))
                labels += [label] * len(some)

    # Ridge regression of standardised features, as one linear function of the plain ones.
    scale = StandardScaler()
    model = Ridge(RIDGE).fit(scale.fit_transform(np.concatenate(features)), labels)
    slopes = model.coef_ / scale.scale_
    return np.array([model.intercept_ - scale.mean_ @ slopes, *slopes])
