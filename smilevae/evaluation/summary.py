"""What an evaluation says: a few lines for a terminal, and tables with a sentence under each."""

from pathlib import Path
from typing import Any, NamedTuple

from smilevae import runs

WIDTH = 100  # characters of a line
MAX_LINES = 14
COPIES = 0.7  # from which on new faces are said to be copies
HOLD_OTHERS = "They chose the epoch, too: data.test_fraction=0.2 keeps others apart."
SETS = {
    "training": "training faces",
    "reconstructed": "reconstructions",
    "sampled": "new faces",
}
Metrics = dict[str, Any]


class Table(NamedTuple):
    """A table of texts with a title, and a note that explains its columns."""

    title: str
    note: str
    columns: list[str]
    rows: list[list[str]]

    def text(self) -> str:
        """The table for a terminal."""
        table = [self.columns, *self.rows]
        widths = [max(len(row[index]) for row in table) for index in range(len(self.columns))]
        lines = [f"{self.title}. {self.note}"]
        for first, *cells in table:
            padded = [f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])]
            lines.append("  ".join([f"{first:{widths[0]}}", *padded]).rstrip())
        return "\n".join(lines)


def summary(metrics: Metrics, out: Path) -> str:
    """The lines that are printed: at most MAX_LINES, each of at most WIDTH characters."""
    lines = [headline(metrics), *quality(metrics), loss_line(metrics)]
    if "realism" in metrics:
        lines += realism_lines(metrics["realism"])
    if "edits" in metrics:
        lines += edit_lines(metrics)
    lines += metrics["left_out"]
    short = [line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..." for line in lines]
    page = f"page: {runs.shell_path(out / 'index.html')}"
    return "\n".join([*short[: MAX_LINES - 1], page])


def headline(metrics: Metrics) -> str:
    """Which faces were held out, and whether they chose the epoch."""
    text = f"{metrics['num_images']} held-out faces, epoch {metrics['epoch']}."
    if metrics["part"] == "test":
        return f"{text} They did not choose the epoch."
    return f"{text} {HOLD_OTHERS}"


def quality(metrics: Metrics) -> list[str]:
    """The model beside PCA and the mean face."""
    lines = [f"{'higher is better':24}{'PSNR':>10}{'SSIM':>10}"]
    for key, title in references(metrics).items():
        row = metrics[key]
        lines.append(f"{title:24}{row['psnr']:7.1f} dB{row['ssim']:10.3f}")
    return lines


def references(metrics: Metrics) -> dict[str, str]:
    """Titles of the rows of numbers."""
    pca = f"PCA, {metrics['pca_dim']} dimensions"
    return {"model": "this model", "pca": pca, "mean_face": "mean face"}


def loss_line(metrics: Metrics) -> str:
    """The loss and its parts."""
    line = f"Loss {metrics['loss']:.1f} (lower is better) = squared error {metrics['recon']:.1f}"
    line += f" + beta {metrics['beta']:.4g} x KL {metrics['kl']:.1f}"
    if metrics["active_units"] is None:
        return line
    return f"{line}; {metrics['active_units']} of {metrics['latent_dim']} dimensions in use"


def realism_lines(table: dict[str, dict[str, float]]) -> list[str]:
    """How far from real faces new ones are, and a warning of copies."""
    order = ("reconstructed", "sampled", "training")
    each = ", ".join(
        f"{SETS[name]} {max(0, 1000 * table[name]['distance']):,.0f}" for name in order
    )
    lines = [f"Distance to real faces (lower is better): {each}."]
    copies = table["sampled"]["copies"]
    if copies > COPIES:
        lines.append(
            f"New faces are near to copies of training faces: {copies:.2f} (0.5 no, 1 all)."
        )
    return lines


def edit_lines(metrics: Metrics) -> list[str]:
    """What the edit of the main attribute does, and what else can be edited."""
    name, scores = next(iter(metrics["edits"].items()))
    title = name[:1].upper() + name[1:].replace("_", " ")
    num = scores["num_faces"]
    one = scores["intensities"].index(1.0)
    lines = []
    readers = {"success": "an independent classifier", "success_landmarks": "face landmarks"}
    for key, reader in readers.items():
        if key in scores:
            seen = f"{round(num * scores[key][one])} of {num} faces"
            line = f"{title} at intensity 1: {reader} see{'s' if key == 'success' else ''} it on {seen}"
            if scores["reference"]:
                line += f" (on real ones: {scores['reference']['real'][key]:.0%})"
            lines.append(f"{line}.")
    identity = f"{scores['identity'][one]:.2f}"
    lines.append(
        f"Change of the person: {identity} (1: another photo of the same person,"
        f" {scores['other_person']:.2f}: another person)."
    )
    low, high = scores["range"]
    changes = scores["changes"][one]
    side = ", ".join(f"{other} {change:+.1f}" for other, change in changes.items())
    beside = (
        f"Also changed: {side}" if side else "Nothing else changes beyond the classifier's error"
    )
    lines.append(f"Edits follow and look real from {low:g} to {high:g}. {beside}.")
    others = [other for other in metrics["edits"] if other != name]
    refused = list(metrics["not_editable"])
    if others or refused:
        can = f"Also editable: {_listed(others)}."
        lines.append(f"{can} Not, see the page: {_listed(refused)}.")
    return lines


def _listed(names: list[str], width: int = 22) -> str:
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
    if metrics["not_editable"]:
        rows = [[name, why] for name, why in metrics["not_editable"].items()]
        note = "A classifier must recognise an attribute on unseen people, in images and reconstructions."
        result.append(Table("Not editable", note, ["attribute", "why"], rows))
    return result


def quality_table(metrics: Metrics) -> Table:
    size = metrics["image_size"]
    native = metrics["native_size"]
    columns = ["", "PSNR (dB)", "SSIM", "squared error a value"]
    keys = [("psnr", 2), ("ssim", 4), ("mse", 5)]
    note = f"Held-out faces of {size} px and their reconstructions from mu. PSNR, SSIM: higher is better."
    if native < size:
        columns += [f"PSNR at {native} px", f"SSIM at {native} px"]
        keys += [("native_psnr", 2), ("native_ssim", 4)]
        note += f" The files have {native} px, so both are given for that size, too."
    rows = []
    for name, title in references(metrics).items():
        rows.append([title, *(f"{metrics[name][key]:.{digits}f}" for key, digits in keys)])
    note += " PCA is the best linear model of as many dimensions."
    return Table("Reconstructions in numbers", note, columns, rows)


def loss_table(metrics: Metrics) -> Table:
    note = (
        "Means over held-out faces, with sampled codes; lower is better. The loss depends on beta:"
        " nELBO, the negative evidence lower bound at the best decoder variance, compares models."
    )
    rows = [
        ["squared error (sum over values in [0, 1])", f"{metrics['recon']:.2f}"],
        ["KL (nats)", f"{metrics['kl']:.2f}"],
        ["beta", f"{metrics['beta']:.4g}"],
        ["loss = squared error + beta x KL", f"{metrics['loss']:.2f}"],
        [
            "the same in the source study's units, values in [-1, 1]",
            f"{metrics['loss_study_units']:.1f}",
        ],
        ["nELBO (nats)", f"{metrics['nelbo']:.0f}"],
    ]
    return Table("Loss", note, ["", "mean"], rows)


def realism_table(metrics: Metrics) -> Table:
    note = (
        "Distance: kernel distance x 1000 to faces of held-out people, lower is better, with its 95%"
        " interval; training faces are the floor. Precision, density: do they look like real faces?"
        " Recall, coverage: are all kinds of faces there? Copies of training faces: 0.5 none, 1 all."
        " Own face: share of reconstructions nearer to their own face than to any other."
    )
    keys = ("precision", "recall", "density", "coverage", "copies", "own_face")
    columns = ["", "distance", "±", *(key.replace("_", " ") for key in keys)]
    rows = []
    for name, title in SETS.items():
        row = metrics["realism"][name]
        cells = [f"{1000 * row[key]:.1f}" for key in ("distance", "error")]
        cells += [f"{row[key]:.2f}" if key in row else "" for key in keys]
        rows.append([title, *cells])
    return Table("New faces beside real ones", note, columns, rows)


def edit_table(metrics: Metrics) -> Table:
    note = (
        "Held-out faces that lack an attribute, edited to intensity 1. Success: share that a classifier"
        " of other people's faces, or their landmarks, call faces that have it; beside real faces that"
        " have it. Person: 1 is another photo of the same person. Distance to real faces that have it"
        " x 1000, beside that of reconstructions. Range: where edits follow and look real."
    )
    columns = ["attribute", "faces", "success", "real", "landmarks", "real", "person"]
    columns += ["distance", "reconstr.", "range", "also changed"]
    rows = []
    for name, scores in metrics["edits"].items():
        rows.append(_edit_row(name, scores))
        if "mean_difference" in scores:
            rows.append(
                _edit_row(f"{name}, by the mean difference alone", scores["mean_difference"])
            )
    return Table("Edits", note, columns, rows)


def _edit_row(name: str, scores: Metrics) -> list[str]:
    one = scores["intensities"].index(1.0)
    real = scores["reference"].get("real", {})
    rebuilt = scores["reference"].get("reconstructed", {})
    row = [name, str(scores["num_faces"])]
    for key in ("success", "success_landmarks"):
        row.append(f"{scores[key][one]:.0%}" if key in scores else "")
        row.append(f"{real[key]:.0%}" if key in real else "")
    row.append(f"{scores['identity'][one]:.2f}")
    row.append(f"{1000 * scores['distance'][one][0]:.1f}" if "distance" in scores else "")
    row.append(f"{1000 * rebuilt['distance'][0]:.1f}" if "distance" in rebuilt else "")
    row.append("{:g} to {:g}".format(*scores["range"]) if "range" in scores else "")
    changes = scores["changes"][one]
    row.append(", ".join(f"{other} {change:+.2f}" for other, change in changes.items()))
    return row
