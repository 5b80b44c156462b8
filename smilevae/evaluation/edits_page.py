"""edits.html: the edit scorecard as one page that opens from disk: strips of faces, curves, the table."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import torch

from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of, encode
from smilevae.editing.dials import Dials
from smilevae.evaluation import edits_text, grids
from smilevae.evaluation.edits import LEVELS, REAL
from smilevae.models.vae import VAE

NAME = "edits.html"
TEMPLATE = Path(__file__).with_name(NAME)
NUM_FACES = 4  # of a strip; half for the other attributes


@torch.no_grad()
def page(vae: VAE, faces: Faces, dials: Dials, metrics: Mapping[str, Any]) -> str:
    card, main = metrics["edits"], dials.attribute
    strips = []
    for name, edit in dials.edits.items():
        val = faces.rows("val")
        rows = np.random.default_rng(0).permutation(val[faces.labels(name)[val] == 0])
        rows = rows[: NUM_FACES if name == main else NUM_FACES // 2]
        x, mu = next(batches_of(vae, faces, rows)), encode(vae, faces, rows)[0]
        for kind in edit.dials if name == main else [edit.best]:
            codes = dials.turn(vae, mu, torch.tensor(LEVELS), kind, name)
            moved = vae.decode(codes.flatten(0, 1).to(x)).unflatten(0, codes.shape[:2])
            scores = card["attributes"].get(name, {"directions": {}})["directions"].get(kind, {})
            strips.append((name, kind, scores.get("verdict", ""), _jpeg(torch.cat([x[:, None], moved], 1))))
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(TEMPLATE.read_text()).render(
        attribute=main,
        part=metrics["part"],
        epoch=metrics["epoch"],
        levels=["photo", *(f"{level:g}" for level in LEVELS)],
        strips=strips,
        curves=_curves(card["attributes"][main]),
        table=edits_text.format_card(card),
    )


def _jpeg(images: torch.Tensor) -> str:
    """Rows of images (R, C, 3, S, S) as base64."""
    from PIL import Image

    picture, file = grids.tile(images.cpu()), io.BytesIO()
    Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy()).save(file, "JPEG", quality=88)
    return base64.b64encode(file.getvalue()).decode()


def _curves(scores: Mapping[str, Any]) -> str:
    """SVG: both readers, distances and identity against intensity, and what else changes at 1."""
    from matplotlib.figure import Figure

    by_name, references = scores["directions"], scores["references"]
    spaces = list(next(iter(by_name.values()))["distance"][0])
    readers = [reader for reader in ("classifier", "geometry") if reader in next(iter(by_name.values()))]
    panels = [*readers, *spaces, "identity", "drift"]
    figure = Figure(figsize=(11, 3.1 * ((len(panels) + 2) // 3)), layout="constrained")
    axes = dict(zip(panels, figure.subplots((len(panels) + 2) // 3, 3, squeeze=False).flat))
    for index, (kind, one) in enumerate(by_name.items()):
        x, style = one["intensities"], {"color": f"C{index}", "label": kind}
        for reader in readers:
            axes[reader].plot(x, [value["mean"] for value in one[reader]], **style)
        for space in spaces:
            y, error = 1000 * np.array([row[space] for row in one["distance"]]).T
            axes[space].errorbar(x, y, error, capsize=2, **style)
        axes["identity"].plot(x, one["identity"], **style)
        drift = one["drift"][x.index(1.0)]
        axes["drift"].barh(np.arange(len(drift)) + 0.8 * index / len(by_name), list(drift.values()), 0.8 / len(by_name))
    for reader in readers:
        axes[reader].set(title=f"{reader}: 0 lacks it, 1 has it", xlabel="intensity")
        axes[reader].axhline(1, color="black", linewidth=0.5)
    for space in spaces:
        axes[space].set(title=f"distance to real ones, {space} (x 1000)", xlabel="intensity")
        if references:
            floor = 1000 * references["their reconstructions"]["distance"][space][0]
            axes[space].axhline(floor, color="black", linewidth=0.5)
            axes[space].axhline(REAL * floor, color="black", linewidth=0.5, linestyle="--")
    axes["identity"].axhline(1, color="black", linewidth=0.5)
    axes["identity"].axhline(scores["persons"]["other"] / scores["persons"]["same"], color="black", linestyle="--")
    axes["identity"].set(title="identity; lines: same, other person", xlabel="intensity")
    axes["drift"].set_yticks(np.arange(len(drift)) + 0.4, [name.replace("$", r"\$") for name in drift])
    axes["drift"].set(title="what else changes at 1")
    axes[panels[0]].legend(fontsize=7)
    for axis in list(figure.axes)[len(panels) :]:
        axis.set_axis_off()
    file = io.StringIO()
    figure.savefig(file, format="svg")
    return file.getvalue()[file.getvalue().index("<svg") :]
