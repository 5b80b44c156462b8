"""The kind of plug-in that gives images."""

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from os.path import abspath, expanduser
from typing import Annotated, Any, ClassVar, NamedTuple

from annotated_types import MinLen
from pydantic import AfterValidator

from smilevae.errors import ConfigError
from smilevae.plugins.kinds import MAX_SEED, Number, Plugin, knob

UNLABELLED = "none"  # the part of images that are only trained on


def _with_group(pattern: str) -> str:
    with suppress(re.error):
        if re.compile(pattern).groups:
            return pattern
    raise ValueError("must be a regular expression with a group in brackets")


Place = Annotated[str, MinLen(1), AfterValidator(expanduser), AfterValidator(abspath)] | None
Pattern = Annotated[str, AfterValidator(_with_group)]


class Example(NamedTuple):
    """An image and what is known of it.

    `image` is the Path of a file, or a Pillow image, an array (H, W) or (H, W, C) of bytes, a
    tensor (C, H, W) in [0, 1], or a function without arguments that gives one of these.
    """

    image: Any
    name: str  # another one for each image
    label: str = ""  # its class; "" if it is not known
    person: str = ""  # who it shows; else data.person_pattern finds it in the name
    part: str = "train"  # "test": only evaluations see it
    digest: str = ""  # a text that changes with the pixels; needed for a function only


class Source(Plugin):
    """Where images come from. Define `examples`, or `dataset` for a data set of torch."""

    group: ClassVar[str] = "data"
    key: ClassVar[str] = "source"
    needs_root: ClassVar[bool] = False  # whether data.root must be given
    source: str = knob("synthetic", "where images come from; data=NAME chooses it with its knobs")
    root: Place = knob(None, "the folder of your images", role="path")
    person_pattern: Pattern = knob(r"^(.+)_\d+\.\w+$", "group 1 of a file name is the person")
    val_fraction: Number = knob(0.2, "share of the people who are held out", 0.01, 0.9)
    test_fraction: Number = knob(0, "share of the people whom only evaluations see", 0, 0.9)
    split_seed: int = knob(0, "which people are held out; follows seed", 0, MAX_SEED, "repeat")
    max_skipped: Number = knob(0.01, "stop if more of the files than this cannot be read", 0, 1)
    unlabelled: Place = knob(None, "a folder of more faces to train on", role="path")
    attributes: Place = knob(None, "a CSV table: file, gender, ...", role="path")
    cache: bool = knob(True, "decode once, into the user's cache folder", role="machine")

    def examples(self) -> Iterable[Example]:
        """All images, in an order that is always the same. Raises DataError."""
        return self._of_dataset("train", self.dataset())

    def dataset(self) -> Any:
        """Pairs (image, label), such as a torch.utils.data.Dataset with `classes`."""
        raise ConfigError(f"data={self.choice} has no examples; define the method")

    def attributes_of(self, names: list[str]) -> dict[str, Any]:
        """Arrays (N,) of what else is known of the images `names`, NaN where it is not."""
        return {}

    def problems(self) -> list[str]:
        """Settings that contradict each other, a sentence each."""
        if self.val_fraction + self.test_fraction > 0.95:
            return ["data.val_fraction and data.test_fraction are too large; lower one"]
        return []

    @property
    def place(self) -> str:
        """The folder of the images, or the name of their source, for an error sentence."""
        return self.root or self.source

    def _of_dataset(self, part: str, dataset: Any) -> Iterator[Example]:
        """The examples of a data set of torch."""
        classes: Any = getattr(dataset, "classes", None)
        for index in range(len(dataset)):
            image, label = dataset[index]
            name = classes[int(label)] if classes else f"{label}"  # a tensor's value
            yield Example(image, f"{part}/{index:07d}", name, part=part)


def named(examples: Iterable[Example], pattern: str) -> list[Example]:
    """Examples with the person of each."""
    result = []
    for example in examples:
        match = re.match(pattern, example.name.rpartition("/")[2])
        person = example.person or (match[1] if match else example.name)
        result.append(example._replace(person=person))
    return result
