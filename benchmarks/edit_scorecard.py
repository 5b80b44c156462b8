"""How good are edits, and does the scorecard name bad ones? python benchmarks/edit_scorecard.py RUN

For the main attribute of a run: edits by transport, by the unmixed direction and by the mean difference, then
deliberately bad ones. Of each at intensity 1: the shares that a classifier and landmarks call faces that have the
attribute, the distance to real faces beside that of reconstructions, the person, the share of edges that is left, what
remains after edit, encode, edit back (reversibility), and the faults by name. Also how a face survives ten passes
through encoder and decoder (composition), and how sure the mean difference is (bootstrap over people). These are the
axioms of counterfactuals of Monteiro et al. 2303.01274.
"""

import sys
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent))

from smilevae import runs
from smilevae.data.dataset import Faces, load_faces
from smilevae.data.encode import batches_of, encode
from smilevae.editing import fitting
from smilevae.editing.attributes import Attribute, mean_difference
from smilevae.editing.calibration import CHUNK, decode
from smilevae.evaluation import realism
from smilevae.evaluation.measure import small
from smilevae.evaluation.scoring import Scorer, lacking, looks_real
from smilevae.models import latents
from smilevae.models.metrics import psnr
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

LEVELS = (0.0, 1.0)
PASSES = 10  # of encoder and decoder, for composition
NOTHING = 0.3  # least rise of the score
BLURRED = 0.75  # least share of edges
RESAMPLES = 25


def faults(scores: Mapping[str, Any], edges: float) -> str:
    """The faults of edits at intensity 1 in words, or "holds"."""
    found = []
    if scores["score"][1] - scores["score"][0] < NOTHING:
        found.append("does nothing")
    if scores["identity"][1] > (1 + scores["other_person"]) / 2:
        found.append("another person")
    if edges < BLURRED:
        found.append("blurred")
    if "distance" in scores and not looks_real(scores["distance"][1], scores["reference"]):
        found.append("not real")
    return ", ".join(found) or "holds"


def bad_edits(faces: Faces, attribute: str, rest: Tensor) -> dict[str, Tensor]:
    """Deliberately bad ways to give faces (N, 3, S, S) an attribute: name -> images."""
    train = faces.rows("train")
    having = faces.batch(train[faces.labels(attribute)[train] == 1])
    sticker = rest.clone()
    side = rest.shape[-1]
    rows = slice(46 * side // 64, 54 * side // 64)
    columns = slice(20 * side // 64, 44 * side // 64)
    sticker[:, :, rows, columns] = 1
    return {
        "nothing": rest,
        "sticker": sticker,
        "blend": 0.5 * rest + 0.5 * having.mean(0),
        "swap": having[: len(rest)],
    }


def edges(x: Tensor) -> Tensor:
    """Mean edge strength: (B, 3, S, S) -> (B,)."""
    across = x.diff(dim=3).abs().flatten(1).mean(1)
    down = x.diff(dim=2).abs().flatten(1).mean(1)
    return across + down


def reversibility(vae: VAE, mu: Tensor, moved: Tensor) -> float:
    """Codes (N, D) are moved, decoded, encoded and moved back: the difference that remains.

    As a share of the edit's own; both are root mean squares over pixels.
    """
    rest = decode(vae, mu)
    there = decode(vae, moved)
    again = torch.cat([vae.encode(x.clamp(0, 1))[0] for x in there.split(CHUNK)])
    back = decode(vae, again - (moved - mu))
    remains = (back - rest).square().mean()
    return float((remains / (there - rest).square().mean().clamp(min=1e-12)).sqrt())


def composition(vae: VAE, faces: Faces) -> dict[int, float]:
    """PSNR in dB of held-out faces to their reconstruction after each number of passes."""
    x = next(batches_of(vae, faces, faces.sample("val", CHUNK)))
    again = x
    table = {}
    for number in range(1, PASSES + 1):
        again = vae.decode(vae.encode(again)[0]).clamp(0, 1)
        table[number] = psnr((again - x).square().mean().item())
    return table


def angle(
    mu: Tensor, labels: Tensor, people: Sequence[str], direction: Callable = mean_difference
) -> float:
    """Degrees within which 95% of the directions of resampled people lie (bootstrap)."""
    rows_of = defaultdict(list)
    for row, person in enumerate(people):
        rows_of[person].append(row)
    groups = list(rows_of.values())
    whole = direction(mu, labels)
    rng = np.random.default_rng(0)
    angles = []
    for _ in range(RESAMPLES):
        drawn = np.concatenate([groups[k] for k in rng.integers(0, len(groups), len(groups))])
        rows = torch.from_numpy(drawn)
        cosine = torch.nn.functional.cosine_similarity(
            whole, direction(mu[rows], labels[rows]), dim=0
        )
        angles.append(float(np.degrees(np.arccos(np.clip(float(cosine), -1, 1)))))
    return float(np.quantile(angles, 0.95))


def edits_of(attribute: Attribute, plain: Tensor) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Ways to edit codes: (N, D), intensities (I,) -> (N, I, D)."""
    return {
        "transport": attribute.edit,
        "unmixed": replace(attribute, matrix=None).edit,
        "mean difference": lambda mu, levels: latents.shift(mu, plain, levels),
    }


@torch.no_grad()
def main(run: str) -> None:
    vae, settings, *_ = checkpoint.load(runs.find(run))
    faces, _ = load_faces(settings.data, settings.image_size).reporting()
    fitted = fitting.fit_edits(vae, faces)
    assert fitted
    space = realism.feature_space(faces)
    scorer = Scorer(vae, faces, fitted, space)
    attribute = fitted.edits.main
    rows = lacking(faces, attribute.name)[:100]
    mu = encode(vae, faces, rows)[0]
    known, _ = fitting.fitted_rows(faces, attribute.name)
    codes = encode(vae, faces, known)[0]

    rest = small(decode(vae, mu).clamp(0, 1))
    edited = {}
    back = {}
    for name, edit in edits_of(attribute, mean_difference(codes, attribute.labels)).items():
        moved = edit(mu, torch.ones(1))[:, 0]
        edited[name] = small(decode(vae, moved).clamp(0, 1))
        back[name] = f"{reversibility(vae, mu, moved):.2f}"
    edited |= {name: small(x) for name, x in bad_edits(faces, attribute.name, rest).items()}
    print(f"{'':16} success landmarks distance person edges  back  faults")
    for name, x in edited.items():
        scores = scorer.score_images(attribute.name, rows, LEVELS, [rest, x])
        left = float((edges(x) / edges(rest).clamp(min=1e-6)).mean())
        landmarks = (
            f"{scores['success_landmarks'][1]:9.0%}" if "success_landmarks" in scores else f"{'':9}"
        )
        distance = f"{1000 * scores['distance'][1][0]:8.0f}" if "distance" in scores else f"{'':8}"
        line = f"{name:16} {scores['success'][1]:7.0%} {landmarks} {distance} {scores['identity'][1]:6.2f}"
        print(f"{line} {left:5.2f} {back.get(name, ''):>5}  {faults(scores, left)}")
    if "distance" in scores:
        print(
            f"distance of reconstructions: {1000 * scores['reference']['reconstructed']['distance'][0]:.0f}"
        )
    passes = composition(vae, faces)
    print(f"encoded and decoded once: {passes[1]:.1f} dB, {PASSES} times: {passes[PASSES]:.1f} dB")
    people = [faces.people[row] for row in known]
    print(
        f"the mean difference is sure to {angle(codes, attribute.labels, people):.0f} degrees (95%)"
    )


if __name__ == "__main__":
    main(sys.argv[1])
