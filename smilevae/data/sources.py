"""The sources of images that come with smilevae."""

import functools
import inspect
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import platformdirs

from smilevae.errors import DataError
from smilevae.plugins import Example, Number, Source, knob
from smilevae.plugins.kinds import MAX_SEED
from smilevae.plugins.source import UNLABELLED

if TYPE_CHECKING:
    from torchvision.datasets import CelebA

    from smilevae.data.synthetic import SyntheticFaces

SMILE = "smile"
NO_SMILE = "non_smile"
NEGATIONS = ("no_", "non_", "not_", "without_")  # begin the name of a class that lacks something
MAX_CLASSES = 20  # folders; more are people, for example
MANY = 10_000_000
KAGGLE_HANDLE = "chazzer/smiling-or-not-face-data/versions/1"  # a fixed version works offline
OF_FILES = ("root", "unlabelled")


class Synthetic(Source):
    """Drawn faces with known factors, 64 px. Drawn once in about 6 s, then cached."""

    draw_seed: int = knob(0, "which synthetic faces are drawn", 0, MAX_SEED)
    num_smiling: int = knob(600, "synthetic faces that smile", 1, MANY)
    num_not_smiling: int = knob(603, "synthetic faces that do not smile", 1, MANY)
    num_test: int = knob(300, "more synthetic faces, for the test part", 0, MANY)
    confound: Number = knob(0.0, "correlation of smile and hair length", -0.99, 0.99)

    def examples(self) -> Iterable[Example]:
        drawn = self._drawn()
        for row in range(len(drawn)):
            name = f"drawn_{row:05d}.png"
            label = SMILE if drawn.smile[row] else NO_SMILE
            part = "test" if drawn.test[row] else "train"
            draw = functools.partial(drawn.draw, row)
            yield Example(draw, name, label, name, part, f"{drawn.fingerprint}-{row}")

    def attributes_of(self, names: list[str]) -> dict[str, Any]:
        return self._drawn().factors

    def problems(self) -> list[str]:
        text = "does not apply to drawn faces; add data=folder"
        return super().problems() + [f"data.{n} {text}" for n in OF_FILES if getattr(self, n)]

    def _drawn(self) -> "SyntheticFaces":
        from smilevae.data.synthetic import synthetic_faces

        nums = (self.num_smiling, self.num_not_smiling, self.num_test)
        return synthetic_faces(*nums, self.draw_seed, self.confound)


class Folder(Source):
    """PATH/train/CLASS and PATH/test/CLASS, PATH/CLASS, or images without classes."""

    needs_root: ClassVar[bool] = True

    def examples(self) -> Iterable[Example]:
        return folder(self.root)


class SmilingOrNot(Source):
    """The public "smiling or not" set from Kaggle, 600 and 603 faces, or data.root, a copy of it."""

    def examples(self) -> Iterable[Example]:
        if self.root:
            return folder(self.root)
        try:
            import kagglehub

            path = Path(kagglehub.dataset_download(KAGGLE_HANDLE))
        except ImportError:
            remedy = "pip install -e '.[data]'"
            raise DataError(f"data=smiling_or_not needs kagglehub: {remedy}") from None
        except Exception as error:  # of many libraries
            problem = f"Kaggle could not be reached for {KAGGLE_HANDLE} ({type(error).__name__})"
            remedy = "go online once, or pass data.root=PATH of a download"
            raise DataError(f"{problem}; {remedy}") from None
        if not (path / SMILE).is_dir():  # the archive may hold one outer folder
            path = next((p.parent for p in sorted(path.rglob(SMILE)) if p.is_dir()), path)
        return folder(str(path.parent if path.name == "train" else path))


class Celeba(Source):
    """CelebA (Liu et al. 2015) with its people and its test part; data.root/celeba is a copy."""

    def examples(self) -> Iterable[Example]:
        every = _celeba(self.root, "all")
        test = set(_celeba(self.root, "test").filename)
        images = Path(every.root) / "celeba" / "img_align_celeba"
        smile = every.attr[:, every.attr_names.index("Smiling")].tolist()
        people = every.identity[:, 0].tolist()
        for name, smiles, person in zip(every.filename, smile, people):
            label = SMILE if smiles else NO_SMILE
            part = "test" if name in test else "train"
            yield Example(images / name, name, label, str(person), part)

    def attributes_of(self, names: list[str]) -> dict[str, Any]:
        """CelebA's other 39 attributes."""
        every = _celeba(self.root, "all")
        order = {name: row for row, name in enumerate(every.filename)}
        table = every.attr.numpy().astype(np.float32)[[order[name] for name in names]]
        columns = dict(zip(every.attr_names, table.T))
        return {name.lower(): columns[name] for name in columns if name not in ("Smiling", "")}


class Torchvision(Source):
    """A data set of torchvision.datasets with classes: MNIST, FashionMNIST, CIFAR10, ..."""

    name: str = knob("MNIST", "the class in torchvision.datasets")

    def examples(self) -> Iterable[Example]:
        from torchvision import datasets

        kind: Any = getattr(datasets, self.name, None)
        known = inspect.signature(kind).parameters if inspect.isclass(kind) else {}
        if not {"train", "split"} & set(known):
            remedy = "name one with classes, such as MNIST or CIFAR10"
            raise DataError(f"data.name={self.name} is none of torchvision's; {remedy}")
        base = self.root or platformdirs.user_cache_dir("smilevae")
        for part in ("train", "test"):
            which = {"train": part == "train"} if "train" in known else {"split": part}
            try:
                dataset = kind(base, **which, download=not self.root)
            except Exception as error:  # of many libraries
                reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
                problem = f"{self.name} was not found in {base} and not downloaded ({reason})"
                remedy = "go online, or pass data.root=PATH of torchvision's files"
                raise DataError(f"{problem}; {remedy}") from None
            yield from self._of_dataset(part, dataset)


def folder(root: str | None) -> list[Example]:
    """The images of a folder. Folders beside one another are classes, if they are 2 to MAX_CLASSES."""
    from smilevae.data.images import list_images

    # List the classes, or all images but those of the test part.
    base = Path(root or "")
    try:
        if not root or not base.is_dir():
            remedy = "name the one that holds train/ or the folders of the classes"
            raise DataError(f"data.root={root} is not a folder; {remedy}")
        train = base / "train" if (base / "train").is_dir() else base
        test = list_images(base / "test") if (base / "test").is_dir() else []
        images = sorted(set(list_images(train)) - set(test))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make the folder readable") from None
    if not images:
        expected = "expected images, or a folder of images for each class"
        raise DataError(f"{train} holds no images; {expected}")
    beside = [path.name for path in images if path.parent == train]
    classes = {path.relative_to(train).parts[0] for path in images} - set(beside)
    smiles = {SMILE, NO_SMILE}
    if classes < smiles and any((train / name).is_dir() for name in smiles):
        nums = Counter(path.relative_to(train).parts[0] for path in images)
        counts = ", ".join(f"{train / name}: {nums[name]} images" for name in (SMILE, NO_SMILE))
        remedy = f"fill both folders, or put all images into {train} itself"
        raise DataError(f"one class is empty ({counts}); {remedy}")
    if not 2 <= len(classes) <= MAX_CLASSES:
        classes = set()
    if classes and beside:
        problem = f"{train} holds images beside its folders, such as {beside[0]}"
        raise DataError(
            f"{problem}; move them into the folders, which are classes, or all into one"
        )

    # Name the class and the part of each; those that lack something come last.
    images.sort(key=lambda path: path.relative_to(train).parts[0].startswith(NEGATIONS))
    files = []
    for part, home, paths in (("train", train, images), ("test", base / "test", test)):
        for path in paths:
            label = path.relative_to(home).parts[0]
            label = label if label in classes else ""
            files.append(Example(path, _text(path.relative_to(base)), label, part=part))
    return files


def unlabelled(root: str) -> list[Example]:
    """The images of data.unlabelled. Raises DataError."""
    from smilevae.data.images import list_images

    remedy = "name a folder of images"
    try:
        paths = list_images(Path(root))
    except OSError as error:
        raise DataError(f"data.unlabelled={root}: {error.strerror}; {remedy}") from None
    if not paths:
        raise DataError(f"data.unlabelled={root} holds no images; {remedy}")
    names = [f"unlabelled/{_text(path.relative_to(root))}" for path in paths]
    return [Example(path, name, part=UNLABELLED) for path, name in zip(paths, names)]


@functools.cache
def _celeba(root: str | None, split: str) -> "CelebA":
    from torchvision.datasets import CelebA

    base = root or platformdirs.user_cache_dir("smilevae")
    try:
        return CelebA(base, split, ["attr", "identity"], download=not root)
    except Exception as error:  # of many libraries
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        problem = f"CelebA was not found in {base}/celeba and not downloaded ({reason})"
        remedy = "pip install -e '.[data]' and go online, or unpack it there and pass"
        raise DataError(f"{problem}; {remedy} data.root=PATH") from None


def _text(path: Path) -> str:
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")
