"""Where pictures come from: a folder, a public set, more faces without labels, a table of what is known of them.

Nothing is decoded here; a Listing says which file is whose, and of which class.
"""

import csv
import errno
import math
import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs

from smilevae.data.images import list_images
from smilevae.errors import DataError

UNKNOWN = -1
PERSON = r"^(.+)_\d+\.\w+$"  # First_Last_0001.jpg -> First_Last
CLASS_FOLDERS = {"smile": 1, "non_smile": 0}
KAGGLE_HANDLE = "chazzer/smiling-or-not-face-data/versions/1"  # a fixed version needs no network once cached


@dataclass
class Listing:
    """Picture files before decoding, in a stable order; `names` are relative to the root, in POSIX form."""

    paths: list[Path]
    names: list[str]
    smile: list[int]
    test: list[bool]
    people: list[str] = field(default_factory=list)
    num_unlabelled: int = 0  # the last so many are for training only


def list_faces(source: str, root: str | None, person_pattern: str, unlabelled: str | None) -> Listing:
    """The files of "folder", "smiling_or_not" or "celeba", then those of a folder of `unlabelled` faces for training.

    Whom a file shows, where the source does not say, is the first group of `person_pattern` in its name. Raises
    DataError.
    """
    sources: dict[str, Callable[..., Listing]] = {"smiling_or_not": smiling_or_not, "celeba": celeba}
    listing = sources.get(source, folder)(root)
    if unlabelled:
        _add_unlabelled(listing, Path(os.path.expanduser(unlabelled)))
    listing.people += [person(person_pattern, name) for name in listing.names[len(listing.people) :]]
    return listing


def folder(root: str) -> Listing:
    """`root/train/{smile,non_smile}` + `root/test`, or `root/{smile,non_smile,test}`, or pictures without classes."""
    base = Path(os.path.expanduser(root))
    try:
        if not base.is_dir():
            raise DataError(f"data.root={root} is not a folder; name the one that holds train/ or smile/")
        train = base / "train" if (base / "train").is_dir() else base
        by_class = {name: list_images(train / name) for name in CLASS_FOLDERS if (train / name).is_dir()}
        test = list_images(base / "test") if (base / "test").is_dir() else []
        plain = [] if by_class else [p for p in list_images(train) if p not in set(test)]
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make the folder readable") from None
    counts = ", ".join(f"{train / name}: {len(by_class.get(name, []))} images" for name in CLASS_FOLDERS)
    if by_class and not all(by_class.get(name) for name in CLASS_FOLDERS):
        raise DataError(f"one class is empty ({counts}); fill both folders, or put all pictures into {train} itself")
    if not by_class and not plain:
        raise DataError(f"{train} holds no images; expected train/smile and train/non_smile, or pictures")
    labelled = [(p, CLASS_FOLDERS[name], False) for name, paths in by_class.items() for p in paths]
    labelled += [(p, UNKNOWN, False) for p in plain]
    # class folders inside test/ are labels too
    labelled += [(p, CLASS_FOLDERS.get(p.parent.name, UNKNOWN), True) for p in test]
    paths, smile, is_test = (list(column) for column in zip(*labelled))
    return Listing(paths, [_text(p.relative_to(base)) for p in paths], smile, is_test)


def smiling_or_not(root: str | None) -> Listing:
    """The public "smiling or not" set from Kaggle; `root` overrides the download with a local copy."""
    if root:
        return folder(root)
    kagglehub = _extra("kagglehub", "data=smiling_or_not")
    try:
        path = Path(kagglehub.dataset_download(KAGGLE_HANDLE))
    except Exception as error:  # kagglehub raises its own, requests' and OSError families
        raise DataError(
            f"Kaggle could not be reached for {KAGGLE_HANDLE} ({type(error).__name__}); go online once, or download"
            " it by hand and pass data.root=PATH"
        ) from None
    if not (path / "smile").is_dir():  # archives keep one folder of their own
        path = next((p.parent for p in sorted(path.rglob("smile")) if p.is_dir()), path)
    return folder(str(path.parent if path.name == "train" else path))


def celeba(root: str | None) -> Listing:
    """CelebA (Liu et al. 2015) through torchvision: attribute Smiling, people from its identity file, its test part."""
    from torchvision.datasets import CelebA

    base = root or platformdirs.user_cache_dir("smilevae")
    try:
        sets = {s: CelebA(base, split=s, target_type=["attr", "identity"], download=not root) for s in ("all", "test")}
    except Exception as error:  # gdown, zipfile and torchvision raise different families
        raise DataError(
            f"CelebA was not found in {base}/celeba and could not be downloaded ({type(error).__name__}:"
            f" {str(error).splitlines()[0] if str(error) else 'no detail'}); pip install -e '.[data]' and go online, or"
            " unpack it there and pass data.root=PATH"
        ) from None
    every, test = sets["all"], set(sets["test"].filename)
    return Listing(
        paths=[Path(base) / "celeba" / "img_align_celeba" / name for name in every.filename],
        names=list(every.filename),
        smile=every.attr[:, every.attr_names.index("Smiling")].tolist(),
        test=[name in test for name in every.filename],
        people=[str(i) for i in every.identity[:, 0].tolist()],
    )


def _add_unlabelled(listing: Listing, root: Path) -> None:
    try:
        paths = list_images(root)
    except OSError as error:
        raise DataError(f"data.unlabelled={root}: {error.strerror}; name a folder of pictures") from None
    if not paths:
        raise DataError(f"data.unlabelled={root} holds no images; name a folder of pictures")
    names = [f"unlabelled/{_text(path.relative_to(root))}" for path in paths]
    listing.paths += paths
    listing.names += names
    listing.smile += [UNKNOWN] * len(paths)
    listing.test += [False] * len(paths)
    listing.num_unlabelled = len(paths)


def read_attributes(path: Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of a CSV with a column `file`, as numbers for the pictures `names`: (N,) each, NaN where there is none.

    A column of two words becomes 0 and 1 in alphabetical order (gender: female 0, male 1); one of more words,
    `identity` and `smile` are left out. A file is found by its path below data.root, or by its bare name if that
    is one picture's only.
    Raises DataError.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        with open(path, newline="", encoding="utf-8-sig") as file:
            table = [row for row in csv.DictReader(file) if row.get("file")]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        why = getattr(error, "strerror", None) or "it is not CSV"
        raise DataError(f"data.attributes={path}: {why}; name a CSV table with a column `file`") from None
    bare = Counter(name.rsplit("/", 1)[-1] for name in names)
    listed = Counter(row["file"].rsplit("/", 1)[-1] for row in table)
    rows = {row["file"].rsplit("/", 1)[-1]: row for row in table} | {row["file"]: row for row in table}
    found = []
    for name in names:
        short = name.rsplit("/", 1)[-1]
        found.append(rows.get(name) or (rows.get(short) if bare[short] == listed[short] == 1 else None))
    if not any(found):
        raise DataError(
            f"data.attributes={path}: a column `file`, separated by commas, names none of the {len(names)} pictures;"
            " name them as below data.root, or by file names that occur once"
        )
    columns = {}
    for column in [c for c in table[0] if c not in ("file", "identity", "smile", None)]:
        texts = [(row.get(column) or "").strip() if row else "" for row in found]
        words = sorted({text for text in texts if text})
        codes: dict[str, float] = {"": math.nan}
        try:
            codes |= {word: float(word) for word in words}
        except ValueError:
            codes |= {word: float(number) for number, word in enumerate(words)}
            if len(words) > 2:
                continue
        values = np.array([codes[text] for text in texts], dtype=np.float32)
        if len(np.unique(values[np.isfinite(values)])) > 1:
            columns[column] = values
    return columns


def _extra(module: str, wanted_by: str) -> Any:
    try:
        return __import__(module)
    except ImportError:
        raise DataError(f"{wanted_by} needs {module}, which is not installed: pip install -e '.[data]'") from None


def person(pattern: str, name: str) -> str:
    match = re.match(pattern, name.rsplit("/", 1)[-1])
    return match[1] if match else name


def _text(path: Path) -> str:
    """A path as text that any terminal and any file can hold."""
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")
