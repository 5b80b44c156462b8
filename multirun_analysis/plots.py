"""Figures of a sweep."""

import io
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from multirun_analysis import collect
from smilevae.models.linear import Spectrum, linear_vae, pca_psnr

STYLE: dict[Any, Any] = {
    "text.parse_math": False,  # a run may be called $x
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
}
MAX_LABELS = 10
MAX_CURVES = 60
SAME_FACES = 1e-4  # dB of the mean face; rounding differs between machines


def draw_all(done: pd.DataFrame, best: list[Path]) -> list[tuple[str, bytes, str]]:
    """(name, PNG, caption) of every figure that the completed runs have data for.

    `best` holds the paths of the best runs of the best two configurations.
    """
    drawn = []
    for draw in (rate_distortion, metric_against_beta, learning_curves):
        with mpl.rc_context(STYLE):
            figure = Figure(figsize=(7.2, 4.2), layout="constrained")
            caption = draw(figure, done, best)
            if caption:
                content = io.BytesIO()
                figure.savefig(content, format="png", dpi=150)
                drawn.append((draw.__name__, content.getvalue(), caption))
    return drawn


def _colours(done: pd.DataFrame) -> dict[float, Any]:
    """A colour for each beta."""
    betas = sorted(done["used_beta"].unique())
    return dict(zip(betas, mpl.colormaps["viridis"](np.linspace(0, 0.85, len(betas)))))


def rate_distortion(figure: Figure, done: pd.DataFrame, best: list[Path]) -> str:
    """KL against PSNR of every run, with the Pareto front and the linear references."""
    # Every run, coloured by beta.
    plot = figure.subplots()
    colours = _colours(done)
    for beta, part in done.groupby("used_beta"):
        label = f"beta {beta:.4g}" if len(colours) <= MAX_LABELS else None
        plot.scatter(part["val/kl"], part["val/psnr"], s=20, color=colours[beta], label=label)
    front = pareto(done)
    plot.plot(front["val/kl"], front["val/psnr"], color="gray", lw=1, label="Pareto front")
    for run in done[done["path"].isin(best)].to_dict("records"):
        place = best.index(run["path"]) + 1
        plot.annotate(f" {place}", (run["val/kl"], run["val/psnr"]), fontweight="bold")

    # The linear references, if all runs have the same faces.
    references = "No linear references: the runs have different faces, or lack spectrum.json."
    if spectrum := reference(done):
        dashed = "the linear VAE's optimum as beta varies"
        references = f"Dotted: the mean face and PCA. Dashed: {dashed}."
        _draw_references(plot, spectrum, sorted(colours), sorted(done["latent_dim"].unique()))
    plot.set_xscale("symlog", linthresh=1)
    plot.xaxis.set_major_formatter("{x:g}")
    plot.set_xlim(0, 1.5 * max(done["val/kl"].max(), 1))
    plot.set(xlabel="rate: KL, nats", ylabel="distortion: PSNR of held-out faces, dB")
    plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return (
        "Rate and distortion of every run on held-out people; up and left is better. 1 and 2 are"
        f" the best runs of the best two configurations. {references}"
    )


def pareto(done: pd.DataFrame) -> pd.DataFrame:
    """The runs that no other beats in both rate (KL) and distortion (PSNR), by rising rate."""
    order = done.sort_values(["val/kl", "val/psnr"], ascending=[True, False], kind="stable")
    return order[order["val/psnr"] > order["val/psnr"].cummax().shift(fill_value=-np.inf)]


def reference(done: pd.DataFrame) -> Spectrum | None:
    """The spectrum that all runs share, with the most axes; None if their faces differ."""
    mean_face = done["mean_face_psnr"]
    same = mean_face.max(skipna=False) - mean_face.min(skipna=False) < SAME_FACES
    if not same or collect.differing(done, (*collect.PEOPLE, *collect.SIZE)):
        return None
    return collect.spectrum(done.loc[done["latent_dim"].idxmax(), "path"])


def _draw_references(
    plot: Axes, spectrum: Spectrum, betas: list[float], latent_dims: list[int]
) -> None:
    """The linear VAE of the largest latent_dim over all beta, and lines of PCA."""
    if betas[-1] > 0:  # at beta=0 the optimum has no finite rate
        between = np.geomspace(betas[0] / 3 or 0.1, betas[-1] * 3, 60)
        line = pd.DataFrame([linear_vae(spectrum, beta, latent_dims[-1]) for beta in between])
        label = f"linear VAE, latent {latent_dims[-1]}"
        plot.plot(line["kl"], line["psnr"], "--", color="#a03c50", label=label)
    for k in (0, *latent_dims[:4]):
        psnr = pca_psnr(spectrum, k)
        label = f"PCA-{k}" if k else "mean face"
        plot.axhline(psnr, color="gray", lw=0.7, ls=":")
        plot.annotate(label, (1, psnr), xycoords=("axes fraction", "data"), ha="right", va="bottom")


def metric_against_beta(figure: Figure, done: pd.DataFrame, best: list[Path]) -> str:
    """PSNR, KL and negative ELBO of every run and their means; nothing for a single beta."""
    betas = sorted(done["used_beta"].unique())
    if len(betas) < 2:
        return ""
    figure.set_size_inches(9, 3)
    titles = {"val/psnr": "PSNR, dB", "val/kl": "KL, nats", "val/nelbo": "negative ELBO, nats"}
    for plot, (metric, title) in zip(figure.subplots(1, 3), titles.items()):
        mean = done.groupby("used_beta")[metric].mean()
        plot.scatter(done["used_beta"], done[metric], s=16, alpha=0.6)
        plot.plot(mean, color="gray", lw=1)
        plot.set_xscale("symlog", linthresh=1)
        if len(betas) <= MAX_LABELS:
            plot.set_xticks(betas, [f"{beta:.4g}" for beta in betas])
        plot.minorticks_off()
        plot.set(xlabel="beta", title=title)
    return "A point is a run, the line their mean. A larger beta lowers the rate and the PSNR."


def learning_curves(figure: Figure, done: pd.DataFrame, best: list[Path]) -> str:
    """PSNR of the epochs of the first runs and of the best ones."""
    in_front = done["path"].isin(best)
    some = pd.concat([done[~in_front].head(MAX_CURVES), done[in_front]])
    curves = {path: collect.curve(path, "val/psnr") for path in some["path"]}
    colours = _colours(some)
    plot = figure.subplots()
    for run in some.to_dict("records"):
        curve = curves[run["path"]]
        line = {"color": colours[run["used_beta"]], "lw": 0.8, "alpha": 0.6}
        if run["path"] in best:
            line |= {"lw": 2.4, "alpha": 1}
            line["label"] = f"{best.index(run['path']) + 1}: {run['run'][-40:]}"
        plot.plot(curve, **line)
    heights = pd.concat(list(curves.values()))
    if len(heights) < 2:
        return ""
    plot.set_ylim(bottom=heights.quantile(0.03) - 0.5)  # the first epochs can be far below
    plot.set(xlabel="epoch", ylabel="PSNR of held-out faces, dB")
    plot.legend(loc="lower right")
    return (
        f"PSNR while training of {len(some)} of {len(done)} runs, coloured by beta. Bold: the best"
        " runs of the best two configurations."
    )
