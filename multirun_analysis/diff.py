"""The differences between two runs: settings, code, data, versions, machine, metrics and cost."""

import json
from pathlib import Path
from typing import Any

from multirun_analysis import collect
from smilevae import runs
from smilevae.config import flatten
from smilevae.errors import ConfigError

GROUPS = {  # of the entries of result.json
    "code": ("code", "git"),
    "data": ("data_fingerprint",),
    "versions": ("versions",),
    "machine": ("machine", "threads", "keep_memory"),
    "metrics": ("best",),
    "cost": ("wall_seconds", "peak_memory_mb", *runs.COST),
}
MISSING = object()  # an entry that only the other run has


def diff(folders: list[str]) -> str:
    """A table of what differs between two run folders, or a sentence. Raises ConfigError."""
    if len(folders) != 2:
        given = f"{len(folders)} are given; pass diff RUN RUN"
        raise ConfigError(f"diff compares two run folders, and {given}")
    one, two = (Path(folder).expanduser() for folder in folders)
    left = _facts(one)
    right = _facts(two)
    rows = [("", collect.printable(one.resolve().name), collect.printable(two.resolve().name))]
    for key in dict.fromkeys([*left, *right]):
        a = left.get(key, MISSING)
        b = right.get(key, MISSING)
        if not _equal(a, b):
            rows.append((" ".join(key), _shown(a), _shown(b)))
    if len(rows) == 1:
        groups = dict.fromkeys(group for group, _ in left)
        return f"the two runs are equal in all of {', '.join(groups)}"
    first, second = (max(len(row[i]) for row in rows) for i in (0, 1))
    return "\n".join(f"{name:{first}}  {a:{second}}  {b}" for name, a, b in rows)


def _facts(path: Path) -> dict[tuple[str, str], Any]:
    """(group, name) -> value. A run without a result has its settings, best epoch and cost."""
    result = runs.read_result(path)
    settings = {}
    try:
        settings = flatten(runs.read_settings(path).plain())  # result.json lacks the trainer's
    except ConfigError:
        if not result:
            raise
    if not result:
        lines = [line for line in runs.read_metrics(path) if "val/loss" in line]
        best = min(lines, key=runs.rank_of, default={})
        result = {"best": best} | runs.read_json(path / "cost.json")
    settings |= result.pop("settings", {})
    facts: dict[tuple[str, str], Any] = {("settings", name): v for name, v in settings.items()}
    facts["status", "status"] = runs.state(path)["status"]
    for group, keys in GROUPS.items():
        for key in keys:
            value = result.get(key, {})
            inner = value if isinstance(value, dict) else {key: value}
            facts |= {(group, name): v for name, v in inner.items()}
    return facts


def _equal(one: Any, two: Any) -> bool:
    """Whether two values of JSON are equal: 1 is 1.0, but not true, and NaN is NaN."""
    if _shown(one) == _shown(two):
        return True
    return one == two and isinstance(one, bool) == isinstance(two, bool)


def _shown(value: Any) -> str:
    return "-" if value is MISSING else json.dumps(value, ensure_ascii=False)
