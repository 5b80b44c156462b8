"""The lines that an evaluation prints, and the tables of its page."""

from pathlib import Path
from typing import Any, NamedTuple

from smilevae import runs

WIDTH = 100  # characters of a line
MAX_LINES = 14
COPIES = 0.7  # from which on new faces are said to be copies
SETS = {
    "training": "training faces",
    "reconstructed": "reconstructions",
    "sampled": "new faces",
    "mean_face": "mean face",
    "real": "real held-out faces",
    "overlaid": "two real held-out faces overlaid",
}
READERS = {"success": "a classifier sees", "success_landmarks": "landmarks show"}
Metrics = dict[str, Any]


class Table(NamedTuple):
    """A table of texts. page.html explains its columns under its title."""

    title: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """The table for a terminal."""
        table = [self.columns, *self.rows]
        widths = [max(len(row[index]) for row in table) for index in range(len(self.columns))]
        lines = [self.title]
        for first, *cells in table:
            padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])]
            lines.append("  ".join([f"{first:{widths[0]}}", *padded]).rstrip())
        return "\n".join(lines)


def summary(metrics: Metrics, out: Path) -> str:
    """The lines that are printed: at most MAX_LINES, each of at most WIDTH characters."""
    lines = [headline(metrics), *quality(metrics), loss_line(metrics)]
    for name, scores in metrics["measures"].items():
        values = [f"{key} {s['value']:.3g} {s['unit']}".strip() for key, s in scores.items()]
        lines.append(f"{_title(name)}: {_listed(values, WIDTH - len(name) - 20)}.")
    lines += metrics["left_out"]
    if "realism" in metrics:
        lines += realism_lines(metrics["realism"])
    if "edits" in metrics:
        lines += edit_lines(metrics)
    short = [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines]
    page = f"page: {runs.shell_path(out / 'index.html')}"
    return "\n".join([*short[: MAX_LINES - 1], page])


def headline(metrics: Metrics) -> str:
    """Which faces were held out, and whether they chose the epoch."""
    text = f"{metrics['num_images']} held-out faces, epoch {metrics['epoch']}"
    if metrics["part"] == "test":
        return f"{text}. These faces were not used to choose the epoch."
    return f"{text}. They also chose the epoch; set data.test_fraction=0.2 to avoid that."


def quality(metrics: Metrics) -> list[str]:
    """The model beside PCA and the mean face."""
    lines = [f"{'Reconstructions (higher is better)':36}{'PSNR':>10}{'SSIM':>10}"]
    for key, title in references(metrics).items():
        row = metrics[key]
        lines.append(f"{title:36}{row['psnr']:7.1f} dB{row['ssim']:10.3f}")
    return lines


def references(metrics: Metrics) -> dict[str, str]:
    """Titles of the rows of numbers."""
    pca = f"PCA, {metrics['pca_dim']} dimensions (no KL penalty)"
    return {"model": "this model", "pca": pca, "mean_face": "mean face"}


def loss_line(metrics: Metrics) -> str:
    """The loss and its parts."""
    beta = f"{metrics['beta']:.2g}" if metrics["beta"] < 1 else f"{metrics['beta']:.4g}"
    line = f"Loss {metrics['loss']:.1f} (lower is better) = squared error {metrics['recon']:.1f}"
    line += f" + beta {beta} x KL {metrics['kl']:.1f}"
    if metrics["active_units"] is not None:
        line += f"; {metrics['active_units']}/{metrics['latent_dim']} dimensions used"
    return line


def realism_lines(table: dict[str, dict[str, float]]) -> list[str]:
    """How near to real faces new ones are, and a warning of copies."""
    each = []
    for name in ("reconstructed", "sampled"):
        distance = max(0, 1000 * table[name]["distance"])
        each.append(f"{SETS[name]} {distance:,.0f} ± {1000 * table[name]['error']:,.0f}")
    each.append(f"mean face {1000 * table['mean_face']['distance']:,.0f}")
    lines = [f"Distance to real faces (0: as real): {', '.join(each)}."]
    shares = {name: f"{row['double']:.0%}" for name, row in table.items() if "double" in row}
    line = f"Two faces in one (low is good): reconstructions {shares['reconstructed']}, new faces"
    line += f" {shares['sampled']}; real {shares['real']}, real ones overlaid {shares['overlaid']}."
    lines.append(line)
    copies = table["sampled"]["copies"]
    if copies > COPIES:
        lines.append(f"New faces are near to copies of training faces: {copies:.2f} (1: all are).")
    return lines


def edit_lines(metrics: Metrics) -> list[str]:
    """What the edit of the main attribute does, and what else can be edited."""
    name, *others = metrics["edits"]
    scores = metrics["edits"][name]
    title = _title(name)
    one = scores["intensities"].index(1.0)

    # Two readers, before the edit, after it, and on real faces.
    lines = []
    for key, reader in READERS.items():
        if key in scores:
            line = f"{title}, intensity 1: {reader} it on {scores[key][0]:.0%} before"
            line += f", {scores[key][one]:.0%} after"
            if scores["reference"]:
                line += f"; of real faces that have it, {scores['reference']['real'][key]:.0%}"
            lines.append(f"{line}.")

    # How far an edited face is from the person; nobody has two photos where the other is at 2.
    stranger = scores["other_person"]
    photo = "" if stranger == 2 else ", 1: another photo of the person"
    line = f"Change of the person: {scores['identity'][one]:.2f}"
    lines.append(f"{line} (0: none{photo}, {stranger:.2f}: another person).")

    # The range, and what changes beside it.
    low, high = scores["range"]
    changes = scores["changes"][one]
    side = ", ".join(f"{other} {change:+.1f}" for other, change in changes.items())
    quiet = "Nothing else changes clearly" if others else "No other attribute was tested"
    beside = f"Also changed: {side}" if side else quiet
    near = "; from 0 on faces stay near real ones" if "distance" in scores else ""
    what = name.replace("_", " ")
    range_ = f"From {low:g} to {high:g} the {what} grows{near}"
    if low == high:
        range_ = f"At no intensity the {what} grows"
    lines.append(f"{range_}. {beside}.")

    # Other attributes.
    refused = list(metrics["not_editable"])
    if others or refused:
        can = f"Also editable: {_listed(others)}."
        lines.append(f"{can} Not editable (the page says why): {_listed(refused)}.")
    return lines


def _title(name: str) -> str:
    return name[:1].upper() + name[1:].replace("_", " ")


def _listed(names: list[str], width: int = 16) -> str:
    """Names, as many as fit into so many characters, and how many more there are."""
    shown: list[str] = []
    for name in names:
        if len(", ".join([*shown, name])) > width:
            return f"{', '.join(shown)} and {len(names) - len(shown)} more"
        shown.append(name)
    return ", ".join(shown) or "none"


def tables(metrics: Metrics) -> list[Table]:
    """All numbers of an evaluation."""
    result = [quality_table(metrics), loss_table(metrics)]
    if "realism" in metrics:
        result.append(realism_table(metrics))
    if "edits" in metrics:
        result.append(edit_table(metrics))
    result += [measure_table(name, scores) for name, scores in metrics["measures"].items()]
    if metrics["not_editable"]:
        rows = [[name, why] for name, why in metrics["not_editable"].items()]
        result.append(Table("Not editable", ["attribute", "why"], rows))
    return result


def measure_table(name: str, scores: dict[str, Metrics]) -> Table:
    """The scores of a measure, and what to compare them with."""
    others = [*dict.fromkeys(name for own in scores.values() for name in own["references"])]
    rows = []
    for key, score in scores.items():
        values = [score["value"], *map(score["references"].get, others)]
        cells = ["" if value is None else f"{value:.4g}" for value in values]
        better = f"{score['better']} is better" if score["better"] else ""
        rows.append([key, *cells, score["unit"], better, score["meaning"]])
    columns = ["", "this model", *others, "unit", "", "meaning"]
    return Table(_title(name), columns, rows)


def quality_table(metrics: Metrics) -> Table:
    """How like their images reconstructions are."""
    native = metrics["native_size"]
    columns = ["", "PSNR (dB)", "SSIM", "mean squared error"]
    keys = [("psnr", 2), ("ssim", 4), ("mse", 5)]
    if native < metrics["image_size"]:
        columns += [f"PSNR at {native} px", f"SSIM at {native} px"]
        keys += [("native_psnr", 2), ("native_ssim", 4)]
    rows = []
    for name, title in references(metrics).items():
        cells = [f"{metrics[name][key]:.{digits}f}" for key, digits in keys]
        rows.append([title, *cells])
    return Table("Reconstructions in numbers", columns, rows)


def loss_table(metrics: Metrics) -> Table:
    """The loss and its parts."""
    study = "the study's loss, of values in [-1, 1] = 4 x squared error + beta x KL"
    rows = [
        ["squared error, summed over the values of a face", f"{metrics['recon']:.2f}"],
        ["KL (nats)", f"{metrics['kl']:.2f}"],
        ["beta", f"{metrics['beta']:.4g}"],
        ["loss = squared error + beta x KL", f"{metrics['loss']:.2f}"],
        [study, f"{metrics['loss_study_units']:.1f}"],
        ["nELBO (nats)", f"{metrics['nelbo']:.0f}"],
    ]
    return Table("Loss", ["", "value"], rows)


def realism_table(metrics: Metrics) -> Table:
    """Reconstructions and new faces beside real ones."""
    keys = ("precision", "recall", "density", "coverage", "copies", "own_face")
    columns = ["", "distance", "±", *(key.replace("_", " ") for key in keys), "two in one"]
    rows = []
    for name, title in SETS.items():
        row = metrics["realism"][name]
        cells = [f"{1000 * row[key]:.1f}" if key in row else "" for key in ("distance", "error")]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in keys]
        cells.append(f"{row['double']:.0%}" if "double" in row else "")
        rows.append([title, *cells])
    return Table("New faces compared with real ones", columns, rows)


def edit_table(metrics: Metrics) -> Table:
    """The scores of every attribute at intensity 1."""
    columns = ["attribute", "faces", "classifier", "landmarks", "person", "distance"]
    columns += ["range", "also changed"]
    quiet = "none" if len(metrics["edits"]) > 1 else "not tested"
    rows = []
    for name, scores in metrics["edits"].items():
        rows.append(_edit_row(name, scores, quiet))
        if "mean_difference" in scores:
            rows.append(_edit_row("plain mean difference", scores["mean_difference"], quiet))
    return Table("Edits in numbers", columns, rows)


def _edit_row(name: str, scores: Metrics, quiet: str) -> list[str]:
    one = scores["intensities"].index(1.0)
    real = scores["reference"].get("real", {})
    readings = []
    for key in READERS:
        shares = [scores[key][0], scores[key][one]] if key in scores else []
        before_after = " to ".join(f"{share:.0%}" for share in shares)
        readings.append(f"{before_after} ({real[key]:.0%})" if key in real else before_after)
    distance = ""
    if "distance" in scores:
        rebuilt = scores["reference"]["reconstructed"]["distance"]
        distance = f"{1000 * scores['distance'][one][0]:.0f} ({1000 * rebuilt[0]:.0f})"
    changes = scores["changes"][one]
    return [
        name,
        str(scores["num_faces"]),
        *readings,
        f"{scores['identity'][one]:.2f}",
        distance,
        "{:g} to {:g}".format(*scores["range"]) if "range" in scores else "",
        ", ".join(f"{other} {change:+.2f}" for other, change in changes.items()) or quiet,
    ]
