"""Successive halving: every setting trains to the first rung, the best go on to the next.

All decisions follow from the run folders, so that a kill at any moment loses none.
"""

import functools
import math
from collections.abc import Callable
from pathlib import Path

from smilevae import runs
from smilevae.config import REPEATS, Settings
from smilevae.errors import ConfigError
from smilevae.models.metrics import negative_elbo
from smilevae.sweeps.plan import key
from smilevae.sweeps.queue import Queue

RANK_BY = "val/nelbo"  # comparable across beta
MIN_KEPT = 2  # settings that reach the last rung
LEAST_EPOCHS = 4  # of the first rung


class Halving(Queue):
    """The rungs of a sweep's jobs (Jamieson and Talwalkar 1502.07943).

    Several jobs at a time are asynchronous (ASHA, Li et al. 1810.05934).

    A setting is all jobs that differ in seed or split only. It goes on if it is among the best
    `num` of those that finished a rung, now or by its trend: what learns slowly is often the best
    at the end. A setting behind the mean face goes on after the first rung, and after any rung with
    fewer than `num` settings ahead of the mean face: nothing is learnt that could be compared.

    The lowest rung comes first. Several jobs at a time do not wait for each other, so a few
    settings more can go on.
    """

    @functools.cached_property
    def settings(self) -> dict[str, list[str]]:
        """The jobs of each setting."""
        groups: dict[str, list[str]] = {}
        for name, settings in self.jobs.items():
            groups.setdefault(key(settings, *REPEATS), []).append(name)
        return groups

    def allowed(self, number: int) -> list[str]:
        """The jobs that may train in a rung, the best first."""
        if number == 0:
            return [name for names in self.settings.values() for name in names]
        epochs, _ = self.rungs[number - 1]
        next_epochs, num = self.rungs[number]
        now = self._means(epochs)
        behind = self._behind(number)
        ahead = sorted(now.keys() - behind, key=lambda setting: (now[setting], setting))

        # The score falls about linearly with the logarithm of the epoch.
        half = math.ceil(epochs / 2)
        earlier = self._means(half)
        steps = math.log(next_epochs / epochs) / math.log(epochs / half)
        by_trend = sorted(ahead, key=lambda one: now[one] + steps * (now[one] - earlier[one]))

        chosen = [*ahead[:num], *by_trend[:num]]
        if number == 1 or len(ahead) < num:
            chosen += sorted(behind, key=lambda setting: now[setting])
        return [name for setting in dict.fromkeys(chosen) for name in self.settings[setting]]

    def _behind(self, number: int) -> set[str]:
        """The settings that are not ahead of the mean face after the rung before this one."""
        now = self._means(self.rungs[number - 1][0])
        return {one for one in now if now[one] >= self._mean(one, self.mean_face)}

    def spared(self) -> list[str]:
        """A sentence for every rung after which settings that had learnt nothing yet went on."""
        lines = []
        for number, (epochs, _) in enumerate(self.rungs[:-1], start=1):
            allowed = set(self.allowed(number))
            num = sum(allowed.issuperset(self.settings[one]) for one in self._behind(number))
            behind = f"{num} of {len(self.settings)} settings were behind the mean face"
            if num:
                went_on = "they had learnt nothing yet and went on"
                lines.append(f"after epoch {epochs} {behind} by {RANK_BY}; {went_on}")
        return lines

    def _means(self, epochs: int) -> dict[str, float]:
        """The mean score of every setting whose jobs all came so far."""
        means = {one: self._mean(one, lambda job: self.score(job, epochs)) for one in self.settings}
        return {setting: mean for setting, mean in means.items() if mean < math.inf}

    def _mean(self, setting: str, value: Callable[[str], float]) -> float:
        """The mean of a value over a setting's jobs."""
        names = self.settings[setting]
        return sum(map(value, names)) / len(names)

    def score(self, name: str, epochs: int) -> float:
        """val/nelbo of a job's best epoch until an epoch; infinite if it has not come so far."""
        lines = runs.read_metrics(self.folder / name)
        if max((line["epoch"] for line in lines), default=0) < epochs:
            return math.inf
        return min((line for line in lines if line["epoch"] <= epochs), key=runs.rank_of)[RANK_BY]

    def mean_face(self, name: str) -> float:
        """The negative ELBO of the mean face on a job's held-out people; infinite if unknown."""
        content = runs.read_json(self.folder / name / "spectrum.json")
        return negative_elbo(content["total"], 0, content["num_pixels"]) if content else math.inf

    def finished(self, name: str, epochs: int) -> bool:
        """Whether a job has no more to do in a rung of so many epochs."""
        if self.ended(name):
            return True
        if epochs == self.rungs[-1][0]:
            return False
        done = runs.epochs_done(self.folder / name)
        # A job that was killed at the end of the rung has not paused yet
        return done > epochs or (done == epochs and not self.cut_off(name))

    def left(self) -> list[tuple[str, int]]:
        for number, (epochs, _) in enumerate(self.rungs):
            waiting = [name for name in self.allowed(number) if not self.finished(name, epochs)]
            if left := [(name, epochs) for name in waiting if self.free(name)]:
                return left
        return []

    def total_epochs(self) -> float:
        """The epochs of all trainings if each rung drops all but its `num` settings."""
        starts = [0, *(epochs for epochs, _ in self.rungs)]
        total = sum(num * (end - start) for (end, num), start in zip(self.rungs, starts))
        return total * len(self.jobs) / len(self.settings)

    def describe(self) -> str:
        """The rungs, with a warning where a job's first epochs say little about its last."""
        (first, _), *others = self.rungs
        if not others:
            text = "rungs: none, the sweep is too short for them"
            return f"{text}; every setting trains to epoch {first}"
        text = ", ".join(f"{num} settings to epoch {epochs}" for epochs, num in self.rungs)
        if any(settings.schedule == "cosine" for settings in self.jobs.values()):
            text += "; schedule=cosine keeps each job's own full schedule,"
            text += " and lr is still high at the first rungs"
        return f"rungs: {text}"


def plan_rungs(jobs: dict[str, Settings], factor: int, first: int | None) -> list[list[int]]:
    """[epochs, num] of each rung, the full length last.

    Raises ConfigError if the jobs cannot be compared in rungs.
    """
    for name in ("epochs", "image_size"):
        if len({getattr(settings, name) for settings in jobs.values()}) > 1:
            equal = "after equal epochs and at one size"
            raise ConfigError(f"sweep.halving compares jobs {equal}; give {name} one value")
    longest = next(iter(jobs.values())).epochs
    num = len(Halving(Path(), jobs).settings)
    epochs = first or max(LEAST_EPOCHS, math.ceil(longest / factor**2))
    rungs = []
    while epochs < longest and num > MIN_KEPT:
        rungs.append([epochs, num])
        epochs *= factor
        num = max(MIN_KEPT, math.ceil(num / factor))
    return [*rungs, [longest, num]]
