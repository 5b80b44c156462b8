"""A search: Optuna proposes the points of a sweep. Without Optuna its import is a ConfigError.

Its study is search.log in the sweep's folder. `search` in sweep.json holds

trials   how many points       at_once   how many of them train at a time
seed     of the proposals      base      settings of every point, by their flat names
space    KNOB: {"low", "high", "log"}, or {"choices": {VALUE: the settings that it changes}}
"""

import functools
import hashlib
import warnings
from typing import Any

from smilevae import runs
from smilevae.config import FIELDS, REPEATS, Settings
from smilevae.errors import ConfigError
from smilevae.models import linear
from smilevae.sweeps.plan import job_name, key
from smilevae.sweeps.queue import Queue

try:
    import optuna
    from optuna.storages.journal import JournalFileBackend
except ImportError:
    text = 'an interval needs Optuna; install it with pip install -e ".[search]"'
    raise ConfigError(text) from None

optuna.logging.set_verbosity(optuna.logging.WARNING)
NAME = "search.log"
FACES = {
    "image_size",
    "channels",
    "data",
    *REPEATS,
    *(name for name in FIELDS if name.startswith("data.")),
}
STARTUP = 3  # one of so many trials is drawn at random, the first ones


class Search(Queue):
    """Random points, then those of a Gaussian process (Jones et al. 1998), for a low val/nelbo.

    A proposal depends on the seed, its number and the trials before it. So a search that is killed
    and continued proposes the same points.
    """

    @functools.cached_property
    def study(self) -> Any:
        """Optuna's study, opened or begun."""
        journal = JournalFileBackend(str(self.folder / NAME))
        storage = optuna.storages.JournalStorage(journal)
        return optuna.create_study(study_name="sweep", storage=storage, load_if_exists=True)

    def left(self) -> list[tuple[str, int]]:
        """The jobs that wait. It proposes new points where fewer than `at_once` are open."""
        for trial in self._open():
            self._settle(trial.number, trial.params)
        for number in range(len(self.study.trials), self.search["trials"]):
            if len(self._open()) >= self.search["at_once"]:
                break
            trial = self._propose(number)
            self._settle(trial.number, trial.params)
        return super().left()

    def total_epochs(self) -> float:
        return super().total_epochs() * self.search["trials"] / max(1, len(self.jobs))

    def _open(self) -> list[Any]:
        """The trials without an end."""
        return self.study.get_trials(states=[optuna.trial.TrialState.RUNNING])

    def _propose(self, number: int) -> Any:
        text = f"{self.search['seed']} {number}"
        seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big")
        self.study.sampler = self._sampler(seed)
        space = self.search["space"]
        return self.study.ask({knob: distribution(space[knob]) for knob in space})

    def _sampler(self, seed: int) -> Any:
        """Gaussian processes see no running trials: several at a time are proposed by TPE."""
        samplers = optuna.samplers
        first = max(4, self.search["trials"] // STARTUP)
        if self.search["at_once"] > 1:
            return samplers.TPESampler(seed=seed, n_startup_trials=first, constant_liar=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it is called experimental
            return samplers.GPSampler(seed=seed, n_startup_trials=first)

    def _settle(self, number: int, values: dict[str, Any]) -> None:
        """Make a trial a job, or report the end of its job to the study."""
        name = trial_name(number, values)
        try:
            settings = point(self.search, values)
        except ConfigError as error:
            self._leave_out(number, f"{name} is left out: {error}")
            return
        names = {key(own): job for job, own in self.jobs.items()}
        if key(settings) not in names:
            if self._collapses(settings):
                text = f"{name} is left out: it can only collapse, says the forecast"
                self._leave_out(number, text)
                return
            self.add([(name, settings)])
            self.write()
        path = self.folder / names.get(key(settings), name)
        status = runs.state(path)["status"]
        if status == "COMPLETED":
            self.study.tell(number, runs.read_result(path)["best"]["val/nelbo"])
        elif status == "FAILED":
            self.study.tell(number, state=optuna.trial.TrialState.FAIL)

    def _leave_out(self, number: int, text: str) -> None:
        self.say(text)
        self.study.tell(number, state=optuna.trial.TrialState.PRUNED)

    def _collapses(self, settings: Settings) -> bool:
        """Whether the forecast of a linear VAE says that a point can only collapse."""
        # Any earlier job has the spectrum, if all see the same faces.
        spectra = [runs.read_json(path) for path in self.folder.glob("*/spectrum.json")]
        if not any(spectra) or settings.beta == "auto" or FACES & self.search["space"].keys():
            return False
        spectrum = linear.Spectrum(**next(filter(None, spectra)))
        return not linear.linear_vae(spectrum, settings.beta, settings.latent_dim)["active_units"]


def trial_name(number: int, values: dict[str, Any]) -> str:
    """trial-007_beta-12.3_lr-0.001"""
    shown = [f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={v}" for k, v in values.items()]
    return job_name([f"trial-{number:03d}", *shown])


def point(search: dict[str, Any], values: dict[str, Any]) -> Settings:
    """The settings of a trial with these values. Raises ConfigError."""
    flat = dict(search["base"])
    for knob, value in values.items():
        choices = search["space"][knob].get("choices")
        flat |= choices[value] if choices else {knob: value}
    return Settings().with_values(flat)


def ends(search: dict[str, Any]) -> list[Settings]:
    """The settings at the lower and at the upper ends of all intervals. Raises ConfigError."""
    intervals = {knob: one for knob, one in search["space"].items() if "low" in one}
    corners = [{knob: one[end] for knob, one in intervals.items()} for end in ("low", "high")]
    return [point(search, values) for values in corners]


def interval(knob: str, low: float, high: float, log: bool) -> dict[str, Any]:
    """The space of interval(low, high): whole numbers for a knob that takes them.

    Raises ConfigError.
    """
    if knob not in FIELDS:
        raise ConfigError(f"{knob} is not a knob; an interval needs one that takes numbers")
    number = round if FIELDS[knob].annotation is int else float
    space = {"low": number(low), "high": number(high), "log": log}
    try:
        distribution(space)
    except ValueError as error:
        text = f"{knob}=interval({low:g},{high:g}) is no space to search: {error}"
        raise ConfigError(text) from None
    return space


def distribution(space: dict[str, Any]) -> Any:
    """What Optuna draws a knob's values from."""
    distributions = optuna.distributions
    if "choices" in space:
        return distributions.CategoricalDistribution([*space["choices"]])
    kinds = {int: distributions.IntDistribution, float: distributions.FloatDistribution}
    return kinds[type(space["low"])](space["low"], space["high"], log=space["log"])
