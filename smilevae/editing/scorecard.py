"""The edit scorecard: how well smile edits work on held-out people, and which other attributes they change.

One attribute classifier calibrates the dials; another, trained on other people, scores them. Shapes: N examples,
D latent dimensions, I intensities.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.batches import gather, to_unit
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.editing import directions
from smilevae.editing.classifier import AttributeClassifier, Classifier, MakeClassifier, SmileMeter
from smilevae.editing.dial import INTENSITIES, Dial, calibrate, fit_estimate
from smilevae.errors import ConfigError
from smilevae.models import latents
from smilevae.models.vae import VAE

MAX_CALIBRATED = 40  # training faces that a dial's gain and range are fitted to
MAX_FACES = 100  # held-out faces that are edited
MAX_TRAIN = 8000  # training faces of directions and classifiers
MIN_KNOWN = 20  # faces of each half of which an attribute must be known
MIN_LABELLED = 20  # smiling faces, and as many others, in each half
PLAIN = "mean_difference, uncalibrated"  # z + intensity * mean difference
CHUNK = 64  # images decoded at a time


@dataclass(frozen=True)
class Scorecard:
    """`card` holds plain numbers, `best` is the default dial, `rows` are the edited faces."""

    card: dict[str, Any]
    dials: dict[str, Dial]
    best: Dial
    meter: SmileMeter | None  # None for the user's own classifier
    rows: np.ndarray
    codes: dict[str, Tensor]  # of the edited faces at INTENSITIES, by direction: (N, I, D)
    threshold: float


def possible(faces: Faces) -> bool:
    """Whether there are enough labels and a held-out face that does not smile."""
    train, val = faces.rows("train"), faces.smile[faces.rows("val")]
    half = _first_half([faces.people[row] for row in train])
    counts = [(faces.smile[train[side]] == label).sum() for side in (half, ~half) for label in (0, 1)]
    return min(counts) >= MIN_LABELLED and (val == 0).any()


def _first_half(people: list[str]) -> np.ndarray:
    return np.unique(people, return_inverse=True)[1] % 2 == 0


@torch.no_grad()
def scorecard(vae: VAE, faces: Faces, make_classifier: MakeClassifier = AttributeClassifier) -> Scorecard:
    """The dials of a VAE and their edit scorecard. Raises ConfigError for a classifier that fails."""
    train = faces.rows("train")
    train = np.random.default_rng(0).permutation(train[faces.smile[train] >= 0])[:MAX_TRAIN]
    people = [faces.people[row] for row in train]
    half = _first_half(people)
    mu, label = encode(vae, faces, train)[0], torch.from_numpy(faces.smile[train])
    others = {name: torch.from_numpy(v[train]).float() for name, v in faces.attributes.items() if name != "smile"}

    calibrating = _classifier(faces, train[~half], make_classifier)
    meter = calibrating.meter("smile") if isinstance(calibrating, AttributeClassifier) else None

    def smile_and_clipped(codes: Tensor) -> tuple[Tensor, Tensor]:
        smiles, clipped = [], []
        for z in codes.split(CHUNK):
            x = decode(vae, z)
            inside = x.clamp(0, 1)
            smiles.append(meter(inside) if meter else calibrating(inside)["smile"])
            clipped.append((x != inside).float().mean((1, 2, 3)))
        return torch.cat(smiles), torch.cat(clipped)

    def smile_of(codes: Tensor) -> Tensor:
        return smile_and_clipped(codes)[0]

    by_name = directions.directions(mu, label, others, people)
    smiles = smile_of(mu[~half])
    weights, bias = fit_estimate(mu[~half], smiles, smile_of)
    smiling = float(smiles[label[~half] == 1].mean())
    calm = mu[half][label[half] == 0][:MAX_CALIBRATED]
    dials = {}
    for name, direction in by_name.items():
        direction = direction if direction @ weights > 0 else -direction
        dials[name] = calibrate(Dial(name, direction, weights, bias, smiling), calm, smile_and_clipped)

    scoring = _classifier(faces, train[half], make_classifier)
    val = faces.rows("val")
    rows = np.random.default_rng(0).permutation(val[faces.smile[val] == 0])[:MAX_FACES]
    edited = encode(vae, faces, rows)[0]
    levels = torch.tensor(INTENSITIES)
    codes = {PLAIN: latents.shift(edited, by_name["mean_difference"], levels)}
    codes |= {name: dial.turn(edited, levels, smile_of if meter else None) for name, dial in dials.items()}
    card: dict[str, Any] = {
        "classifier": scoring.accuracy,
        "confounds": _confounds(faces, mu, label, others, encode(vae, faces, val)[0], by_name),
        "angle_degrees": directions.angles(mu, label, others, people),
        "directions": _edits(vae, scoring, edited, codes),
        "num_faces": len(rows),
    }
    for name, dial in dials.items():
        card["directions"][name] |= {"range": [dial.low, dial.high], "gain": dial.gain}
    best = dials["orthogonal" if "orthogonal" in dials else "mean_difference"]
    return Scorecard(card, dials, best, meter, rows, codes, scoring.threshold["smile"])


def _classifier(faces: Faces, rows: np.ndarray, make: MakeClassifier) -> Classifier:
    """An attribute classifier of every attribute that enough of these faces have."""
    attributes = {"smile": faces.smile[rows].astype(float)}
    for name, values in faces.attributes.items():
        known = values[rows][np.isfinite(values[rows])]
        if len(known) >= MIN_KNOWN and len(np.unique(known)) > 1:
            attributes["true_smile" if name == "smile" else name] = values[rows]
    x, people = images(faces, rows), [faces.people[row] for row in rows]
    if make is AttributeClassifier:
        return make(x, attributes, people)
    see = "see smilevae.editing.classifier.Classifier"
    try:
        classifier = make(x, attributes, people)
        complete = callable(classifier) and callable(classifier.embed)
        complete &= "smile" in classifier.threshold.keys() & classifier.accuracy.keys()
    except Exception as error:  # a user's class may raise anything
        raise ConfigError(f"the attribute classifier failed: {type(error).__name__}: {error}; {see}") from error
    if not complete:
        raise ConfigError(f"the attribute classifier lacks embed, threshold or accuracy; {see}")
    return classifier


def images(faces: Faces, rows: np.ndarray) -> Tensor:
    return to_unit(torch.from_numpy(gather(faces.images, rows))).contiguous()


@torch.no_grad()
def decode(vae: VAE, codes: Tensor) -> Tensor:
    """Images of codes, not clamped: (N, D) -> (N, 3, S, S)."""
    device = next(vae.parameters()).device
    return torch.cat([vae.decode(z.to(device)).cpu() for z in codes.split(CHUNK)])


def _confounds(
    faces: Faces, mu: Tensor, label: Tensor, others: dict[str, Tensor], held_out: Tensor, by_name: dict[str, Tensor]
) -> dict[str, Any]:
    """Of each attribute: its correlation with the smile, each direction's cosine with it, and held-out AUC."""
    val = faces.rows("val")
    confounds: dict[str, Any] = {}
    for name, values in others.items():
        own = directions.slope(mu, values)
        known = torch.from_numpy(faces.attributes[name][val]).float()
        confounds[name] = {
            "correlation": directions.correlation(label.float(), values),
            "cosine": {d: directions.cosine(v, own) for d, v in by_name.items()},
            "auc": {d: _auc(held_out @ v, known) for d, v in by_name.items()},
        }
    truth = torch.from_numpy(faces.smile[val]).float()
    truth[truth < 0] = torch.nan
    return confounds | {"smile": {"auc": {d: _auc(held_out @ v, truth) for d, v in by_name.items()}}}


def _edits(vae: VAE, classifier: Classifier, mu: Tensor, codes_of: dict[str, Tensor]) -> dict[str, Any]:
    """Scores of held-out faces by direction, from codes (N, I, D)."""
    zero, one = INTENSITIES.index(0), INTENSITIES.index(1)
    rest = decode(vae, mu).clamp(0, 1)  # intensity 0 is the same on every direction
    at_rest, original = classifier(rest), classifier.embed(rest)
    result: dict[str, Any] = {}
    for name, codes in codes_of.items():
        scores = []
        for level in range(len(INTENSITIES)):
            x = decode(vae, codes[:, level]).clamp(0, 1) if level != zero else rest
            scores.append(classifier(x) if level != zero else at_rest)
            if level == one:
                nearest = torch.cdist(classifier.embed(x), original).argmin(1)
                sharpness = float((_edges(x) / _edges(rest)).mean())
        smiles = torch.stack([score["smile"] for score in scores], 1)  # (N, I)
        smiling = (smiles > classifier.threshold["smile"]).float().mean(0).tolist()
        result[name] = {
            "intensities": list(INTENSITIES),
            "smile": smiles.mean(0).tolist(),
            "spread": smiles.std(0, correction=0).tolist(),
            "success": smiling[one],
            "success_at_0": smiling[zero],
            "monotone": float((smiles.diff(dim=1) > 0).all(1).float().mean()),
            "drift": {k: float((v - at_rest[k]).mean()) for k, v in scores[one].items() if k != "smile"},
            "identity": float((nearest == torch.arange(len(nearest))).float().mean()),
            "sharpness": sharpness,
        }
    return result


def format_card(card: dict[str, Any]) -> str:
    """The edit scorecard as a table, and its strongest confounder."""
    columns = ("at 0", "at 1", "spread", "smiling", "monotone", "same face", "sharp", "range", "angle")
    accuracy = (card.get("classifier") or card["judge"])["smile"]  # "judge" in older files
    lines = [
        f"smile: {card['num_faces']} held-out people who do not smile, measured by an attribute classifier that is"
        f" right for {accuracy:.0%} of people outside its training data (0: not smiling, 1: smiling)",
        f"{'':30}" + "".join(f"{column:>11}" for column in columns),
    ]
    zero, one = INTENSITIES.index(0), INTENSITIES.index(1)
    for name, scores in card["directions"].items():
        cells = [f"{scores['smile'][zero]:.2f}", f"{scores['smile'][one]:.2f}", f"{scores['spread'][one]:.2f}"]
        cells += [f"{scores[key]:.0%}" for key in ("success", "monotone", "identity")] + [f"{scores['sharpness']:.2f}"]
        cells.append("{:+g}..{:+g}".format(*scores["range"]) if "range" in scores else "")
        angle = card["angle_degrees"].get(name)
        cells.append(f"±{angle:.0f}°" if angle else "")
        lines.append(f"{name:30}" + "".join(f"{cell:>11}" for cell in cells))
    return "\n".join([*lines, confound_sentence(card["confounds"])])


def confound_sentence(confounds: dict[str, Any]) -> str:
    """A sentence on the attribute that correlates most with the smile."""
    strength = {name: abs(c["correlation"]) for name, c in confounds.items() if "correlation" in c}
    if not strength:
        return "only the smile is known of these faces; attributes=CSV adds attributes that its direction may contain"
    confounders = [name for name in strength if strength[name] > directions.CONFOUNDED]
    if not confounders:
        strongest = max(strength, key=lambda name: strength[name])
        correlation = confounds[strongest]["correlation"]
        return (
            f"no confounder among {len(strength)} known attributes: the strongest correlation with the smile is"
            f" {strongest} {correlation:+.2f}, and up to {directions.CONFOUNDED:g} counts as none"
        )
    worst = max(confounders, key=lambda name: abs(confounds[name]["cosine"]["mean_difference"]))
    cosines = {d: abs(value) for d, value in confounds[worst]["cosine"].items()}
    return "how much of each direction is " + worst + ": " + ", ".join(f"{d} {v:.2f}" for d, v in cosines.items())


def _edges(x: Tensor) -> Tensor:
    """Mean edge strength: (B, 3, S, S) -> (B,)."""
    across, down = x.diff(dim=3), x.diff(dim=2)
    return across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)


def _auc(score: Tensor, values: Tensor) -> float | None:
    """ROC AUC of a score for the higher half (or the 1s) of an attribute; None without both."""
    from sklearn.metrics import roc_auc_score

    known = torch.isfinite(values)
    if known.sum() < 4:
        return None
    values = values[known]
    high = values > values.median() if len(values.unique()) > 3 else values == values.max()
    if high.all() or not high.any():
        return None
    return float(roc_auc_score(high.numpy(), score[known].numpy()))
