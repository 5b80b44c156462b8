"""Fits the edits of every attribute. Each step leaves out attributes that cannot be edited, and says why.

One attribute classifier calibrates; another, trained on other people, is returned for scores.
Shapes: N training faces, D latent dimensions.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import gather
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.editing import calibration, directions, mesh
from smilevae.editing.alignment import LAYOUT
from smilevae.editing.attributes import Attribute, Edits, mean_difference, plain_attribute
from smilevae.editing.calibration import DecodedScores
from smilevae.editing.classifier import AttributeClassifier
from smilevae.editing.detector import typical_points
from smilevae.editing.geometry import GeometryReader
from smilevae.errors import ConfigError, DataError
from smilevae.models.vae import VAE

MAX_TRAIN = 8000  # training faces of directions and classifiers
MIN_LABELLED = 20  # faces that have an attribute, and as many that lack it, in each half of people
MAX_PLACED = 100  # training faces in which eyes and mouth are located
MAX_READ = 500  # faces whose reconstructions are read
MAX_CALIBRATED = 40  # faces that the main attribute's gain and range are fitted to; others: half
SAME = 0.95  # correlation from which on two attributes count as one
READABLE = 0.25  # of the smaller class, by which a classifier must beat guessing
WEAK = 0.1  # of an average face's attribute, which a direction must change
UNTESTED = "too few people have images of both kinds to test its classifier on other people"


class Fitted(NamedTuple):
    """Edits, and why other attributes have none. A classifier of other people than calibrated them.

    `scorer` is None where a classifier has too few faces; `scorer_people` are those that it saw.
    """

    edits: Edits
    left_out: dict[str, str]
    scorer: AttributeClassifier | None = None
    scorer_people: frozenset[str] = frozenset()


@torch.no_grad()
def fit_edits(vae: VAE, faces: Faces, wanted: str | None = None) -> Fitted | None:
    """The edits of a VAE, the attribute `wanted` first. None where no attribute changes the codes.

    Raises ConfigError for a wanted attribute that is unknown or cannot be edited.
    """
    main = main_attribute(faces, wanted)
    if main is None:
        return None

    # The training faces, their codes, and two halves of the people: one calibrates, one scores.
    rows, scoring = fitted_rows(faces, main)
    calibrating = ~scoring
    mu = encode(vae, faces, rows)[0]
    points = typical_points(gather(faces.images, rows[:MAX_PLACED])) or LAYOUT

    # The attributes that are known of enough faces, and that the classifier recognises.
    labels = {}
    for name in [main, *attributes_of(faces)]:
        values = torch.from_numpy(faces.labels(name)[rows]).float()
        labels[name] = values.masked_fill(values < 0, torch.nan)
    left_out = unknown(faces, labels)
    attributes = [
        Attribute(name, own, mean_difference(mu, own))
        for name, own in labels.items()
        if name not in left_out
    ]
    if attributes and attributes[0].direction.norm() < 1e-3:
        return None
    if main not in left_out:
        classifier = AttributeClassifier(*training_data(faces, rows, attributes, calibrating))
        left_out |= unrecognised(attributes, classifier.accuracy, "unseen people")
    if main in left_out:
        if wanted:
            raise ConfigError(f"attribute={main}: {left_out[main]}")
        plain = plain_attribute(main, mu, labels[main])
        if plain.direction.norm() < 1e-3:
            return None
        return Fitted(Edits([plain], points), left_out)

    # Those that reconstructions show, and that their directions change.
    attributes = [one for one in attributes if one.name not in left_out]
    geometry = geometry_reader(*training_data(faces, rows, attributes, calibrating))
    scores = DecodedScores(vae, classifier, geometry)
    left_out |= hidden(attributes[1:], mu, scoring, scores)
    attributes = [one for one in attributes if one.name not in left_out]
    attributes = calibration.estimated(attributes, mu, calibrating, scores)
    attributes, unmoved = unmixed(attributes, mu[scoring][:MAX_CALIBRATED], scores)
    left_out |= unmoved

    # Optimal transport for the main attribute; then gain and range of each.
    first, *others = attributes
    first = replace(first, matrix=directions.transport(mu, first.labels))
    attributes = [calibration.calibrated(first, mu, scoring, MAX_CALIBRATED, scores)]
    half = MAX_CALIBRATED // 2
    attributes += [calibration.calibrated(one, mu, scoring, half, scores) for one in others]
    x, known, people = training_data(faces, rows, attributes, scoring)
    scorer = AttributeClassifier(x, known, people)
    return Fitted(Edits(attributes, points), left_out, scorer, frozenset(people))


def main_attribute(faces: Faces, wanted: str | None) -> str | None:
    """The wanted attribute, else the label, else the first with enough faces. Raises ConfigError."""
    names = attributes_of(faces)
    if wanted and wanted not in names:
        raise ConfigError(f"attribute={wanted} is unknown; choose one of {', '.join(names)}")
    if wanted:
        return wanted
    usable = (name for name in names if name == faces.label or not shortage(faces, name))
    return next(usable, None)


def attributes_of(faces: Faces) -> list[str]:
    """The names of attributes, the label first."""
    others = [name for name in faces.attributes if name != faces.label]
    return [faces.label, *others] if faces.labelled("train") else others


def fitted_rows(faces: Faces, main: str) -> tuple[np.ndarray, np.ndarray]:
    """Training faces of which `main` is known; which of them are of the first half of the people."""
    labels = faces.labels(main)
    rows = directions.some_of_both(faces.sample("train"), labels, MAX_TRAIN)
    rows = rows[labels[rows] >= 0]
    people = [faces.people[row] for row in rows]
    return rows, np.unique(people, return_inverse=True)[1] % 2 == 0


def shortage(faces: Faces, name: str, main: str | None = None) -> str | None:
    """Why an attribute has too few faces for a classifier, fitted to the rows of `main`; None if not."""
    rows, half = fitted_rows(faces, main or name)
    labels = faces.labels(name)[rows]
    has = [int((labels[side] == 1).sum()) for side in (half, ~half)]
    lacks = [int((labels[side] == 0).sum()) for side in (half, ~half)]
    if min(has + lacks) < MIN_LABELLED:
        needed = f"{2 * MIN_LABELLED} of each are needed, {MIN_LABELLED} in each half of the people"
        return f"{sum(has)} training faces have it and {sum(lacks)} do not; {needed}"
    if not (faces.labels(name)[faces.rows("val")] == 0).any():
        return "no held-out face is known to lack it"
    return None


def unknown(faces: Faces, labels: dict[str, Tensor]) -> dict[str, str]:
    """Why attributes, the main one first, have too few faces, or are the same as the main one."""
    main = next(iter(labels))
    left_out = {}
    for name, own in labels.items():
        if why := shortage(faces, name, main):
            left_out[name] = why
        elif name != main and abs(directions.correlation(labels[main], own)) > SAME:
            left_out[name] = f"its faces are nearly those of {main}"
    return left_out


def training_data(
    faces: Faces, rows: np.ndarray, attributes: list[Attribute], side: np.ndarray
) -> tuple[Tensor, dict[str, np.ndarray], list[str]]:
    """Images, attributes and people of the faces on one side, for a reader."""
    x = faces.batch(rows[side]).contiguous()
    values = {one.name: one.labels[side].double().numpy() for one in attributes}
    return x, values, [faces.people[row] for row in rows[side]]


def geometry_reader(
    x: Tensor, values: dict[str, np.ndarray], people: list[str]
) -> GeometryReader | None:
    """A reader of landmarks; None without OpenCV, or without faces in the images."""
    try:
        seen = mesh.see(x)
    except DataError:
        return None
    return GeometryReader(seen.points, values, people) if np.median(seen.scores) >= 0 else None


def hidden(
    attributes: list[Attribute], mu: Tensor, side: np.ndarray, scores: DecodedScores
) -> dict[str, str]:
    """Attributes that reconstructions of the people on one side do not show, and why."""
    measured, _ = scores(mu[side][:MAX_READ])
    accuracy = {}
    for one in attributes:
        labels = one.labels[side][:MAX_READ]
        has = measured[one.name] > scores.classifier.threshold[one.name]
        accuracy[one.name] = float((has == (labels == 1))[labels >= 0].float().mean())
    return unrecognised(attributes, accuracy, "reconstructions of unseen people")


def unrecognised(
    attributes: list[Attribute], accuracy: Mapping[str, float], where: str
) -> dict[str, str]:
    """Attributes whose classifier does not beat guessing by a share of the smaller class, and why."""
    left_out = {}
    for one in attributes:
        right = accuracy[one.name]
        share = float(one.labels.nanmean())
        guess = max(share, 1 - share)
        if np.isnan(right):
            left_out[one.name] = UNTESTED
        elif right < guess + READABLE * (1 - guess):
            readings = f"accuracy {right:.0%} on {where}, {guess:.0%} by guessing"
            left_out[one.name] = f"it cannot be recognised: {readings}"
    return left_out


def unmixed(
    attributes: list[Attribute], mu: Tensor, scores: DecodedScores
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes whose directions change them and, as far as possible, no other attribute."""
    # Mean changes of every score (columns) along the direction of every attribute (rows)
    before, _ = scores(mu)
    changes = []
    for attribute in attributes:
        after, _ = scores(mu + attribute.direction)
        changes.append([float((after[one.name] - before[one.name]).mean()) for one in attributes])
    effects = torch.tensor(changes)

    strong = effects.diagonal() > WEAK
    strong[0] = True
    kept = [one for one, moves in zip(attributes, strong) if moves]
    weak = [one.name for one, moves in zip(attributes, strong) if not moves]
    if len(kept) > 1:
        combined = directions.unmixed([one.direction for one in kept], effects[strong][:, strong])
        kept = [replace(one, direction=direction) for one, direction in zip(kept, combined)]
    return kept, dict.fromkeys(weak, "its direction does not change it")
