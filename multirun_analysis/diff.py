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


def diff(folders: list[str]) -> str:
    """A table of what differs between two run folders, or a sentence. Raises ConfigError."""
    if len(folders) != 2:
        raise ConfigError(f"diff compares two run folders, and {len(folders)} are given; pass diff RUN RUN")
    one, two = (Path(folder).expanduser() for folder in folders)
    left, right = _facts(one), _facts(two)
    known = dict.fromkeys([*left, *right])
    rows = [(" ".join(key), _cell(left.get(key)), _cell(right.get(key))) for key in known]
    rows = [row for row in rows if row[1] != row[2]]
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
    facts = {("settings", str(k)): v for k, v in result["settings"].items()}
    facts["status", "status"] = runs.state(path)["status"]
    for group, keys in GROUPS.items():
        for key in keys:
            value = result.get(key, {})
            inner = value if isinstance(value, dict) else {key: value}
            facts |= {(group, str(name)): v for name, v in inner.items()}
    return facts


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return "-" if value is None else collect.text(str(value))[:60]
