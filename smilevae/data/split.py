"""Which images belong to training and which are held out: no person is in both."""

import numpy as np

from smilevae.data.batches import hash64


def one_name_each(people: list[str], digests: list[str]) -> list[str]:
    """People who share a file to the byte are one person: under two names it would lie on both sides of a split."""
    first: dict[str, str] = {}
    alias: dict[str, str] = {}

    def name(person: str) -> str:
        while person in alias:
            person = alias[person]
        return person

    for person, digest in zip(people, digests):
        known, own = name(first.setdefault(digest, person)), name(person)
        if known != own:
            alias[own] = known
    return [name(person) for person in people]


def split_parts(
    people: list[str], smile: np.ndarray, is_test: np.ndarray, seed: int, val_fraction: float
) -> np.ndarray:
    """Assign every image to "train", "val" or "test": grouped by person, even in every class, seeded.

    A person goes to val if a hash of (seed, name) falls below `val_fraction`, so adding files never moves
    another person. Only where that leaves a class of two or more people without a side (tiny sets), the
    person nearest to the threshold moves over.
    """
    draw = {p: hash64("split", seed, p) / 2**64 for p in people}
    in_val = {p for p, u in draw.items() if u < val_fraction}
    for label in np.unique(smile[~is_test]):
        members = {p for p, s, t in zip(people, smile, is_test) if s == label and not t}
        if len(members) >= 2 and not members & in_val:
            in_val.add(min(members, key=lambda p: (draw[p], p)))
        elif len(members) >= 2 and members <= in_val:
            in_val.remove(max(members, key=lambda p: (draw[p], p)))
    part = np.array(["val" if p in in_val else "train" for p in people], dtype="<U5")
    part[is_test] = "test"
    return part
