"""Figures of a sweep. Text and axes have the colour INK, which the page replaces by its own, light or dark."""

import io
import math
import re
from collections.abc import Callable
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from multirun_analysis import collect, rank
from smilevae.models.linear import Spectrum, linear_vae, pca_psnr

INK = "#3b3f46"  # readable on white paper; currentColor inside the page
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a run may be called $x
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "savefig.transparent": True,
    **dict.fromkeys(
        ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color"), INK
    ),
}
PALETTE = ("#2a78a8", "#c2571a", "#3c9a5f", "#9a5fb8", "#b8860b", "#c04a6e", "#5f7a8a", "#8a7a4f")  # on any paper
MAX_CURVES = 60
SAME_TOTAL = 1e-5  # relative; rounding differs between machines, other people differ by more than 1e-3
MANY = 400  # points from which a scatter is drawn as pixels inside the SVG
LABELS = {"val/psnr": "PSNR, dB", "val/kl": "KL, nats", "val/nelbo": "negative ELBO, nats", "val/loss": "SSE + beta KL"}


def draw_all(sweep: collect.Sweep, rank_by: str) -> dict[str, tuple[str, bytes, str]]:
    """Every figure that this sweep has data for: name -> (SVG, PNG, caption)."""
    makers: dict[str, Callable[..., tuple[Figure, str] | None]] = {
        "rate_distortion": rate_distortion,
        "metric_against_beta": metric_against_beta,
        "heatmap": heatmap,
        "learning_curves": learning_curves,
        "normalize": normalised,
    }
    figures = {}
    for name, make in makers.items():
        with mpl.rc_context(STYLE | {"svg.hashsalt": name}):
            if made := make(sweep, rank_by):
                figure, caption = made
                svg, png = io.StringIO(), io.BytesIO()
                figure.savefig(svg, format="svg", metadata={"Date": None})
                figure.savefig(png, format="png", dpi=120, transparent=False)
                figures[name] = (svg.getvalue(), png.getvalue(), caption)
    return figures


def inline(svg: str) -> str:
    """An SVG as a part of the page, in the page's colour."""
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    return re.sub(r'width="[\d.]+pt" height="[\d.]+pt"', 'width="100%"', svg, count=1)


def _figure(width: float = 7.2, height: float = 4.2) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def _colours(levels: list) -> dict:
    if len(levels) <= len(PALETTE):
        return dict(zip(levels, PALETTE))
    return dict(zip(levels, mpl.colormaps["viridis"](np.linspace(0.25, 0.9, len(levels)))))


def _log_axis(plot: Any, top: float, ticks: list[float] | None = None) -> None:
    """A logarithmic x axis that holds 0, with plain numbers."""
    plot.set_xscale("symlog", linthresh=1)
    ticks = ticks or [0, *(10**e for e in range(int(np.log10(max(top, 1))) + 2))]
    plot.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    plot.minorticks_off()
    plot.set_xlim(0 if top > 3 else -0.1, max(top, 1) * 1.5)


def reference(sweep: collect.Sweep) -> Spectrum | None:
    """The spectrum that all completed runs share, with the most axes; None if their faces differ or one has none.

    Equal held-out errors of the mean face say that both parts are the same faces at one size. The run with the largest
    latent_dim has the axes that it needs.
    """
    if collect.differing(sweep.completed, collect.PEOPLE):
        return None
    widest = None
    for path in sweep.completed["path"]:
        own = collect.spectrum(path)
        if own is None or (widest and not _same_faces(own, widest)):
            return None
        if widest is None or len(own.eigenvalues) > len(widest.eigenvalues):
            widest = own
    return widest


def _same_faces(one: Spectrum, two: Spectrum) -> bool:
    return one.num_pixels == two.num_pixels and math.isclose(one.total, two.total, rel_tol=SAME_TOTAL)


def rate_distortion(sweep: collect.Sweep, rank_by: str) -> tuple[Figure, str] | None:
    """KL against PSNR of every run, with the Pareto front and the linear references."""
    done = sweep.completed
    if done.empty:
        return None
    figure = _figure()
    dashed = " There are no linear references: the runs have different faces or image sizes, or lack spectrum.json."
    plot = figure.subplots()
    betas = sorted(done["used_beta"].unique())
    shown = betas if len(betas) <= 8 else []
    for beta, colour in _colours(shown).items():
        part = done[done["used_beta"] == beta]
        plot.scatter(part["val/kl"], part["val/psnr"], s=26, color=colour, label=f"beta {beta:.4g}", zorder=3)
    if not shown:
        plot.scatter(done["val/kl"], done["val/psnr"], s=8, c=done["used_beta"], zorder=3, rasterized=len(done) > MANY)
    front = rank.pareto(done)
    plot.plot(front["val/kl"], front["val/psnr"], color=INK, lw=1, label="Pareto front", zorder=2)
    for number, (_, run) in enumerate(rank.best(done, rank_by).iterrows(), 1):
        plot.annotate(f" {number}", (run["val/kl"], run["val/psnr"]), fontweight="bold")
    if spectrum := reference(sweep):
        dashed = ""
        dims = sorted({int(d) for d in done["latent_dim"]})
        if betas[-1] > 0:  # at beta=0 alone the optimum has no finite rate
            between = np.geomspace(betas[0] / 3 or 0.1, betas[-1] * 3, 60)
            line = [linear_vae(spectrum, beta, dims[-1]) for beta in between]
            kl, psnr = [point["kl"] for point in line], [point["psnr"] for point in line]
            plot.plot(kl, psnr, "--", color="#a03c50", lw=1.2, label=f"linear VAE, latent {dims[-1]}")
            dashed = " The dashed line is the closed-form optimum of a linear VAE as beta varies."
        for k in (0, *dims[:4]):
            plot.axhline(pca_psnr(spectrum, k), color=INK, lw=0.7, ls=":")
            label = f"PCA-{k}" if k else "mean face"
            plot.annotate(
                label, (1, pca_psnr(spectrum, k)), xycoords=("axes fraction", "data"), ha="right", va="bottom"
            )
    _log_axis(plot, done["val/kl"].max())
    plot.set(xlabel="rate: KL, nats", ylabel="distortion: PSNR of held-out faces, dB")
    plot.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, (
        "Rate and distortion of every run on held-out people; up and left is better. 1 and 2 are the top two by"
        f" {rank_by}.{dashed}"
    )


def metric_against_beta(sweep: collect.Sweep, rank_by: str) -> tuple[Figure, str] | None:
    if "beta" not in sweep.swept:
        return None
    done, metrics = sweep.completed, ("val/psnr", "val/kl", "val/nelbo")
    figure = _figure(9, 3)
    for plot, metric in zip(figure.subplots(1, 3), metrics):
        plot.scatter(done["used_beta"], done[metric], s=16, color="#2a78a8", alpha=0.6, rasterized=len(done) > MANY)
        mean = done.groupby("used_beta")[metric].mean()
        plot.plot(mean.index, mean, color=INK, lw=1)
        plot.set(xlabel="beta", title=LABELS[metric])
        betas = sorted(done["used_beta"].unique())
        _log_axis(plot, betas[-1], betas if len(betas) <= len(PALETTE) else None)
    return figure, "Each point is a run, the line their mean: more beta buys a lower rate and pays with distortion."


def heatmap(sweep: collect.Sweep, rank_by: str) -> tuple[Figure, str] | None:
    first = [knob for knob in ("beta", "batch_size", "latent_dim", "normalize") if knob in sweep.swept]
    few = [knob for knob in (*first, *sweep.swept) if sweep.completed[knob].nunique() <= rank.MAX_LEVELS]
    down, across, *_ = [*dict.fromkeys(few), None, None]
    if across is None:
        return None
    metrics = list(dict.fromkeys((rank_by, "val/psnr")))
    figure = _figure(4.6 * len(metrics), 3.4)
    for plot, metric in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics):
        grid = sweep.completed.pivot_table(index=down, columns=across, values=metric, aggfunc="mean")
        values = grid.to_numpy(dtype=float)
        colours = "viridis" if rank.BETTER.get(metric, 1) > 0 else "viridis_r"
        plot.imshow(values, cmap=colours, aspect="auto")
        plot.grid(False)
        plot.set_xticks(range(len(grid.columns)), map(_level, grid.columns))
        plot.set_yticks(range(len(grid.index)), map(_level, grid.index))
        plot.set(xlabel=across, ylabel=down, title=LABELS.get(metric, metric))
        low, high = np.nanmin(values), np.nanmax(values)
        for (r, c), value in np.ndenumerate(values if values.size <= 100 else values[:0]):
            if not np.isnan(value):
                bright = (value - low) / (high - low or 1)
                bright = bright if colours == "viridis" else 1 - bright
                plot.text(c, r, f"{value:.5g}", ha="center", va="center", color="black" if bright > 0.6 else "white")
    return figure, "Means over the other knobs; bright is better."


def learning_curves(sweep: collect.Sweep, rank_by: str) -> tuple[Figure, str] | None:
    done = sweep.completed
    top = rank.best(done, rank_by)
    some = pd.concat([top, done.drop(top.index).head(MAX_CURVES)]) if len(done) else done
    curves = [(run, collect.curve(run["path"])) for _, run in some.iterrows()]
    curves = [(run, points) for run, points in curves if len(points) > 1]
    if not curves:
        return None
    figure = _figure()
    plot = figure.subplots()
    colour = _colours(sorted(some["used_beta"].unique()))
    marked = list(top["run"])
    for run, points in reversed(curves):
        best, hue = run["run"] in marked, colour[run["used_beta"]]
        label = f"{marked.index(run['run']) + 1}: {run['run'][-40:]}" if best else None
        line: dict[str, Any] = {"lw": 2.4, "zorder": 3} if best else {"lw": 0.8, "alpha": 0.6}
        plot.plot(*zip(*points), color=hue, label=label, **line)
        if best:
            plot.plot(run["epoch"], dict(points).get(run["epoch"], np.nan), "o", color=hue, zorder=4)
    heights = [value for _, points in curves for _, value in points]
    plot.set_ylim(bottom=np.percentile(heights, 3) - 0.5)  # the first epochs can be far below
    plot.set(xlabel="epoch", ylabel="PSNR of held-out faces, dB")
    plot.legend(loc="lower right")
    shown = "every run" if len(curves) == len(done) else f"the best two and {len(curves) - 2} others"
    return (
        figure,
        f"PSNR while training, {shown}, coloured by beta; the best two by {rank_by} are bold, a dot at their best.",
    )


def normalised(sweep: collect.Sweep, rank_by: str) -> tuple[Figure, str] | None:
    if "normalize" not in sweep.swept:
        return None
    others = [k for k in sweep.swept if k != "normalize"]
    done = sweep.completed
    keys = [done[k].astype(str) for k in others] or [done["image_size"]]
    metrics = ("val/psnr", "val/kl", "val/nelbo")
    figure = _figure(9, 3.2)
    for plot, metric in zip(figure.subplots(1, 3), metrics):
        grid = done.pivot_table(index=keys, columns=done["normalize"], values=metric, aggfunc="mean").dropna()
        if grid.shape[1] < 2:
            return None
        plot.scatter(grid[False], grid[True], s=18, color="#2a78a8", zorder=3)
        low, high = float(grid.min(axis=None)), float(grid.max(axis=None))
        plot.plot([low, high], [low, high], color=INK, lw=0.8, ls=":")
        plot.set(xlabel="normalize=false", ylabel="normalize=true", title=LABELS[metric])
    return figure, "Each point is a pair of runs that differ in normalize only; on the dotted line it changes nothing."


def _level(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def contact_sheet(rows: list[tuple[str, bytes]]) -> bytes | None:
    """The previews of several runs below one another, with names, as PNG; None without previews."""
    from PIL import Image, ImageDraw, ImageFont

    pictures = [(name, Image.open(io.BytesIO(content)).convert("RGB")) for name, content in rows]
    if not pictures:
        return None
    bar, width = 18, max(image.width for _, image in pictures)
    sheet = Image.new("RGB", (width, sum(image.height + bar for _, image in pictures)), "white")
    pen, font, top = ImageDraw.Draw(sheet), ImageFont.load_default(size=13), 0
    for name, image in pictures:
        pen.text((2, top + bar / 2), name, fill="black", font=font, anchor="lm")
        sheet.paste(image, (0, top + bar))
        top += image.height + bar
    content = io.BytesIO()
    sheet.save(content, "PNG")
    return content.getvalue()


def as_jpeg(png: bytes) -> bytes:
    from PIL import Image

    content = io.BytesIO()
    Image.open(io.BytesIO(png)).convert("RGB").save(content, "JPEG", quality=88)
    return content.getvalue()


def openable(png: bytes, max_side: int = 4000) -> bool:
    """Whether a PNG from a run folder decodes and is not too large."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            if max(image.size) > max_side:
                return False
            image.load()
            return True
    except Exception:  # Pillow raises many kinds for damaged files
        return False
