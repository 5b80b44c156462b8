"""The differences between two runs: settings, code, data, versions, machine, metrics and cost."""

from pathlib import Path
from typing import Any

from multirun_analysis import collect
from smilevae import runs
from smilevae.errors import ConfigError

GROUPS = {  # of the entries of result.json
    **{"code": ("code", "git"), "data": ("data_fingerprint",), "versions": ("versions",)},
    "machine": ("machine", "threads", "keep_memory"),
    "metrics": ("best",),
    "cost": ("wall_seconds", "peak_memory_mb", *collect.COST),
}
MISSING = object()  # an entry that only the other run has
MAX_CELL = 60  # characters of a value
BEFORE_DIFFERENCE = 20  # characters that are shown before the first different one


def diff(folders: list[str]) -> str:
    """A table of what differs between two run folders, or a sentence. Raises ConfigError."""
    if len(folders) != 2:
        raise ConfigError(f"diff compares two run folders, and {len(folders)} are given; pass diff RUN RUN")
    one, two = (Path(folder).expanduser() for folder in folders)
    left, right = _facts(one), _facts(two)
    known = dict.fromkeys([*left, *right])
    pairs = {key: (left.get(key, MISSING), right.get(key, MISSING)) for key in known}
    rows = [(" ".join(key), *_cells(*pair)) for key, pair in pairs.items() if not _equal(*pair)]
    if not rows:
        return f"the two runs are equal in all of {', '.join(dict.fromkeys(group for group, _ in known))}"
    rows.insert(0, ("", collect.text(one.resolve().name), collect.text(two.resolve().name)))
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{name:{first}}  {a:{second}}  {b}" for name, a, b in rows)


def _facts(path: Path) -> dict[tuple[str, str], Any]:
    """(group, name) -> value. A run without a result has its settings, its best epoch and its cost so far."""
    result = runs.read_result(path)
    if not isinstance(result.get("settings"), dict):
        lines = [line for line in runs.read_metrics(path) if "val/loss" in line]
        best = min(lines, key=runs.rank_of, default={})
        result = {"settings": runs.read_settings(path).flat(), "best": best} | runs.read_json(path / "cost.json")
    settings = result["settings"] | collect.trainer(path)
    facts = {("settings", str(name)): value for name, value in settings.items()}
    facts["status", "status"] = runs.state(path)["status"]
    for group, keys in GROUPS.items():
        for key in keys:
            value = result.get(key, {})
            inner = value if isinstance(value, dict) else {key: value}
            facts |= {(group, str(name)): v for name, v in inner.items()}
    return facts


def _equal(one: Any, two: Any) -> bool:
    """Whether two values of JSON are equal: 1 is 1.0, but not true, and NaN is NaN."""
    if isinstance(one, dict) and isinstance(two, dict):
        return one.keys() == two.keys() and all(_equal(one[key], two[key]) for key in one)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(_equal, one, two))
    if isinstance(one, bool) or isinstance(two, bool):
        return one is two
    return one == two or (one != one and two != two)


def _cells(one: Any, two: Any) -> tuple[str, str]:
    """Two different values, short if that shows the difference, otherwise from shortly before it."""
    short = (_short(one), _short(two))
    if short[0] != short[1]:
        return short
    whole = [collect.text(repr(value)) for value in (one, two)]
    same = [a == b for a, b in zip(*whole)]
    start = [*same, False].index(False) - BEFORE_DIFFERENCE
    if start <= 0:
        return whole[0][:MAX_CELL], whole[1][:MAX_CELL]
    return "..." + whole[0][start : start + MAX_CELL], "..." + whole[1][start : start + MAX_CELL]


def _short(value: Any) -> str:
    if value is MISSING:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return "none" if value is None else collect.text(str(value))[:MAX_CELL]
