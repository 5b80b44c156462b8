"""Do faces look real? Distances to faces of held-out people, and copies of training faces.

Shapes: N faces, B batch, S image side, F features, L landmarks.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import hash64
from smilevae.data.cache import cached
from smilevae.data.dataset import Faces, derived_key
from smilevae.data.encode import BATCH, encode
from smilevae.editing import mesh
from smilevae.editing.calibration import decode
from smilevae.errors import DataError
from smilevae.evaluation.exposures import MOST_JUDGED, Judge
from smilevae.evaluation.measure import small
from smilevae.evaluation.options import EvaluateOptions
from smilevae.evaluation.samplers import MAX_REFERENCE, Mixture
from smilevae.models.vae import VAE

NEIGHBOURS = 5
SUBSETS = 100
MIN_FACES = 20  # in each part
MAX_REAL = 2000  # faces of held-out people


class Space:
    """The feature space inside the face mesh, scaled by what it sees in training faces."""

    def __init__(self, seen: mesh.Seen):
        self._mean = seen.features.mean(0)
        self._sd = seen.features.std(0) + 1e-6
        self.training = self.scaled(seen).features  # (N, F)

    def look(self, x: Tensor) -> mesh.Seen:
        """Features and landmarks of images (N, 3, S, S)."""
        return self.scaled(mesh.see(small(x.clamp(0, 1).cpu())))

    def scaled(self, seen: mesh.Seen) -> mesh.Seen:
        """What the mesh sees, in this space."""
        return seen._replace(features=(seen.features - self._mean) / self._sd)

    def __call__(self, x: Tensor) -> Tensor:
        """Features of images: (N, 3, S, S) -> (N, F)."""
        return self.look(x).features


@torch.no_grad()
def feature_space(faces: Faces) -> Space:
    """The space for these faces. Raises DataError without OpenCV, or where the mesh sees no faces."""
    if min(len(faces.rows(part)) for part in ("train", "val")) < MIN_FACES:
        raise DataError(f"each part needs {MIN_FACES} faces; add images of more people")
    seen = seen_by_the_mesh(faces, faces.sample("train", MAX_REFERENCE))
    if np.median(seen.scores) <= 0:
        raise DataError("the face mesh sees no faces in these images")
    return Space(seen)


def seen_by_the_mesh(faces: Faces, rows: np.ndarray) -> mesh.Seen:
    """What the mesh sees in real faces, looked at once for a data set. Raises DataError."""
    width = mesh.NUM_FEATURES + 2 * mesh.NUM_POINTS + 1
    ordered = np.sort(rows)
    key = derived_key(faces, f"mesh-{mesh.opencv().__version__}", ordered)

    def build(content: np.ndarray) -> dict[str, Any]:
        seen = mesh.see(small(faces.batch(ordered)))
        points = seen.points.reshape(len(rows), -1)
        flat = np.hstack([seen.features, points, seen.scores[:, None]])
        content[:] = flat.astype(np.float32).view(np.uint8)
        return {}

    content, _ = cached(key, (len(rows), 4 * width), build, faces.cache)
    values = np.array(content).view(np.float32)[np.searchsorted(ordered, rows)]
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
    kernels = [(p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b))]
    aa, bb, ab = (kernel.fill_diagonal_(0) for kernel in kernels)

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
    radii = [torch.cdist(x, x).kthvalue(NEIGHBOURS + 1).values for x in (real, fake)]
    between = torch.cdist(real, fake)
    inside = between < radii[0][:, None]
    return {
        "precision": inside.any(0).float().mean().item(),
        "recall": (between < radii[1]).any(1).float().mean().item(),
        "density": inside.float().sum(0).mean().item() / NEIGHBOURS,
        "coverage": (between.min(1).values < radii[0]).float().mean().item(),
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
    vae: VAE, faces: Faces, space: Space, sampler: Mixture, options: EvaluateOptions
) -> dict[str, dict[str, float]]:
    """`compared` of a model's reconstructions of held-out people, of as many new faces, and of the
    mean face in the place of every face.

    `double` is the share of a set's faces that the judge takes for double exposures; `overlaid` are
    such exposures of real faces. `area` is the area under the judge's receiver operating curve.
    """
    rows = faces.sample("val", MAX_REAL)
    target = space.scaled(seen_by_the_mesh(faces, rows)).features
    generator = torch.Generator().manual_seed(hash64("realism", options.seed))
    new = sampler.draw(len(rows), generator, options.temperature)
    judge = Judge(faces)
    doubles = {"real": judge.real, "overlaid": judge.overlaid}
    sets = {}
    for name, codes in {"reconstructed": encode(vae, faces, rows)[0], "sampled": new}.items():
        images = torch.cat([small(decode(vae, chunk)) for chunk in codes.split(BATCH)])
        sets[name] = space(images)
        doubles[name] = judge(images[:MOST_JUDGED])
    mean = space(small(faces.batch(rows)).mean(0, keepdim=True))
    sets["mean_face"] = mean.expand(len(rows), -1)

    table = compared(target, space.training, sets)
    for name, scores in doubles.items():
        table.setdefault(name, {})["double"] = float((scores > 0).mean())
    table["overlaid"]["area"] = float((judge.overlaid[:, None] > judge.real).mean())
    return table


def compared(
    real: Tensor, training: Tensor, sets: dict[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Scores of training faces and of `sets` of faces against real ones, as features (N, F).

    `own_face` is the share of reconstructions to which, of all real faces, their own is the nearest.
    """
    table: dict[str, dict[str, float]] = {}
    for name, x in ({"training": training} | sets).items():
        distance, error = kernel_distance(real, x)
        table[name] = {"distance": distance, "error": error}
        if name == "mean_face":
            continue
        table[name] |= prdc(real, x)
        if name != "training":
            table[name]["copies"] = copies(training, real, x)
        if name == "reconstructed":
            own = torch.cdist(x, real).argmin(1) == torch.arange(len(x))
            table[name]["own_face"] = own.float().mean().item()
    return table
