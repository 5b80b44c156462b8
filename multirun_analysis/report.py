"""The result of the analysis: lines for a terminal, runs.csv, top.json, and one page that opens from disk."""

import base64
import json
import math
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from multirun_analysis import collect, diff, plots, rank, rungs, settings
from multirun_analysis.options import AnalyseOptions
from smilevae import __version__, runs
from smilevae.config import STUDY
from smilevae.models.linear import linear_vae, pca_psnr

EFFECTS_ON = ("val/psnr", "val/kl")  # beside the metric that ranks
MAX_PREVIEWS = 40
MAX_SETTLED = 300  # runs whose curves are read for the epoch in which training settles
MAX_NAMED = 10
BEHIND = ", behind the mean face"
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
    groups = rank.groups(sweep)
    by_loss = [(group, rank.best(part, "val/loss")) for group, part in groups if len(part) > 1 or len(groups) == 1]
    summary = {
        "rank_by": rank_by,
        "counts": sweep.counts | {"total": len(sweep.runs)},
        "swept": compared.swept,
        "warnings": warnings(sweep, rank_by, ranked),
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


def warnings(sweep: collect.Sweep, rank_by: str, ranked: list[settings.Setting]) -> list[str]:
    """What limits a ranking of these runs: different people, sizes or phases, and leaders behind the mean face."""
    done, lines = sweep.completed, []
    if differing := collect.differing(done, collect.PEOPLE):
        reason = ", ".join(differing).replace("data_fingerprint", "other images")
        lines.append(
            f"Runs hold out different people ({reason}), so they are trained or measured on different faces: the best"
            " run may have the easiest ones. Compare means over several data.split_seed, not single runs."
        )
    if collect.differing(done, ("image_size",)):
        lines.append(f"Runs have different image sizes, on which {rank_by} depends: compare runs of one size.")
    if second := [knob for knob in sweep.swept if knob.startswith("sharpen.")]:
        lines.append(f"The numbers are of the first phase; {' and '.join(second)} acts in the second, in RUN/sharp.")

    # the leaders that reconstruct worse than the mean of the training faces
    leaders = [(run["run"], run) for _, run in rank.best(done, rank_by).iterrows()]
    if settings.repeated(ranked):
        leaders = [(setting.name, _mean_psnr(setting)) for setting in ranked[:2]] + leaders
    behind = [
        f"{name} ({numbers['val/psnr']:.2f} against {numbers['mean_face_psnr']:.2f} dB)"
        for name, numbers in leaders
        if _behind(numbers)
    ]
    if behind:
        lines.append(
            f"Behind the mean face by PSNR: {'; '.join(behind)}. They have learnt less than an average of all faces."
            " Train longer, or lower beta."
        )
    return lines


def _behind(numbers: Any) -> bool:
    """Whether the mean of the training faces is as near to the held-out faces as the reconstructions are.

    By PSNR, which a reader sees: val/nelbo adds the KL, which a sharp autoencoder pays and the mean face does not.
    """
    return bool(numbers["val/psnr"] <= numbers["mean_face_psnr"])


def _mean_psnr(setting: settings.Setting) -> pd.Series:
    return setting.runs[["val/psnr", "mean_face_psnr"]].mean(skipna=False)


def conclusions(sweep: collect.Sweep, rank_by: str, effects: list[rank.Effect]) -> list[str]:
    """The answers of this sweep to the questions of the source study."""
    done = sweep.completed
    if done.empty:
        return ["No run completed, so nothing is ranked."]
    names = " and ".join(rank.best(done, rank_by)["run"])
    lines = [f"The best two of {len(done)} completed runs by {rank_by} are {names}."]
    lines += [f"Beta: {e.sentence()}." for e in effects if e.knob == "beta" and e.metric == "val/psnr"]
    first = rank.best(done, "val/psnr", 1).iloc[0]
    if spectrum := collect.spectrum(first["path"]):
        optimum = linear_vae(spectrum, float(first["used_beta"]), int(first["latent_dim"]))
        lines.append(
            f"The sharpest run, {first['run']}, has {first['val/psnr']:.2f} dB; the linear VAE's optimum at its beta"
            f" and latent_dim has {optimum['psnr']:.2f} dB, the mean face {pca_psnr(spectrum, 0):.2f} dB."
        )
    curves = [points for path in done["path"].head(MAX_SETTLED) if (points := collect.curve(path, "val/loss"))]
    settled = sorted(epoch for points in curves if (epoch := rank.settled(points)) is not None)
    if settled:
        lines.append(
            f"Training settled (val/loss then fell by less than 1%) in {len(settled)} of {len(curves)} runs, in epoch"
            f" {settled[len(settled) // 2]} in the median (from {settled[0]} to {settled[-1]})."
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
        "behind_mean_face": _behind(run),
        "evaluate": collect.text(f"{runs.command_name('evaluate')} {runs.hydra_argument('ckpt', path)}"),
    }


def _setting(setting: settings.Setting, metric: str) -> dict[str, Any]:
    numbers = _finite(setting._asdict()) | {"runs": len(setting.runs), "apart": setting.apart}
    numbers["behind_mean_face"] = _behind(_mean_psnr(setting))
    return {"setting": numbers.pop("name"), "metric": metric, **numbers, "best": _entry(setting.runs.iloc[0], metric)}


def _table(sweep: collect.Sweep) -> pd.DataFrame:
    usual = [*STUDY, "model.network"]
    columns = ["run", "status", "reason", *sweep.swept, *usual, *collect.METRICS, "mean_face_psnr", *collect.DISTANCES]
    columns += ["epoch", "epochs_done", "images_per_second", "wall_seconds", "used_threads", "peak_memory_mb"]
    columns += [*collect.COST, "data_fingerprint", "checkpoint"]
    return sweep.runs[[c for c in dict.fromkeys(columns) if c in sweep.runs]]


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
        behind={run["run"] for _, run in sweep.completed.iterrows() if _behind(run)},
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
    lines += cost_lines(sweep) + summary["warnings"]
    if summary["best_setting"]:
        lines.append(summary["best_setting"])
    if any(setting["runs"] > 1 for setting in summary["settings"]):
        lines += [f"top two settings by {summary['rank_by']}, each with its best checkpoint:"]
        lines += [f"  {_words(setting)}  {setting['best']['evaluate']}" for setting in summary["settings"][:2]]
    lines += [f"top two by {summary['rank_by']}, over the whole sweep:", *map(_line, summary["top"])]
    for group in summary["top_by_loss"][:6]:
        among = ", ".join(f"{knob} {_cell(value)[0]}" for knob, value in group["among"].items())
        lines += [f"top two by val/loss{', ' + among if among else ''}:", *map(_line, group["runs"])]
    lines += [DIFFERENCE.format(rank_by=summary["rank_by"]), *summary["conclusions"][1:]]
    rest = [e.sentence() for e in effects if e.metric == summary["rank_by"]]
    lines += [text for text in rest if not any(text in line for line in summary["conclusions"])]
    return "\n".join([*lines, f"page: {runs.shell_path(out / 'index.html')}"])


def cost_lines(sweep: collect.Sweep) -> list[str]:
    """The cost of the runs that measured it."""
    known = sweep.runs[[name for name in collect.COST if name in sweep.runs]].dropna(how="all")
    units = {"cpu_seconds": "CPU hours", "gpu_seconds": "GPU hours"}
    totals = [f"{known[name].sum() / 3600:.3g} {unit}" for name, unit in units.items() if name in known]
    return [f"cost of {len(known)} of {len(sweep.runs)} runs: {', '.join(totals)}"] if totals else []


def _words(setting: dict[str, Any]) -> str:
    """A setting's mean, interval, number of runs and probability."""
    words = f"{setting['setting']}: mean {setting['mean']:.6g}"
    if setting["low"] is not None:
        words += f" (95% {setting['low']:.6g} to {setting['high']:.6g})"
    words += f", {setting['runs']} run{'s' if setting['runs'] > 1 else ''}"
    if setting["num_splits"] > 1:
        words += f" on {setting['num_splits']} splits"
    if setting["behind_mean_face"]:
        words += BEHIND
    if setting["probability"] is not None:
        words += f", the best with probability {setting['probability']:.0%}"
    return words


def _line(entry: dict[str, Any]) -> str:
    metric = f"{entry['metric'].partition('/')[2]} {entry['value']:.6g}"
    behind = BEHIND if entry["behind_mean_face"] else ""
    return f"  {entry['run']}  {metric}, {entry['psnr']:.2f} dB{behind}, KL {entry['kl']:.1f}  {entry['evaluate']}"
