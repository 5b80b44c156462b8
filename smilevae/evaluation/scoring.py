"""Scores of edits: held-out faces that lack an attribute are edited, and read by those who did not calibrate.

Shapes: N edited faces, D latent dimensions, S image side.
"""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.editing import directions, mesh
from smilevae.editing.attributes import mean_difference
from smilevae.editing.calibration import decode
from smilevae.editing.fitting import UNTESTED, Fitted, fitted_rows
from smilevae.editing.geometry import GeometryReader
from smilevae.evaluation import realism
from smilevae.evaluation.measure import small
from smilevae.evaluation.realism import MIN_FACES, Space, kernel_distance
from smilevae.evaluation.references import MAX_REAL, matched, persons, reading_errors
from smilevae.evaluation.samplers import MAX_REFERENCE
from smilevae.models import latents
from smilevae.models.vae import VAE

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # intensities at which the main attribute is scored
SOME = (0.0, 1.0, 2.0)  # other attributes, and the mean difference
MAX_EDITED = 100  # held-out faces that get the main attribute
MAX_OTHERS = 40  # those that get another attribute
MAX_HELD_OUT = 1000  # faces that are looked at once, for all attributes
MIN_EDITED = 4  # of fewer faces no distance has an error
SUBSETS = 30  # of a distance's jackknife
REAL = 3.0  # times the distance of reconstructions: beyond it edits do not look real
CONFOUNDED = 0.1  # correlation from which on real faces are matched in another attribute
Edit = Callable[[Tensor, Tensor], Tensor]  # codes (N, D), intensities (I,) -> (N, I, D)


def obstacle(faces: Faces, fitted: Fitted, name: str) -> str | None:
    """Why edits of an attribute cannot be scored; None where they can."""
    if not fitted.scorer or np.isnan(fitted.scorer.accuracy.get(name, np.nan)):
        return fitted.left_out.get(name, UNTESTED)
    val = faces.rows("val")
    people = {faces.people[row] for row in val}
    if len(people) < 2 or (faces.labels(name)[val] == 0).sum() < MIN_EDITED:
        return f"two held-out people are needed, and {MIN_EDITED} held-out faces that lack it"
    return None


def scored(
    vae: VAE, faces: Faces, fitted: Fitted, space: Space | None
) -> tuple[Fitted, dict[str, Any], str | None]:
    """Edits with ranges in which they look real; their scores, or why there are none."""
    why = obstacle(faces, fitted, fitted.edits.main.name)
    if why:
        return fitted, {}, why
    scores = score_edits(vae, faces, fitted, space)
    return with_ranges(fitted, scores), scores, None


@torch.no_grad()
def score_edits(vae: VAE, faces: Faces, fitted: Fitted, space: Space | None) -> dict[str, Any]:
    """The scores of every attribute by name, the main one first, with those of the mean difference.

    Readings are of a classifier and of landmarks; both saw other people than those who calibrated.
    """
    scorer = Scorer(vae, faces, fitted, space)
    main, *others = fitted.edits.attributes
    rows = lacking(faces, main.name)[:MAX_EDITED]
    scores = {main.name: scorer.score(main.name, rows, LEVELS, main.edit)}
    plain = plain_edit(vae, faces, main.name)
    scores[main.name]["mean_difference"] = scorer.score(main.name, rows, SOME, plain)
    for other in others:
        if not obstacle(faces, fitted, other.name):
            rows = lacking(faces, other.name)[:MAX_OTHERS]
            scores[other.name] = scorer.score(other.name, rows, SOME, other.edit)
    return scores


def plain_edit(vae: VAE, faces: Faces, name: str) -> Edit:
    """The study's method: a code plus the mean difference, not calibrated."""
    rows, _ = fitted_rows(faces, name)
    labels = torch.from_numpy(faces.labels(name)[rows])
    step = mean_difference(encode(vae, faces, rows)[0], labels)
    return lambda mu, intensities: latents.shift(mu, step, intensities)


def with_ranges(fitted: Fitted, scores: dict[str, Any]) -> Fitted:
    """Edits whose ranges end where edited faces stop to look real; the scores get these ranges.

    A range ends at the last scored intensity, and reaches no further down than up.
    """
    attributes = []
    for attribute in fitted.edits.attributes:
        own = scores.get(attribute.name)
        if own:
            high = min(attribute.high, last_real(own))
            attribute = replace(attribute, low=max(attribute.low, -high), high=high)
            own["range"] = [attribute.low, attribute.high]
        attributes.append(attribute)
    return fitted._replace(edits=fitted.edits._replace(attributes=attributes))


def last_real(scores: dict[str, Any]) -> float:
    """The largest scored intensity up to which edited faces look real."""
    levels = scores["intensities"]
    for before, distance in zip(levels, scores.get("distance", [])[1:]):
        if not looks_real(distance, scores["reference"]):
            return before
    return levels[-1]


def looks_real(distance: tuple[float, float], reference: dict[str, Any]) -> bool:
    """Whether edits are at most REAL times as far from real faces as reconstructions, within the errors."""
    value, error = distance
    floor, floor_error = reference["reconstructed"]["distance"]
    return value - error <= REAL * max(floor, 0) + floor_error


def lacking(faces: Faces, name: str) -> np.ndarray:
    """Held-out faces that lack an attribute, in random order."""
    val = faces.rows("val")
    return np.random.default_rng(0).permutation(val[faces.labels(name)[val] == 0])


class Look(NamedTuple):
    """What both readers and the space see in N images."""

    scores: dict[str, Tensor]  # (N,) by attribute, of the classifier
    landmarks: dict[str, Tensor]  # (N,) by attribute: whether landmarks show it
    features: Tensor  # (N, F), without a space (N, 0)

    def at(self, index: Tensor) -> "Look":
        """What they see in some of the images."""
        scores = {name: values[index] for name, values in self.scores.items()}
        landmarks = {name: values[index] for name, values in self.landmarks.items()}
        return Look(scores, landmarks, self.features[index])


class Scorer:
    """Scores edited faces of a model: two readers, the distance to real faces, the person."""

    def __init__(self, vae: VAE, faces: Faces, fitted: Fitted, space: Space | None):
        assert fitted.scorer
        self.vae = vae
        self.faces = faces
        self.space = space
        self.attributes = fitted.edits.attributes
        self.classifier = fitted.scorer
        self.geometry = _geometry(faces, fitted) if space else None
        self.same_person, self.other_person = persons(faces, self.classifier)
        self.errors = reading_errors(faces, self.classifier)

        # What is seen in held-out faces and in their reconstructions.
        rows = np.random.default_rng(1).permutation(faces.rows("val"))[:MAX_HELD_OUT]
        seen = space.scaled(realism.seen_by_the_mesh(faces, rows)) if space else None
        self.held_out = rows
        self.real = self._look(faces.batch(rows), seen)
        self.rebuilt = self._look(decode(vae, encode(vae, faces, rows)[0]))

    def score(
        self, name: str, rows: np.ndarray, levels: tuple[float, ...], edit: Edit
    ) -> dict[str, Any]:
        """Scores of faces at intensities, of which the first is 0: lists in their order."""
        codes = edit(encode(self.vae, self.faces, rows)[0], torch.tensor(levels))
        edited = [small(decode(self.vae, z).clamp(0, 1)) for z in codes.unbind(1)]
        return self.score_images(name, rows, levels, edited)

    def score_images(
        self, name: str, rows: np.ndarray, levels: tuple[float, ...], edited: list[Tensor]
    ) -> dict[str, Any]:
        """Scores of edited images (N, 3, S, S) at each level; the first are the reconstructions."""
        target, reference = self._reference(name, rows)
        looks = [self._rebuilt(rows, edited[0]), *map(self._look, edited[1:])]
        people = [self.classifier.embed(x) for x in edited]
        table: defaultdict[str, list] = defaultdict(list)
        for look, person in zip(looks, people):
            for key, value in self._readings(name, look).items():
                table[key].append(value)
            if target is not None:
                table["distance"].append([*kernel_distance(target, look.features, SUBSETS)])
            moved = (person - people[0]).norm(dim=1).mean().item()
            table["identity"].append(moved / self.same_person)
            table["changes"].append(self._changes(name, looks[0].scores, look.scores))
        return {
            "num_faces": len(rows),
            "intensities": list(levels),
            **table,
            "reference": reference,
            "accuracy": self.classifier.accuracy[name],
            "other_person": self.other_person / self.same_person,
        }

    def _look(self, x: Tensor, seen: mesh.Seen | None = None) -> Look:
        """The readers' scores and the features of images (N, 3, S, S); `seen` holds known ones."""
        scores = self.classifier(small(x.clamp(0, 1)))
        if not self.space:
            return Look(scores, {}, torch.empty(len(x), 0))
        seen = seen or self.space.look(x)
        landmarks = {}
        if self.geometry:
            for name, score in self.geometry.read(seen.points).items():
                landmarks[name] = score > self.geometry.threshold[name]
        return Look(scores, landmarks, seen.features)

    def _rebuilt(self, rows: np.ndarray, x: Tensor) -> Look:
        """The same of the reconstructions `x` of some faces; of held-out faces it is known."""
        position = {row: index for index, row in enumerate(self.held_out)}
        if all(row in position for row in rows):
            return self.rebuilt.at(torch.tensor([position[row] for row in rows]))
        return self._look(x)

    def _readings(self, name: str, look: Look) -> dict[str, float]:
        """The mean score, and the shares of faces that have the attribute by both readers."""
        score = look.scores[name]
        has = {"success": score > self.classifier.threshold[name]}
        if name in look.landmarks:
            has["success_landmarks"] = look.landmarks[name]
        shares = {key: values.float().mean().item() for key, values in has.items()}
        return {"score": score.mean().item()} | shares

    def _changes(
        self, name: str, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> dict[str, float]:
        """Other attributes whose readings change by more than the classifier's own error.

        The change is a root mean square over faces with the sign of the mean: opposite ones do not cancel.
        """
        changes = {}
        for other in (one.name for one in self.attributes if one.name != name):
            change = after[other] - before[other]
            size = change.square().mean().sqrt().item()
            if size > self.errors[other]:
                changes[other] = -size if change.mean() < 0 else size
        return changes

    def _reference(self, name: str, rows: np.ndarray) -> tuple[Tensor | None, dict[str, Any]]:
        """Features of real faces that have an attribute; their scores and their reconstructions'.

        Nothing where they are fewer than MIN_FACES.
        """
        has = self.held_out[self.faces.labels(name)[self.held_out] == 1]
        has = matched(self.faces, has, rows, self._confounders(name))[:MAX_REAL]
        if len(has) < MIN_FACES:
            return None, {}
        chosen = torch.from_numpy(np.isin(self.held_out, has))
        real = self.real.at(chosen)
        rebuilt = self.rebuilt.at(chosen)
        reference: dict[str, dict[str, Any]] = {
            "real": self._readings(name, real),
            "reconstructed": self._readings(name, rebuilt),
        }
        if not self.space:
            return None, reference
        floor = kernel_distance(real.features, rebuilt.features, SUBSETS)
        reference["reconstructed"]["distance"] = [*floor]
        return real.features, reference

    def _confounders(self, name: str) -> list[str]:
        """The two editable attributes that correlate most with one."""
        labels = {one.name: one.labels for one in self.attributes}
        own = labels.pop(name)
        strength = {
            other: abs(directions.correlation(own, values)) for other, values in labels.items()
        }
        strong = [other for other in strength if strength[other] > CONFOUNDED]
        return sorted(strong, key=lambda other: -strength[other])[:2]


def _geometry(faces: Faces, fitted: Fitted) -> GeometryReader | None:
    """A reader of landmarks that saw the scorer's people only; None where those are too few."""
    rows = faces.sample("train", MAX_REFERENCE)
    points = realism.seen_by_the_mesh(faces, rows).points
    own = np.array([faces.people[row] in fitted.scorer_people for row in rows])
    people = [faces.people[row] for row in rows[own]]
    names = [one.name for one in fitted.edits.attributes]
    known = {name: faces.labels(name)[rows[own]].astype(float) for name in names}
    labels = {name: np.where(values < 0, np.nan, values) for name, values in known.items()}
    return GeometryReader(points[own], labels, people) if len(people) > 1 else None
