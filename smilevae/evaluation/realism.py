"""Do faces look real? Distances to faces of held-out people, and copies of training faces.

Shapes: N faces, B batch, S image side, F features, L landmarks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from smilevae.data.batches import hash64
from smilevae.data.cache import cached
from smilevae.data.dataset import Faces, derived_key
from smilevae.data.encode import batches_of
from smilevae.editing import mesh
from smilevae.editing.calibration import decode
from smilevae.errors import DataError
from smilevae.evaluation.samplers import MAX_REFERENCE, Mixture
from smilevae.models.vae import VAE

SIDE = 64  # pixels of the images that are compared
NEIGHBOURS = 5
SUBSETS = 100
MIN_FACES = 20  # in each part
MAX_REAL = 2000  # faces of held-out people


def small(x: Tensor) -> Tensor:
    """Images of SIDE pixels: (N, 3, S, S) -> (N, 3, SIDE, SIDE)."""
    return F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] != SIDE else x


class Seen(NamedTuple):
    """What a feature space sees in images: features (N, F) and landmarks (N, L, 2)."""

    features: Tensor
    points: np.ndarray


class Space:
    """The feature space inside the face mesh, scaled by features (N, F) of training faces."""

    def __init__(self, training: Tensor):
        self._mean = training.mean(0)
        self._sd = training.std(0) + 1e-6
        self.training = self._scaled(training)

    def look(self, x: Tensor) -> Seen:
        """Features and landmarks of images (N, 3, S, S)."""
        seen = mesh.see(small(x.clamp(0, 1).cpu()))
        return Seen(self._scaled(seen.features), seen.points)

    def __call__(self, x: Tensor) -> Tensor:
        """Features of images: (N, 3, S, S) -> (N, F)."""
        return self.look(x).features

    def _scaled(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._sd


@torch.no_grad()
def feature_space(faces: Faces) -> Space:
    """The space for these faces. Raises DataError without OpenCV, or where the mesh sees no faces."""
    if len(faces.rows("train")) < MIN_FACES or len(faces.rows("val")) < MIN_FACES:
        raise DataError(f"each part needs {MIN_FACES} faces; add images of more people")
    seen = seen_by_the_mesh(faces)
    if np.median(seen.scores) <= 0:
        raise DataError("the face mesh sees no faces in these images")
    return Space(seen.features)


def reference_rows(faces: Faces) -> np.ndarray:
    """Training faces that give the space its scale."""
    return faces.sample("train", MAX_REFERENCE)


def seen_by_the_mesh(faces: Faces) -> mesh.Seen:
    """What the mesh sees in the reference faces, looked at once for a data set. Raises DataError."""
    rows = reference_rows(faces)
    width = mesh.NUM_FEATURES + 2 * mesh.NUM_POINTS + 1
    key = derived_key(faces, f"mesh-{mesh.opencv().__version__}", rows)

    def build(content: np.ndarray) -> dict[str, Any]:
        seen = mesh.see(small(faces.batch(rows)))
        points = seen.points.reshape(len(rows), -1)
        flat = np.hstack([seen.features, points, seen.scores[:, None]])
        content[:] = flat.astype(np.float32).view(np.uint8)
        return {}

    content, _ = cached(key, (len(rows), 4 * width), build, faces.cache)
    values = np.array(content).view(np.float32)
    features, points, scores = np.split(values, [mesh.NUM_FEATURES, width - 1], 1)
    return mesh.Seen(torch.from_numpy(features), points.reshape(len(rows), -1, 2), scores[:, 0])


class Distance(NamedTuple):
    """A kernel distance with the half width of its 95% interval."""

    value: float
    error: float


def kernel_distance(a: Tensor, b: Tensor, subsets: int = SUBSETS) -> Distance:
    """Squared maximum mean discrepancy, unbiased, cubic kernel: (N, F), (M, F). Binkowski et al. 1801.01401, eq. 4.

    Pairs of one position are left out: row i of b may depend on row i of a. The interval is a delete-half jackknife's.
    """
    a = a.double()
    b = b.double()
    aa, bb, ab = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    for kernel in (aa, bb, ab):
        kernel.fill_diagonal_(0)

    # Which rows count: all in the first subset, a random half in each other one.
    generator = torch.Generator().manual_seed(0)
    chosen = [torch.ones(subsets + 1, len(x), dtype=torch.float64) for x in (a, b)]
    for number in range(1, subsets + 1):
        for rows in chosen:
            order = torch.randperm(rows.shape[1], generator=generator)
            rows[number, order[rows.shape[1] // 2 :]] = 0

    # Means of the kernel over pairs of each subset.
    p, q = chosen
    of_a = ((p @ aa) * p).sum(1) / (p.sum(1) * (p.sum(1) - 1))
    of_b = ((q @ bb) * q).sum(1) / (q.sum(1) * (q.sum(1) - 1))
    m = min(len(a), len(b))
    num_pairs = p.sum(1) * q.sum(1) - (p[:, :m] * q[:, :m]).sum(1)
    between = ((p @ ab) * q).sum(1) / num_pairs
    value, *halves = (of_a + of_b - 2 * between).tolist()
    error = 1.96 * float(np.sqrt(np.mean((np.array(halves) - value) ** 2)))
    return Distance(value, error)


def prdc(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage: (N, F), (M, F). Naeem et al. 2002.09797, section 3; k = NEIGHBOURS."""
    radius_real, radius_fake = (
        torch.cdist(x, x).kthvalue(NEIGHBOURS + 1).values for x in (real, fake)
    )
    between = torch.cdist(real, fake)
    inside = between < radius_real[:, None]
    return {
        "precision": inside.any(0).float().mean().item(),
        "recall": (between < radius_fake).any(1).float().mean().item(),
        "density": inside.float().sum(0).mean().item() / NEIGHBOURS,
        "coverage": (between.min(1).values < radius_real).float().mean().item(),
    }


def copies(seen: Tensor, unseen: Tensor, fake: Tensor) -> float:
    """Of all pairs of a new and an unseen real face, the share in which the new one is nearer to a training face.

    0.5 for real faces, 1 for copies: the statistic of Meehan et al. 2004.05675, section 3.1, over the whole space.
    """
    new, real = (torch.cdist(x, seen).min(1).values for x in (fake, unseen))
    nearer = (new[:, None] < real).float().mean()
    equal = (new[:, None] == real).float().mean()
    return float(nearer + equal / 2)


@torch.no_grad()
def of_model(
    vae: VAE, faces: Faces, space: Space, seed: int, sampler: Mixture, temperature: float
) -> dict[str, dict[str, float]]:
    """`realism` of a model's reconstructions of held-out people and of as many new faces."""
    rows = faces.sample("val", MAX_REAL)
    real = [small(x).cpu() for x in batches_of(vae, faces, rows)]
    rebuilt = [small(vae.decode(vae.encode(x)[0])).cpu() for x in batches_of(vae, faces, rows)]
    generator = torch.Generator().manual_seed(hash64("realism", seed))
    codes = sampler.draw(len(rows), generator, temperature)
    new = [small(decode(vae, chunk)) for chunk in codes.split(128)]
    sets = {"reconstructed": torch.cat(rebuilt), "sampled": torch.cat(new)}
    return realism(space, torch.cat(real), sets)


def realism(space: Space, real: Tensor, sets: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Scores of sets of faces (N, 3, S, S) against `real` ones.

    Two ends are beside them: "training" faces, and the mean face in the place of every face.
    `own_face` is the share of reconstructions to which, of all real faces, their own is the nearest.
    """
    target = space(real)
    features = {"training": space.training} | {name: space(x) for name, x in sets.items()}
    table: dict[str, dict[str, float]] = {}
    for name, x in features.items():
        distance = kernel_distance(target, x)
        table[name] = {"distance": distance.value, "error": distance.error} | prdc(target, x)
        if name in sets:
            table[name]["copies"] = copies(space.training, target, x)
        if name == "reconstructed":
            own = torch.cdist(x, target).argmin(1) == torch.arange(len(x))
            table[name]["own_face"] = own.float().mean().item()
    mean = space(real.mean(0, keepdim=True)).expand(len(real), -1)
    distance = kernel_distance(target, mean)
    table["mean_face"] = {"distance": distance.value, "error": distance.error}
    return table
