"""Lists the image files of a data set, and reads the table of their attributes."""

import csv
import functools
import math
import os
import re
from collections import Counter
from os.path import basename
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from smilevae.config import Data
from smilevae.data.images import list_images
from smilevae.errors import DataError

UNKNOWN = -1
SMILE = "smile"  # the attribute that labels tell, without data.positive
UNLABELLED = "none"  # the part of faces from data.unlabelled
CLASS_FOLDERS = {"smile": 1, "non_smile": 0}
KAGGLE_HANDLE = "chazzer/smiling-or-not-face-data/versions/1"  # a fixed version works offline


class ImageFile(NamedTuple):
    path: Path
    name: str  # the POSIX path below the root
    smile: int
    part: str  # "train", "test" or UNLABELLED
    person: str = ""  # by default from the name
    digest: str = ""  # of the content


def list_faces(data: Data) -> list[ImageFile]:
    """The files of a source, those of data.unlabelled last. Raises DataError."""
    sources = {"folder": folder, "smiling_or_not": smiling_or_not, "celeba": celeba}
    files = two_folders(data.positive, data.negative) if data.positive else sources[data.source](data.root)
    if data.unlabelled:
        more = _images("data.unlabelled", data.unlabelled)
        files += [ImageFile(path, f"unlabelled/{below}", UNKNOWN, UNLABELLED) for path, below in more]
    return [f if f.person else f._replace(person=person(data.person_pattern, f.name)) for f in files]


def folder(root: str | None) -> list[ImageFile]:
    """`root/[train/]{smile,non_smile}` and `root/test`, or images without classes."""
    base = Path(os.path.expanduser(root or ""))
    try:
        if not root or not base.is_dir():
            raise DataError(f"data.root={root} is not a folder; name the one that holds train/ or smile/")
        train = base / "train" if (base / "train").is_dir() else base
        by_class = {c: list_images(train / c) for c in CLASS_FOLDERS if (train / c).is_dir()}
        test = list_images(base / "test") if (base / "test").is_dir() else []
        tested = set(test)
        plain = [] if by_class else [p for p in list_images(train) if p not in tested]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make the folder readable") from None
    nums = {c: len(by_class.get(c, [])) for c in CLASS_FOLDERS}
    if by_class and not all(nums.values()):
        counts = ", ".join(f"{train / c}: {num} images" for c, num in nums.items())
        raise DataError(f"one class is empty ({counts}); fill both folders, or put all images into {train} itself")
    if not by_class and not plain:
        raise DataError(f"{train} holds no images; expected train/smile and train/non_smile, or images")
    labelled = [(p, CLASS_FOLDERS[c], "train") for c, paths in by_class.items() for p in paths]
    labelled += [(p, UNKNOWN, "train") for p in plain]
    labelled += [(p, CLASS_FOLDERS.get(p.parent.name, UNKNOWN), "test") for p in test]
    return [ImageFile(p, _text(p.relative_to(base)), smile, part) for p, smile, part in labelled]


def two_folders(positive: str, negative: str | None) -> list[ImageFile]:
    """Images with an attribute, and images without it."""
    files = []
    for name, path, label in (("positive", positive, 1), ("negative", negative or "", 0)):
        for image, below in _images(f"data.{name}", path):
            files.append(ImageFile(image, f"{name}/{below}", label, "train"))
    return files


def smiling_or_not(root: str | None) -> list[ImageFile]:
    """The public "smiling or not" set from Kaggle, or a local copy of it."""
    if root:
        return folder(root)
    try:
        import kagglehub

        path = Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except ImportError:
        raise DataError("data=smiling_or_not needs kagglehub: pip install -e '.[data]'") from None
    except Exception as error:  # of many libraries
        problem = f"Kaggle could not be reached for {KAGGLE_HANDLE} ({type(error).__name__})"
        raise DataError(f"{problem}; go online once, or pass data.root=PATH of a download") from None
    if not (path / "smile").is_dir():  # the archive may hold one outer folder
        path = next((p.parent for p in sorted(path.rglob("smile")) if p.is_dir()), path)
    return folder(str(path.parent if path.name == "train" else path))


def celeba(root: str | None) -> list[ImageFile]:
    """CelebA (Liu et al. 2015) with its people and its test part."""
    every, test = (_celeba(root, split) for split in ("all", "test"))
    test = set(test.filename)
    images = Path(every.root) / "celeba" / "img_align_celeba"
    smile = every.attr[:, every.attr_names.index("Smiling")].tolist()
    return [
        ImageFile(images / name, name, label, "test" if name in test else "train", str(identity))
        for name, label, identity in zip(every.filename, smile, every.identity[:, 0].tolist())
    ]


def celeba_attributes(root: str | None, names: list[str]) -> dict[str, np.ndarray]:
    """CelebA's other 39 attributes of the images `names`: (N,) each."""
    every = _celeba(root, "all")
    order = {name: row for row, name in enumerate(every.filename)}
    table = every.attr.numpy().astype(np.float32)[[order[name] for name in names]]
    return {name.lower(): table[:, k] for k, name in enumerate(every.attr_names) if name not in ("Smiling", "")}


@functools.cache
def _celeba(root: str | None, split: str) -> Any:
    from torchvision.datasets import CelebA

    base = root or platformdirs.user_cache_dir("smilevae")
    try:
        return CelebA(base, split, ["attr", "identity"], download=not root)
    except Exception as error:  # of many libraries
        reason = ": ".join([type(error).__name__, *str(error).splitlines()[:1]])
        problem = f"CelebA was not found in {base}/celeba and could not be downloaded ({reason})"
        remedy = "pip install -e '.[data]' and go online, or unpack it there and pass data.root=PATH"
        raise DataError(f"{problem}; {remedy}") from None


def _images(knob: str, root: str) -> list[tuple[Path, str]]:
    """The images of a folder that a knob names, with their paths below it. Raises DataError."""
    base = Path(os.path.expanduser(root))
    try:
        paths = list_images(base)
    except OSError as error:
        raise DataError(f"{knob}={base}: {error.strerror}; name a folder of images") from None
    if not paths:
        raise DataError(f"{knob}={base} holds no images; name a folder of images")
    return [(path, _text(path.relative_to(base))) for path in paths]


def read_attributes(path: str | Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of a CSV table as numbers for the images `names`: (N,) each, NaN without an entry.

    Two words become 0 and 1 in alphabetical order; a column of more words is left out.
    """
    try:
        with open(os.path.expanduser(path), newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.DictReader(file) if row.get("file")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = getattr(error, "strerror", None) or "it is not CSV"
        raise DataError(f"data.attributes={path}: {reason}; name a CSV table with a column `file`") from None
    in_names = Counter(map(basename, names))
    in_table = Counter(basename(row["file"]) for row in table)
    once = {name for name in in_names if in_names[name] == in_table[name] == 1}
    by_file = {basename(row["file"]): row for row in table} | {row["file"]: row for row in table}
    rows = [by_file.get(name) or (by_file[basename(name)] if basename(name) in once else None) for name in names]
    if not any(rows):
        problem = f"a column `file`, separated by commas, names none of the {len(names)} images"
        remedy = "name them as below data.root, or by file names that occur once"
        raise DataError(f"data.attributes={path}: {problem}; {remedy}")
    columns = {}
    for column in [c for c in table[0] if c not in ("file", "identity", "smile", None)]:
        texts = [(row.get(column) or "").strip() if row else "" for row in rows]
        words = sorted(set(texts) - {""})
        try:
            codes = {word: float(word) for word in words}
        except ValueError:
            if len(words) > 2:
                continue
            codes = {word: float(number) for number, word in enumerate(words)}
        values = np.array([codes.get(text, math.nan) for text in texts], np.float32)
        if len(np.unique(values[np.isfinite(values)])) > 1:
            columns[column] = values
    return columns


def person(pattern: str, name: str) -> str:
    """The pattern's first group in a file name, or the name."""
    match = re.match(pattern, basename(name))
    return match[1] if match else name


def _text(path: Path) -> str:
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")
