"""Several checkpoints beside one another, and two of them on the same faces."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.stats import ttest_1samp

from smilevae import runs
from smilevae.data.dataset import Faces
from smilevae.evaluation.figures import STRIP, png, stacked
from smilevae.evaluation.summary import SETS

NAME = "faces.json"
METRICS = {"psnr": ("PSNR", " dB", 1), "nelbo": ("nELBO", " nats", -1)}  # name, unit, better sign
FIGURES = ("reconstructions.png", "samples.png", STRIP)
Evaluations = dict[str, tuple[dict[str, Any], Path]]  # name -> metrics and evaluation folder


def to_json(faces: Faces, numbers: dict[str, list[float]]) -> str:
    """The content of faces.json: the person and the numbers of each held-out face."""
    content = {}
    for index, row in enumerate(faces.rows("val")):
        own = {name: values[index] for name, values in numbers.items()}
        content[faces.names[row]] = {"person": faces.people[row]} | own
    return json.dumps(content, indent=1) + "\n"


def compare(evaluations: Evaluations, out: Path) -> str:
    """A table of evaluations; their figures below one another in `out`."""
    for figure in FIGURES:
        paths = {name: folder / figure for name, (_, folder) in evaluations.items()}
        images = {name: Image.open(path) for name, path in paths.items() if path.exists()}
        if images:
            runs.write_bytes(out / figure, png(stacked(images)))
    lines = [table(evaluations)]
    metrics = [each for each, _ in evaluations.values()]
    if len({each["num_images"] for each in metrics}) > 1:
        lines.append("They hold out different people; the references are those of the first.")
    if len(evaluations) == 2:
        lines.append(difference(evaluations))
    for name, (each, folder) in evaluations.items():
        if "realism" in each:
            scores = {SETS[kind]: row.get("distance") for kind, row in each["realism"].items()}
            parts = [f"{kind} {1000 * at:,.0f}" for kind, at in scores.items() if at is not None]
            lines.append(f"{name}: distance to real faces (lower is better): {', '.join(parts)}")
        lines.append(f"{name}: {runs.shell_path(folder / 'index.html')}")
    return "\n".join([*lines, f"side by side: {runs.shell_path(out)}/"])


def table(evaluations: Evaluations) -> str:
    """A row for each evaluation, then PCA and the mean face of the first."""
    width = max(map(len, [*evaluations, "mean face"])) + 2
    titles = ("PSNR dB", "SSIM", "KL nats", "nELBO", "dims in use", "beta")
    lines = [" " * width + "".join(f"{title:>12}" for title in titles)]
    for name, (metrics, _) in evaluations.items():
        row = metrics["model"] | metrics
        units = "" if row["active_units"] is None else row["active_units"]
        cells = f"{row['psnr']:12.2f}{row['ssim']:12.3f}{row['kl']:12.1f}{row['nelbo']:12.0f}"
        lines.append(f"{name:{width}}{cells}{units:>12}{row['beta']:12.4g}")
    first, _ = next(iter(evaluations.values()))
    for key, title in {"mean_face": "mean face", "pca": f"PCA-{first['pca_dim']}"}.items():
        lines.append(f"{title:{width}}{first[key]['psnr']:12.2f}{first[key]['ssim']:12.3f}")
    return "\n".join(lines)


def difference(evaluations: Evaluations) -> str:
    """One sentence: the mean difference on the same faces, with 95% intervals over people."""
    a, b = evaluations
    (one, folder), (two, other) = evaluations.values()
    left = runs.read_json(folder / NAME)
    right = runs.read_json(other / NAME)
    people = defaultdict(list)
    for name, face in left.items():
        if name in right:
            people[face["person"]].append([face[key] - right[name][key] for key in METRICS])
    same = all(one[key] == two[key] for key in ("data_fingerprint", "image_size"))
    if not same or len(people) < 2:
        which = "faces of one person" if same and people else "different faces"
        return f"{a} and {b} hold out {which}, so they are not compared face by face"

    # A t test of each person's mean difference.
    means = np.array([np.mean(rows, 0) for rows in people.values()])
    num = sum(map(len, people.values()))
    sentence = f"{a} minus {b}, {num} faces of {len(means)} people"
    for (title, unit, sign), values in zip(METRICS.values(), means.T):
        mean = values.mean()
        interval = ttest_1samp(values, 0).confidence_interval(0.95)
        verdict = "cannot tell"
        if interval.low > 0 or interval.high < 0:
            verdict = f"{a if sign * mean > 0 else b} is better"
        limits = f"95% {interval.low:+.3g} to {interval.high:+.3g}"
        sentence += f"; {title} {mean:+.3g}{unit} ({limits}): {verdict}"
    return sentence
