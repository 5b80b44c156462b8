"""Faces as one decoded uint8 array with labels, people and parts; the split; the cache.

Shapes: N images, B batch, S image side. `smile` is 1, 0 or UNKNOWN; `part` is "train", "val" or "test".
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
import torch
from torch import Tensor

from smilevae import DataError
from smilevae.batches import gather, hash64, to_unit
from smilevae.faces import SyntheticFaces
from smilevae.images import Unreadable, decode_all
from smilevae.linear import Spectrum
from smilevae.ppca import Axes, principal_axes, spectrum, streamed_axes
from smilevae.sources import PERSON, UNKNOWN, Listing, list_faces, read_attributes

LEFT_OUT = "none"  # the part of an unlabelled picture whose person is held out
NUM_AXES = 256  # of a spectrum
MAX_FITTED = 16_384  # faces that axes are fitted to: a few thousand more improve the optimum by less than 1%
AT_ONCE = 75_000_000  # values of faces that linear algebra holds in memory: 1,500 faces at 128 px
CACHE_VERSION = 2  # raise when the same file would decode to other pixels or notes


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


def load_faces(
    *,
    source: str,
    root: str | None = None,
    image_size: int,
    split_seed: int,
    person_pattern: str = PERSON,
    val_fraction: float = 0.2,
    max_skipped: float = 0.01,
    cache: bool = True,
    unlabelled: str | None = None,
    attributes: str | None = None,
    draw_seed: int = 0,
    num_smiling: int = 600,
    num_not_smiling: int = 603,
    num_test: int = 300,
    confound: float = 0.0,
) -> Faces:
    """Find, decode (once: later starts read the cache) and split the faces of a source.

    `split_seed` moves the split; `unlabelled` is a folder of more pictures to train on, without those of people who
    are held out; `attributes` a CSV table of what else is known of them; `draw_seed`, the counts and `confound` (the
    correlation of smile and hair length) belong to the drawn faces of `source="synthetic"`.
    Raises DataError where there is nothing to train on or too much is unreadable.
    """
    if source == "synthetic":
        drawn = SyntheticFaces(num_smiling, num_not_smiling, num_test, seed=draw_seed, confound=confound)
        faces = _drawn(drawn, image_size, cache)
    else:
        faces = _decoded(list_faces(source, root, person_pattern, unlabelled), image_size, max_skipped, cache)
    if attributes:
        faces.attributes = faces.attributes | read_attributes(Path(os.path.expanduser(attributes)), faces.names)
    is_test, extra = faces.part == "test", faces.part == LEFT_OUT
    own = np.flatnonzero(~extra)
    people = [faces.people[row] for row in own]
    faces.part[own] = split_parts(people, faces.smile[own], is_test[own], split_seed, val_fraction)
    held_out = {faces.people[row] for row in faces.rows("val")}
    faces.part[extra] = [LEFT_OUT if faces.people[row] in held_out else "train" for row in np.flatnonzero(extra)]
    for part in ("train", "val"):
        if not (faces.part == part).any():
            raise DataError(
                f"{root or source}: {(~is_test).sum()} usable training images of {len(set(faces.people))} people leave"
                f" the {part} part empty; add images of more people"
            )
    return faces


def spectrum_of(faces: Faces, cache: bool = True) -> Spectrum:
    """The spectrum of the training faces and their mirror images, with the held-out ones on it; cached."""
    num_pixels = math.prod(faces.images.shape[1:])

    def build(_: np.ndarray) -> dict[str, Any]:
        some = np.random.default_rng(0).permutation(faces.rows("val"))[: AT_ONCE // num_pixels]
        return spectrum(faces.axes, flat_faces(faces, np.sort(some)))._asdict()

    key = f"{faces.fingerprint}-{num_pixels}-{hash64(*faces.rows('val')):x}-spectrum"
    return Spectrum(**_cached(key, (1,), build, cache)[1])


def flat_faces(faces: Faces, rows: np.ndarray, mirrored: bool = False) -> Tensor:
    """Some faces as (N, P) in [0, 1], channel by channel; then their mirror images."""
    x = to_unit(torch.from_numpy(gather(faces.images, rows))).contiguous()
    return torch.cat([x, x.flip(3)] if mirrored else [x]).flatten(1)


def format_card(card: dict[str, Any]) -> str:
    """The data card as a few lines for a terminal."""
    lines = [
        f"{part:5} {n['images']:6} images of {n['people']:6} people: {n['smiling']} smiling, {n['not_smiling']} not,"
        f" {n['unlabelled']} without a label"
        for part, n in card["parts"].items()
        if n["images"]
    ]
    lines.append(f"people in both train and val: {card['people_in_train_and_val']}")
    if card["left_out"]:
        lines.append(f"left out of data.unlabelled: {card['left_out']} images of people who are held out")
    if card["duplicates"]:
        lines.append(f"identical images: {len(card['duplicates'])} groups, first {' = '.join(card['duplicates'][0])}")
    lines += [f"skipped {name}: {reason}" for name, reason in list(card["skipped"].items())[:10]]
    if len(card["skipped"]) > 10:
        lines.append(f"skipped {len(card['skipped']) - 10} more; see data_card.json")
    if card["noted"]:
        name, note = next(iter(card["noted"].items()))
        lines.append(f"noted of {len(card['noted'])} images; the first is {name}: {note}")
    return "\n".join(lines)


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

    images, meta = _cached(f"{fingerprint}-{size}", (len(digests), size, size, 3), build, cache)
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

    images, _ = _cached(f"{drawn.fingerprint}-{size}", (len(drawn), size, size, 3), build, cache)
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


def _cached(
    key: str, shape: tuple[int, ...], build: Callable[[np.ndarray], dict[str, Any]], use: bool
) -> tuple[np.ndarray, dict[str, Any]]:
    """An uint8 array of `shape` and its notes, from the user's cache directory or built into it."""
    if not use:
        images = np.zeros(shape, dtype=np.uint8)
        return images, build(images)
    home = Path(platformdirs.user_cache_dir("smilevae")) / f"{key}-{CACHE_VERSION}"
    hint = "free space there, set XDG_CACHE_HOME, or pass data.cache=false"
    try:
        if not (home / "notes.json").exists():
            home.parent.mkdir(parents=True, exist_ok=True)
            if shutil.disk_usage(home.parent).free < 1.1 * math.prod(shape):  # writing a full memory map is a bus error
                raise DataError(f"the image cache needs {math.prod(shape) / 1e9:.1f} GB in {home.parent}; {hint}")
            work = Path(tempfile.mkdtemp(prefix="building-", dir=home.parent))
            try:
                images = np.lib.format.open_memmap(work / "images.npy", "w+", np.uint8, shape)
                notes = build(images)
                images.flush()
                (work / "notes.json").write_text(json.dumps(notes))
                with contextlib.suppress(OSError):  # another process finished the same cache first
                    work.rename(home)  # a whole cache or none
            finally:
                shutil.rmtree(work, ignore_errors=True)
        try:
            return np.load(home / "images.npy", mmap_mode="r"), json.loads((home / "notes.json").read_text())
        except ValueError:  # torn by a power cut
            raise DataError(f"the image cache {home} is damaged; remove it, and it is built again") from None
    except OSError as error:
        raise DataError(f"the image cache {home} cannot be used ({error.strerror}); {hint}") from None


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"
