"""Splits faces into training and held-out parts by person: no person is in both."""

import numpy as np

from smilevae.data.batches import hash64
from smilevae.data.sources import UNLABELLED, ImageFile


def merge_people(files: list[ImageFile]) -> list[str]:
    """The person of each file. People who share a file to the byte become one, so no split separates copies."""
    first: dict[str, str] = {}
    alias: dict[str, str] = {}

    def name(person: str) -> str:
        while person in alias:
            person = alias[person]
        return person

    for file in files:
        if file.part != UNLABELLED:
            known, own = name(first.setdefault(file.digest, file.person)), name(file.person)
            if known != own:
                alias[own] = known
    return [name(first[file.digest]) if file.digest in first else file.person for file in files]


def split_parts(people: list[str], smile: np.ndarray, part: np.ndarray, seed: int, val_fraction: float) -> np.ndarray:
    """Splits the part "train" into "train" and "val" by person, with people of every class in both.

    A person goes to val if a hash of (seed, name) falls below `val_fraction`, so new files move nobody. In a
    tiny set, the person nearest to the threshold changes sides if a class has two or more people on one side
    only. UNLABELLED faces become "train", but not those of held-out people.
    """
    draw = {p: hash64("split", seed, p) / 2**64 for p, own in zip(people, part == "train") if own}
    in_val = {p for p, u in draw.items() if u < val_fraction}
    for label in np.unique(smile[part == "train"]):
        members = {people[row] for row in np.flatnonzero((part == "train") & (smile == label))}
        if len(members) >= 2 and not members & in_val:
            in_val.add(min(members, key=lambda p: (draw[p], p)))
        elif len(members) >= 2 and members <= in_val:
            in_val.remove(max(members, key=lambda p: (draw[p], p)))
    held_out = np.array([p in in_val for p in people])
    part = np.where((part == "train") & held_out, "val", part)
    return np.where((part == UNLABELLED) & ~held_out, "train", part)
