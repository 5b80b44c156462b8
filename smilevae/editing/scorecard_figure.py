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
    grid = below.subplots(len(by_name), len(INTENSITIES) + 1, squeeze=False)
    titles = ["original", *(f"{intensity:+g}" for intensity in INTENSITIES)]
    for row, name in zip(grid, by_name):
        edited = decode(vae, result.codes[name][0]).clamp(0, 1)
        for axes, image in zip(row, [*images(faces, result.rows[:1]), *edited]):
            axes.imshow(image.permute(1, 2, 0).numpy())
            axes.set_axis_off()
        row[0].text(-3, image.shape[1] / 2, name.replace(", ", "\n"), ha="right", va="center", fontsize=8)
    for axes, title in zip(grid[0], titles):
        axes.set_title(title, fontsize=9)
    runs.replace_file(path, lambda file: figure.savefig(file, format="png", dpi=100))
