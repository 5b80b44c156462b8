"""The smile of the plain method and ours, side by side: python benchmarks/smile_figure.py RUN docs/smile.jpg

RUN has learnt from drawn faces of which more smiling ones have long hair, as more smiling people of the public set are
women: python train.py experiment=warm data.confound=0.36. Faces: held-out people who do not smile, of the third with
the shortest hair, where hair that comes with the smile is plainest.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))

from smilevae import runs
from smilevae.data import load_faces
from smilevae.data.encode import encode
from smilevae.editing import fitting
from smilevae.editing.calibration import decode
from smilevae.editing.directions import mean_difference
from smilevae.evaluation import edits, realism
from smilevae.runs import checkpoint

SHOWN = (-1, 0, 1, 2)
NUM_FACES = 3


def main(run: str, out: Path) -> None:
    vae, settings, *_ = checkpoint.load(runs.find(run))
    faces = load_faces(settings.data, settings.image_size)
    fitted = fitting.fit_dials(vae, faces)
    assert fitted
    card = edits.score_edits(vae, faces, fitted, realism.spaces(faces))["attributes"]["smile"]
    rows = np.random.default_rng(0).permutation(
        faces.rows("val")[faces.smile[faces.rows("val")] == 0]
    )
    hair = faces.attributes["hair_length"][rows]
    mu = encode(vae, faces, rows[hair <= np.quantile(hair, 1 / 3)][:NUM_FACES])[0]
    levels, step = (
        torch.tensor(SHOWN, dtype=torch.float32),
        mean_difference(fitted.mu, fitted.labels["smile"]),
    )
    codes = {
        edits.PLAIN: mu[:, None] + levels[:, None] * step,
        card["best"]: fitted.dials.turn(vae, mu, levels),
    }
    titles = {
        edits.PLAIN: "plain: z + k (mean smiling - mean not)",
        card["best"]: f"ours: {card['best']}, calibrated",
    }

    figure = Figure(figsize=(11, 1.35 * NUM_FACES + 3.4), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(1.35 * NUM_FACES, 3.0))
    for part, (name, title) in zip(top.subfigures(1, 2), titles.items()):
        part.suptitle(title, fontsize=10)
        shown = decode(vae, codes[name].flatten(0, 1)).clamp(0, 1)
        grid = part.subplots(NUM_FACES, len(SHOWN))
        for index, (axes, picture) in enumerate(zip(grid.flat, shown)):
            axes.imshow(picture.permute(1, 2, 0).numpy())
            axes.set_axis_off()
            if index < len(SHOWN):
                axes.set_title(f"{SHOWN[index]:+g}" if SHOWN[index] else "0", fontsize=9)
    left, right = below.subplots(1, 2)
    for number, (name, title) in enumerate(titles.items()):
        numbers = card["directions"][name]
        x, one = np.array(numbers["intensities"]), numbers["intensities"].index(1.0)
        y, spread = (
            np.array([at[key] for at in numbers["classifier"]]) for key in ("mean", "spread")
        )
        left.plot(x, y, f"C{number}", label=title.partition(":")[0])
        left.fill_between(x, y - spread, y + spread, color=f"C{number}", alpha=0.2)
        right.bar([number], [abs(numbers["drift"][one]["hair_length"])], color=f"C{number}")
    left.set(
        xlabel="intensity", ylabel="measured smile", title="mean and spread over 100 held-out faces"
    )
    left.legend()
    right.set(
        title="change of hair length that comes with intensity 1",
        xticks=[0, 1],
        xticklabels=["plain", "ours"],
    )
    runs.replace_file(out, lambda file: figure.savefig(file, format=out.suffix[1:], dpi=90))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
