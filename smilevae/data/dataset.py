"""Faces as one decoded array with labels, people and parts. Shapes: N faces, C channels, S image side."""

import dataclasses
import hashlib
import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from smilevae.data import sources
from smilevae.data.batches import gather, hash64, to_unit
from smilevae.data.cache import Notes, cached
from smilevae.data.images import Unreadable, decode_all, to_pil
from smilevae.data.sources import NEGATIONS, SMILE
from smilevae.data.split import merge_people, split_parts
from smilevae.data.table import read_attributes
from smilevae.errors import DataError
from smilevae.models.axes import Axes, mirrored_axes, spectrum, streamed_axes
from smilevae.models.linear import Spectrum
from smilevae.plugins import Example, Source
from smilevae.plugins.source import UNLABELLED, named

UNKNOWN = -1  # no label
NUM_AXES = 256  # of a spectrum
MIN_TEST = 20
MAX_FITTED = 16_384  # faces that axes are fitted to; more improve the optimum by less than 1%
AT_ONCE = 75_000_000  # values in memory for linear algebra: 1,500 faces at 128 px


@dataclass
class Faces:
    images: np.ndarray  # (N, S, S, C) uint8, possibly memory-mapped
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
    resident: Tensor | None = None  # the images in the memory of a GPU
    _axes: dict[int, Axes] = field(default_factory=dict, init=False, repr=False)

    def rows(self, part: str) -> np.ndarray:
        """Positions of a part's faces."""
        return np.flatnonzero(self.part == part)

    def sample(self, part: str, num: int | None = None) -> np.ndarray:
        """Positions of `num` random faces of a part, or of all; the same ones each time."""
        return np.random.default_rng(0).permutation(self.rows(part))[:num]

    def batch(self, rows: np.ndarray, device: torch.device | None = None) -> Tensor:
        """Some faces as floats in [0, 1] on a device: (B, C, S, S), channels_last."""
        if self.resident is not None and self.resident.device == device:
            return to_unit(self.resident[torch.from_numpy(rows).to(device)])
        return to_unit(torch.from_numpy(gather(self.images, rows)).to(device))

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
        known = np.isfinite(values)
        train = values[known & (self.part == "train")]
        edge = np.median(train) if len(train) else 0
        if len(np.unique(values[known])) == 2:
            edge = values[known].min()
        return np.where(known, values > edge, UNKNOWN).astype(np.int8)

    @property
    def classes(self) -> dict[int, str]:
        """Names of the labels."""
        name = "smiling" if self.label == SMILE else self.label
        return {1: name, 0: f"not {name}", UNKNOWN: "no label"}

    def reporting(self) -> tuple["Faces", str]:
        """These faces for an evaluation, with the name of the part that their "val" holds.

        That is the test part, without the people of other parts, if MIN_TEST faces with both
        labels remain; else "val".
        """
        people = np.array(self.people)
        others = np.isin(self.part, ("train", "val"))
        fresh = (self.part == "test") & ~np.isin(people, people[others])
        if fresh.sum() < MIN_TEST or not {0, 1} <= set(self.smile[fresh].tolist()):
            return self, "val"
        part = np.select([fresh, self.part == "train"], ["val", "train"], UNLABELLED)
        return dataclasses.replace(self, part=part), "test"

    def axes(self, least: int = NUM_AXES) -> Axes:
        """Principal axes of up to MAX_FITTED training faces and their mirror images; kept."""
        num = max(least, NUM_AXES)
        if num not in self._axes:
            rows = np.sort(self.sample("train", MAX_FITTED))
            at_once = max(1, AT_ONCE // math.prod(self.images.shape[1:]))
            if len(rows) <= at_once:
                self._axes[num] = mirrored_axes(self.batch(rows), num)
            else:
                chunks = np.array_split(rows, math.ceil(4 * len(rows) / at_once))
                self._axes[num] = streamed_axes(lambda: map(self._with_mirror_images, chunks), num)
        return self._axes[num]

    def _with_mirror_images(self, rows: np.ndarray) -> Tensor:
        """Some faces, then their mirror images: (2 B, C S^2)."""
        x = self.batch(rows)
        return torch.cat([x, x.flip(3)]).flatten(1)


def load_faces(data: Source, image_size: int, channels: int = 3) -> Faces:
    """The images of a source, split. Raises DataError if a part is empty or files are unreadable."""
    faces = _decoded(data, image_size, channels)
    faces.attributes |= data.attributes_of(faces.names)
    if data.attributes:
        faces.attributes |= read_attributes(data.attributes, faces.names)
    fractions = (data.val_fraction, data.test_fraction)
    faces.part = split_parts(faces.people, faces.smile, faces.part, data.split_seed, fractions)
    for part, least in (("train", 2), ("val", 1)):  # a batch of one has no variance for BatchNorm
        num = len(faces.rows(part))
        if num < least:
            images = (faces.part != "test").sum()
            people = len(set(faces.people))
            problem = f"{images} usable training images of {people} people leave {num or 'no'}"
            remedy = "add images of more people; if each image shows another person, pass"
            remedy += " data.person_pattern='(.+)'"
            raise DataError(f"{data.place}: {problem} image in the {part} part; {remedy}")
    return faces


def _decoded(data: Source, size: int, channels: int) -> Faces:
    # List the images of the source.
    found = [*data.examples()]
    if data.unlabelled:
        found += sources.unlabelled(data.unlabelled)
    people = named(found, data.person_pattern)
    examples = [example._replace(digest=_digest(example)) for example in people]
    content = "".join(f"{example.name}\0{example.digest}\n" for example in examples)
    fingerprint = hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    def build(images: np.ndarray) -> Notes:
        skipped: dict[str, str] = {}
        noted: dict[str, str] = {}
        sizes = Counter[int]()
        decoded_ones = decode_all([example.image for example in examples], size, channels)
        for example, decoded in zip(examples, decoded_ones):
            if isinstance(decoded, Unreadable):
                skipped[example.name] = str(decoded)
                continue
            images[sizes.total()] = decoded.pixels
            sizes[min(decoded.native)] += 1
            if decoded.note:
                noted[example.name] = decoded.note
        native_size = sizes.most_common(1)[0][0] if sizes else size
        return {"skipped": skipped, "noted": noted, "native_size": native_size}

    # Decode the images, or read the cache. It holds no image that the source has in memory.
    shape = (len(examples), size, size, channels)
    kind = "" if channels == 3 else "-grey"
    cache = data.cache and all(isinstance(e.image, Path) or callable(e.image) for e in examples)
    images, notes = cached(f"{fingerprint}-{size}{kind}", shape, build, cache)
    skipped = notes["skipped"]
    if len(skipped) > data.max_skipped * len(examples):
        first = "; ".join(f"{name}: {reason}" for name, reason in [*skipped.items()][:3])
        problem = f"{len(skipped)} of {len(examples)} files are unreadable, over data.max_skipped="
        remedy = "repair or remove them, or raise data.max_skipped"
        raise DataError(f"{problem}{data.max_skipped:g} ({first}); {remedy}")

    # Describe those that could be read.
    examples = [example for example in examples if example.name not in skipped]
    same_content: dict[str, list[str]] = {}
    for example in examples:
        same_content.setdefault(example.digest, []).append(example.name)
    labels = [example.label for example in examples]
    main, *others = classes_of(labels) or [SMILE]
    return Faces(
        images=images[: len(examples)],
        smile=_one_class(labels, main),
        part=np.array([example.part for example in examples], "<U5"),
        names=[example.name for example in examples],
        people=merge_people(examples),
        fingerprint=fingerprint,
        duplicates=[names for names in same_content.values() if len(names) > 1],
        attributes={name: _known(_one_class(labels, name)) for name in others},
        label=main,
        cache=data.cache,
        **notes,
    )


def classes_of(labels: list[str]) -> list[str]:
    """The classes that are attributes: the label first.

    Of two classes one says all: the one whose name has no NEGATION, else the first.
    """
    names = sorted(set(labels) - {""}, key=lambda name: (name.startswith(NEGATIONS), name))
    return names[:1] if len(names) == 2 else names


def _one_class(labels: list[str], name: str) -> np.ndarray:
    """1 where a label has a name, 0 where it has another, UNKNOWN where there is none: (N,)."""
    known = {"": UNKNOWN, name: 1}
    return np.array([known.get(label, 0) for label in labels], np.int8)


def _known(labels: np.ndarray) -> np.ndarray:
    return np.where(labels == UNKNOWN, np.nan, labels).astype(np.float32)


def _digest(example: Example) -> str:
    """A text that changes with the content of an image."""
    if example.digest:
        return example.digest
    try:
        image = example.image
        content = image.read_bytes() if isinstance(image, Path) else to_pil(image).tobytes()
        return hashlib.blake2b(content, digest_size=16).hexdigest()
    except OSError as error:
        return f"unreadable: {error.strerror}"


def spectrum_of(faces: Faces, least: int = NUM_AXES) -> Spectrum:
    """The spectrum of the training and held-out faces, on at least so many axes."""

    def build(_: np.ndarray) -> Notes:
        rows = np.sort(faces.sample("val", AT_ONCE // math.prod(faces.images.shape[1:])))
        return spectrum(faces.axes(least), faces.batch(rows).flatten(1))._asdict()

    name = f"spectrum-{max(least, NUM_AXES)}"
    key = derived_key(faces, name, faces.rows("train"), faces.rows("val"))
    return Spectrum(**cached(key, (1,), build, faces.cache)[1])


def derived_key(faces: Faces, what: str, *parts: np.ndarray) -> str:
    """The cache key of what torch computes from the faces in these rows.

    The number of threads and the version of torch change the last bits.
    """
    rows = [part.tolist() for part in parts]
    digest = hash64(*rows, torch.__version__, torch.get_num_threads())
    return f"{faces.fingerprint}-{faces.images.shape[1]}-{digest:x}-{what}"
