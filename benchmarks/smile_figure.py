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
from smilevae.data.dataset import load_faces
from smilevae.data.encode import encode
from smilevae.editing import fitting
from smilevae.editing.attributes import mean_difference
from smilevae.editing.calibration import decode
from smilevae.evaluation import realism
from smilevae.evaluation.scoring import LEVELS, Scorer, lacking
from smilevae.models import latents
from smilevae.runs import checkpoint

SHOWN = (-1, 0, 1, 2)
NUM_FACES = 3


def main(run: str, out: Path) -> None:
    vae, settings, *_ = checkpoint.load(runs.find(run))
    faces, _ = load_faces(settings.data, settings.image_size).reporting()
    fitted = fitting.fit_edits(vae, faces)
    assert fitted
    scorer = Scorer(vae, faces, fitted, realism.feature_space(faces))
    smile = fitted.edits.main
    known, _ = fitting.fitted_rows(faces, smile.name)
    plain = mean_difference(encode(vae, faces, known)[0], smile.labels)
    edits = {
        "plain: z + k (mean smiling - mean not)": lambda mu, k: latents.shift(mu, plain, k),
        "ours: transport, calibrated": smile.edit,
    }

    # Faces with short hair, where hair that comes with the smile is plainest.
    rows = lacking(faces, smile.name)[:100]
    hair = faces.attributes["hair_length"][rows]
    mu = encode(vae, faces, rows)[0]
    shown = mu[torch.from_numpy(hair <= np.quantile(hair, 1 / 3))][:NUM_FACES]

    figure = Figure(figsize=(11, 1.35 * NUM_FACES + 3.4), layout="constrained")
    top, below = figure.subfigures(2, 1, height_ratios=(1.35 * NUM_FACES, 3.0))
    for part, (title, edit) in zip(top.subfigures(1, 2), edits.items()):
        part.suptitle(title, fontsize=10)
        codes = edit(shown, torch.tensor(SHOWN, dtype=torch.float32))
        images = decode(vae, codes.flatten(0, 1)).clamp(0, 1)
        grid = part.subplots(NUM_FACES, len(SHOWN))
        for index, (axes, image) in enumerate(zip(grid.flat, images)):
            axes.imshow(image.permute(1, 2, 0).numpy())
            axes.set_axis_off()
            if index < len(SHOWN):
                axes.set_title(f"{SHOWN[index]:+g}" if SHOWN[index] else "0", fontsize=9)

    # The measured smile at every intensity, and the change of hair length that comes with 1.
    left, right = below.subplots(1, 2)
    for number, (title, edit) in enumerate(edits.items()):
        readings = [
            scorer.classifier(decode(vae, z).clamp(0, 1))
            for z in edit(mu, torch.tensor(LEVELS)).unbind(1)
        ]
        mean = np.array([float(reading[smile.name].mean()) for reading in readings])
        spread = np.array([float(reading[smile.name].std()) for reading in readings])
        left.plot(LEVELS, mean, f"C{number}", label=title.partition(":")[0])
        left.fill_between(LEVELS, mean - spread, mean + spread, color=f"C{number}", alpha=0.2)
        change = readings[LEVELS.index(1.0)]["hair_length"] - readings[0]["hair_length"]
        right.bar([number], [float(change.square().mean().sqrt())], color=f"C{number}")
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
