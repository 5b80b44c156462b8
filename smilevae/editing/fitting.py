"""Fits the dials of every attribute: chooses labels and directions, and calibrates them.

One attribute classifier calibrates; another, trained on other people, is returned for scores. Shapes: N examples,
D latent dimensions.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import gather
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.editing import directions, mesh
from smilevae.editing.alignment import LAYOUT
from smilevae.editing.calibration import MAX_CALIBRATED, Calibrator, images
from smilevae.editing.classifier import AttributeClassifier, Classifier, MakeClassifier
from smilevae.editing.detector import typical_points
from smilevae.editing.dial import plain_dial
from smilevae.editing.dials import Dials, Edit
from smilevae.editing.geometry import GeometryReader
from smilevae.errors import ConfigError, DataError
from smilevae.models.vae import VAE

MAX_TRAIN = 8000  # training faces of directions and classifiers
MIN_LABELLED = 20  # faces that have the attribute, and as many that lack it, in each half of the people
MAX_PLACED = 100  # training faces in which eyes and mouth are located
MAX_READ = 500  # faces whose reconstructions are read
SAME = 0.95  # correlation from which on two attributes count as one
READABLE = 0.25  # of the smaller class, by which a classifier must beat the larger one
UNTESTED = "too few people have images of both kinds to test its classifier on other people"
WEAK = 0.1  # of an average face's attribute: a direction that changes its own score by less has no dial


@dataclass(frozen=True)
class Fitted:
    """Dials, with what they were fitted to: codes (N, D) and labels (N,) by attribute of training faces."""

    dials: Dials
    mu: Tensor
    labels: dict[str, Tensor]  # 1, 0, NaN
    people: list[str]
    scoring: Classifier | None = None  # None where a meter had too few faces
    scoring_people: frozenset[str] = frozenset()  # whom it was trained on
    left_out: dict[str, str] = field(default_factory=dict)  # attributes without a calibrated dial, and why

    def others(self, attribute: str) -> dict[str, Tensor]:
        return {name: values for name, values in self.labels.items() if name != attribute}


def confounders(attribute: str, labels: Mapping[str, Tensor], most: int = 2) -> list[str]:
    """The attributes that correlate most with one, if they do at all."""
    of = {n: abs(directions.correlation(labels[attribute], v)) for n, v in labels.items() if n != attribute}
    return sorted((n for n in of if of[n] > directions.CONFOUNDED), key=lambda n: -of[n])[:most]


def attributes_of(faces: Faces) -> list[str]:
    """The label first."""
    return [*([faces.label] * faces.labelled("train")), *(name for name in faces.attributes if name != faces.label)]


def fitted_rows(faces: Faces, main: str) -> tuple[np.ndarray, np.ndarray]:
    """Training faces of which `main` is known, of MAX_TRAIN, and whether each is of the first half of the people."""
    train = np.random.default_rng(0).permutation(faces.rows("train"))
    rows = directions.some_of_both(train, faces.labels(main), MAX_TRAIN)
    rows = rows[faces.labels(main)[rows] >= 0]
    return rows, np.unique([faces.people[row] for row in rows], return_inverse=True)[1] % 2 == 0


def shortage(faces: Faces, attribute: str, main: str | None = None) -> str | None:
    """Why an attribute has too few faces for a meter, fitted to the rows of `main`; None where it has enough."""
    rows, half = fitted_rows(faces, main or attribute)
    label, val = (faces.labels(attribute)[some] for some in (rows, faces.rows("val")))
    counts = [int((label[side] == value).sum()) for side in (half, ~half) for value in (1, 0)]
    if min(counts) < MIN_LABELLED:
        some = f"{counts[0] + counts[2]} training faces have it and {counts[1] + counts[3]} do not"
        return f"{some}; {2 * MIN_LABELLED} of each are needed, {MIN_LABELLED} in each half of the people"
    return None if (val == 0).any() else "no held-out face is known to lack it"


@torch.no_grad()
def fit_dials(
    vae: VAE, faces: Faces, attribute: str | None = None, make: MakeClassifier = AttributeClassifier
) -> Fitted | None:
    """The dials of a VAE; `attribute` gets every direction. None where labels change nothing.

    Raises ConfigError for an attribute that is unknown or has too few faces, and for a classifier that fails.
    """
    names = attributes_of(faces)
    if attribute and attribute not in names:
        raise ConfigError(f"attribute={attribute} is unknown; choose one of {', '.join(names)}")
    main = attribute or next((name for name in names if name == faces.label or not shortage(faces, name)), None)
    if main is None:
        return None
    left_out = {name: why for name in names if (why := shortage(faces, name, main))}
    if attribute in left_out:
        raise ConfigError(f"attribute={attribute}: {left_out[attribute]}")
    train, half = fitted_rows(faces, main)
    people, mu = [faces.people[row] for row in train], encode(vae, faces, train)[0]
    points = typical_points(gather(faces.images, train[:MAX_PLACED])) or LAYOUT
    labels = {name: torch.from_numpy(faces.labels(name)[train]).float() for name in [main, *names] if name in names}
    labels = {name: values.masked_fill(values < 0, torch.nan) for name, values in labels.items()}
    if directions.mean_difference(mu, labels[main]).norm() < 1e-3:
        return None
    for name in [name for name in labels if name != main]:
        if abs(directions.correlation(labels[main], labels[name])) > SAME:
            left_out[name] = f"its faces are nearly those of {main}"
    readable = {n: values for n, values in labels.items() if n not in left_out}
    if main in readable:
        calibrating = classifier_of(faces, train[~half], readable, ~half, make)
        left_out |= _unreadable(readable, calibrating.accuracy, "other people")
    if main in left_out:
        if attribute:
            raise ConfigError(f"attribute={main}: {left_out[main]}")
        dial = plain_dial(mu, labels[main])
        dials = Dials(main, {main: Edit(dial.name, {dial.name: dial}, None)}, points)
        return Fitted(dials, mu, labels, people, left_out=left_out)
    labels = {name: values for name, values in labels.items() if name not in left_out}
    geometry = _geometry(faces, train[~half], labels, ~half)
    work = Calibrator(vae, calibrating, geometry, mu[~half], {n: v[~half] for n, v in labels.items()})
    shown = work.accuracy(mu[half][:MAX_READ], {n: v[half][:MAX_READ] for n, v in labels.items() if n != main})
    left_out |= _unreadable(labels, shown, "other people's reconstructions")
    labels = {name: values for name, values in labels.items() if name not in left_out}
    work.names = [name for name in work.names if name in labels]
    others = {name: {n: v for n, v in labels.items() if n != name} for name in work.names}
    simple = {name: directions.directions(mu, labels[name], others[name], simple=True) for name in work.names}
    plain = {name: by.get("balanced", by["mean_difference"]) for name, by in simple.items()}
    effects = work.effects(mu[half][:MAX_CALIBRATED], plain)
    kept = [k for k, name in enumerate(plain) if effects[k, k] > WEAK or name == main]
    strong = [name for k, name in enumerate(plain) if k in kept]
    left_out |= {name: "its direction does not change it" for name in plain if name not in strong}
    unmixed = directions.unmixed([plain[name] for name in strong], effects[kept][:, kept])
    edits = {}
    for name, direction in zip(strong, unmixed):
        by_name = {"unmixed": direction} if len(strong) > 1 else {}
        if name == main or not by_name:
            by_name |= directions.directions(mu, labels[name], others[name], people)
        lacks, has = (mu[half][labels[name][half] == value] for value in (0, 1))
        best = {"transport": (direction, directions.transport(mu, labels[name]))} if name == main else {}
        num = MAX_CALIBRATED // (1 if name == main else 2)
        edits[name] = work.edit(name, best | {key: (d,) for key, d in by_name.items()}, lacks, has, num)
    scoring = classifier_of(faces, train[half], labels, half, make)
    seen = frozenset(person for person, own in zip(people, half) if own)
    return Fitted(Dials(main, edits, points), mu, labels, people, scoring, seen, left_out)


def _unreadable(labels: Mapping[str, Tensor], accuracy: Mapping[str, float], where: str) -> dict[str, str]:
    """Attributes whose scores mean little, and why: the classifier hardly does better than the larger class."""
    why = {}
    for name in (name for name in labels if name in accuracy):
        share = float(labels[name].nanmean())
        if np.isnan(accuracy[name]):
            why[name] = UNTESTED
        elif accuracy[name] < (base := max(share, 1 - share)) + READABLE * (1 - base):
            why[name] = f"its classifier is right for {accuracy[name]:.0%} of {where}, and {base:.0%} are of one class"
    return why


def _geometry(faces: Faces, rows: np.ndarray, labels: Mapping[str, Tensor], side: np.ndarray) -> GeometryReader | None:
    """A reader of landmarks of the faces on one side; None without OpenCV, or where the mesh sees no faces."""
    try:
        seen = mesh.see(images(faces, rows))
    except DataError:
        return None
    values = {name: value[torch.from_numpy(side)].double().numpy() for name, value in labels.items()}
    if np.median(seen.scores) < 0:
        return None
    return GeometryReader(seen.points, values, [faces.people[row] for row in rows])


def classifier_of(
    faces: Faces, rows: np.ndarray, labels: Mapping[str, Tensor], side: np.ndarray, make: MakeClassifier
) -> Classifier:
    """An attribute classifier of the faces on one side. Raises ConfigError for a user's class that fails."""
    attributes = {name: values[torch.from_numpy(side)].double().numpy() for name, values in labels.items()}
    x, people = images(faces, rows), [faces.people[row] for row in rows]
    if make is AttributeClassifier:
        return make(x, attributes, people)
    see = "see smilevae.editing.classifier.Classifier"
    try:
        classifier = make(x, attributes, people)
        complete = callable(classifier) and callable(classifier.embed)
        complete &= next(iter(attributes)) in classifier.threshold.keys() & classifier.accuracy.keys()
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(f"the attribute classifier failed: {type(error).__name__}: {error}; {see}") from error
    if not complete:
        raise ConfigError(f"the attribute classifier lacks embed, threshold or accuracy; {see}")
    return classifier
