"""index.html: an evaluation as one page that opens from disk."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from PIL import Image

from smilevae.evaluation.scoring import REAL
from smilevae.evaluation.summary import headline, tables

NAME = "index.html"
TEMPLATE = Path(__file__).with_name("page.html")
CAPTIONS = {
    "reconstructions.png": (
        "Reconstructions",
        "Held-out faces, and below each its reconstruction.",
    ),
    "samples.png": ("New faces", "Faces of nobody: random codes, decoded."),
    "nearest.png": (
        "New faces and their nearest training faces",
        "Above new faces, below each the training face that is most like it. Twins are copies.",
    ),
    "interpolation.png": (
        "Between two faces",
        "Left and right reconstructions of held-out faces, between them a straight line of codes.",
    ),
    "traversal.png": (
        "Single dimensions",
        "Each row sets one of the dimensions that vary most, of one face, to -3 to +3 sd of the prior.",
    ),
}


def page(
    metrics: dict[str, Any],
    figures: Mapping[str, Image.Image],
    strips: Mapping[str, Image.Image],
    epochs: list[dict[str, Any]],
) -> str:
    """The page. `strips` show edits by attribute, `epochs` are the metrics of the training."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    shown = {name: figures[name] for name in CAPTIONS if name in figures}
    return environment.from_string(TEMPLATE.read_text()).render(
        metrics=metrics,
        headline=headline(metrics),
        figures=[(*CAPTIONS[name], jpeg(image)) for name, image in shown.items()],
        strips=[(name, _range(metrics, name), jpeg(image)) for name, image in strips.items()],
        curves=curves(metrics, epochs),
        tables=tables(metrics),
    )


def jpeg(image: Image.Image) -> str:
    """An image as base64."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()


def _range(metrics: dict[str, Any], name: str) -> str:
    scores = metrics.get("edits", {}).get(name)
    return "from {:g} to {:g}".format(*scores["range"]) if scores else "not scored"


def curves(metrics: dict[str, Any], epochs: list[dict[str, Any]]) -> str:
    """SVG: PSNR while training, and the scores of the main attribute against intensity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    training, success, distance = figure.subplots(1, 3)

    # PSNR of every epoch.
    points = [(line["epoch"], line["val/psnr"]) for line in epochs if "val/psnr" in line]
    training.plot(*zip(*points) if points else ((), ()), color="#2a78a8")
    training.axhline(metrics["pca"]["psnr"], color="black", linewidth=0.8, linestyle=":")
    training.set(title="PSNR of validation faces, dB (dotted: PCA)", xlabel="epoch")

    # Readers and distances of edits.
    if "edits" in metrics:
        name, scores = next(iter(metrics["edits"].items()))
        label = name.replace("$", r"\$")
        x = scores["intensities"]
        for index, key in enumerate(("success", "success_landmarks")):
            if key in scores:
                reader = ("classifier", "landmarks")[index]
                success.plot(x, scores[key], f"C{index}", label=reader)
                if scores["reference"]:
                    success.axhline(
                        scores["reference"]["real"][key], color=f"C{index}", linestyle=":"
                    )
        success.legend(fontsize=8)
        success.set(
            title=f"share seen with {label} (dotted: real faces)",
            xlabel="intensity",
            ylim=(0, 1.05),
        )
        if "distance" in scores:
            values, errors = 1000 * np.array(scores["distance"]).T
            floor = 1000 * scores["reference"]["reconstructed"]["distance"][0]
            distance.errorbar(x, values, errors, capsize=2, color="#2a78a8")
            distance.axhline(REAL * floor, color="black", linewidth=0.8, linestyle="--")
        distance.set(
            title="distance to real faces (dashed: limit of the range)", xlabel="intensity"
        )
    else:
        success.set_axis_off()
        distance.set_axis_off()
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]
