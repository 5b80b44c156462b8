"""Splits faces by person: no person is in two parts."""

import numpy as np

from smilevae.data.batches import hash64
from smilevae.plugins import Example
from smilevae.plugins.source import UNLABELLED

Fractions = tuple[float, float]  # of the people: held out, tested


def merge_people(files: list[Example]) -> list[str]:
    """The person of each file. People who share an identical file become one."""
    first: dict[str, str] = {}
    alias: dict[str, str] = {}

    def name(person: str) -> str:
        while person in alias:
            person = alias[person]
        return person

    for file in files:
        if file.part != UNLABELLED:
            known = name(first.setdefault(file.digest, file.person))
            own = name(file.person)
            if known != own:
                alias[own] = known
    return [name(first[f.digest]) if f.digest in first else f.person for f in files]


def split_parts(
    people: list[str], smile: np.ndarray, part: np.ndarray, seed: int, fractions: Fractions
) -> np.ndarray:
    """Splits the part "train" into "train", "val" and "test" by a hash of (seed, person).

    If all people of a class, two or more, are on one side, the one nearest to the threshold
    changes sides. UNLABELLED faces become "train", but not those of held-out people.
    """
    # Draw a number for each person: low ones are held out, high ones are tested.
    val_fraction, test_fraction = fractions
    train = part == "train"
    draw = {p: hash64("split", seed, p) / 2**64 for p, own in zip(people, train) if own}
    in_val = {p for p, u in draw.items() if u < val_fraction}

    # Each class needs a person on both sides.
    for label in np.unique(smile[train]):
        members = {people[row] for row in np.flatnonzero(train & (smile == label))}
        ranked = sorted(members, key=lambda p: (draw[p], p))
        if len(members) >= 2 and not members & in_val:
            in_val.add(ranked[0])
        elif len(members) >= 2 and members <= in_val:
            in_val.remove(ranked[-1])
    # Give each face the part of its person.
    others = {p: "test" for p, u in draw.items() if 1 - test_fraction <= u}
    others |= dict.fromkeys(in_val, "val")
    by_person = np.array([others.get(p, "train") for p in people])
    return np.where(train | ((part == UNLABELLED) & (by_person == "train")), by_person, part)
