"""What scores of edits are compared with: matched real faces, two photos of a person, reading errors.

Shapes: N faces.
"""

from collections import Counter

import numpy as np
import torch

from smilevae.data.dataset import Faces
from smilevae.editing.classifier import AttributeClassifier
from smilevae.evaluation.realism import MIN_FACES

MAX_REAL = 300  # held-out faces
MIN_PAIRS = 8  # of photos of one person


def matched(faces: Faces, rows: np.ndarray, edited: np.ndarray, names: list[str]) -> np.ndarray:
    """Of `rows` those that have other attributes in the shares that the edited faces have them.

    Otherwise an edit that also changes them would be nearer to real faces. All rows where too few
    would remain.
    """
    if not names:
        return rows
    keys = list(zip(*(faces.labels(name).tolist() for name in names)))
    wanted = Counter(keys[row] for row in edited)
    there = Counter(keys[row] for row in rows)
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


def persons(faces: Faces, classifier: AttributeClassifier) -> tuple[float, float]:
    """Mean distances of two photos of one held-out person, and of two people.

    Without MIN_PAIRS of photos the first is half of the second. A copy of a file is no second photo.
    """
    by_person: dict[str, list[int]] = {}
    for row in faces.sample("val").tolist():
        by_person.setdefault(faces.people[row], []).append(row)
    some = np.array([rows[0] for rows in by_person.values()][:MAX_REAL])
    x = classifier.embed(faces.batch(some))
    other = (x - x.roll(1, 0)).norm(dim=1).mean().clamp(min=1e-6).item()

    pairs = [rows[:2] for rows in by_person.values() if len(rows) > 1][:MAX_REAL]
    first, second = (faces.batch(rows) for rows in np.array(pairs, dtype=int).reshape(-1, 2).T)
    differ = (first != second).flatten(1).any(1)
    if differ.sum() < MIN_PAIRS:
        return other / 2, other
    moved = classifier.embed(first[differ]) - classifier.embed(second[differ])
    return moved.norm(dim=1).mean().item(), other


def reading_errors(faces: Faces, classifier: AttributeClassifier) -> dict[str, float]:
    """The standard deviation of an attribute's scores among held-out faces that are alike in it."""
    rows = faces.sample("val", MAX_REAL)
    errors = {}
    for name, scores in classifier(faces.batch(rows)).items():
        labels = torch.from_numpy(faces.labels(name)[rows])
        groups = [scores[labels == label] for label in (0, 1)]
        deviations = torch.cat([group - group.mean() for group in groups if len(group)])
        errors[name] = deviations.square().mean().sqrt().item() if len(deviations) else float("inf")
    return errors
