"""The result of the analysis: lines for a terminal, tables, figures and one page."""

import base64
import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd

from multirun_analysis import collect, configurations, diff, equal_psnr, plots, rungs, text
from multirun_analysis.collect import Sweep
from multirun_analysis.effects import effects
from multirun_analysis.options import AnalyseOptions
from smilevae import __version__, runs

MAX_PREVIEWS = 12
LISTS = ("warnings", "explanation", "configurations", "effects", "equal_psnr", "conclusions")
NOTHING: dict[str, Any] = {name: [] for name in LISTS} | {
    "verdict": "No run completed, so nothing is ranked."
}


def main(options: AnalyseOptions) -> None:
    """The command. Raises ConfigError."""
    if options.folders[0] == "diff":
        print(diff.diff(options.folders[1:]))
        return
    folders = [Path(os.path.expanduser(folder)) for folder in options.folders]
    out = Path(os.path.expanduser(options.out or folders[0] / "analysis"))
    print(analyse(folders, options.rank_by, out))


def analyse(folders: list[Path], rank_by: str, out: Path) -> str:
    """Read and rank the runs, write everything to `out`; gives the lines for a terminal."""
    # Read the runs.
    sweep = collect.collect(folders)
    configurations.check_rank_by(sweep, rank_by)
    rank_by = configurations.usable(sweep, rank_by)
    planned = rungs.of(folders[0]) if len(folders) == 1 else []
    counts = {"runs": len(sweep.runs), "completed": len(sweep.completed)}
    summary = {
        "title": ", ".join(collect.printable(folder.resolve().name) for folder in folders),
        "rank_by": rank_by,
        "counts": counts | sweep.runs["status"].value_counts().to_dict(),
        "cost": text.cost(sweep),
        "swept": sweep.swept,
    }

    # Rank them and draw the figures.
    figures = []
    previews = []
    if sweep.completed.empty:
        summary |= NOTHING
    else:
        ranked = configurations.rank(sweep, rank_by)
        summary |= _ranking(sweep, rank_by, ranked, planned)
        figures = plots.draw_all(sweep.completed, list(ranked["path"].head(2)))
        previews = _previews(ranked.head(MAX_PREVIEWS), out)
    unfinished = sweep.runs[sweep.runs["status"] != "completed"]
    summary["unfinished"] = _records(unfinished[["run", "status", "reason"]])

    # Write tables, figures and the page.
    table = sweep.runs.drop(columns="path")
    rows = pd.DataFrame(summary["configurations"])
    runs.write_text(out / "runs.csv", table.to_csv(index=False))
    runs.write_text(out / "configurations.csv", rows.to_csv(index=False))
    runs.write_text(out / "top.json", json.dumps(summary, indent=2) + "\n")
    for name, png, _ in figures:
        runs.write_bytes(out / f"{name}.png", png)
    page = _template().render(
        summary,
        table=_html(table[table["status"] == "completed"]),
        figures=[(_base64(png), caption) for _, png, caption in figures],
        previews=previews,
        now=f"{datetime.now():%Y-%m-%d %H:%M}",
        version=__version__,
    )
    runs.write_text(out / "index.html", page)
    return text.terminal(summary, out / "index.html")


def _ranking(
    sweep: Sweep, rank_by: str, ranked: pd.DataFrame, planned: list[tuple[int, int]]
) -> dict[str, Any]:
    """What is printed, drawn and stored of the configurations and effects."""
    conclusions = [text.linear_reference(sweep)]
    compared = sweep
    if len(planned) > 1:
        conclusions.append(rungs.explain(sweep, planned))
        compared = rungs.after(sweep, planned[0][0])
    metrics = [*dict.fromkeys([rank_by, "val/psnr", "val/kl", *compared.measures])]
    commands = (ranked["path"] / ranked["checkpoint"]).map(text.evaluate_command)
    return {
        "warnings": [*text.warnings(sweep, rank_by, ranked)],
        "explanation": text.explanation(rank_by, len(ranked), sweep.better[rank_by]),
        "verdict": configurations.verdict(ranked),
        "measures": sweep.measures,
        "configurations": _records(ranked.drop(columns="path").assign(evaluate=commands)),
        "effects": _records(effects(compared, metrics)),
        "equal_psnr": _records(equal_psnr.equal_psnr(sweep)),
        "conclusions": [line for line in conclusions if line],
    }


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows of a table, for JSON: null for numbers that are not known."""
    return json.loads(frame.to_json(orient="records", double_precision=15))


def _html(table: pd.DataFrame) -> str:
    """The names of runs, and the columns in which they differ, for the page."""
    names = [name for name in table if name == "run" or table[name].map(str).nunique() > 1]
    with pd.option_context("display.max_colwidth", None, "display.float_format", "{:.6g}".format):
        return table[names].to_html(index=False, table_id="runs", border=0, na_rep="")


def _previews(ranked: pd.DataFrame, out: Path) -> list[tuple[str, str, str]]:
    """Of configurations: the name, preview.png of the best run, and where its page is from `out`."""
    found = []
    for name, run in zip(ranked["configuration"], ranked["path"]):
        page = run / "face.html"  # of `smilevae page`
        link = os.path.relpath(page, out) if page.exists() else ""
        if (run / "preview.png").exists():
            found.append((name, _base64((run / "preview.png").read_bytes()), link))
    return found


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _template() -> jinja2.Template:
    loader = jinja2.FileSystemLoader(Path(__file__).parent)
    environment = jinja2.Environment(loader=loader, autoescape=True)
    environment.filters |= {"number": text.number, "with_interval": text.with_interval}
    return environment.get_template("page.html")
