"""Lists the image files of a data set, and reads the table of their attributes."""

import functools
import re
from collections import Counter
from os.path import basename
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import platformdirs

from smilevae.config import Data
from smilevae.data.images import list_images
from smilevae.errors import DataError

if TYPE_CHECKING:
    from torchvision.datasets import CelebA

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
    person: str = ""  # else data.person_pattern finds it in the name
    digest: str = ""  # of the content


def list_faces(data: Data) -> list[ImageFile]:
    """The files of a source, those of data.unlabelled last. Raises DataError."""
    if data.positive and data.negative:
        files = _listed("positive", data.positive, 1) + _listed("negative", data.negative, 0)
    else:
        sources = {"folder": folder, "smiling_or_not": smiling_or_not, "celeba": celeba}
        files = sources[data.source](data.root)
    if data.unlabelled:
        more = _listed("unlabelled", data.unlabelled, UNKNOWN)
        files += [file._replace(part=UNLABELLED) for file in more]
    named = []
    for file in files:
        match = re.match(data.person_pattern, basename(file.name))
        person = file.person or (match[1] if match else file.name)
        named.append(file._replace(person=person))
    return named


def folder(root: str | None) -> list[ImageFile]:
    """`root/[train/]{smile,non_smile}` and `root/test`, or images without classes."""
    # List the classes, or all images but those of the test part.
    base = Path(root or "")
    try:
        if not root or not base.is_dir():
            remedy = "name the one that holds train/ or smile/"
            raise DataError(f"data.root={root} is not a folder; {remedy}")
        train = base / "train" if (base / "train").is_dir() else base
        test = list_images(base / "test") if (base / "test").is_dir() else []
        by_class = {c: list_images(train / c) for c in CLASS_FOLDERS if (train / c).is_dir()}
        plain = [] if by_class else sorted(set(list_images(train)) - set(test))
    except OSError as error:
        raise DataError(f"{error.filename}: {error.strerror}; make the folder readable") from None
    nums = {c: len(by_class.get(c, [])) for c in CLASS_FOLDERS}
    if by_class and not all(nums.values()):
        counts = ", ".join(f"{train / c}: {num} images" for c, num in nums.items())
        remedy = f"fill both folders, or put all images into {train} itself"
        raise DataError(f"one class is empty ({counts}); {remedy}")
    if not by_class and not plain:
        expected = "expected train/smile and train/non_smile, or images"
        raise DataError(f"{train} holds no images; {expected}")

    # Name the class and the part of each.
    files = [(path, UNKNOWN, "train") for path in plain]
    for name, paths in by_class.items():
        files += [(path, CLASS_FOLDERS[name], "train") for path in paths]
    files += [(path, CLASS_FOLDERS.get(path.parent.name, UNKNOWN), "test") for path in test]
    return [ImageFile(p, _text(p.relative_to(base)), label, part) for p, label, part in files]


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
        remedy = "go online once, or pass data.root=PATH of a download"
        raise DataError(f"{problem}; {remedy}") from None
    if not (path / "smile").is_dir():  # the archive may hold one outer folder
        path = next((p.parent for p in sorted(path.rglob("smile")) if p.is_dir()), path)
    return folder(str(path.parent if path.name == "train" else path))


def celeba(root: str | None) -> list[ImageFile]:
    """CelebA (Liu et al. 2015) with its people and its test part."""
    every = _celeba(root, "all")
    test = set(_celeba(root, "test").filename)
    images = Path(every.root) / "celeba" / "img_align_celeba"
    smile = every.attr[:, every.attr_names.index("Smiling")].tolist()
    people = every.identity[:, 0].tolist()
    return [
        ImageFile(images / name, name, label, "test" if name in test else "train", str(number))
        for name, label, number in zip(every.filename, smile, people)
    ]


def celeba_attributes(root: str | None, names: list[str]) -> dict[str, np.ndarray]:
    """CelebA's other 39 attributes of the images `names`: (N,) each."""
    every = _celeba(root, "all")
    order = {name: row for row, name in enumerate(every.filename)}
    table = every.attr.numpy().astype(np.float32)[[order[name] for name in names]]
    columns = dict(zip(every.attr_names, table.T))
    return {name.lower(): columns[name] for name in columns if name not in ("Smiling", "")}


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


def _listed(knob: str, root: str, label: int) -> list[ImageFile]:
    """The images of a folder that a knob names. Raises DataError."""
    remedy = "name a folder of images"
    try:
        paths = list_images(Path(root))
    except OSError as error:
        raise DataError(f"data.{knob}={root}: {error.strerror}; {remedy}") from None
    if not paths:
        raise DataError(f"data.{knob}={root} holds no images; {remedy}")
    below = [_text(path.relative_to(root)) for path in paths]
    return [ImageFile(p, f"{knob}/{name}", label, "train") for p, name in zip(paths, below)]


def read_attributes(path: str | Path, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of a CSV table as numbers for the images `names`: (N,) each, NaN without an entry.

    Two words become 0 and 1 in alphabetical order; a column of more words is left out.
    """
    import pandas as pd

    options = {"keep_default_na": False, "na_values": ["", "nan", "NaN"], "index_col": False}
    try:
        table = pd.read_csv(path, dtype=str, encoding="utf-8-sig", **options)
    except (OSError, ValueError) as error:  # pandas' errors are ValueErrors
        reason = getattr(error, "strerror", None) or "it is not CSV"
        remedy = "name a CSV table with a column `file`"
        raise DataError(f"data.attributes={path}: {reason}; {remedy}") from None

    # Find the row of each image: by its name, or by a file name that occurs once.
    files = table.get("file", pd.Series(dtype=str)).dropna()
    by_name = {name: row for row, name in files.items()}
    ends = files.map(basename).drop_duplicates(keep=False)
    num_ends = Counter(map(basename, names))
    by_end = {end: row for row, end in ends.items() if num_ends[end] == 1}
    rows = [by_name.get(name, by_end.get(basename(name), -1)) for name in names]
    if max(rows, default=-1) < 0:
        problem = f"a column `file`, separated by commas, names none of the {len(names)} images"
        remedy = "name them as below data.root, or by file names that occur once"
        raise DataError(f"data.attributes={path}: {problem}; {remedy}")

    # Turn the columns into numbers.
    columns = {}
    for column in table.columns.drop(["file", "identity", "smile"], errors="ignore"):
        texts = table[column].str.strip().replace("", np.nan).reindex(rows)
        values = pd.to_numeric(texts, errors="coerce").to_numpy(np.float32)
        if np.isnan(values).sum() > texts.isna().sum():
            codes, words = pd.factorize(texts, sort=True)
            if len(words) > 2:
                continue
            values = np.where(codes < 0, np.nan, codes).astype(np.float32)
        if len(np.unique(values[np.isfinite(values)])) > 1:
            columns[str(column)] = values
    return columns


def _text(path: Path) -> str:
    return path.as_posix().encode(errors="surrogateescape").decode(errors="replace")
