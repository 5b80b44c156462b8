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
READERS = {"success": ("classifier", "C0"), "success_landmarks": ("landmarks", "C1")}


def page(
    metrics: dict[str, Any],
    figures: Mapping[str, Image.Image],
    strips: Mapping[str, Image.Image],
    epochs: list[dict[str, Any]],
) -> str:
    """The page. `strips` show edits by attribute, `epochs` are the metrics of the training."""
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        metrics=metrics,
        headline=headline(metrics),
        figures={name: jpeg(image) for name, image in figures.items()},
        strips={name: jpeg(image) for name, image in strips.items()},
        curves=curves(metrics, epochs),
        tables=tables(metrics),
    )


def jpeg(image: Image.Image) -> str:
    """An image as base64."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()


def curves(metrics: dict[str, Any], epochs: list[dict[str, Any]]) -> str:
    """SVG: PSNR while training, and the scores of the main attribute against intensity."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.2), layout="constrained")
    training, success, distance = figure.subplots(1, 3)

    # PSNR of every epoch.
    lines = [line for line in epochs if "val/psnr" in line]
    psnr = [line["val/psnr"] for line in lines]
    training.plot([line["epoch"] for line in lines], psnr, color="#2a78a8")
    training.axhline(metrics["pca"]["psnr"], color="black", linewidth=0.8, linestyle=":")
    training.set(title="PSNR (dB)", xlabel="epoch")

    # Readers and distances of edits.
    if "edits" in metrics:
        name, scores = next(iter(metrics["edits"].items()))
        x = scores["intensities"]
        for key, (reader, color) in READERS.items():
            if key in scores:
                success.plot(x, scores[key], color, label=reader)
                if scores["reference"]:
                    real = scores["reference"]["real"][key]
                    success.axhline(real, color=color, linestyle=":")
        success.legend(fontsize=8)
        label = name.replace("$", r"\$")
        success.set(title=f"share with {label}", xlabel="intensity", ylim=(0, 1.05))
        if "distance" in scores:
            values, errors = 1000 * np.array(scores["distance"]).T
            floor = 1000 * scores["reference"]["reconstructed"]["distance"][0]
            distance.errorbar(x, values, errors, capsize=2, color="#2a78a8")
            distance.axhline(REAL * floor, color="black", linewidth=0.8, linestyle="--")
        distance.set(title="distance to real faces", xlabel="intensity")
    else:
        success.set_axis_off()
        distance.set_axis_off()
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]
