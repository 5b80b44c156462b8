"""Do faces look real? Distances to the faces of held-out people in two feature spaces, and copies of training faces.

Shapes: N faces, B batch, S image side, F features.
"""

import contextlib
from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from smilevae.data.augment import augment
from smilevae.data.batches import gather, hash64, to_unit
from smilevae.data.cache import cached
from smilevae.data.dataset import Faces, derived_key
from smilevae.data.encode import batches_of
from smilevae.editing import mesh
from smilevae.errors import DataError
from smilevae.evaluation.samplers import MAX_REFERENCE, Mixture
from smilevae.models.vae import VAE

SIDE, WIDTH, EPOCHS = 64, 128, 20  # of the network that tells training faces apart
NEIGHBOURS = 5
SUBSETS = 100
MIN_FACES = 20  # in each part
MAX_REAL = 2000  # faces of held-out people


class FaceNetwork(nn.Module):
    """Faces (B, 3, S, S) in [0, 1] -> features (B, WIDTH) of length 1."""

    def __init__(self) -> None:
        super().__init__()
        widths = (48, 48, 96, WIDTH)
        blocks = [
            (nn.Conv2d(a, b, 3, 2 if a != b else 1, 1), nn.BatchNorm2d(b), nn.ReLU()) for a, b in pairwise(widths)
        ]
        self.layers = nn.Sequential(nn.PixelUnshuffle(4), *(layer for block in blocks for layer in block))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(self.layers(small(x)).mean((2, 3)), dim=1)


def small(x: Tensor) -> Tensor:
    return F.interpolate(x, (SIDE, SIDE), mode="area") if x.shape[-1] != SIDE else x


def exemplar_network(faces: Faces, cache: bool = True) -> FaceNetwork:
    """A network that tells every training face from every other, however moved, mirrored and lit.

    Exemplar CNN, Dosovitskiy et al. 1406.6909. It is trained once for a data set and split, in some 12 seconds.
    """
    rows = np.random.default_rng(0).permutation(faces.rows("train"))[:MAX_REFERENCE]
    network = FaceNetwork()
    shapes = {name: part.shape for name, part in network.state_dict().items()}
    sizes = [shape.numel() for shape in shapes.values()]

    def build(weights: np.ndarray) -> dict[str, Any]:
        _train(network, small(to_unit(torch.from_numpy(gather(faces.images, rows)))))
        flat = torch.cat([part.float().flatten() for part in network.state_dict().values()])
        weights[:] = flat.numpy().view(np.uint8)
        return {}

    weights = cached(derived_key(faces, "network", rows), (4 * sum(sizes),), build, cache)[0]
    parts = torch.from_numpy(np.array(weights).view(np.float32)).split(sizes)
    network.load_state_dict({name: part.view(shapes[name]) for name, part in zip(shapes, parts)})
    return network.eval()


@torch.enable_grad()
def _train(network: FaceNetwork, x: Tensor) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for layer in network.layers:
            if isinstance(layer, nn.Conv2d | nn.BatchNorm2d):
                layer.reset_parameters()
        names = nn.Parameter(torch.randn(len(x), WIDTH) * 0.1)
        batch = min(64, len(x))
        steps = EPOCHS * (len(x) // batch)
        optimizer = torch.optim.AdamW([*network.parameters(), names], lr=3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (batch,))
            moved = augment(x[rows], torch.rand(batch, 9) * 2 - 1, shift=4, rotate=8, zoom=0.1, light=0.3)
            moved = torch.where(torch.rand(batch, 1, 1, 1) < 0.5, moved.flip(3), moved)
            loss = F.cross_entropy(16 * network(moved) @ F.normalize(names, dim=1).T, rows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()


class Space:
    """A feature space, with a scale from the features (N, F) of real faces: standardised features (N, F)."""

    def __init__(self, name: str, features: Callable[[Tensor], Tensor], real: Tensor):
        self.name, self._features = name, features
        self._mean, self._sd = real.mean(0), real.std(0) + 1e-6
        self.seen = self.standard(real)

    def standard(self, features: Tensor) -> Tensor:
        return (features - self._mean) / self._sd

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        return self.standard(torch.cat([self._features(small(part.clamp(0, 1).cpu())) for part in x.split(128)]))


def reference_rows(faces: Faces) -> np.ndarray:
    """Training faces that give the spaces their scale."""
    return np.random.default_rng(0).permutation(faces.rows("train"))[:MAX_REFERENCE]


@torch.no_grad()
def spaces(faces: Faces, cache: bool = True) -> list[Space]:
    """`faces`: of the exemplar network. `landmarks`: inside the face mesh, where OpenCV is and it sees faces."""
    real = small(to_unit(torch.from_numpy(gather(faces.images, reference_rows(faces)))))
    network = exemplar_network(faces, cache)
    every = [Space("faces", network, torch.cat([network(part) for part in real.split(128)]))]
    with contextlib.suppress(DataError):
        seen = seen_by_the_mesh(faces, cache)
        if np.median(seen.scores) > 0:
            every.append(Space("landmarks", lambda x: mesh.see(x).features, seen.features))
    return every


def why_no_landmarks() -> str:
    """What keeps the space of landmarks from these faces."""
    try:
        mesh.see(torch.zeros(1, 3, SIDE, SIDE))
    except DataError as error:
        return str(error)
    return "the face mesh sees no faces in these images"


def seen_by_the_mesh(faces: Faces, cache: bool = True) -> mesh.Seen:
    """What the face mesh sees in the reference faces; it looks once for a data set and split. Raises DataError."""
    rows, width = reference_rows(faces), mesh.NUM_FEATURES + 2 * mesh.NUM_POINTS + 1
    key = derived_key(faces, f"mesh-{mesh.opencv().__version__}", rows)

    def build(content: np.ndarray) -> dict[str, Any]:
        seen = mesh.see(small(to_unit(torch.from_numpy(gather(faces.images, rows)))))
        flat = np.hstack([seen.features, seen.points.reshape(len(rows), -1), seen.scores[:, None]])
        content[:] = flat.astype(np.float32).view(np.uint8)
        return {}

    content = np.array(cached(key, (len(rows), 4 * width), build, cache)[0]).view(np.float32)
    features, points, scores = np.split(content, [mesh.NUM_FEATURES, width - 1], 1)
    return mesh.Seen(torch.from_numpy(features), points.reshape(len(rows), -1, 2), scores[:, 0])


class Distance(NamedTuple):
    """A kernel distance with the half width of its 95% interval."""

    value: float
    error: float


def kernel_distance(a: Tensor, b: Tensor, subsets: int = SUBSETS) -> Distance:
    """Squared maximum mean discrepancy, unbiased, cubic kernel: (N, F), (M, F). Binkowski et al. 1801.01401, eq. 4.

    Pairs of one position are left out: row i of b may depend on row i of a. The interval is a delete-half jackknife's.
    """
    generator, m = torch.Generator().manual_seed(0), min(len(a), len(b))
    a, b = a.double(), b.double()
    aa, bb, ab = ((p @ q.T / p.shape[1] + 1) ** 3 for p, q in ((a, a), (b, b), (a, b)))
    for kernel in (aa, bb, ab):
        kernel.fill_diagonal_(0)
    chosen = [torch.ones(subsets + 1, len(x), dtype=torch.float64) for x in (a, b)]  # the first row: all
    for number in range(1, subsets + 1):
        for rows in chosen:
            rows[number, torch.randperm(rows.shape[1], generator=generator)[rows.shape[1] // 2 :]] = 0
    p, q = chosen
    within = [((w @ k) * w).sum(1) / (w.sum(1) * (w.sum(1) - 1)) for w, k in ((p, aa), (q, bb))]
    pairs = p.sum(1) * q.sum(1) - (p[:, :m] * q[:, :m]).sum(1)
    value, *halves = (within[0] + within[1] - 2 * ((p @ ab) * q).sum(1) / pairs).tolist()
    return Distance(value, 1.96 * float(np.sqrt(np.mean((np.array(halves) - value) ** 2))))


def prdc(real: Tensor, fake: Tensor) -> dict[str, float]:
    """Precision, recall, density and coverage: (N, F), (M, F). Naeem et al. 2002.09797, section 3; k = NEIGHBOURS."""
    radius_real, radius_fake = (torch.cdist(x, x).kthvalue(NEIGHBOURS + 1).values for x in (real, fake))
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
    less, equal = (new[:, None] < real).float().mean(), (new[:, None] == real).float().mean()
    return float(less + equal / 2)


def possible(faces: Faces) -> bool:
    return min(len(faces.rows(part)) for part in ("train", "val")) >= MIN_FACES


@torch.no_grad()
def of_model(
    vae: VAE, faces: Faces, every: list[Space], seed: int, sampler: Mixture, temperature: float
) -> dict[str, Any]:
    """`realism` of a model's reconstructions of held-out people and of as many new faces."""
    rows = np.random.default_rng(0).permutation(faces.rows("val"))[:MAX_REAL]
    real = [small(x).cpu() for x in batches_of(vae, faces, rows)]
    rebuilt = [small(vae.decode(vae.encode(x)[0])).cpu() for x in batches_of(vae, faces, rows)]
    codes = sampler.draw(len(rows), torch.Generator().manual_seed(hash64("realism", seed)), temperature)
    device = next(vae.parameters()).device
    new = [small(vae.decode(z.to(device))).cpu() for z in codes.split(128)]
    sets = {"reconstructions": torch.cat(rebuilt), "new faces": torch.cat(new)}
    return realism(every, torch.cat(real), sets)


def realism(every: list[Space], real: Tensor, sets: dict[str, Tensor]) -> dict[str, Any]:
    """Scores of sets of faces (N, 3, S, S) against `real` ones, in each space; "training faces" are the floor.

    "own face" is the share of reconstructions to which, of all real faces, their own is the nearest.
    """
    table: dict[str, Any] = {}
    for space in every:
        target = space(real)
        features = {"training faces": space.seen} | {name: space(x) for name, x in sets.items()}
        for name, x in features.items():
            distance = kernel_distance(target, x)
            scores = {"distance": distance.value, "error": distance.error} | prdc(target, x)
            scores |= {"copies": copies(space.seen, target, x)} if name in sets else {}
            if name == "reconstructions":
                own = torch.cdist(x, target).argmin(1) == torch.arange(len(x))
                scores["own face"] = own.float().mean().item()
            table.setdefault(name, {})[space.name] = scores
    return table


def format_realism(table: dict[str, Any]) -> str:
    """The scores as text, a line for each set of faces and space."""
    titles = ("distance", "+-", "precision", "recall", "density", "coverage", "copies", "own face")
    head = "distance x 1000 to real faces of held-out people"
    rows = {f"{name}, space of {space}": scores for name, row in table.items() for space, scores in row.items()}
    width = max(map(len, [head, *rows])) + 2
    lines = [f"{head:{width}}" + "".join(f"{title:>10}" for title in titles)]
    for name, scores in rows.items():
        cells = f"{1000 * scores['distance']:10.1f}{1000 * scores['error']:10.1f}"
        cells += "".join(f"{scores[t]:10.2f}" if t in scores else " " * 10 for t in titles[2:])
        lines.append(f"{name:{width}}{cells}")
    return "\n".join(lines)
