"""A search: Optuna proposes the points of a sweep. Its study lies in the sweep's folder, in search.log."""

import functools
import hashlib
import warnings
from pathlib import Path
from typing import Any

from smilevae import runs
from smilevae.config import FIELDS, REPEATS, Settings
from smilevae.errors import ConfigError
from smilevae.sweeps.plan import job_name

NAME = "search.log"
FACES = {"image_size", *REPEATS, *(name for name in FIELDS if name.startswith("data."))}
STARTUP = 3  # one of so many trials is drawn at random, the first ones


def interval(name: str, low: float, high: float, log: bool) -> Any:
    """Optuna's distribution of interval(low, high): whole numbers for a knob that takes them. Raises ConfigError."""
    optuna = _optuna()
    try:
        if FIELDS[name].annotation is int:
            return optuna.distributions.IntDistribution(round(low), round(high), log=log)
        return optuna.distributions.FloatDistribution(float(low), float(high), log=log)
    except KeyError:
        raise ConfigError(f"{name} is not a knob; an interval needs one that takes numbers") from None
    except ValueError as error:
        raise ConfigError(f"{name}=interval({low:g},{high:g}) is no space to search: {error}") from None


def choices(values: list[str]) -> Any:
    """Optuna's distribution of values separated by commas."""
    return _optuna().distributions.CategoricalDistribution(values)


class Search:
    """Up to `num` trials for the lowest val/nelbo: random ones, then those of a Gaussian process (Jones et al. 1998).

    A proposal depends on the seed, its number and the trials before it. So a search that is killed and continued
    proposes the same points.
    """

    def __init__(self, folder: Path, distributions: dict[str, Any], num: int, seed: int):
        self.optuna = _optuna()
        self.folder, self.distributions, self.num, self.seed = folder, distributions, num, seed

    @functools.cached_property
    def study(self) -> Any:
        """Optuna's study, opened or begun. The folder exists. Raises ConfigError if it searched something else."""
        journal = self.optuna.storages.journal.JournalFileBackend(str(self.folder / NAME))
        storage = self.optuna.storages.JournalStorage(journal)
        study = self.optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True)
        if study.trials and study.trials[0].distributions != self.distributions:
            raise ConfigError(f"{self.folder} searched other intervals or values; give the same, or start a new sweep")
        return study

    def trials(self) -> list[tuple[int, dict[str, Any]]]:
        """(number, values by knob) of every trial so far that was not pruned."""
        trials = self.study.trials if (self.folder / NAME).exists() else []
        pruned = self.optuna.trial.TrialState.PRUNED
        return [(trial.number, trial.params) for trial in trials if trial.state != pruned]

    def unfinished(self) -> list[tuple[int, dict[str, Any]]]:
        """The trials without an end: those of a killed search."""
        running = self.optuna.trial.TrialState.RUNNING
        return [(trial.number, trial.params) for trial in self.study.trials if trial.state == running]

    def propose(self, most: int) -> list[tuple[int, dict[str, Any]]]:
        """At most so many new trials."""
        new = []
        for number in range(len(self.study.trials), min(self.num, len(self.study.trials) + most)):
            seed = int.from_bytes(hashlib.blake2b(f"{self.seed} {number}".encode(), digest_size=4).digest(), "big")
            self.study.sampler = self._sampler(seed, most)
            trial = self.study.ask(self.distributions)
            new.append((trial.number, trial.params))
        return new

    def _sampler(self, seed: int, most: int) -> Any:
        """Gaussian processes see no running trials, so TPE takes their place where several run at a time."""
        samplers, first = self.optuna.samplers, max(4, self.num // STARTUP)
        if most > 1:
            return samplers.TPESampler(seed=seed, n_startup_trials=first, constant_liar=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is called experimental
            return samplers.GPSampler(seed=seed, n_startup_trials=first)

    def end(self, number: int, path: Path) -> None:
        """Report a trial's end to the study, if it has one: its value, or that it failed."""
        status = runs.state(path)["status"]
        if status == "COMPLETED":
            self.study.tell(number, runs.read_result(path)["best"]["val/nelbo"])
        elif status == "FAILED":
            self.study.tell(number, state=self.optuna.trial.TrialState.FAIL)

    def prune(self, number: int, settings: Settings) -> bool:
        """Whether the forecast says that a point can only collapse. The study then counts it as pruned."""
        from smilevae.models import linear  # numpy is not needed behind --help

        spectra = self.folder.glob("*/spectrum.json")  # that of any earlier job, if all see the same faces
        content = runs.read_json(next(spectra, Path()))
        if not content or settings.beta == "auto" or FACES & set(self.distributions):
            return False
        if linear.linear_vae(linear.Spectrum(**content), settings.beta, settings.latent_dim)["active_units"]:
            return False
        self.study.tell(number, state=self.optuna.trial.TrialState.PRUNED)
        return True

    def name(self, number: int, values: dict[str, Any]) -> str:
        """trial-007_beta-12.3_lr-0.001"""
        shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()]
        return job_name([f"trial-{number:03d}", *shown])


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise ConfigError('an interval needs Optuna; install it with pip install -e ".[search]"') from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
