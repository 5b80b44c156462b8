"""What scores edited faces: two readers, distances to real faces in two feature spaces, identity.

Shapes: N edited faces, S image side.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of
from smilevae.editing import mesh
from smilevae.editing.calibration import images
from smilevae.editing.fitting import Fitted, confounders
from smilevae.editing.geometry import GeometryReader
from smilevae.evaluation.realism import MIN_FACES, Space, kernel_distance, reference_rows, seen_by_the_mesh, small
from smilevae.models.vae import VAE

MAX_REAL = 300  # held-out faces that have the attribute
SUBSETS = 30  # of a distance's jackknife
MIN_PAIRS = 8  # of photos of one person

Edited = Callable[[float], Tensor]  # intensity -> images (N, 3, S, S) in [0, 1]


class Judges:
    """What scores edits of one attribute: two readers, the feature spaces, real faces that have it."""

    @torch.no_grad()
    def __init__(
        self,
        vae: VAE,
        faces: Faces,
        attribute: str,
        edited: np.ndarray,
        fitted: Fitted,
        spaces: list[Space],
        cache: bool = True,
    ):
        assert fitted.scoring
        self.attribute, self.classifier, self.spaces = attribute, fitted.scoring, spaces
        self.geometry: GeometryReader | None = None
        if any(space.name == "landmarks" for space in spaces):
            rows, points = reference_rows(faces), seen_by_the_mesh(faces, cache).points
            people, label = [faces.people[row] for row in rows], faces.labels(attribute)[rows].astype(float)
            known = np.array([person in fitted.scoring_people for person in people]) & (label >= 0)
            people = [person for person, own in zip(people, known) if own]
            labels = {
                name: faces.labels(name)[rows][known].astype(float) for name in confounders(attribute, fitted.labels)
            }
            labels = {name: np.where(values < 0, np.nan, values) for name, values in labels.items()}
            if {0, 1} <= set(label[known].tolist()):
                reader = GeometryReader(points[known], {attribute: label[known], **labels}, people)
                self.geometry = reader if attribute in reader.accuracy else None
        val = np.random.default_rng(1).permutation(faces.rows("val"))
        rows = matched(faces, val[faces.labels(attribute)[val] == 1], edited, confounders(attribute, fitted.labels))[
            :MAX_REAL
        ]
        self.person = _persons(faces, val, spaces)
        self.references: dict[str, dict[str, Any]] = {}
        self._target: dict[str, Tensor] = {}
        if len(rows) >= MIN_FACES:
            real = [small(x).cpu() for x in batches_of(vae, faces, rows)]
            rebuilt = [small(vae.decode(vae.encode(x)[0])).cpu() for x in batches_of(vae, faces, rows)]
            looks = {"real faces that have it": self._look(torch.cat(real))}
            looks["their reconstructions"] = self._look(torch.cat(rebuilt))
            self._target = looks["real faces that have it"][1]
            self.references = {name: self._scores(*look) for name, look in looks.items()}
            half = {name: x[::2] for name, x in self._target.items()}
            self.references["real faces that have it"]["distance"] = self._distances(half, halves=True)

    def _look(self, x: Tensor) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
        """Scores of both readers, and features in every space."""
        x = small(x.clamp(0, 1))
        readings, features = {"classifier": self.classifier(x)}, {}
        for space in self.spaces:
            if space.name == "landmarks":
                seen = mesh.see(x)
                features[space.name] = space.standard(seen.features)
                if self.geometry:
                    readings["geometry"] = self.geometry.read(seen.points)
            else:
                features[space.name] = space(x)
        return readings, features

    def _scores(self, readings: Mapping[str, Mapping[str, Tensor]], features: dict[str, Tensor]) -> dict[str, Any]:
        scores: dict[str, Any] = {}
        for reader, by_name in readings.items():
            value = by_name[self.attribute]
            judge = self.classifier if reader == "classifier" else self.geometry
            assert judge
            called = (value > judge.threshold[self.attribute]).float().mean().item()
            spread = value.std(correction=0).item()
            scores[reader] = {"mean": value.mean().item(), "spread": spread, "called": called}
        return scores | {"distance": self._distances(features)}

    def _distances(self, features: Mapping[str, Tensor], halves: bool = False) -> dict[str, Any]:
        """Kernel distances, with errors, to real held-out faces that have the attribute."""
        target = {name: x[1::2] if halves else x for name, x in self._target.items()}
        return {name: [*kernel_distance(target[name], features[name], SUBSETS)] for name in target}

    def score(self, edited: Edited, levels: Sequence[float]) -> dict[str, Any]:
        """Scores of edits at `levels`, of which the first is 0: lists in their order."""
        rest = edited(levels[0])
        own, own_features = self._look(rest)
        edges, rows = _edges(small(rest)).clamp(min=1e-6), []
        for level in levels:
            x = edited(level) if level else rest
            readings, features = self._look(x) if level else (own, own_features)
            row = self._scores(readings, features)
            moved = (features["faces"] - own_features["faces"]).norm(dim=1).mean().item()
            row |= {"identity": moved / self.person["same"], "sharpness": float((_edges(small(x)) / edges).mean())}
            known = readings["classifier"].items()
            row["drift"] = {n: _drift(v - own["classifier"][n]) for n, v in known if n != self.attribute}
            rows.append(row)
        return {"intensities": list(levels)} | {key: [row[key] for row in rows] for key in rows[0]}


def matched(faces: Faces, rows: np.ndarray, edited: np.ndarray, names: list[str]) -> np.ndarray:
    """Of `rows` those that have other attributes in the shares that the edited faces have them.

    Otherwise an edit that also changes them would be nearer to real faces. All rows where too few would remain.
    """
    keys = list(zip(*(faces.labels(name).tolist() for name in names), faces.part == "", strict=True))
    wanted, there = (Counter(keys[row] for row in some) for some in (edited, rows))
    most = min(there[key] / num for key, num in wanted.items())
    left = {key: int(most * num) for key, num in wanted.items()}
    if sum(left.values()) < MIN_FACES:
        return rows
    chosen = []
    for row in rows:
        if left.get(keys[row], 0):
            left[keys[row]] -= 1
            chosen.append(row)
    return np.array(chosen)


def _persons(faces: Faces, rows: np.ndarray, spaces: list[Space]) -> dict[str, float]:
    """Mean distances, in the space of faces, of two photos of one person, and of two people.

    Without two photos of anybody, "same" is half of the distance of two people.
    """
    space, by_person = spaces[0], dict[str, list[int]]()
    for row in rows.tolist():
        by_person.setdefault(faces.people[row], []).append(row)
    pairs = [rows[:2] for rows in by_person.values() if len(rows) > 1][:MAX_REAL]
    some = [rows[0] for rows in by_person.values()][:MAX_REAL]
    x = space(images(faces, np.array(some)))
    other = (x - x.roll(1, 0)).norm(dim=1).mean().clamp(min=1e-6).item()
    a, b = (images(faces, np.array([pair[k] for pair in pairs], dtype=int)) for k in (0, 1))
    differ = (a != b).flatten(1).any(1)  # a copy of a file is no second photo
    if differ.sum() < MIN_PAIRS:
        return {"same": other / 2, "other": other, "pairs": 0}
    same = (space(a[differ]) - space(b[differ])).norm(dim=1)
    return {"same": same.mean().item(), "other": other, "pairs": len(same)}


def _drift(change: Tensor) -> float:
    """The root mean square of changes (N,), with the sign of their mean: opposite changes do not cancel."""
    size = change.square().mean().sqrt().item()
    return -size if change.mean() < 0 else size


def _edges(x: Tensor) -> Tensor:
    """Mean edge strength: (B, 3, S, S) -> (B,)."""
    across, down = x.diff(dim=3), x.diff(dim=2)
    return across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)
