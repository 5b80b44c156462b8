"""smile_scorecard.png: the edit scorecard as a figure."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import torch

from smilevae import runs
from smilevae.data.dataset import Faces
from smilevae.editing.dial import INTENSITIES
from smilevae.editing.scorecard import PLAIN, Scorecard, decode, images
from smilevae.models.vae import VAE

MAX_ATTRIBUTES = 12  # that the figure shows


@torch.no_grad()
def draw(result: Scorecard, vae: VAE, faces: Faces, path: Path) -> None:
    """One figure: measured smile against intensity, what else changes, and one face along every direction."""
    from matplotlib.figure import Figure

    by_name = result.card["directions"]
    figure = Figure(figsize=(13, 4.2 + 1.25 * len(by_name)), layout="constrained")
    top, below = cast("Any", figure.subfigures(2, 1, height_ratios=(4.2, 1.25 * len(by_name))))
    left, right = top.subplots(1, 2)
    drift = by_name[PLAIN]["drift"]
    moved = sorted(drift, key=lambda attribute: -abs(drift[attribute]))[:MAX_ATTRIBUTES]
    for index, (name, scores) in enumerate(by_name.items()):
        x, y, sd = (np.array(scores[key]) for key in ("intensities", "smile", "spread"))
        colour, line = ("#888888", "--") if name == PLAIN else (f"C{index - 1}", "-")
        left.plot(x, y, color=colour, label=name, linestyle=line)
        if name in (PLAIN, result.best.name):
            left.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15)
        height = 0.8 / len(by_name)
        places = np.arange(len(moved)) + index * height
        right.barh(places, [scores["drift"][attribute] for attribute in moved], height=height, color=colour)
    right.set_yticks(np.arange(len(moved)) + 0.4, moved)
    left.axhline(result.threshold, color="black", linewidth=0.5)
    left.set(xlabel="intensity", ylabel="measured smile (0: not smiling, 1: smiling)")
    left.set_title("mean and spread over faces")
    left.legend(fontsize=8)
    right.set(title="what else changes at intensity 1")
    right.invert_yaxis()
    original, grid = images(faces, result.rows[:1]), below.subplots()
    edited = [decode(vae, codes[0]).clamp(0, 1) for codes in result.codes.values()]
    rows = [torch.cat([*original, *some], 2) for some in edited]
    grid.imshow(torch.cat(rows, 1).permute(1, 2, 0).numpy())
    titles = ["original", *(f"{intensity:+g}" for intensity in INTENSITIES)]
    for axis, labels in ((grid.xaxis, titles), (grid.yaxis, result.codes)):
        axis.set_ticks((np.arange(len(labels)) + 0.5) * original.shape[-1], [str(label) for label in labels])
    grid.tick_params(length=0, top=False, labeltop=True, labelbottom=False)
    grid.set_frame_on(False)
    runs.replace_file(path, lambda file: figure.savefig(file, format="png", dpi=100))
