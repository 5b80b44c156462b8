"""Reads run folders into one table."""

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from smilevae import runs
from smilevae.config import NOT_RESULT, OPEN, REPEATS
from smilevae.errors import ConfigError
from smilevae.models.linear import Spectrum, pca_psnr

METRICS = ("val/loss", "val/recon", "val/kl", "val/nelbo", "val/psnr", "val/active_units")
BETTER = {"val/nelbo": -1, "val/psnr": 1, "val/recon": -1, "val/loss": -1}  # the sign of better
SIGNS = {"higher": 1, "lower": -1}
COST = ("wall_seconds", "peak_memory_mb", *runs.COST)
RUN_FILES = ("config.yaml", "status.json", "result.json")  # a run folder has one of them
HIDDEN = {*NOT_RESULT} - {"data.unlabelled", "data.attributes"}
CHOICES = {group: f"{group}.{kind.key}" for group, kind in OPEN.items()}
SIZE = ("image_size", "channels")
SPLIT = ("split_seed", "val_fraction", "test_fraction", "person_pattern")
PEOPLE = ("data_fingerprint", *(f"data.{name}" for name in SPLIT))  # equal: the same people


@dataclass
class Sweep:
    """`runs` has a row for every run: its knobs, and its metrics if it completed.

    `swept` names the knobs that differ among the trained runs. `better` has the sign of better of
    every metric that ranks, and `measures` the columns of measures.
    """

    runs: pd.DataFrame
    swept: list[str]
    better: dict[str, int] = field(default_factory=BETTER.copy)
    measures: list[str] = field(default_factory=list)

    @property
    def completed(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] == "completed"].infer_objects()


def collect(folders: list[Path]) -> Sweep:
    """All runs in the given sweep or run folders. Raises ConfigError if there are none."""
    rows = []
    knobs: dict[str, Any] = {}
    measures: dict[str, dict[str, Any]] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; pass a sweep's, such as multirun/<time>")
        prefix = f"{folder.resolve().name}/" if len(folders) > 1 else ""
        for path, planned in _members(folder).items():
            own, facts = read(path)
            settings = (planned or _settings(path)) | own
            knobs |= settings
            scores = measured(path, facts)
            measures |= scores
            facts |= {name: float(score["value"]) for name, score in scores.items()}
            name = printable(prefix + (path.name or path.resolve().name))
            rows.append({"run": name, "path": path} | settings | facts)
    if not rows:
        raise ConfigError(f"{folders[0]} holds no runs; pass a sweep's folder: multirun/<time>")
    rows.sort(key=len, reverse=True)  # the order of the columns is that of a completed run
    frame = pd.DataFrame(rows, dtype=object)  # a whole number stays one beside a gap
    frame = frame[~frame["path"].map(Path.resolve).duplicated()]
    frame = frame.sort_values("run", kind="stable", ignore_index=True)
    trained = frame[frame["status"].isin(["completed", "paused"])]
    signs = {n: SIGNS[s["better"]] for n, s in measures.items() if s.get("better") in SIGNS}
    return Sweep(frame, swept(trained, knobs), BETTER | signs, [*measures])


def measured(path: Path, facts: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of measures in the evaluation of a run's best checkpoint, as measure/score."""
    if "checkpoint" not in facts:
        return {}
    evaluation = runs.evaluation_folder(path / facts["checkpoint"]) / "metrics.json"
    measures = runs.read_json(evaluation).get("measures", {})
    return {
        f"{printable(measure)}/{printable(name)}": score
        for measure, scores in measures.items()
        for name, score in scores.items()
        if isinstance(score.get("value"), int | float)
    }


def _members(folder: Path) -> dict[Path, dict[str, Any]]:
    """The runs of a folder, and those planned, with their settings as far as the plan has them."""
    if _is_run(folder):
        return {folder: {}}
    members: dict[Path, dict[str, Any]] = {p: {} for p in sorted(folder.iterdir()) if _is_run(p)}
    for name, job in runs.read_json(folder / "sweep.json").get("jobs", {}).items():
        members[folder / name] = _plain(job.get("settings", {}))
    return members


def _is_run(path: Path) -> bool:
    return any((path / name).exists() for name in RUN_FILES)


def _settings(path: Path) -> dict[str, Any]:
    """The settings in config.yaml, the trainer's too; {} if it cannot be read."""
    try:
        return _plain(runs.read_settings(path).result_settings())
    except ConfigError:
        return {}


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: plain(value) for name, value in settings.items()}


def swept(frame: pd.DataFrame, knobs: Iterable[str]) -> list[str]:
    """The knobs that differ among runs. Of knobs that vary together the first counts; seeds last.

    `data_fingerprint` is added if runs have different images and no knob tells them apart.
    """
    codes: dict[tuple[int, ...], str] = {}
    candidates = [
        knob
        for knob in knobs
        if knob in frame and knob not in HIDDEN and not _of_choice(frame, knob)
    ]
    for knob in sorted(candidates, key=lambda knob: knob in REPEATS):
        code, levels = pd.factorize(frame[knob].map(str, na_action="ignore"))
        if len(levels) > 1:
            codes.setdefault(tuple(code), knob)
    names = list(codes.values())
    if differing(frame, ["data_fingerprint"]):
        images = frame["data_fingerprint"].map(str)
        others = [frame[knob].map(str) for knob in names if knob not in REPEATS]
        if not others or images.groupby(others).nunique().max() > 1:
            names.insert(len(others), "data_fingerprint")
    return names


def _of_choice(frame: pd.DataFrame, knob: str) -> bool:
    """Whether a knob of a network or objective differs only because its choice does."""
    choice = CHOICES.get(knob.partition(".")[0])
    if choice in (None, knob) or choice not in frame:
        return False
    values = frame[knob].map(str).groupby(frame[choice].map(str))
    return bool(values.nunique().max() == 1)


def differing(frame: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """The columns in which the runs of a frame differ."""
    return [name for name in columns if name in frame and frame[name].map(str).nunique() > 1]


def held_out(frame: pd.DataFrame) -> pd.Series:
    """A text for each run, equal where runs have the same images and hold out the same people."""
    known = [name for name in PEOPLE if name in frame]
    return frame[known].map(str).agg(" ".join, axis=1)


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The settings in a run's result, and its facts: status, reason, metrics, cost."""
    try:
        if (path / "result.json").exists():
            return _completed(path)
        return {}, _unfinished(path)
    except Exception as error:  # a damaged file can raise anything
        problem = printable(f"{type(error).__name__}: {error}")[:100]
        return {}, {"status": "corrupt", "reason": f"its files cannot be read ({problem})"}


def _completed(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    result = json.loads((path / "result.json").read_text())
    best = result["best"]
    metrics = {name: float(best[name]) for name in METRICS}
    if not all(map(math.isfinite, metrics.values())):
        raise ValueError("a metric in result.json is not finite")
    settings = _plain(result["settings"])
    beta = best["beta"] if settings["beta"] == "auto" else settings["beta"]
    checkpoint = str(result["checkpoints"][0])
    own = spectrum(path)
    facts: dict[str, Any] = {
        "status": "completed",
        "reason": "" if (path / checkpoint).exists() else "its checkpoint is gone",
        "checkpoint": checkpoint,
        "epoch": int(best["epoch"]),
        "used_beta": float(beta),
        "mean_face_psnr": pca_psnr(own, 0) if own else math.nan,
        "code": printable(str(result.get("code", ""))),
        "data_fingerprint": printable(str(result["data_fingerprint"])),
        "images_per_second": float(result["final"].get("images_per_second", math.nan)),
    }
    return settings, facts | metrics | _cost(result)


def _unfinished(path: Path) -> dict[str, Any]:
    state = runs.state(path)
    status = str(state["status"]).lower()
    if status == "failed" and state["error"] == "Diverged":
        status = "diverged"
    if status == "completed":
        raise ValueError("status.json says COMPLETED, and there is no result.json")
    reason = str(state["reason"] or "").partition("\n")[0]
    facts = {
        "status": "planned" if status == "new" else status,
        "reason": printable(reason)[:300],
        "data_fingerprint": runs.read_json(path / "data_card.json").get("fingerprint"),
    }
    return facts | _cost(runs.read_json(path / "cost.json"))


def _cost(content: dict[str, Any]) -> dict[str, float]:
    """The cost in a result.json or cost.json, as far as it was measured."""
    return {name: float(content[name]) for name in COST if content.get(name) is not None}


def plain(value: Any) -> Any:
    """A value as the user typed it: 64, not 64.0; text for lists and null."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, (bool, int, float)):
        return value
    return "none" if value is None else printable(str(value))


def printable(name: str) -> str:
    """A name without control characters, for terminals and pages."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", name.encode(errors="replace").decode())


def curve(path: Path, metric: str) -> pd.Series:
    """A metric of every recorded epoch of a run."""
    points = {line["epoch"]: line.get(metric) for line in runs.read_metrics(path)}
    return pd.Series(points, dtype=float).dropna()


def spectrum(path: Path) -> Spectrum | None:
    """The spectrum of the run's own faces; None if it is missing or damaged."""
    try:
        own = Spectrum(**runs.read_json(path / "spectrum.json"))
        return own if math.isfinite(pca_psnr(own, 0)) else None
    except Exception:  # a damaged file can raise anything
        return None
