"""The scorecard of smile directions: what else a direction is, and what an edit along it does to people held out.

Shapes: N examples, D latent dimensions, I intensities.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from smilevae import runs
from smilevae.data.batches import gather, to_unit
from smilevae.data.dataset import Faces
from smilevae.editing import directions
from smilevae.editing.classifier import Judge, MakeJudge, Reads
from smilevae.errors import ConfigError
from smilevae.models import latents
from smilevae.models.vae import VAE

INTENSITIES = torch.arange(-1.0, 3.01, 0.5)
MAX_CALIBRATED = 40  # training faces that a dial's gain and range are fitted to
MAX_FACES = 100  # held-out faces that are edited
MAX_TRAIN = 8000  # training faces that directions and both judges learn from
MIN_KNOWN = 20  # faces of a half of which an attribute is known: of fewer nothing is read
MIN_LABELLED = 50  # training faces of either kind: fewer would not teach two judges
PLAIN = "mean_difference, uncalibrated"


def possible(faces: Faces) -> bool:
    """Whether there are labels enough for an audit, and somebody held out to be made to smile."""
    train, val = faces.rows("train"), faces.smile[faces.rows("val")]
    half = _first_half([faces.people[row] for row in train])
    counts = [(faces.smile[train[side]] == label).sum() for side in (half, ~half) for label in (0, 1)]
    return min(counts) >= MIN_LABELLED / 2 - 5 and (val == 0).any()


def _first_half(people: list[str]) -> np.ndarray:
    """Which faces are of the first half of their people: its judge scores, the other half's turns the dial."""
    return np.unique(people, return_inverse=True)[1] % 2 == 0


class Audit:
    """Directions, their dials and their scorecard for one VAE; `card` is plain numbers, `best` the default dial.

    `encode` gives mu of rows of `faces`; `make_judge` a judge from pictures and what is known of them.
    """

    @torch.no_grad()
    def __init__(self, vae: VAE, faces: Faces, encode: Callable[[np.ndarray], Tensor], make_judge: MakeJudge = Judge):
        self.vae, self.faces, self.make_judge = vae, faces, make_judge
        train = faces.rows("train")
        train = np.random.default_rng(0).permutation(train[faces.smile[train] >= 0])[:MAX_TRAIN]
        people = [faces.people[row] for row in train]
        fold = _first_half(people)
        mu, label = encode(train), torch.from_numpy(faces.smile[train])
        others = {name: torch.from_numpy(v[train]).float() for name, v in faces.attributes.items() if name != "smile"}

        dialling = self._judge(train[~fold])
        self.reader = dialling.reader("smile") if isinstance(dialling, Judge) else None  # nobody else's can be kept
        self.look = lambda codes: self._look(dialling, codes)
        self.read = lambda codes: self.look(codes)[0]
        self.directions = directions.directions(mu, label, others, people)
        weights, bias = directions.reader(mu[~fold], self.read)
        smiling = float(self.read(mu[~fold][label[~fold] == 1]).mean())
        calm = mu[fold][label[fold] == 0]
        self.dials = {}
        for name, direction in self.directions.items():
            direction = direction if direction @ weights > 0 else -direction
            self.dials[name] = directions.calibrate(
                directions.Dial(name, direction, weights, bias, smiling), calm[:MAX_CALIBRATED], self.look
            )
        self.best = self.dials["orthogonal" if "orthogonal" in self.dials else "mean_difference"]
        self.judge = self._judge(train[fold])
        self.card: dict[str, Any] = {
            "judge": self.judge.accuracy,
            "confounds": self._confounds(mu, label, others, encode),
            "angle_degrees": directions.angles(mu, label, others, people),
            "directions": self._edits(encode),
            "num_faces": len(self.rows),
        }

    def _judge(self, rows: np.ndarray) -> Reads:
        attributes = {"smile": self.faces.smile[rows].astype(float)}
        for name, values in self.faces.attributes.items():
            known = values[rows][np.isfinite(values[rows])]
            if len(known) >= MIN_KNOWN and len(np.unique(known)) > 1:
                attributes["true_smile" if name == "smile" else name] = values[rows]
        people = [self.faces.people[row] for row in rows]
        if self.make_judge is Judge:
            return Judge(self._pictures(rows), attributes, people)
        try:
            judge = self.make_judge(self._pictures(rows), attributes, people)
            reads = (
                callable(judge)
                and callable(judge.embed)
                and {"smile"} <= judge.threshold.keys() & judge.accuracy.keys()
            )
        except Exception as error:  # somebody else's
            raise ConfigError(
                f"the judge failed: {type(error).__name__}: {error}; see smilevae.editing.classifier.Reads"
            ) from error
        if not reads:
            raise ConfigError("the judge is none: it needs what smilevae.editing.classifier.Reads has")
        return judge

    def _pictures(self, rows: np.ndarray) -> Tensor:
        return to_unit(torch.from_numpy(gather(self.faces.images, rows))).contiguous()

    def decode(self, codes: Tensor) -> Tensor:
        """Pictures of codes, not clamped: (N, D) -> (N, 3, S, S)."""
        device = next(self.vae.parameters()).device
        return torch.cat([self.vae.decode(z.to(device)).cpu() for z in codes.split(128)])

    def _look(self, judge: Reads, codes: Tensor) -> tuple[Tensor, Tensor]:
        """smile.Look of codes' pictures, a few at a time."""
        smiles, clipped = [], []
        for z in codes.split(250):
            x = self.decode(z)
            smiles.append(judge(x.clamp(0, 1))["smile"])
            clipped.append((x != x.clamp(0, 1)).flatten(1).float().mean(1))
        return torch.cat(smiles), torch.cat(clipped)

    def _confounds(self, mu: Tensor, label: Tensor, others: dict[str, Tensor], encode: Any) -> dict[str, Any]:
        """Of every attribute: its correlation with the smile, each direction's cosine with it and held-out AUC."""
        val = self.faces.rows("val")
        held_out, found = encode(val), {}
        for name, values in others.items():
            own = directions.slope(mu, values)
            known = torch.from_numpy(self.faces.attributes[name][val]).float()
            found[name] = {
                "correlation": directions.correlation(label.float(), values),
                "cosine": {d: directions.cosine(v, own) for d, v in self.directions.items()},
                "auc": {d: _auc(held_out @ v, known) for d, v in self.directions.items()},
            }
        truth = torch.from_numpy(self.faces.smile[val]).float()
        truth[truth < 0] = torch.nan
        found["smile"] = {"auc": {d: _auc(held_out @ v, truth) for d, v in self.directions.items()}}
        return found

    def _edits(self, encode: Callable[[np.ndarray], Tensor]) -> dict[str, Any]:
        """What every dial does to held-out people who do not smile, beside z + intensity * mean difference."""
        val = self.faces.rows("val")
        self.rows = np.random.default_rng(0).permutation(val[self.faces.smile[val] == 0])[:MAX_FACES]
        mu = self._mu = encode(self.rows)
        zero, one = (INTENSITIES.tolist().index(i) for i in (0, 1))
        original = self.judge.embed(self.decode(mu).clamp(0, 1))
        found: dict[str, Any] = {}
        for name in (PLAIN, *self.dials):
            codes = self.turned(name, mu)
            pictures = [self.decode(codes[:, i]).clamp(0, 1) for i in range(len(INTENSITIES))]
            scores = [self.judge(x) for x in pictures]
            measured = torch.stack([s["smile"] for s in scores], 1)  # (N, I)
            close = torch.cdist(self.judge.embed(pictures[one]), original).argmin(1)
            found[name] = {
                "intensities": INTENSITIES.tolist(),
                "smile": measured.mean(0).tolist(),
                "spread": measured.std(0, correction=0).tolist(),
                "success": float((measured[:, one] > self.judge.threshold["smile"]).float().mean()),
                "success_at_0": float((measured[:, zero] > self.judge.threshold["smile"]).float().mean()),
                "monotone": float((measured.diff(dim=1) > 0).all(1).float().mean()),
                "drift": {k: float((scores[one][k] - scores[zero][k]).mean()) for k in scores[one] if k != "smile"},
                "identity": float((close == torch.arange(len(close))).float().mean()),
                "sharpness": float((_edges(pictures[one]) / _edges(pictures[zero])).mean()),
            }
            if name in self.dials:
                dial = self.dials[name]
                found[name] |= {"range": [dial.low, dial.high], "gain": dial.gain}
        return found

    def turned(self, name: str, mu: Tensor, intensities: Tensor = INTENSITIES) -> Tensor:
        """Codes along a direction: (N, D), (I,) -> (N, I, D)."""
        if name == PLAIN:
            return latents.shift(mu, self.directions["mean_difference"], intensities)
        return self.dials[name].turn(mu, intensities, self.read if self.reader else None)

    def _moved(self) -> list[str]:
        """The attributes that the plain edit moves most."""
        drift = self.card["directions"][PLAIN]["drift"]
        return sorted(drift, key=lambda name: -abs(drift[name]))[:12]

    @torch.no_grad()
    def draw(self, path: Path) -> None:
        """One figure: measured smile against intensity, what else changes, and the same face along every direction."""
        from matplotlib.figure import Figure

        names = list(self.card["directions"])
        figure = Figure(figsize=(13, 4.2 + 1.25 * len(names)), layout="constrained")
        top, below = cast("Any", figure.subfigures(2, 1, height_ratios=(4.2, 1.25 * len(names))))
        left, right = top.subplots(1, 2)
        for index, (name, found) in enumerate(self.card["directions"].items()):
            x, y, sd = (np.array(found[key]) for key in ("intensities", "smile", "spread"))
            colour = "#888888" if name == PLAIN else f"C{index - 1}"
            left.plot(x, y, color=colour, label=name, linestyle="--" if name == PLAIN else "-")
            if name in (PLAIN, self.best.name):
                left.fill_between(x, y - sd, y + sd, color=colour, alpha=0.15)
            keys = self._moved()
            height = 0.8 / len(names)
            where = np.arange(len(keys)) + index * height
            right.barh(where, [found["drift"][key] for key in keys], height=height, color=colour)
            right.set_yticks(np.arange(len(keys)) + 0.4, keys)
        left.axhline(self.judge.threshold["smile"], color="black", linewidth=0.5)
        left.set(
            xlabel="intensity", ylabel="measured smile (0: not smiling, 1: smiling)", title="mean and spread over faces"
        )
        left.legend(fontsize=8)
        right.set(title="what else changes at intensity 1")
        right.invert_yaxis()
        mu = self._mu[:1]
        grid = below.subplots(len(names), len(INTENSITIES) + 1, squeeze=False)
        original = self._pictures(self.rows[:1])[0]
        for row, name in enumerate(names):
            pictures = [original, *self.decode(self.turned(name, mu)[0]).clamp(0, 1)]
            for column, picture in enumerate(pictures):
                axes = grid[row][column]
                axes.imshow(picture.permute(1, 2, 0).numpy())
                axes.set_axis_off()
                if row == 0:
                    axes.set_title("original" if column == 0 else f"{INTENSITIES[column - 1]:+g}", fontsize=9)
            grid[row][0].text(
                -0.1,
                0.5,
                name.replace(", ", "\n"),
                transform=grid[row][0].transAxes,
                ha="right",
                va="center",
                fontsize=8,
            )
        runs.replace_file(path, lambda file: figure.savefig(file, format="png", dpi=100))


def format_card(card: dict[str, Any]) -> str:
    """The scorecard for a terminal, ending with what the mean difference is besides a smile."""
    columns = ("at 0", "at 1", "spread", "smiling", "monotone", "same face", "sharp", "range", "angle")
    lines = [
        f"smile: {card['num_faces']} held-out people who do not smile, read by a judge that is right for"
        f" {card['judge']['smile']:.0%} of people it has not seen (0: not smiling, 1: smiling)",
        f"{'':30}" + "".join(f"{column:>10}" for column in columns),
    ]
    zero, one = (INTENSITIES.tolist().index(i) for i in (0, 1))
    for name, found in card["directions"].items():
        cells = [f"{found['smile'][zero]:.2f}", f"{found['smile'][one]:.2f}", f"{found['spread'][one]:.2f}"]
        cells += [f"{found[key]:.0%}" for key in ("success", "monotone", "identity")] + [f"{found['sharpness']:.2f}"]
        cells.append("{:+g}..{:+g}".format(*found["range"]) if "range" in found else "")
        angle = card["angle_degrees"].get(name)
        cells.append(f"±{angle:.0f}°" if angle else "")
        lines.append(f"{name:30}" + "".join(f"{cell:>10}" for cell in cells))
    return "\n".join([*lines, confound_sentence(card["confounds"])])


def confound_sentence(confounds: dict[str, Any]) -> str:
    """What the mean difference is besides a smile, and whether the other directions are less of it."""
    found = {name: c for name, c in confounds.items() if abs(c.get("correlation", 0)) > directions.CONFOUNDED}
    if not found:
        if len(confounds) > 1:
            return "no known attribute goes with the smile"
        return "only the smile is known of these faces: attributes=CSV would tell what else its direction is"
    worst = max(found, key=lambda name: abs(found[name]["cosine"]["mean_difference"]))
    cosines = {d: abs(value) for d, value in found[worst]["cosine"].items()}
    return "how much of each direction is " + worst + ": " + ", ".join(f"{d} {v:.2f}" for d, v in cosines.items())


def _edges(x: Tensor) -> Tensor:
    """Mean strength of a picture's edges: (B, 3, S, S) -> (B,)."""
    across, down = x.diff(dim=3), x.diff(dim=2)
    return across.abs().flatten(1).mean(1) + down.abs().flatten(1).mean(1)


def _auc(score: Tensor, values: Tensor) -> float | None:
    """How well a score tells the higher half (or the 1s) of an attribute from the rest; None where that is one kind."""
    from sklearn.metrics import roc_auc_score

    known = torch.isfinite(values)
    high = values[known] > values[known].median() if len(values.unique()) > 3 else values[known] == values[known].max()
    if known.sum() < 4 or high.all() or not high.any():
        return None
    return float(roc_auc_score(high.numpy(), score[known].numpy()))
