"""Hydra's plugin: a sweeper that checks every point first and can go on, and a callback that checks a single run."""

import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import smilevae
from smilevae import cli, console, runs
from smilevae.config import NOT_RESULT
from smilevae.errors import ConfigError, Interrupted, UserError
from smilevae.sweeps import jobs
from smilevae.sweeps.options import SweepOptions, parse
from smilevae.sweeps.plan import Job, Plan, check_code, job_name
from smilevae.sweeps.search import Search, choices, interval
from smilevae.sweeps.watch import Watch

MAX_JOBS = 200  # more ask for sweep.yes=true
UNFINISHED = ("PAUSED", "NEW", "INTERRUPTED", "STALE")


class BudgetSpent(Interrupted):
    """sweep.budget is over."""


class CheckBeforeStart(Callback):
    """Ends a run with exit code 2 on a bad setting, before Hydra writes anything. SystemExit passes through Hydra."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with console.one_sentence():
            settings = cli.settings_from(config, config.hydra.overrides.task)
            folder = os.path.expanduser(str(config.hydra.run.dir))
            try:
                if not folder:
                    raise OSError(0, "it is empty")
                Path(folder).mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise OSError(0, "it may not be written")
                if not settings.resume:
                    runs.refuse_used(Path(folder))
            except OSError as error:
                raise ConfigError(f"hydra.run.dir={folder} cannot be a run folder: {error.strerror}") from None
            with read_write(config.hydra):
                config.hydra.run.dir = folder


class ResumableSweeper(BasicSweeper):
    """Hydra's grid and launchers. All points are checked before the first job; completed jobs are not launched again.

    Raises ConfigError before the first job, UserError (exit code 1) after the last if some did not complete,
    Interrupted after a signal.
    """

    config: DictConfig

    def sweep(self, arguments: list[str]) -> None:
        folder = Path(os.path.expanduser(str(self.config.hydra.sweep.dir))).absolute()
        sweep: Any = OmegaConf.to_container(self.config.sweep)
        options = parse(self.config.retry_failed, sweep)
        grid, intervals = self._grid(arguments, options)
        points = self._points(grid)  # of a search: the ends of its intervals
        search = None
        if intervals:
            search = Search(folder, intervals, options.trials or 0, points[0][1].settings.seed)
            trials = self._points([self._trial(grid[0], values) for _, values in search.trials()])
        plan = Plan(folder, trials if search else points, sys.argv[1:], options)
        left = plan.left(self.config.retry_failed)
        watch = Watch(plan, options)
        if options.seconds and watch.spent >= options.seconds:
            spent = f"{runs.shell_path(folder)} has run for {watch.spent:.0f} s"
            raise ConfigError(f"sweep.budget={options.budget} is spent: {spent}; pass a larger one")
        settings = [job.settings for _, job in points] if search else [plan.jobs[name].settings for name in plan.wanted]
        epochs = (
            [(options.trials or 0) / 2 * one.epochs for one in settings] if search else plan.epochs_left(plan.wanted)
        )
        code = jobs.in_process(jobs.forecast, settings, epochs, self._at_once).exitcode if left or search else 0
        if code:
            sys.exit(code)  # the process has printed why no job can run
        plan.claim()
        if search:
            print(f"a search of {options.trials} points in {runs.shell_path(plan.folder)}; each logs to its train.log")
        else:
            print(
                f"{len(plan.wanted)} jobs in {runs.shell_path(plan.folder)}, {len(left)} to run;"
                " each logs to its train.log"
            )
        if plan.rungs:
            print(plan.rungs_line())
        print(f"if this is cut off: {plan.resume_line()}", flush=True)
        over = False
        with watch.running():
            try:
                launch = self._launcher(plan, watch)
                if search:
                    self._explore(search, grid[0], plan, watch, launch)
                elif plan.rungs:
                    plan.retry(left)
                    before, halving = None, plan.halving
                    while (now := halving.left()) and now != before:
                        before = now
                        launch([next(iter(plan.jobs))] * halving.num_left())
                    for line in halving.spared():
                        watch.say(line)
                else:
                    for wave in plan.waves(left):
                        launch(wave)
            except BudgetSpent:
                over = True
                watch.say(f"sweep.budget={options.budget} is spent | {watch.summary()}")
                print(f"to go on: {plan.resume_line()}, with a larger budget", file=sys.stderr)
            except (Interrupted, KeyboardInterrupt):
                watch.say(f"interrupted | {watch.summary()}")
                print(f"to go on: {plan.resume_line()}", file=sys.stderr)
                raise
        watch.say(f"over: {watch.summary()}")
        states = {name: state["status"] for name, state in watch.states.items()}
        ranked = over or not {"COMPLETED", "PAUSED"}.isdisjoint(states.values())
        failed_analysis = ranked and _analyse(plan.folder)
        if elsewhere := [name for name, status in states.items() if status == "RUNNING"]:
            print(f"{len(elsewhere)} jobs run in another process: {', '.join(elsewhere)}")
        ended = {"COMPLETED", "RUNNING", *(UNFINISHED if over else UNFINISHED[:1] if plan.rungs else ())}
        if bad := [name for name, status in states.items() if status not in ended]:
            again = " retry_failed=true" if "FAILED" in states.values() else ""
            lines = [f"{len(bad)} of {len(states)} jobs did not complete; run them with {plan.resume_line()}{again}"]
            lines += [f"{name}: {states[name]}, {watch.states[name]['reason'] or 'not started'}" for name in bad]
            try:
                check_code(folder)
            except ConfigError as changed:  # so the launcher started none
                lines.append(str(changed))
            raise UserError("\n".join(lines))
        if failed_analysis:
            raise UserError(
                f"the analysis failed; again with python -m multirun_analysis {runs.shell_path(plan.folder)}"
            )

    def _launcher(self, plan: Plan, watch: Watch) -> Callable[[list[str]], None]:
        """A function that hands jobs to Hydra's launcher and waits for them.

        From now on a signal stops all jobs and raises Interrupted, or BudgetSpent.
        """

        def receive(signum: int, frame: object) -> None:
            runs.Stop().install()  # a second signal does not wait
            over = signum == signal.SIGALRM
            print("\nstopping: running jobs write a checkpoint; once more to stop at once", file=sys.stderr)
            jobs.stop_jobs(plan.folder, plan.wanted, watch.id, signal.SIGTERM if over else signum)
            raise (BudgetSpent if over else Interrupted)(signum)

        launcher = self.launcher
        assert launcher is not None
        for logger in ("hydra", "hydra_plugins"):  # the watch reports the jobs
            logging.getLogger(logger).setLevel(logging.WARNING)
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(signum, receive)
        with read_write(self.config.hydra.sweep):  # Hydra 1.4 protects it
            self.config.hydra.sweep.dir = str(plan.folder)
        shared = [runs.override("hydra.sweep.dir", str(plan.folder)), f"+hydra.job.env_set.{jobs.ID}='{watch.id}'"]

        def launch(names: list[str]) -> None:
            every = [[*plan.jobs[name].overrides, *shared, runs.override("hydra.sweep.subdir", name)] for name in names]
            for batch in self.split_overrides_to_chunks(every, self.max_batch_size) if every else []:
                try:
                    launcher.launch(list(batch), initial_job_idx=0)
                except Exception as error:  # of the launcher: a worker was killed, a queue refused
                    reason = str(error).strip().splitlines()
                    watch.say(f"the launcher ended with {type(error).__name__}: {reason[0] if reason else ''}")

        return launch

    def _explore(
        self, search: Search, fixed: list[str], plan: Plan, watch: Watch, launch: Callable[[list[str]], None]
    ) -> None:
        """Train the points that a search proposes, as many at a time as there are jobs at a time."""
        batch = search.unfinished()
        while batch := batch or search.propose(self._at_once):
            names: dict[int, str] = {}
            for number, values in batch:
                ((_, job),) = self._points([self._trial(fixed, values)])
                if search.prune(number, job.settings):
                    watch.say(f"{search.name(number, values)} is left out: it can only collapse, says the forecast")
                else:
                    (names[number],) = plan.add([(search.name(number, values), job)])
            plan.claim()
            watch.look()
            launch([*names.values()])
            for number, name in names.items():
                search.end(number, plan.folder / name)
            batch = []

    @property
    def _at_once(self) -> int:
        """How many jobs the launcher runs at a time."""
        threads = threads_per_job(self.config.hydra.launcher)
        return max(1, (os.cpu_count() or 1) // threads) if threads else 1

    def _trial(self, fixed: list[str], values: dict[str, Any]) -> list[str]:
        """The overrides of a trial: `fixed` with its values."""
        return [text for text in fixed if text.partition("=")[0] not in values] + [
            f"{k}={v}" for k, v in values.items()
        ]

    def _grid(self, arguments: list[str], options: SweepOptions) -> tuple[list[list[str]], dict[str, Any]]:
        """The overrides of every point. With intervals: of their lower and upper ends, and what to search.

        Raises ConfigError for too many points, or a search without a number of trials.
        """
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        self.varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        if not any(override.is_interval_sweep() for override in parsed):
            grid = [list(point) for batch in self.split_arguments(parsed, None) for point in batch]
            if len(grid) > MAX_JOBS and not options.yes:
                raise ConfigError(f"{len(grid)} jobs, more than {MAX_JOBS}; if you mean it, add sweep.yes=true")
            if options.trials:
                raise ConfigError("sweep.trials is for a search; give a knob an interval, such as beta=interval(1,50)")
            return grid, {}
        if not options.trials or options.halving:
            raise ConfigError("an interval is a search: say how many points with sweep.trials=N, without sweep.halving")
        spaces: dict[str, Any] = {}
        ends: tuple[list[str], list[str]] = ([], [])
        for override in parsed:
            name, value = override.get_key_element(), override.value()
            if isinstance(value, IntervalSweep):
                spaces[name] = interval(name, value.start or 0.0, value.end or 0.0, "log" in value.tags)
                both = [spaces[name].low, spaces[name].high]
            elif override.is_sweep_override():
                both = list(override.sweep_string_iterator())
                spaces[name] = choices(both)
            else:
                both = [override.get_value_element_as_str()]
            if name in spaces and name in NOT_RESULT:
                raise ConfigError(f"{name} cannot be searched, because it tells no jobs apart; give it one value")
            for end, index in zip(ends, (0, -1)):
                end.append(f"{name}={both[index]}")
        return [*ends], spaces

    def _points(self, grid: list[list[str]]) -> list[tuple[str, Job]]:
        """Every point with its folder name. Raises ConfigError with every problem of every point."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        threads = threads_per_job(self.config.hydra.launcher)
        points, problems = [], []
        for overrides in grid:
            if threads and not any(text.startswith("threads=") for text in overrides):
                overrides = [*overrides, f"threads={threads}"]
            try:
                settings = cli.settings_from(loader.load_sweep_config(self.config, overrides), overrides)
                if settings.resume:
                    raise ConfigError(
                        f"resume={settings.resume} is a run; a sweep goes on with the line that it printed"
                    )
                if settings.trainer.devices != 1:
                    raise ConfigError("trainer.devices must be 1 in a sweep: jobs are spread over the devices instead")
                name = job_name([text for text in overrides if text.partition("=")[0] in self.varied])
                points.append((name, Job(overrides, settings)))
            except UserError as error:
                problems += str(error).splitlines()
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(console.sentence(error))
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return points


def threads_per_job(launcher: DictConfig) -> int | None:
    """The CPU threads of a job if the launcher runs several at a time, else None."""
    options: Any = OmegaConf.to_container(launcher)
    cores = os.cpu_count() or 1
    if "n_jobs" in options:  # joblib
        num = int(options["n_jobs"])
        return max(1, cores // (num if num > 0 else max(1, cores + 1 + num)))
    if "cpus_per_task" in options:  # submitit
        return int(options["cpus_per_task"] or 1)
    with contextlib.suppress(KeyError, TypeError):  # Ray
        return max(1, int(options["ray"]["remote"]["num_cpus"]))
    return None


def _analyse(folder: Path) -> int:
    """Run the analysis of a sweep in its own process; gives its exit code."""
    path = os.pathsep.join([str(Path(smilevae.__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "multirun_analysis", str(folder)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="resumable",
    node={"_target_": f"{__name__}.ResumableSweeper", "max_batch_size": None, "params": None},
    provider="smilevae",
)
