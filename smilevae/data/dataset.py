"""Faces as one decoded uint8 array with labels, people and parts.

Shapes: N images, B batch, S image side. `smile` is 1, 0 or UNKNOWN; `part` is "train", "val" or "test".
"""

import hashlib
import math
import os
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.config import Data
from smilevae.data.batches import gather, to_unit
from smilevae.data.cache import cached
from smilevae.data.images import Unreadable, decode_all
from smilevae.data.sources import UNKNOWN, Listing, list_faces, read_attributes
from smilevae.data.split import one_name_each, split_parts
from smilevae.data.synthetic import SyntheticFaces
from smilevae.errors import DataError
from smilevae.models.axes import Axes, principal_axes, streamed_axes

LEFT_OUT = "none"  # the part of an unlabelled image whose person is held out
NUM_AXES = 256  # of a spectrum
MAX_FITTED = 16_384  # faces that axes are fitted to: a few thousand more improve the optimum by less than 1%
AT_ONCE = 75_000_000  # values of faces that linear algebra holds in memory: 1,500 faces at 128 px


@dataclass
class Faces:
    """Decoded faces: images (N, S, S, 3) uint8, possibly memory-mapped; smile (N,); part (N,), LEFT_OUT in none.

    `attributes` holds what else is known, each (N,) float32, NaN where it is not: the factors of drawn faces, a table's
    columns for photographs.
    """

    images: np.ndarray
    smile: np.ndarray
    part: np.ndarray
    names: list[str]
    people: list[str]
    native_size: int
    fingerprint: str
    skipped: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    attributes: dict[str, np.ndarray] = field(default_factory=dict)

    def rows(self, part: str) -> np.ndarray:
        """Positions of a part's images, ascending."""
        return np.flatnonzero(self.part == part)

    def labelled(self, part: str) -> bool:
        """Whether a part has both smiling and non-smiling faces."""
        return {0, 1} <= set(self.smile[self.part == part].tolist())

    @cached_property
    def axes(self) -> Axes:
        """NUM_AXES principal axes of (MAX_FITTED random) training faces and their mirror images, P = 3 S^2."""
        rows = np.sort(np.random.default_rng(0).permutation(self.rows("train"))[:MAX_FITTED])
        num = max(1, AT_ONCE // math.prod(self.images.shape[1:]))
        if len(rows) <= num:
            return principal_axes(flat_faces(self, rows, mirrored=True), NUM_AXES)
        chunks = np.array_split(rows, math.ceil(4 * len(rows) / num))
        return streamed_axes(lambda: (flat_faces(self, chunk, mirrored=True) for chunk in chunks), NUM_AXES)

    def card(self) -> dict[str, Any]:
        """What a reader must know of the data: counts, people, leaks, duplicates, skipped files."""
        parts: dict[str, Any] = {}
        for part in ("train", "val", "test"):
            smile = self.smile[self.part == part]
            parts[part] = {
                "images": len(smile),
                "people": len({self.people[i] for i in self.rows(part)}),
                "smiling": int((smile == 1).sum()),
                "not_smiling": int((smile == 0).sum()),
                "unlabelled": int((smile == UNKNOWN).sum()),
            }
        where: dict[str, set[str]] = {}
        for person, part in zip(self.people, self.part):
            if part in ("train", "val"):
                where.setdefault(person, set()).add(part)
        return {
            "fingerprint": self.fingerprint,
            "images": len(self.smile),
            "people": len(set(self.people)),
            "people_in_train_and_val": sum(len(found) > 1 for found in where.values()),
            "native_size": self.native_size,
            "left_out": int((self.part == LEFT_OUT).sum()),
            "parts": parts,
            "duplicates": self.duplicates,
            "skipped": self.skipped,
            "noted": self.noted,
        }


def load_faces(data: Data, image_size: int) -> Faces:
    """Find, decode (once: later starts read the cache) and split the faces of a source.

    Raises DataError where there is nothing to train on or too much is unreadable.
    """
    if data.source == "synthetic":
        drawn = SyntheticFaces(
            data.num_smiling, data.num_not_smiling, data.num_test, seed=data.draw_seed, confound=data.confound
        )
        faces = _drawn(drawn, image_size, data.cache)
    else:
        listing = list_faces(data.source, data.root, data.person_pattern, data.unlabelled)
        faces = _decoded(listing, image_size, data.max_skipped, data.cache)
    if data.attributes:
        faces.attributes = faces.attributes | read_attributes(Path(os.path.expanduser(data.attributes)), faces.names)
    is_test, extra = faces.part == "test", faces.part == LEFT_OUT
    own = np.flatnonzero(~extra)
    people = [faces.people[row] for row in own]
    faces.part[own] = split_parts(people, faces.smile[own], is_test[own], data.split_seed, data.val_fraction)
    held_out = {faces.people[row] for row in faces.rows("val")}
    faces.part[extra] = [LEFT_OUT if faces.people[row] in held_out else "train" for row in np.flatnonzero(extra)]
    for part in ("train", "val"):
        if not (faces.part == part).any():
            raise DataError(
                f"{data.root or data.source}: {(~is_test).sum()} usable training images of {len(set(faces.people))}"
                f" people leave the {part} part empty; add images of more people"
            )
    return faces


def _decoded(listing: Listing, size: int, max_skipped: float, cache: bool) -> Faces:
    """Decode a listing, through the cache where allowed; unreadable files are listed, and refused in numbers."""
    digests = [_digest(path) for path in listing.paths]
    key = hashlib.blake2b(digest_size=16)
    for name, digest in zip(listing.names, digests):
        key.update(f"{name}\0{digest}\n".encode())
    fingerprint = key.hexdigest()

    def build(images: np.ndarray) -> dict[str, Any]:
        skipped: dict[str, str] = {}
        noted: dict[str, str] = {}
        sizes: Counter[int] = Counter()
        for name, found in zip(listing.names, decode_all(listing.paths, size)):
            if isinstance(found, Unreadable):
                skipped[name] = str(found)
            else:
                images[sizes.total()] = found.pixels
                sizes[min(found.native)] += 1
                noted |= {name: found.note} if found.note else {}
        return {"skipped": skipped, "noted": noted, "native_size": sizes.most_common(1)[0][0] if sizes else size}

    images, meta = cached(f"{fingerprint}-{size}", (len(digests), size, size, 3), build, cache)
    skipped = meta["skipped"]
    if len(skipped) > max_skipped * len(digests):
        first = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        raise DataError(
            f"{len(skipped)} of {len(digests)} files are unreadable, over data.max_skipped={max_skipped:g} ({first});"
            " repair or remove them, or raise data.max_skipped"
        )
    part = ["test" if test else "train" for test in listing.test]
    if listing.num_unlabelled:
        part[-listing.num_unlabelled :] = [LEFT_OUT] * listing.num_unlabelled
    keep = [row for row, name in enumerate(listing.names) if name not in skipped]
    names = [listing.names[row] for row in keep]
    own = [row for row in keep if part[row] != LEFT_OUT]
    named = dict(zip(own, one_name_each([listing.people[row] for row in own], [digests[row] for row in own])))
    shown = {digests[row]: person for row, person in named.items()}
    same: dict[str, list[str]] = {}
    for row in keep:
        same.setdefault(digests[row], []).append(listing.names[row])
    return Faces(
        images=images[: len(keep)],
        smile=np.array([listing.smile[row] for row in keep], dtype=np.int8),
        part=np.array([part[row] for row in keep]),
        names=names,
        people=[named.get(row) or shown.get(digests[row], listing.people[row]) for row in keep],
        native_size=meta["native_size"],
        fingerprint=fingerprint,
        skipped=skipped,
        noted=meta["noted"],
        duplicates=[group for group in same.values() if len(group) > 1],
    )


def _drawn(drawn: SyntheticFaces, size: int, cache: bool) -> Faces:
    """Draw the synthetic faces, through the cache where allowed."""

    def build(images: np.ndarray) -> dict[str, Any]:
        for row in range(len(drawn)):
            images[row] = drawn.draw(row, size)
        return {}

    images, _ = cached(f"{drawn.fingerprint}-{size}", (len(drawn), size, size, 3), build, cache)
    names = [f"drawn_{row:05d}.png" for row in range(len(drawn))]
    return Faces(
        images=images,
        smile=drawn.smile,
        part=np.where(drawn.test, "test", "train"),
        names=names,
        people=names,
        native_size=drawn.side,
        fingerprint=drawn.fingerprint,
        attributes=drawn.factors,
    )


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def flat_faces(faces: Faces, rows: np.ndarray, mirrored: bool = False) -> Tensor:
    """Some faces as (N, P) in [0, 1], channel by channel; then their mirror images."""
    x = to_unit(torch.from_numpy(gather(faces.images, rows))).contiguous()
    return torch.cat([x, x.flip(3)] if mirrored else [x]).flatten(1)
