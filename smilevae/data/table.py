"""Reads the table of what else is known of images."""

from collections import Counter
from os.path import basename
from pathlib import Path

import numpy as np

from smilevae.errors import DataError


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
