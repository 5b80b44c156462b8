"""The sentences of the analysis, and its lines for a terminal."""

import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from multirun_analysis import collect
from multirun_analysis.collect import Sweep
from smilevae import runs
from smilevae.models.linear import linear_vae, pca_psnr

NAMES = {"val/psnr": "PSNR", "val/kl": "KL"}
UNITS = {"val/psnr": " dB", "val/kl": " nats", "val/nelbo": " nats"}
MEANINGS = {
    "val/nelbo": "the negative ELBO of held-out faces",
    "val/psnr": "the PSNR of held-out faces",
    "val/recon": "the squared error of held-out faces",
    "val/loss": "squared error + beta * KL of held-out faces",
}
HOURS = {"cpu_seconds": "CPU hours", "gpu_seconds": "GPU hours"}
STILL_IMPROVING = 0.01  # share of val/loss
MAX_NAMED = 5
MAX_EFFECTS = 8


def number(value: float, digits: int = 6, sign: bool = False) -> str:
    """A number of some significant digits, without an exponent."""
    return np.format_float_positional(
        value, digits, unique=False, fractional=False, trim="-", sign=sign
    )


def with_interval(shown: str, half_width: float | None) -> str:
    """A number that is shown, with the half width of its interval where that is known."""
    return shown if half_width is None else f"{shown} ± {number(half_width, 2)}"


def evaluate_command(checkpoint: Path) -> str:
    return collect.printable(runs.command_line("evaluate", "ckpt", checkpoint))


def warnings(sweep: Sweep, rank_by: str, ranked: pd.DataFrame) -> Iterator[str]:
    """What limits a ranking of these runs."""
    done = sweep.completed
    if people := collect.differing(done, collect.PEOPLE):
        reason = ", ".join(people).replace("data_fingerprint", "other images")
        remedy = "compare means over several data.split_seed, not single runs."
        yield f"Runs hold out different people ({reason}), and some people are easier: {remedy}"
    if collect.differing(done, collect.SIZE):
        depends = f"on which {rank_by} depends: compare runs of one size."
        yield f"Runs have different image sizes, {depends}"
    if collect.differing(done, ["code"]):
        differences = "so their differences may come from the code."
        yield f"Runs were trained by different programs (column code), {differences}"
    behind = []
    for own in ranked.head(2).query("behind_mean_face").itertuples():
        mean_face = f"the mean face {own.mean_face_psnr:.2f} dB"
        behind.append(f"{own.configuration} ({own.psnr:.2f} dB, {mean_face})")
    if behind:
        learnt = "They have learnt less than an average of all faces. Train longer, or lower beta."
        yield f"Behind the mean face by PSNR: {'; '.join(behind)}. {learnt}"
    if improving := sum(map(_still_improving, done["path"])):
        num = f"{improving} of {len(done)} runs"
        remedy = "train longer before trusting small differences."
        yield f"{num} were still improving at their end: {remedy}"


def _still_improving(path: Path) -> bool:
    """Whether the lowest val/loss fell by more than 1% in the last tenth of the epochs."""
    curve = collect.curve(path, "val/loss")
    early = curve[curve.index <= 0.9 * curve.index.max()]
    return bool(early.min() - curve.min() > STILL_IMPROVING * abs(curve.min()))


def linear_reference(sweep: Sweep) -> str:
    """The best PSNR beside the optimum of a linear VAE."""
    done = sweep.completed
    run = done.loc[done["val/psnr"].idxmax()]
    spectrum = collect.spectrum(run["path"])
    if not spectrum:
        return ""
    optimum = linear_vae(spectrum, run["used_beta"], int(run["latent_dim"]))
    best = f"The best PSNR is {run['val/psnr']:.2f} dB, of {run['run']}."
    reach = f"{optimum['psnr']:.2f} dB, the mean face {pca_psnr(spectrum, 0):.2f} dB"
    return f"{best} A linear VAE with its beta and latent_dim can reach {reach}."


def cost(sweep: Sweep) -> str:
    """The cost of the runs that measured it; empty if none did."""
    known = sweep.runs[[name for name in HOURS if name in sweep.runs]].dropna(how="all")
    hours = known.sum() / 3600
    totals = [f"{hours[name]:.3g} {HOURS[name]}" for name in known]
    return f"Cost of {len(known)} runs: {', '.join(totals)}." if totals else ""


def explanation(rank_by: str, num: int, sign: int) -> list[str]:
    """How configurations are ranked; `sign` is that of better."""
    direction = "lower" if sign < 0 else "higher"
    meaning = MEANINGS.get(rank_by, "a measure")
    return [
        f"The best of {num} configurations by {rank_by}, {meaning}; {direction} is better.",
        "Runs that differ only in seed or split are one configuration. ± is a 95% interval.",
    ]


def terminal(summary: dict[str, Any], page: Path) -> str:
    """The result in about twenty lines of at most 100 characters."""
    # What was read.
    counts = ", ".join(f"{num} {status}" for status, num in summary["counts"].items())
    lines = [f"{counts}. {summary['cost']}"]
    failures = [run for run in summary["unfinished"] if run["status"] != "paused"]
    texts = [f"  {run['run']}: {run['status']}, {run['reason']}" for run in failures]
    lines += _first([text.removesuffix(", ") for text in texts], MAX_NAMED, "in runs.csv")

    # The best two configurations.
    rank_by = summary["rank_by"]
    lines += ["", *summary["explanation"]]
    for place, own in enumerate(summary["configurations"][:2], start=1):
        lines += [f"  {place}. {_numbers(own, rank_by)}", f"     {own['evaluate']}"]
    lines.append(summary["verdict"])

    # What each hyper-parameter does.
    if summary["effects"]:
        lines += ["", "The effect of each hyper-parameter, averaged over the others:"]
        lines += _effects(summary["effects"], rank_by)
    if summary["equal_psnr"]:
        lines += ["", "Measures at equal PSNR:", *_at_equal_psnr(summary["equal_psnr"])]
    lines += ["", *summary["warnings"], *summary["conclusions"], f"Page: {runs.shell_path(page)}"]
    return "\n".join(map(_wrapped, lines))


def _numbers(own: dict[str, Any], rank_by: str) -> str:
    """A configuration's name, means and number of runs."""
    mean = with_interval(number(own["mean"]), own["half_width"]) + UNITS.get(rank_by, "")
    numbers = [f"{rank_by} {mean}", f"PSNR {own['psnr']:.2f} dB", f"KL {own['kl']:.1f} nats"]
    numbers.append(f"{own['runs']} run{'s' if own['runs'] > 1 else ''}")
    if own["splits"] > 1:
        numbers[-1] += f" on {own['splits']} splits"
    if own["behind_mean_face"]:
        numbers.append("behind the mean face")
    return f"{own['configuration']}: {', '.join(numbers)}"


def _effects(effects: list[dict[str, Any]], rank_by: str) -> list[str]:
    """A line for each value: what it does to the ranking metric and to PSNR."""
    changes: dict[tuple[str, str], list[str]] = {}
    for effect in effects:
        if effect["metric"] in (rank_by, "val/psnr"):
            name = f"{effect['knob']}={effect['value']} instead of {effect['instead_of']}"
            changes.setdefault((name, effect["n"]), []).append(_change(effect))
    lines = [f"  {name}: {', '.join(texts)}; {n}" for (name, n), texts in changes.items()]
    return _first(lines, MAX_EFFECTS, "on the page")


def _at_equal_psnr(rows: list[dict[str, Any]]) -> list[str]:
    """A line for each two choices: how their measures differ."""
    changes: dict[str, list[str]] = {}
    for row in rows:
        name = f"{row['knob']}={row['value']} instead of {row['instead_of']}"
        where = f"{row['low']:.1f} to {row['high']:.1f} dB, {row['n']}"
        changes.setdefault(f"  {name} ({where})", []).append(_change(row))
    lines = [f"{name}: {', '.join(texts)}" for name, texts in changes.items()]
    return _first(lines, MAX_EFFECTS, "on the page")


def _first(lines: list[str], most: int, place: str) -> list[str]:
    """The first lines; if there are more, a line says where the others are."""
    if len(lines) > most:
        lines = [*lines[:most], f"  and {len(lines) - most} more {place}"]
    return lines


def _change(effect: dict[str, Any]) -> str:
    """An effect in words: PSNR -1.56 ± 0.11 dB (worse)."""
    metric = effect["metric"]
    change = with_interval(number(effect["change"], 3, sign=True), effect["half_width"])
    return f"{NAMES.get(metric, metric)} {change}{UNITS.get(metric, '')} ({effect['verdict']})"


def _wrapped(line: str) -> str:
    """A sentence in lines of at most 100 characters; a command stays whole."""
    if "ckpt=" in line:
        return line
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    return textwrap.fill(
        line, 100, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
