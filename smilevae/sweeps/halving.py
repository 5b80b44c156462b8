"""Successive halving: every setting trains to the first rung, the best go on to the next, and so on.

All decisions follow from the run folders, so that a kill at any moment loses none.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from smilevae import runs
from smilevae.config import REPEATS, Settings
from smilevae.errors import ConfigError
from smilevae.models.metrics import negative_elbo

RANK_BY = "val/nelbo"  # comparable across beta
MIN_KEPT = 2  # settings that reach the last rung
LEAST_EPOCHS = 4  # of the first rung


class Rung(NamedTuple):
    """`num` settings train to `epochs`."""

    epochs: int
    num: int


class Halving:
    """The rungs of a sweep's jobs (Jamieson and Talwalkar 1502.07943; asynchronous as ASHA, Li et al. 1810.05934).

    A setting is all jobs that differ in seed or split only. It goes on if it is among the best `num` of those that
    finished a rung. It also goes on if its trend puts it among the best `num` at the end of the next rung: a setting
    that learns slowly is often the best at the end. A setting behind the mean face goes on after the first rung, and
    after any rung with fewer than `num` settings ahead of the mean face: it has learnt nothing that could be compared.

    The lowest rung comes first: one job at a time, a rung is full before the next begins. Several jobs at a time do
    not wait for each other, so a few settings more can go on.
    """

    def __init__(self, folder: Path, jobs: Mapping[str, Settings], rungs: list[Rung]):
        self.folder, self.rungs = folder, rungs
        self.settings: dict[str, list[str]] = {}  # a setting's jobs
        for name, settings in jobs.items():
            flat = {k: v for k, v in settings.result_settings().items() if k not in REPEATS}
            self.settings.setdefault(json.dumps(flat, sort_keys=True), []).append(name)

    def allowed(self, number: int) -> list[str]:
        """The jobs that may train in a rung, the best first."""
        if number == 0:
            return [name for names in self.settings.values() for name in names]
        (epochs, _), (next_epochs, num) = self.rungs[number - 1 : number + 1]
        now, behind = self._means(epochs), self._behind(number)
        ahead = sorted(now.keys() - behind, key=lambda key: (now[key], key))

        # The score falls about linearly with the logarithm of the epoch.
        half = math.ceil(epochs / 2)
        earlier = self._means(half)
        steps = math.log(next_epochs / epochs) / math.log(epochs / half)
        later = sorted(ahead, key=lambda key: now[key] + steps * (now[key] - earlier[key]))

        chosen = [*ahead[:num], *later[:num]]
        if number == 1 or len(ahead) < num:
            chosen += sorted(behind, key=lambda key: now[key])
        return [name for key in dict.fromkeys(chosen) for name in self.settings[key]]

    def _behind(self, number: int) -> set[str]:
        """The settings that are not ahead of the mean face after the rung before this one."""
        now = self._means(self.rungs[number - 1].epochs)
        return {key for key in now if now[key] >= self._mean(key, self.mean_face)}

    def spared(self) -> list[str]:
        """A sentence for every rung after which settings went on that had learnt nothing yet."""
        lines = []
        for number in range(1, len(self.rungs)):
            allowed = set(self.allowed(number))
            num = sum(allowed.issuperset(self.settings[key]) for key in self._behind(number))
            if num:
                where = f"after epoch {self.rungs[number - 1].epochs} {num} of {len(self.settings)} settings"
                lines.append(f"{where} were behind the mean face by {RANK_BY}; they had learnt nothing yet and went on")
        return lines

    def _means(self, epochs: int) -> dict[str, float]:
        """The mean score of every setting whose jobs all came so far."""
        means = {key: self._mean(key, lambda name: self.score(name, epochs)) for key in self.settings}
        return {key: mean for key, mean in means.items() if mean < math.inf}

    def _mean(self, key: str, value: Callable[[str], float]) -> float:
        """The mean of a value over a setting's jobs."""
        names = self.settings[key]
        return sum(map(value, names)) / len(names)

    def score(self, name: str, epochs: int) -> float:
        """val/nelbo of a job's best epoch until an epoch; infinite if it has not come so far."""
        lines = runs.read_metrics(self.folder / name)
        if max((line["epoch"] for line in lines), default=0) < epochs:
            return math.inf
        return min((line for line in lines if line["epoch"] <= epochs), key=runs.rank_of)[RANK_BY]

    def mean_face(self, name: str) -> float:
        """The negative ELBO of the mean face on a job's held-out people; infinite if it is not known."""
        content = runs.read_json(self.folder / name / "spectrum.json")
        return negative_elbo(content["total"], 0, content["num_pixels"]) if content else math.inf

    def finished(self, name: str, rung: Rung) -> bool:
        """Whether a job has no more to do in a rung."""
        if runs.state(self.folder / name)["status"] in ("FAILED", "COMPLETED"):
            return True
        return runs.epochs_done(self.folder / name) >= rung.epochs and rung != self.rungs[-1]

    def running(self, name: str) -> bool:
        return runs.in_use(self.folder / name)

    def left(self) -> list[tuple[str, int]]:
        """(job, epochs) that can train now, in order. Jobs that failed or run are left out."""
        for number, rung in enumerate(self.rungs):
            left = [name for name in self.allowed(number) if not self.finished(name, rung) and not self.running(name)]
            if left:
                return [(name, rung.epochs) for name in left]
        return []

    def num_left(self) -> int:
        """How many trainings are left if each rung drops all but its `num` settings; at least 1."""
        each = max(map(len, self.settings.values()))
        finished = [len(self._means(rung.epochs)) for rung in self.rungs]
        return max(1, sum(each * max(0, rung.num - num) for rung, num in zip(self.rungs, finished)))

    def total_epochs(self) -> float:
        """The epochs of all trainings if each rung drops all but its `num` settings."""
        each = sum(map(len, self.settings.values())) / len(self.settings)
        before = [0, *(rung.epochs for rung in self.rungs)]
        return each * sum(rung.num * (rung.epochs - least) for rung, least in zip(self.rungs, before))


def plan_rungs(jobs: Mapping[str, Settings], factor: int, first: int | None) -> list[Rung]:
    """The rungs of a sweep, the full length last. Raises ConfigError if its jobs cannot be compared in rungs."""
    for name in ("epochs", "image_size"):
        if len({getattr(settings, name) for settings in jobs.values()}) > 1:
            raise ConfigError(f"sweep.halving compares jobs after equal epochs and at one size; give {name} one value")
    longest, num = next(iter(jobs.values())).epochs, len(Halving(Path(), jobs, []).settings)
    epochs, rungs = first or max(LEAST_EPOCHS, math.ceil(longest / factor**2)), []
    while epochs < longest and num > MIN_KEPT:
        rungs.append(Rung(epochs, num))
        epochs, num = epochs * factor, max(MIN_KEPT, math.ceil(num / factor))
    return [*rungs, Rung(longest, num)]
