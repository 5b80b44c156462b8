"""Scores of edits: held-out faces that lack an attribute are edited, and read by those who did not calibrate.

Shapes: N edited faces, D latent dimensions, S image side.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.editing import directions
from smilevae.editing.attributes import Attribute, mean_difference
from smilevae.editing.calibration import decode
from smilevae.editing.fitting import UNTESTED, Fitted, fitted_rows
from smilevae.editing.geometry import GeometryReader
from smilevae.evaluation.realism import (
    MIN_FACES,
    Seen,
    Space,
    kernel_distance,
    reference_rows,
    seen_by_the_mesh,
    small,
)
from smilevae.evaluation.references import MAX_REAL, matched, persons, reading_errors
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


def obstacle(faces: Faces, fitted: Fitted, name: str) -> str | None:
    """Why edits of an attribute cannot be scored; None where they can."""
    if not fitted.scorer or np.isnan(fitted.scorer.accuracy.get(name, np.nan)):
        return fitted.left_out.get(name, UNTESTED)
    val = faces.rows("val")
    people = {faces.people[row] for row in val}
    if len(people) < 2 or (faces.labels(name)[val] == 0).sum() < MIN_EDITED:
        return f"two held-out people are needed, and {MIN_EDITED} held-out faces that lack it"
    return None


@torch.no_grad()
def score_edits(vae: VAE, faces: Faces, fitted: Fitted, space: Space | None) -> dict[str, Any]:
    """The scores of every attribute by name, the main one first. It has those of the mean difference too.

    Readings are of a classifier and of landmarks; both saw other people than those who calibrated.
    """
    assert fitted.scorer
    scorer = Scorer(vae, faces, fitted, space)
    scores: dict[str, Any] = {}
    for attribute in fitted.edits.attributes:
        if obstacle(faces, fitted, attribute.name):
            continue
        is_main = attribute is fitted.edits.main
        rows = lacking(faces, attribute.name)[: MAX_EDITED if is_main else MAX_OTHERS]
        scores[attribute.name] = scorer.score(attribute, rows, LEVELS if is_main else SOME)
        if is_main:
            plain = scorer.plain(attribute, rows)
            scores[attribute.name]["mean_difference"] = plain
    return scores


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
    if "distance" not in scores:
        return levels[-1]
    for at in range(1, len(levels)):
        if not looks_real(scores["distance"][at], scores["reference"]):
            return levels[at - 1]
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

        # What both readers see in held-out faces and in their reconstructions.
        self.held_out = np.random.default_rng(1).permutation(faces.rows("val"))[:MAX_HELD_OUT]
        codes = encode(vae, faces, self.held_out)[0]
        self.looks = {
            "real": self._look(faces.batch(self.held_out)),
            "reconstructed": self._look(decode(vae, codes)),
        }

    def score(
        self, attribute: Attribute, rows: np.ndarray, levels: tuple[float, ...]
    ) -> dict[str, Any]:
        """Scores of faces at intensities: lists in their order."""
        mu = encode(self.vae, self.faces, rows)[0]
        codes = attribute.edit(mu, torch.tensor(levels))
        return self.score_images(attribute.name, rows, levels, self._images(codes))

    def plain(self, attribute: Attribute, rows: np.ndarray) -> dict[str, Any]:
        """The same for the study's method: a code plus the mean difference, not calibrated."""
        known, _ = fitted_rows(self.faces, attribute.name)
        labels = torch.from_numpy(self.faces.labels(attribute.name)[known])
        step = mean_difference(encode(self.vae, self.faces, known)[0], labels)
        mu = encode(self.vae, self.faces, rows)[0]
        codes = latents.shift(mu, step, torch.tensor(SOME))
        return self.score_images(attribute.name, rows, SOME, self._images(codes))

    def _images(self, codes: Tensor) -> list[Tensor]:
        """Codes (N, I, D) as I batches of images."""
        return [small(decode(self.vae, z).clamp(0, 1)) for z in codes.unbind(1)]

    def score_images(
        self, name: str, rows: np.ndarray, levels: tuple[float, ...], edited: list[Tensor]
    ) -> dict[str, Any]:
        """Scores of edited images (N, 3, S, S) at each level, of which the first is 0."""
        target, reference = self._reference(name, rows)
        before = self.classifier(edited[0])
        person = self.classifier.embed(edited[0])
        table: dict[str, list] = {key: [] for key in ("score", "success", "success_landmarks")}
        table |= {key: [] for key in ("distance", "identity", "changes")}
        for x in edited:
            readings, seen = self._look(x)
            for key, value in self._readings(name, readings, seen).items():
                table[key].append(value)
            if seen and target is not None:
                table["distance"].append([*kernel_distance(target, seen.features, SUBSETS)])
            moved = (self.classifier.embed(x) - person).norm(dim=1).mean().item()
            table["identity"].append(moved / self.same_person)
            table["changes"].append(self._changes(name, before, readings))
        return {
            "num_faces": len(rows),
            "intensities": list(levels),
            **{key: values for key, values in table.items() if values},
            "reference": reference,
            "accuracy": self.classifier.accuracy[name],
            "other_person": self.other_person / self.same_person,
        }

    def _readings(
        self, name: str, readings: dict[str, Tensor], seen: Seen | None
    ) -> dict[str, float]:
        """The mean score, and the shares of faces that have the attribute by both readers."""
        score = readings[name]
        has = score > self.classifier.threshold[name]
        result = {"score": score.mean().item(), "success": has.float().mean().item()}
        if seen and self.geometry and name in self.geometry.accuracy:
            has = self.geometry.read(seen.points)[name] > self.geometry.threshold[name]
            result["success_landmarks"] = has.float().mean().item()
        return result

    def _changes(
        self, name: str, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> dict[str, float]:
        """Other attributes whose readings change by more than the classifier's own error.

        The change is a root mean square over faces with the sign of the mean: opposite ones do not cancel.
        """
        changes = {}
        for attribute in self.attributes:
            other = attribute.name
            if other == name:
                continue
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
        chosen = np.isin(self.held_out, has)
        reference: dict[str, dict[str, Any]] = {}
        features = {}
        for kind, (readings, seen) in self.looks.items():
            own = {other: score[torch.from_numpy(chosen)] for other, score in readings.items()}
            if seen:
                seen = Seen(seen.features[torch.from_numpy(chosen)], seen.points[chosen])
                features[kind] = seen.features
            reference[kind] = self._readings(name, own, seen)
        if features:
            floor = kernel_distance(features["real"], features["reconstructed"], SUBSETS)
            reference["reconstructed"]["distance"] = [*floor]
        return features.get("real"), reference

    def _look(self, x: Tensor) -> tuple[dict[str, Tensor], Seen | None]:
        """The classifier's scores of images (N, 3, S, S), and what the space sees in them."""
        x = small(x.clamp(0, 1))
        return self.classifier(x), self.space.look(x) if self.space else None

    def _confounders(self, name: str, most: int = 2) -> list[str]:
        """The editable attributes that correlate most with one."""
        labels = {one.name: one.labels for one in self.attributes}
        strength = {
            other: abs(directions.correlation(labels[name], values))
            for other, values in labels.items()
            if other != name
        }
        strong = [other for other in strength if strength[other] > CONFOUNDED]
        return sorted(strong, key=lambda other: -strength[other])[:most]


def _geometry(faces: Faces, fitted: Fitted) -> GeometryReader | None:
    """A reader of landmarks that saw the scorer's people only; None where those are too few."""
    rows = reference_rows(faces)
    points = seen_by_the_mesh(faces).points
    own = np.array([faces.people[row] in fitted.scorer_people for row in rows])
    labels = {}
    for attribute in fitted.edits.attributes:
        values = faces.labels(attribute.name)[rows[own]].astype(float)
        labels[attribute.name] = np.where(values < 0, np.nan, values)
    people = [faces.people[row] for row in rows[own]]
    return GeometryReader(points[own], labels, people) if len(people) > 1 else None
