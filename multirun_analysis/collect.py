"""Run folders as a table. The files of a folder are checked, and nothing in them is executed."""

import contextlib
import json
import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from smilevae import runs
from smilevae.config import NOT_RESULT, REPEATS
from smilevae.errors import ConfigError
from smilevae.models.linear import Spectrum, pca_psnr

METRICS = ("val/loss", "val/recon", "val/kl", "val/nelbo", "val/psnr", "val/active_units")
KINDS = ("completed", "running", "not started", "paused", "interrupted", "stale", "failed", "diverged", "corrupt")
SIGNS = ("config.yaml", "status.json", "result.json")  # a folder with one of them is a run folder
CHECKPOINT = re.compile(r"checkpoints/epoch-\d+\.ckpt")
HIDDEN = {*NOT_RESULT} - {"data.unlabelled", "data.attributes"}
PEOPLE = (  # runs that are equal in these hold out the same people: the images, and the arguments of data/split.py
    *("data_fingerprint", "data.split_seed", "data.val_fraction", "data.test_fraction", "data.person_pattern"),
)
COST = runs.COST
# of an evaluated run, x 1000, in the space of landmarks
DISTANCES = {"distance of reconstructions": "reconstructions", "distance of new faces": "new faces"}
MAX_PREVIEW = 4_000_000  # bytes


@dataclass
class Sweep:
    """`runs` has a row for every run, with knobs and metrics if it completed; `swept` names the knobs that differ."""

    runs: pd.DataFrame
    swept: list[str]

    @property
    def completed(self) -> pd.DataFrame:
        return self.runs[self.runs["status"] == "completed"]

    @property
    def counts(self) -> dict[str, int]:
        counts = self.runs["status"].value_counts()
        return {kind: int(counts[kind]) for kind in KINDS if kind in counts}


def collect(folders: list[Path]) -> Sweep:
    """All runs in the given sweep or run folders. Raises ConfigError if there are none."""
    rows = []
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder; pass a sweep's, such as multirun/<time>")
        prefix = f"{folder.resolve().name}/" if len(folders) > 1 else ""
        paths = [folder] if _is_run(str(folder)) else _inside(folder)
        planned = {}
        with contextlib.suppress(OSError, ValueError, AttributeError, TypeError, LookupError, RecursionError):
            jobs = json.loads((folder / "sweep.json").read_bytes())["jobs"]
            planned = {name: dict(job.get("settings", {})) for name, job in jobs.items()}
        for path in paths:
            settings = planned[path.name] if path.name in planned else trainer(path)  # the plan is fast to read
            knobs = {text(name): plain(value) for name, value in settings.items() if name.startswith("trainer.")}
            name = prefix + text(path.name or path.resolve().name)
            rows.append({"run": name, "path": path} | knobs | read(path))
        begun = {path.name for path in paths}
        rows += [
            {"run": prefix + text(name), "path": folder / name, "status": "not started", "reason": ""}
            for name in planned
            if name not in begun and not (folder / name).is_dir()
        ]
    if not rows:
        raise ConfigError(f"{folders[0]} holds no runs; pass a sweep's folder, such as multirun/<time>")
    frame = pd.DataFrame(rows).reindex(columns=[*_columns(rows)])
    frame = frame[~frame["path"].map(Path.resolve).duplicated()]
    frame = frame.sort_values("run", kind="stable", ignore_index=True)
    return Sweep(frame, swept(frame))


def swept(frame: pd.DataFrame) -> list[str]:
    """The knobs that differ among the completed runs. Of knobs that vary together the first counts; seeds come last.

    `data_fingerprint` is among them if runs have different images and no knob says so: two sweeps of two folders.
    """
    done = frame[frame["status"] == "completed"]
    codes: dict[tuple[int, ...], str] = {}
    columns = sorted(frame.columns, key=lambda c: c in REPEATS)
    for knob in (c for c in columns if c not in (*METRICS, *_FIXED, *HIDDEN)):
        code, levels = pd.factorize(done[knob].map(str, na_action="ignore"))
        if len(levels) > 1:
            codes.setdefault(tuple(code), knob)
    knobs = list(codes.values())
    if differing(done, ("data_fingerprint",)):
        images = done["data_fingerprint"].map(str)
        others = [done[knob].map(str) for knob in knobs if knob not in REPEATS]
        if not others or images.groupby(others).nunique().max() > 1:
            knobs.insert(len(others), "data_fingerprint")
    return knobs


def differing(frame: pd.DataFrame, columns: Iterable[str]) -> list[str]:
    """The columns in which the runs of a frame differ."""
    return [name for name in columns if name in frame and frame[name].map(str).nunique() > 1]


def held_out(frame: pd.DataFrame) -> pd.Series:
    """A text for each run of a frame, equal where runs have the same images and hold out the same people."""
    known = [name for name in PEOPLE if name in frame]
    return frame[known].map(str).agg(" ".join, axis=1)


_FIXED = (
    *("run", "path", "status", "reason", "checkpoint", "epoch", "epochs_done", "used_beta", "code", *DISTANCES),
    *("data_fingerprint", "mean_face_psnr", "wall_seconds", "images_per_second", "used_threads", "peak_memory_mb"),
    *COST,
)


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    columns = dict.fromkeys(("run", "path", "status", "reason"))
    for row in rows:
        columns |= dict.fromkeys(row)
    return list(columns)


def _is_run(path: str) -> bool:
    return any(os.path.exists(os.path.join(path, name)) for name in SIGNS)


def _inside(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False) and e.name != "analysis")
    return [folder / name for name in names if _is_run(os.path.join(folder, name))]


def trainer(path: Path) -> dict[str, Any]:
    """The settings of Lightning's trainer, which result.json lacks, from config.yaml; {} if it cannot be read."""
    with contextlib.suppress(ConfigError, RecursionError):
        settings = runs.read_settings(path).trainer.model_dump()
        return {f"trainer.{name}": value for name, value in settings.items()}
    return {}


def read(path: Path) -> dict[str, Any]:
    """The status and reason of a run folder; the knobs, best epoch and checkpoint of a completed one."""
    try:
        content = (path / "result.json").read_bytes()
    except FileNotFoundError:
        return _unfinished(path)
    except OSError as error:
        return {"status": "corrupt", "reason": f"result.json: {error.strerror}"}
    try:
        return _completed(path, json.loads(content))
    except Exception as error:  # a damaged or hostile file can raise anything
        why = f"{type(error).__name__} {text(str(error))[:80]}"
        return {"status": "corrupt", "reason": f"result.json is not whole: {why}"}


def _completed(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    best, checkpoint = result["best"], result["checkpoints"][0]
    numbers = {name: float(best[name]) for name in METRICS}
    if not all(map(math.isfinite, numbers.values())):
        raise ValueError("a metric is not finite")
    if not CHECKPOINT.fullmatch(checkpoint):
        raise ValueError("a checkpoint of another name")
    knobs = {text(str(name)): plain(value) for name, value in result["settings"].items()}
    if clash := set(knobs) & {*_FIXED, *METRICS}:
        raise ValueError(f"a knob named {min(clash)}")
    beta = best["beta"] if knobs["beta"] == "auto" else knobs["beta"]
    if not all(isinstance(n, (int, float)) and math.isfinite(n) for n in (beta, knobs["latent_dim"])):
        raise TypeError("beta or latent_dim is no number")
    reason = "" if (path / checkpoint).exists() else "its checkpoint is gone"
    with contextlib.suppress(KeyError, TypeError, ValueError):
        table = runs.read_json(path / "evaluation" / "best" / "metrics.json")
        rows = table["realism"] if table["checkpoint"] == checkpoint else {}
        numbers |= {key: 1000 * float(rows[name]["landmarks"]["distance"]) for key, name in DISTANCES.items()}
    own = spectrum(path)
    return knobs | {
        "status": "completed",
        "reason": reason,
        "checkpoint": checkpoint,
        "epoch": int(best["epoch"]),
        "used_beta": float(beta),
        "code": text(str(result.get("code", ""))),
        "epochs_done": int(result["final"]["epoch"]),
        "data_fingerprint": text(str(result["data_fingerprint"])),
        "mean_face_psnr": pca_psnr(own, 0) if own else math.nan,
        "wall_seconds": float(result["wall_seconds"]),
        "images_per_second": float(result["final"].get("images_per_second", math.nan)),
        "used_threads": int(result["threads"]),
        "peak_memory_mb": float(result["peak_memory_mb"]),
        **cost(result),
        **numbers,
    }


def _unfinished(path: Path) -> dict[str, Any]:
    state = runs.state(path)
    kind = {"NEW": "not started", "COMPLETED": "corrupt"}.get(str(state["status"]), str(state["status"]).lower())
    if kind == "failed" and state["error"] == "Diverged":
        kind = "diverged"
    reason = state["reason"] or ("status.json says COMPLETED, but there is no result" if kind == "corrupt" else "")
    if kind not in KINDS:
        kind, reason = "corrupt", "status.json is not whole"
    reason = text(str(reason)).splitlines()[0][:300] if reason else ""
    return {"status": kind, "reason": reason, **cost(runs.read_json(path / "cost.json"))}


def cost(content: dict[str, Any]) -> dict[str, float]:
    """The cost in a result.json or cost.json, as far as it is known."""
    numbers = {name: content.get(name) for name in COST}
    return {k: float(v) for k, v in numbers.items() if isinstance(v, (int, float)) and math.isfinite(v)}


def plain(value: Any) -> Any:
    """A knob's value as a number or a text, whole: two values stay two."""
    if isinstance(value, (bool, int, float)):
        return value
    return "none" if value is None else text(str(value))


def text(name: str) -> str:
    """A name without control characters, for terminals and pages."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", name.encode(errors="replace").decode())


def curve(path: Path, metric: str = "val/psnr") -> list[tuple[int, float]]:
    """(epoch, metric) of every recorded epoch of a run."""
    points = [(line["epoch"], line.get(metric)) for line in runs.read_metrics(path)]
    return [(epoch, value) for epoch, value in points if isinstance(value, (int, float)) and math.isfinite(value)]


def spectrum(path: Path) -> Spectrum | None:
    """The spectrum of the run's own faces; None if it is missing or damaged."""
    try:
        content = Spectrum(**json.loads((path / "spectrum.json").read_bytes()))
        numbers = (*content.eigenvalues, *content.held_out, content.total, content.num_pixels)
        whole = all(map(math.isfinite, numbers)) and len(content.eigenvalues) == len(content.held_out)
        return content if whole and content.num_pixels > 0 else None
    except (OSError, ValueError, TypeError, OverflowError, RecursionError):
        return None


def preview(path: Path) -> bytes | None:
    """preview.png of a run; None if it is missing, too large or no PNG."""
    file = path / "preview.png"
    try:
        if file.is_symlink() or not 8 < file.stat().st_size < MAX_PREVIEW:
            return None
        content = file.read_bytes()
    except OSError:
        return None
    return content if content.startswith(b"\x89PNG\r\n\x1a\n") else None
