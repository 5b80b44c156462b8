"""Fits the edits of every attribute. Each step takes a list of attributes and gives a shorter one.

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

    # The attributes that are known of enough faces.
    attributes, left_out = known_attributes(faces, rows, mu, main)
    if attributes and attributes[0].direction.norm() < 1e-3:
        return None
    if main not in left_out:
        classifier = classifier_of(faces, rows, attributes, calibrating)
        attributes, unread = readable(attributes, classifier)
        left_out |= unread
    if main in left_out:
        if wanted:
            raise ConfigError(f"attribute={main}: {left_out[main]}")
        plain = plain_attribute(main, mu, labels_of(faces, main, rows))
        if plain.direction.norm() < 1e-3:
            return None
        return Fitted(Edits([plain], points), left_out)

    # Those that reconstructions show, and that their directions change.
    geometry = geometry_of(faces, rows, attributes, calibrating)
    scores = DecodedScores(vae, classifier, geometry)
    attributes, hidden = shown(attributes, mu, scoring, scores)
    attributes = estimated_on(attributes, mu, calibrating, scores)
    attributes, unmoved = unmixed(attributes, mu[scoring][:MAX_CALIBRATED], scores)
    left_out |= hidden | unmoved

    # Optimal transport for the main attribute; then gain and range of each.
    first, *others = attributes
    attributes = [replace(first, matrix=directions.transport(mu, first.labels)), *others]
    attributes = [calibrated(attribute, mu, scoring, scores) for attribute in attributes]
    scorer = classifier_of(faces, rows, attributes, scoring)
    people = frozenset(faces.people[row] for row in rows[scoring])
    return Fitted(Edits(attributes, points), left_out, scorer, people)


def attributes_of(faces: Faces) -> list[str]:
    """The names of attributes, the label first."""
    others = [name for name in faces.attributes if name != faces.label]
    return [faces.label, *others] if faces.labelled("train") else others


def main_attribute(faces: Faces, wanted: str | None) -> str | None:
    """The wanted attribute, else the label, else the first with enough faces. Raises ConfigError."""
    names = attributes_of(faces)
    if wanted and wanted not in names:
        raise ConfigError(f"attribute={wanted} is unknown; choose one of {', '.join(names)}")
    for name in [wanted] if wanted else names:
        if wanted or name == faces.label or not shortage(faces, name):
            return name
    return None


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
    labels = faces.labels(name)
    counts = [
        int((labels[rows[side]] == value).sum()) for side in (half, ~half) for value in (1, 0)
    ]
    if min(counts) < MIN_LABELLED:
        has = counts[0] + counts[2]
        lacks = counts[1] + counts[3]
        return (
            f"{has} training faces have it and {lacks} do not; {2 * MIN_LABELLED} of each are needed,"
            f" {MIN_LABELLED} in each half of the people"
        )
    if not (labels[faces.rows("val")] == 0).any():
        return "no held-out face is known to lack it"
    return None


def labels_of(faces: Faces, name: str, rows: np.ndarray) -> Tensor:
    """1, 0 or NaN of some faces."""
    labels = torch.from_numpy(faces.labels(name)[rows]).float()
    return labels.masked_fill(labels < 0, torch.nan)


def known_attributes(
    faces: Faces, rows: np.ndarray, mu: Tensor, main: str
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes with enough faces, `main` first, along their mean differences; why not the others."""
    own = labels_of(faces, main, rows)
    kept: list[Attribute] = []
    left_out: dict[str, str] = {}
    for name in dict.fromkeys([main, *attributes_of(faces)]):
        labels = labels_of(faces, name, rows)
        if why := shortage(faces, name, main):
            left_out[name] = why
        elif name != main and abs(directions.correlation(own, labels)) > SAME:
            left_out[name] = f"its faces are nearly those of {main}"
        else:
            kept.append(Attribute(name, labels, mean_difference(mu, labels)))
    return kept, left_out


def classifier_of(
    faces: Faces, rows: np.ndarray, attributes: list[Attribute], side: np.ndarray
) -> AttributeClassifier:
    """A classifier of attributes that saw the faces on one side only."""
    x = faces.batch(rows[side]).contiguous()
    people = [faces.people[row] for row in rows[side]]
    return AttributeClassifier(x, _values(attributes, side), people)


def geometry_of(
    faces: Faces, rows: np.ndarray, attributes: list[Attribute], side: np.ndarray
) -> GeometryReader | None:
    """A reader of landmarks of the faces on one side; None without OpenCV, or without faces in the images."""
    try:
        seen = mesh.see(faces.batch(rows[side]))
    except DataError:
        return None
    if np.median(seen.scores) < 0:
        return None
    people = [faces.people[row] for row in rows[side]]
    return GeometryReader(seen.points, _values(attributes, side), people)


def _values(attributes: list[Attribute], side: np.ndarray) -> dict[str, np.ndarray]:
    keep = torch.from_numpy(side)
    return {one.name: one.labels[keep].double().numpy() for one in attributes}


def readable(
    attributes: list[Attribute], classifier: AttributeClassifier
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes that the classifier recognises on people whom it did not see."""
    return _recognised(attributes, classifier.accuracy, "unseen people")


def shown(
    attributes: list[Attribute], mu: Tensor, side: np.ndarray, scores: DecodedScores
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes that reconstructions of the people on one side show, and always the first one."""
    main, *others = attributes
    keep = torch.from_numpy(side)
    measured, _ = scores(mu[keep][:MAX_READ])
    accuracy = {}
    for one in others:
        labels = one.labels[keep][:MAX_READ]
        has = measured[one.name] > scores.classifier.threshold[one.name]
        accuracy[one.name] = float((has == (labels == 1))[labels >= 0].float().mean())
    kept, left_out = _recognised(others, accuracy, "reconstructions of unseen people")
    return [main, *kept], left_out


def _recognised(
    attributes: list[Attribute], accuracy: Mapping[str, float], where: str
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes whose classifier beats guessing by a share of the smaller class."""
    kept: list[Attribute] = []
    left_out: dict[str, str] = {}
    for one in attributes:
        right = accuracy[one.name]
        share = float(one.labels.nanmean())
        guess = max(share, 1 - share)
        if np.isnan(right):
            left_out[one.name] = UNTESTED
        elif right < guess + READABLE * (1 - guess):
            left_out[one.name] = (
                f"it cannot be recognised: accuracy {right:.0%} on {where}, {guess:.0%} by guessing"
            )
        else:
            kept.append(one)
    return kept, left_out


def estimated_on(
    attributes: list[Attribute], mu: Tensor, side: np.ndarray, scores: DecodedScores
) -> list[Attribute]:
    """Attributes that estimate their scores from codes, fitted to the people on one side."""
    keep = torch.from_numpy(side)
    own = [replace(one, labels=one.labels[keep]) for one in attributes]
    fitted = calibration.estimated(own, mu[keep], scores)
    return [replace(new, labels=old.labels) for new, old in zip(fitted, attributes)]


def unmixed(
    attributes: list[Attribute], mu: Tensor, scores: DecodedScores
) -> tuple[list[Attribute], dict[str, str]]:
    """Attributes whose directions change them and, as far as possible, no other attribute."""
    effects = calibration.effects(attributes, mu, scores)
    strong = [k for k in range(len(attributes)) if k == 0 or effects[k, k] > WEAK]
    kept = [attributes[k] for k in strong]
    left_out = {
        one.name: "its direction does not change it"
        for k, one in enumerate(attributes)
        if k not in strong
    }
    if len(kept) > 1:
        combined = directions.unmixed([one.direction for one in kept], effects[strong][:, strong])
        kept = [replace(one, direction=direction) for one, direction in zip(kept, combined)]
    return kept, left_out


def calibrated(
    attribute: Attribute, mu: Tensor, side: np.ndarray, scores: DecodedScores
) -> Attribute:
    """An attribute with gain and range, fitted to faces on one side."""
    num = MAX_CALIBRATED if attribute.matrix is not None else MAX_CALIBRATED // 2
    keep = torch.from_numpy(side)
    labels = attribute.labels[keep]
    lacks = mu[keep][labels == 0][:num]
    has = mu[keep][labels == 1][:num]
    return calibration.calibrated(attribute, lacks, has, scores)
