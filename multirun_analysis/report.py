"""The result of the analysis: lines for a terminal, runs.csv, top.json, and one page that opens from disk."""

import base64
import json
import math
import os
import shlex
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from multirun_analysis import collect, diff, plots, rank, rungs, settings
from multirun_analysis.options import AnalyseOptions
from smilevae import __version__, runs

EFFECTS_ON = ("val/psnr", "val/kl")  # beside the metric that ranks
MAX_PREVIEWS = 40
MAX_SETTLED = 300  # runs whose curves are read for the epoch in which training settles
MAX_NAMED = 10
DIFFERENCE = (
    "val/loss is SSE + beta * KL: it ranks runs of one beta on the same faces only, for a larger beta makes the same"
    " model's loss larger. {rank_by} does not contain beta, so it ranks the whole sweep."
)


def main(options: AnalyseOptions) -> None:
    """The command. Raises ConfigError."""
    if options.folders[0] == "diff":
        print(diff.diff(options.folders[1:]))
        return
    folders = [Path(os.path.expanduser(folder)) for folder in options.folders]
    print(analyse(folders, options.rank_by, Path(os.path.expanduser(options.out or folders[0] / "analysis"))))


def analyse(folders: list[Path], rank_by: str, out: Path) -> str:
    """Read the runs, rank them, write everything to `out`; gives the lines for a terminal. Raises ConfigError."""
    sweep = collect.collect(folders)
    rank.check_rank_by(sweep, rank_by)
    rank_by = rank.usable(sweep, rank_by)
    top = rank.best(sweep.completed, rank_by)
    ranked = settings.rank_settings(sweep, rank_by)
    planned = rungs.of(folders[0]) if len(folders) == 1 else []
    stages = rungs.explain(sweep, planned)
    compared = rungs.after(sweep, planned[0][0]) if stages else sweep
    effects = rank.effects(compared, tuple(dict.fromkeys((rank_by, *EFFECTS_ON))))
    lines = [*conclusions(sweep, rank_by, effects), *stages, *programs(sweep)]
    figures = plots.draw_all(sweep, rank_by)
    first = rank.best(sweep.completed, rank_by, MAX_PREVIEWS)
    previews = [(name, collect.preview(path)) for name, path in zip(first.get("run", ()), first.get("path", ()))]
    shown = [(name, png) for name, png in previews if png and plots.openable(png)]
    rows = [_setting(setting, rank_by) for setting in ranked]
    by_loss = [(group, rank.best(part, "val/loss")) for group, part in rank.groups(sweep)]
    summary = {
        "rank_by": rank_by,
        "counts": sweep.counts | {"total": len(sweep.runs)},
        "swept": compared.swept,
        "cost": {name: float(sweep.runs[name].sum()) for name in collect.COST if name in sweep.runs},
        "settings": rows,
        "best_setting": settings.conclusion(ranked, rank_by, MAX_NAMED) if ranked else "",
        "top": [_entry(run, rank_by) for _, run in top.iterrows()],
        "top_by_loss": [
            {"among": group, "runs": [_entry(run, "val/loss") for _, run in part.iterrows()]} for group, part in by_loss
        ],
        "effects": [_finite(effect._asdict()) | {"tells": effect.tells} for effect in effects],
        "conclusions": lines,
    }

    for name, (svg, png, _) in figures.items():
        runs.write_text(out / f"{name}.svg", svg)
        runs.write_bytes(out / f"{name}.png", png)
    if sheet := plots.contact_sheet(shown):
        runs.write_bytes(out / "contact_sheet.png", sheet)
    runs.write_text(out / "runs.csv", _csv(_table(sweep)))
    runs.write_text(out / "settings.csv", _csv(pd.DataFrame([row | {"best": row["best"]["run"]} for row in rows])))
    runs.write_text(out / "top.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    runs.write_text(out / "index.html", _page(sweep, summary, effects, figures, shown, folders))
    return _terminal(sweep, summary, effects, out)


def conclusions(sweep: collect.Sweep, rank_by: str, effects: list[rank.Effect]) -> list[str]:
    """The answers of this sweep to the questions of the source study."""
    done = sweep.completed
    if done.empty:
        return ["No run completed, so nothing is ranked."]
    names = " and ".join(rank.best(done, rank_by)["run"])
    lines = [f"The best two of {len(done)} completed runs by {rank_by} are {names}."]
    lines += [f"Beta: {e.sentence()}." for e in effects if e.knob == "beta" and e.metric == "val/psnr"]
    if spectrum := plots.reference(sweep):
        first = rank.best(done, "val/psnr", 1).iloc[0]
        linear = plots.linear_vae(spectrum, float(first["used_beta"]), int(first["latent_dim"]))
        lines.append(
            f"The sharpest run, {first['run']}, has {first['val/psnr']:.2f} dB; the linear VAE's optimum at its beta"
            f" and latent_dim has {linear['psnr']:.2f} dB, the mean face {plots.pca_psnr(spectrum, 0):.2f} dB."
        )
    curves = [points for path in done["path"].head(MAX_SETTLED) if (points := collect.curve(path, "val/loss"))]
    settled = sorted(epoch for points in curves if (epoch := rank.settled(points)))
    if settled:
        lines.append(
            f"Training settled (val/loss stayed within 1% of its lowest) in {len(settled)} of {len(curves)} runs, in"
            f" epoch {settled[len(settled) // 2]} in the median (from {settled[0]} to {settled[-1]})."
        )
    if len(settled) < len(curves):
        lines.append(
            f"{len(curves) - len(settled)} of {len(curves)} runs were still improving at their end"
            f" ({int(done['epochs_done'].max())} at most): train longer before trusting small differences."
        )
    if normal := [e for e in effects if e.knob == "normalize"]:
        lines += [f"Normalised pixels at equal loss: {e.sentence()}." for e in normal]
        lines.append(
            "The loss is always on [0, 1] pixels here. On [-1, 1] pixels the squared error is four times as large: a"
            " study that normalises its loss as well trains with a quarter of the beta that it names."
        )
    if len({str(f) for f in done["data_fingerprint"]}) > 1 or done.get("data.split_seed", pd.Series([0])).nunique() > 1:
        lines.append("Runs hold out different people: compare means over runs, not single runs.")
    return lines


def programs(sweep: collect.Sweep) -> list[str]:
    """A warning if the runs were trained by several programs."""
    codes = sweep.completed.get("code", pd.Series(dtype=str))
    names = {code: [*sweep.completed["run"][codes == code]] for code in codes.unique() if code}
    if len(names) < 2 and not any(" " in code for code in names):
        return []
    each = "; ".join(
        f"{code.replace(' ', ' then ')}: {', '.join(runs_[:MAX_NAMED])}{' and more' * (len(runs_) > MAX_NAMED)}"
        for code, runs_ in names.items()
    )
    return [f"These runs were trained by different programs, so their differences may come from the code: {each}."]


def _entry(run: Any, metric: str) -> dict[str, Any]:
    path = run["path"] / run["checkpoint"]
    return {
        "run": run["run"],
        "metric": metric,
        "value": float(run[metric]),
        "epoch": int(run["epoch"]),
        "checkpoint": f"{run['path'].name}/{run['checkpoint']}",
        "psnr": float(run["val/psnr"]),
        "kl": float(run["val/kl"]),
        "evaluate": collect.text(
            f"{runs.program('evaluate')} {shlex.quote(runs.override('ckpt', shlex.split(runs.short(path))[0]))}"
        ),
    }


def _setting(setting: settings.Setting, metric: str) -> dict[str, Any]:
    numbers = _finite(setting._asdict()) | {"runs": len(setting.runs), "apart": setting.apart}
    return {"setting": numbers.pop("name"), "metric": metric, **numbers, "best": _entry(setting.runs.iloc[0], metric)}


def _table(sweep: collect.Sweep) -> pd.DataFrame:
    usual = ["beta", "latent_dim", "batch_size", "epochs", "lr", "normalize", "image_size", "seed", "model.network"]
    columns = ["run", "status", "reason", *dict.fromkeys([*sweep.swept, *usual]), *collect.METRICS, *collect.DISTANCES]
    columns += ["epoch", "epochs_done", "images_per_second", "wall_seconds", "used_threads", "peak_memory_mb"]
    columns += [*collect.COST, "data_fingerprint", "checkpoint"]
    return sweep.runs[[c for c in columns if c in sweep.runs]]


def _csv(table: pd.DataFrame) -> str:
    """A text that a spreadsheet would execute as a formula begins with a quote."""

    def harmless(value: Any) -> Any:
        return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value

    return table.map(harmless).rename(columns=harmless).to_csv(index=False)


def _finite(numbers: dict[str, Any]) -> dict[str, Any]:
    """The same with null for numbers that JSON does not have."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in numbers.items()}


def _page(
    sweep: collect.Sweep,
    summary: dict[str, Any],
    effects: list[rank.Effect],
    figures: dict[str, tuple[str, bytes, str]],
    previews: list[tuple[str, bytes]],
    folders: list[Path],
) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    table = _table(sweep)
    constant = [c for c in table.columns if c not in ("run", "status") and table[c].astype(str).nunique() <= 1]
    table = table.drop(columns=[*constant, "checkpoint", "reason"], errors="ignore")
    cells = [[_cell(value) for value in row] for row in table.itertuples(index=False)]
    return environment.get_template("page.html").render(
        title=", ".join(collect.text(folder.resolve().name) for folder in folders),
        summary=summary,
        unfinished=sweep.runs[sweep.runs["status"] != "completed"].head(200).to_dict("records"),
        difference=DIFFERENCE.format(rank_by=summary["rank_by"]),
        effects=effects,
        figures=[(name, plots.inline(svg), caption) for name, (svg, _, caption) in figures.items()],
        previews=[(name, base64.b64encode(plots.as_jpeg(png)).decode()) for name, png in previews],
        columns=list(table.columns),
        cells=cells,
        constant={
            c: _cell(sweep.completed[c].iloc[0])[0] for c in constant if c in sweep.completed and len(sweep.completed)
        },
        cost=cost_lines(sweep),
        now=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )


def _cell(value: Any) -> tuple[str, float | str]:
    """The text of a table's cell, and the value that sorts it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return str(value), str(value)
    if value != value:  # NaN
        return "", ""
    return f"{value:.6g}", float(value)


def _terminal(sweep: collect.Sweep, summary: dict[str, Any], effects: list[rank.Effect], out: Path) -> str:
    counts = ", ".join(f"{number} {kind}" for kind, number in sweep.counts.items())
    lines = [f"{len(sweep.runs)} runs: {counts}"]
    other = sweep.runs[~sweep.runs["status"].isin(["completed", "paused"])]
    named = other.head(MAX_NAMED)
    for run, status, reason in zip(named["run"], named["status"], named["reason"]):
        lines.append(f"  {run}: {status}{', ' if reason else ''}{reason}")
    if len(other) > MAX_NAMED:
        lines.append(f"  and {len(other) - MAX_NAMED} more; see runs.csv")
    lines += cost_lines(sweep)
    if summary["best_setting"]:
        lines.append(summary["best_setting"])
    if any(setting["runs"] > 1 for setting in summary["settings"]):
        lines += [f"top two settings by {summary['rank_by']}, each with its best checkpoint:"]
        lines += [f"  {_words(setting)}  {setting['best']['evaluate']}" for setting in summary["settings"][:2]]
    lines += [f"top two by {summary['rank_by']}, over the whole sweep:", *map(_line, summary["top"])]
    by_loss = summary["top_by_loss"]
    for group in by_loss[:6] if len(by_loss) <= 6 else [group for group in by_loss if len(group["runs"]) > 1][:6]:
        among = ", ".join(f"{knob} {_cell(value)[0]}" for knob, value in group["among"].items())
        lines += [f"top two by val/loss{', ' + among if among else ''}:", *map(_line, group["runs"])]
    lines += [DIFFERENCE.format(rank_by=summary["rank_by"]), *summary["conclusions"][1:]]
    rest = [e.sentence() for e in effects if e.metric == summary["rank_by"]]
    lines += [text for text in rest if not any(text in line for line in summary["conclusions"])]
    return "\n".join([*lines, f"page: {runs.short(out / 'index.html')}"])


def cost_lines(sweep: collect.Sweep) -> list[str]:
    """The cost of the runs that measured it."""
    known = sweep.runs[[name for name in collect.COST if name in sweep.runs]].dropna(how="all")
    units = {"cpu_seconds": (3600, "CPU hours"), "gpu_seconds": (3600, "GPU hours"), "joules": (1000, "kJ")}
    totals = [f"{known[name].sum() / size:.3g} {unit}" for name, (size, unit) in units.items() if name in known]
    return [f"cost of {len(known)} of {len(sweep.runs)} runs: {', '.join(totals)}"] if totals else []


def _words(setting: dict[str, Any]) -> str:
    """A setting's mean, interval, number of runs and probability."""
    words = f"{setting['setting']}: mean {setting['mean']:.6g}"
    if setting["low"] is not None:
        words += f" (95% {setting['low']:.6g} to {setting['high']:.6g})"
    words += f", {setting['runs']} runs" + f" on {setting['num_splits']} splits" * (setting["num_splits"] > 1)
    known = setting["probability"] is not None
    return words + (f", the best with probability {setting['probability']:.0%}" if known else "")


def _line(entry: dict[str, Any]) -> str:
    metric = f"{entry['metric'].partition('/')[2]} {entry['value']:.6g}"
    return f"  {entry['run']}  {metric}, {entry['psnr']:.2f} dB, KL {entry['kl']:.1f}  {entry['evaluate']}"
