"""How good are edits? The scorecard, with the axioms of counterfactuals (Monteiro et al. 2303.01274).

Every score can come out bad: `verdict` says which one does. Shapes: N edited faces, D latent dimensions, S image side.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of, encode
from smilevae.editing import directions
from smilevae.editing.calibration import CHUNK, decode
from smilevae.editing.dial import Dial
from smilevae.editing.fitting import UNTESTED, Fitted
from smilevae.evaluation.judges import Judges
from smilevae.evaluation.realism import Space
from smilevae.models import latents
from smilevae.models.metrics import psnr
from smilevae.models.vae import VAE

LEVELS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0)  # intensities at which the best direction of the main attribute is scored
SOME = (0.0, 1.0, 2.0)  # its other directions
FEW = (0.0, 1.0)  # other attributes
MIN_EDITED = 4  # held-out faces that lack the attribute; of fewer no distance has an error
MAX_FACES, MAX_OTHERS = 100, 40  # held-out faces that are edited: for the main attribute, for each other one
PASSES = 10  # of encoder and decoder, for composition
PLAIN = "mean_difference, uncalibrated"  # z + intensity * mean difference
REAL = 3.0  # times the distance of plain reconstructions: beyond it edits do not look real
NOTHING, BLURRED, GAP = 0.3, 0.75, 0.05  # least rise of a score, least share of edges, least disagreement


def verdict(scores: Mapping[str, Any], references: Mapping[str, Any], other: float) -> str:
    """The faults of edits at intensity 1, in words, or "holds". `other` is the identity score of another person."""
    one = scores["intensities"].index(1.0)
    rise = scores["classifier"][one]["mean"] - scores["classifier"][0]["mean"]
    faults = ["does nothing"] * (rise < NOTHING)
    faults += ["another person"] * (scores["identity"][one] > (1 + other) / 2)
    faults += ["blurred"] * (scores["sharpness"][one] < BLURRED)
    faults += ["not real"] * (not _real(scores, references, one))
    return ", ".join(faults) or "holds"


def _real(scores: Mapping[str, Any], references: Mapping[str, Any], at: int) -> bool:
    """Whether edits are at most REAL times as far from real faces as plain reconstructions, within the errors."""
    if not references:
        return True
    floor = references["their reconstructions"]["distance"]
    return all(
        value - error <= REAL * max(floor[space][0], 0) + floor[space][1]
        for space, (value, error) in scores["distance"][at].items()
    )


def disagreement(scores: Mapping[str, Any], references: Mapping[str, Any], num: int) -> str | None:
    """A sentence where the readers disagree at intensity 1 by more than their errors, beside real faces."""
    if "geometry" not in scores or not references:
        return None
    one, gaps, variance = scores["intensities"].index(1.0), [], 0.0
    for reader in ("classifier", "geometry"):
        shares = scores[reader][one]["called"], references["their reconstructions"][reader]["called"]
        gaps.append(shares[0] / max(shares[1], 0.01))
        smoothed = [(share * num + 1) / (num + 2) for share in shares]
        variance += gaps[-1] ** 2 * sum((1 - share) / share / num for share in smoothed)  # of a ratio of shares
    (a, b), error = gaps, 1.96 * variance**0.5
    if abs(a - b) <= max(error, GAP):
        return None
    return f"the readers disagree: of faces that really have it the classifier calls {a:.0%} as many, geometry {b:.0%}"


def obstacle(faces: Faces, fitted: Fitted, name: str) -> str | None:
    """Why edits of an attribute cannot be scored; None where they can."""
    if not fitted.scoring or np.isnan(fitted.scoring.accuracy.get(name, np.nan)):
        return fitted.left_out.get(name, UNTESTED)
    val = faces.rows("val")
    if len({faces.people[row] for row in val}) < 2 or (faces.labels(name)[val] == 0).sum() < MIN_EDITED:
        return f"two held-out people are needed, and {MIN_EDITED} held-out faces that lack it"
    return None


@torch.no_grad()
def score_edits(vae: VAE, faces: Faces, fitted: Fitted, spaces: list[Space], cache: bool = True) -> dict[str, Any]:
    """The scorecard: every direction of the main attribute, and the best one of every other attribute.

    The dials' ranges then end where edits stop to look real.
    """
    assert fitted.scoring
    main, others = fitted.dials.attribute, fitted.others(fitted.dials.attribute)
    by_name = {k: dial.direction for k, dial in fitted.dials.edits[main].dials.items() if dial.matrix is None}
    label = fitted.labels[main].nan_to_num(nan=-1).long()
    names = [name for name in fitted.dials.edits if not obstacle(faces, fitted, name)]
    return {
        "attribute": main,
        "attributes": {name: _score_attribute(vae, faces, fitted, spaces, name, cache) for name in names},
        "left_out": fitted.left_out,
        "composition": composition(vae, faces),
        "confounds": _confounds(fitted.mu, fitted.labels[main], others, by_name),
        "angle_degrees": directions.angles(fitted.mu, label, others, fitted.people),
    }


def _score_attribute(
    vae: VAE, faces: Faces, fitted: Fitted, spaces: list[Space], name: str, cache: bool
) -> dict[str, Any]:
    assert fitted.scoring
    edit, main = fitted.dials.edits[name], name == fitted.dials.attribute
    val = faces.rows("val")
    rows = np.random.default_rng(0).permutation(val[faces.labels(name)[val] == 0])[: MAX_FACES if main else MAX_OTHERS]
    judges = Judges(vae, faces, name, rows, fitted, spaces, cache)
    mu, by_direction = encode(vae, faces, rows)[0], dict[str, Any]()
    for kind in [*edit.dials, PLAIN] if main else [edit.best]:
        levels = FEW if not main else LEVELS if kind == edit.best else SOME
        if kind == PLAIN:
            step = directions.mean_difference(fitted.mu, fitted.labels[name])
            moved = latents.shift(mu, step, torch.tensor(levels))
        else:
            moved = edit.dials[kind].turn(mu, torch.tensor(levels), edit.score_of(vae))
        at = dict(zip(levels, moved.unbind(1)))
        scores = judges.score(lambda level, at=at: decode(vae, at[level]).clamp(0, 1), levels)  # type: ignore[misc]
        scores["reversibility"] = reversibility(vae, mu, at[1.0])
        scores["verdict"] = verdict(scores, judges.references, judges.person["other"] / judges.person["same"])
        if kind in edit.dials:
            dial = edit.dials[kind] = _within_realism(edit.dials[kind], scores, judges.references)
            scores |= {"range": [dial.low, dial.high], "gain": dial.gain}
        by_direction[kind] = scores
    accuracy = {"classifier": fitted.scoring.accuracy[name]}
    return {
        "best": edit.best,
        "num_faces": len(rows),
        "accuracy": accuracy | ({"geometry": judges.geometry.accuracy[name]} if judges.geometry else {}),
        "references": judges.references,
        "persons": judges.person,
        "directions": by_direction,
        "disagreement": disagreement(by_direction[edit.best], judges.references, len(rows)),
    }


def _within_realism(dial: Dial, scores: Mapping[str, Any], references: Mapping[str, Any]) -> Dial:
    """The dial with a range that ends where edits stop to look real."""
    for at, level in enumerate(scores["intensities"]):
        if level and references and not _real(scores, references, at):
            return replace(dial, high=min(dial.high, scores["intensities"][at - 1]))
    return dial


def reversibility(vae: VAE, mu: Tensor, moved: Tensor) -> float:
    """Codes (N, D) are moved, decoded, encoded and moved back: the difference that remains.

    As a share of the edit's own; both are root mean squares over pixels.
    """
    rest, there, device = decode(vae, mu), decode(vae, moved), next(vae.parameters()).device
    again = torch.cat([vae.encode(x.to(device).clamp(0, 1))[0].cpu() for x in there.split(CHUNK)])
    back = decode(vae, again - (moved - mu))
    return ((back - rest).square().mean() / (there - rest).square().mean().clamp(min=1e-12)).sqrt().item()


@torch.no_grad()
def composition(vae: VAE, faces: Faces) -> dict[str, float]:
    """PSNR in dB of held-out faces to their reconstruction after 1 and after PASSES passes."""
    rows = np.random.default_rng(0).permutation(faces.rows("val"))[:CHUNK]
    x = next(batches_of(vae, faces, rows))
    again, table = x, {}
    for number in range(1, PASSES + 1):
        again = vae.decode(vae.encode(again)[0]).clamp(0, 1)
        table[str(number)] = psnr((again - x).square().mean().item())
    return {number: table[number] for number in ("1", str(PASSES))}


def _confounds(
    mu: Tensor, label: Tensor, others: Mapping[str, Tensor], by_name: Mapping[str, Tensor]
) -> dict[str, Any]:
    """Of each attribute: its correlation with the main one, and each direction's cosine with its own."""
    return {
        name: {
            "correlation": directions.correlation(label, values),
            "cosine": {kind: directions.cosine(v, directions.slope(mu, values)) for kind, v in by_name.items()},
        }
        for name, values in others.items()
    }
