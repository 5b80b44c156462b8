"""Faces as one decoded array with labels, people and parts. Shapes: N faces, S image side."""

import dataclasses
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.config import Data
from smilevae.data.batches import gather, hash64, to_unit
from smilevae.data.cache import cached
from smilevae.data.images import Unreadable, decode_all
from smilevae.data.sources import SMILE, UNKNOWN, UNLABELLED, celeba_attributes, list_faces, read_attributes
from smilevae.data.split import merge_people, split_parts
from smilevae.data.synthetic import NATIVE_SIZE, SyntheticFaces
from smilevae.errors import DataError
from smilevae.models.axes import Axes, mirrored_axes, spectrum, streamed_axes
from smilevae.models.linear import Spectrum

NUM_AXES = 256  # of a spectrum
MIN_TEST = 20
MAX_FITTED = 16_384  # faces that axes are fitted to; more improve the optimum by less than 1%
AT_ONCE = 75_000_000  # values in memory for linear algebra: 1,500 faces at 128 px


@dataclass
class Faces:
    images: np.ndarray  # (N, S, S, 3) uint8, possibly memory-mapped
    smile: np.ndarray  # (N,) 1, 0 or UNKNOWN
    part: np.ndarray  # (N,) "train", "val", "test" or UNLABELLED (left out)
    names: list[str]
    people: list[str]
    native_size: int  # the most frequent shorter side of the files
    fingerprint: str  # of names and content
    skipped: dict[str, str] = field(default_factory=dict)
    noted: dict[str, str] = field(default_factory=dict)
    duplicates: list[list[str]] = field(default_factory=list)
    attributes: dict[str, np.ndarray] = field(default_factory=dict)  # (N,) float32 each
    label: str = SMILE  # the attribute that `smile` tells
    cache: bool = True  # whether what is computed from these faces is kept on disk
    _axes: dict[int, Axes] = field(default_factory=dict, init=False, repr=False)

    def rows(self, part: str) -> np.ndarray:
        """Positions of a part's faces."""
        return np.flatnonzero(self.part == part)

    def sample(self, part: str, num: int | None = None) -> np.ndarray:
        """Positions of `num` faces of a part (of all without a number), in the same random order each time."""
        return np.random.default_rng(0).permutation(self.rows(part))[:num]

    def batch(self, rows: np.ndarray) -> Tensor:
        """Some faces as floats in [0, 1]: (B, 3, S, S), channels_last."""
        return to_unit(torch.from_numpy(gather(self.images, rows)))

    def labelled(self, part: str) -> bool:
        """Whether a part has both smiling and non-smiling faces."""
        return {0, 1} <= set(self.smile[self.part == part].tolist())

    def labels(self, attribute: str) -> np.ndarray:
        """1 where a face has an attribute, 0 where it lacks it, UNKNOWN elsewhere: (N,) int8.

        A face has a continuous attribute if its value is above the median of the training faces.
        """
        if attribute == self.label:
            return self.smile
        values = self.attributes[attribute]
        known = [part[np.isfinite(part)] for part in (values, values[self.rows("train")])]
        edge = known[0].min() if len(np.unique(known[0])) == 2 else np.median(known[1]) if len(known[1]) else 0
        return np.where(np.isfinite(values), values > edge, UNKNOWN).astype(np.int8)

    @property
    def classes(self) -> dict[int, str]:
        """Names of the labels."""
        has, lacks = ("smiling", "not smiling") if self.label == SMILE else (self.label, f"not {self.label}")
        return {1: has, 0: lacks, UNKNOWN: "no label"}

    def reporting(self) -> tuple["Faces", str]:
        """These faces for an evaluation, with the part that it reports: "val" here are the faces of that part.

        That is the test part, without the people of the other parts, if MIN_TEST faces with both labels remain.
        """
        known = {self.people[row] for part in ("train", "val") for row in self.rows(part)}
        fresh = np.array([part == "test" and person not in known for part, person in zip(self.part, self.people)])
        if fresh.sum() < MIN_TEST or not {0, 1} <= set(self.smile[fresh].tolist()):
            return self, "val"
        part = np.where(fresh, "val", np.where(self.part == "train", "train", UNLABELLED))
        return dataclasses.replace(self, part=part), "test"

    def axes(self, least: int = NUM_AXES) -> Axes:
        """Principal axes of MAX_FITTED random training faces and their mirror images; computed once for a number."""
        num = max(least, NUM_AXES)
        if num not in self._axes:
            self._axes[num] = self._fitted_axes(num)
        return self._axes[num]

    def _fitted_axes(self, num_axes: int) -> Axes:
        rows = np.sort(self.sample("train", MAX_FITTED))
        num = max(1, AT_ONCE // math.prod(self.images.shape[1:]))
        if len(rows) <= num:
            return mirrored_axes(flat_faces(self, rows).unflatten(1, (3, *self.images.shape[1:3])), num_axes)
        chunks = np.array_split(rows, math.ceil(4 * len(rows) / num))
        return streamed_axes(lambda: (flat_faces(self, c, mirrored=True) for c in chunks), num_axes)


def load_faces(data: Data, image_size: int) -> Faces:
    """The faces of a source, split. Raises DataError if a part is empty or too many files are unreadable."""
    faces = (_synthetic if data.source == "synthetic" else _decoded)(data, image_size)
    faces.cache = data.cache
    if data.source == "celeba":
        faces.attributes |= celeba_attributes(data.root, faces.names)
    if data.attributes:
        faces.attributes |= read_attributes(data.attributes, faces.names)
    faces.part = split_parts(
        faces.people, faces.smile, faces.part, data.split_seed, data.val_fraction, data.test_fraction
    )
    for part, least in (("train", 2), ("val", 1)):  # a batch of one has no variance for BatchNorm
        if (num := len(faces.rows(part))) < least:
            split = f"{(faces.part != 'test').sum()} usable training images of {len(set(faces.people))} people"
            remedy = "add images of more people; if each image shows another person, pass data.person_pattern='(.+)'"
            raise DataError(f"{data.place}: {split} leave {num or 'no'} image in the {part} part; {remedy}")
    return faces


def _decoded(data: Data, size: int) -> Faces:
    files = [file._replace(digest=_digest(file.path)) for file in list_faces(data)]
    content = "".join(f"{file.name}\0{file.digest}\n" for file in files)
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def build(images: np.ndarray) -> dict[str, Any]:
        skipped, noted, sizes = {}, dict[str, str](), Counter[int]()
        for file, decoded in zip(files, decode_all([file.path for file in files], size)):
            if isinstance(decoded, Unreadable):
                skipped[file.name] = str(decoded)
                continue
            images[sizes.total()] = decoded.pixels
            sizes[min(decoded.native)] += 1
            noted |= {file.name: decoded.note} if decoded.note else {}
        [(native_size, _)] = sizes.most_common(1) or [(size, 0)]
        return {"skipped": skipped, "noted": noted, "native_size": native_size}

    images, notes = cached(f"{fingerprint}-{size}", (len(files), size, size, 3), build, data.cache)
    skipped = notes["skipped"]
    if len(skipped) > data.max_skipped * len(files):
        first = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:3])
        problem = f"{len(skipped)} of {len(files)} files are unreadable, over data.max_skipped={data.max_skipped:g}"
        raise DataError(f"{problem} ({first}); repair or remove them, or raise data.max_skipped")
    files = [file for file in files if file.name not in skipped]
    same_content: dict[str, list[str]] = {}
    for file in files:
        same_content.setdefault(file.digest, []).append(file.name)
    return Faces(
        images=images[: len(files)],
        smile=np.array([file.smile for file in files], np.int8),
        part=np.array([file.part for file in files], "<U5"),
        names=[file.name for file in files],
        people=merge_people(files),
        fingerprint=fingerprint,
        duplicates=[names for names in same_content.values() if names[1:]],
        label=Path(data.positive).name if data.positive else SMILE,
        **notes,
    )


def _synthetic(data: Data, size: int) -> Faces:
    drawn = SyntheticFaces(data.num_smiling, data.num_not_smiling, data.num_test, data.draw_seed, data.confound)

    def build(images: np.ndarray) -> dict[str, Any]:
        for row in range(len(drawn)):
            images[row] = drawn.draw(row, size)
        return {}

    images, _ = cached(f"{drawn.fingerprint}-{size}", (len(drawn), size, size, 3), build, data.cache)
    names = [f"drawn_{row:05d}.png" for row in range(len(drawn))]
    part = np.where(drawn.test, "test", "train")
    return Faces(images, drawn.smile, part, names, names, NATIVE_SIZE, drawn.fingerprint, attributes=drawn.factors)


def _digest(path: Path) -> str:
    try:
        return hashlib.blake2b(path.read_bytes(), digest_size=16).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def flat_faces(faces: Faces, rows: np.ndarray, mirrored: bool = False) -> Tensor:
    """Some faces, then their mirror images, as (N, 3 S^2) in [0, 1]."""
    x = faces.batch(rows).contiguous()
    return torch.cat([x, x.flip(3)] if mirrored else [x]).flatten(1)


def spectrum_of(faces: Faces, least: int = NUM_AXES) -> Spectrum:
    """The spectrum of the training and held-out faces, on at least so many axes."""
    num_pixels = math.prod(faces.images.shape[1:])

    def build(_: np.ndarray) -> dict[str, Any]:
        rows = np.sort(faces.sample("val", AT_ONCE // num_pixels))
        return spectrum(faces.axes(least), flat_faces(faces, rows))._asdict()

    key = derived_key(faces, f"spectrum-{max(least, NUM_AXES)}", faces.rows("train"), faces.rows("val"))
    return Spectrum(**cached(key, (1,), build, faces.cache)[1])


def derived_key(faces: Faces, what: str, *parts: np.ndarray) -> str:
    """The cache key of what torch computes from the faces in these rows.

    The number of threads and the version of torch change the last bits.
    """
    rows = [part.tolist() for part in parts]
    digest = hash64(*rows, torch.__version__, torch.get_num_threads())
    return f"{faces.fingerprint}-{faces.images.shape[1]}-{digest:x}-{what}"
