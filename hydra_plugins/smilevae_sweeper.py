"""Hydra's plugin: a sweeper that checks every point first and can go on.

Beside it a callback that checks a single run.
"""

import os
import secrets
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import smilevae
from smilevae import cli, console, runs
from smilevae.config import NOT_RESULT, Settings, flatten
from smilevae.errors import ConfigError, Interrupted, UserError
from smilevae.sweeps import jobs, open_queue
from smilevae.sweeps.halving import Halving, plan_rungs
from smilevae.sweeps.mps import shared_gpus
from smilevae.sweeps.options import SweepOptions, parse
from smilevae.sweeps.plan import ONE_VALUE, changes, job_name, lock_of
from smilevae.sweeps.queue import Queue
from smilevae.sweeps.watch import Watch, spent

MAX_JOBS = 200  # more ask for sweep.yes=true


class CheckBeforeStart(Callback):
    """Ends a run with exit code 2 on a bad setting, before Hydra writes anything.

    SystemExit passes through Hydra.
    """

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
                text = f"hydra.run.dir={folder} cannot be a run folder: {error.strerror}"
                raise ConfigError(text) from None
            with read_write(config.hydra):
                config.hydra.run.dir = folder


class ResumableSweeper(BasicSweeper):
    """Checks all points, then launches workers that pull jobs from the queue of the sweep.

    Raises ConfigError before the first job, UserError (exit code 1) after the last if some did not
    complete, Interrupted after a signal.
    """

    config: DictConfig

    def sweep(self, arguments: list[str]) -> None:
        folder = Path(os.path.expanduser(str(self.config.hydra.sweep.dir))).absolute()
        group: Any = OmegaConf.to_container(self.config.sweep)
        options = parse(self.config.retry_failed, group)
        self.capacity = capacity_of(self.config.hydra.launcher)

        # Check every point, and then the faces, before anything is written.
        plan, points = self._plan(folder, arguments, options)
        plan.argv = sys.argv[1:]
        seconds = spent(folder)
        if options.seconds and seconds >= options.seconds:
            used = f"{runs.shell_path(folder)} has run for {seconds:.0f} s"
            raise ConfigError(f"sweep.budget={options.budget} is spent: {used}; pass a larger one")
        if plan.search or self.config.retry_failed or not all(map(plan.ended, plan.jobs)):
            code = jobs.in_process(jobs.forecast, points).exitcode
            if code:
                sys.exit(code)  # the process has printed why no job can run

        # Fill the queue.
        plan.begin()
        if self.config.retry_failed:
            plan.retry_failed()
        queue = open_queue(folder, secrets.token_hex(4))
        place = runs.shell_path(folder)
        if queue.search:
            what = f"a search of {options.trials} points in {place}"
        else:
            what = f"{len(queue.jobs)} jobs in {place}, {len(queue.left())} to run"
        print(f"{what}; each logs to its train.log")
        if isinstance(queue, Halving):
            print(queue.describe())
        print(f"if this is cut off: {queue.resume_line()}", flush=True)

        # Train.
        watch = Watch(folder, options.seconds)
        with watch.running():
            try:
                with shared_gpus(1 if self.capacity.tasks else self.capacity.jobs):
                    self._launch(queue)
            except (Interrupted, KeyboardInterrupt):
                if not watch.over:
                    queue.say(f"interrupted | {watch.summary()}")
                    print(f"to go on: {queue.resume_line()}", file=sys.stderr)
                    raise
                queue.say(f"sweep.budget={options.budget} is spent | {watch.summary()}")
                print(f"to go on: {queue.resume_line()}, with a larger budget", file=sys.stderr)
        queue.say(f"over: {watch.summary()}")
        conclude(queue, watch)

    def _plan(
        self, folder: Path, arguments: list[str], options: SweepOptions
    ) -> tuple[Queue, list[Settings]]:
        """The plan with its old and new jobs, and the points to check. Raises ConfigError."""
        assert self.hydra_context is not None
        self.loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=self.loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        self.varied = {one.get_key_element() for one in overrides if one.is_sweep_override()}
        if any(one.is_interval_sweep() for one in overrides):
            search, points = self._search(overrides, options)
            plan = Queue.read(folder)
            plan.add_search(search)
            return plan, points
        if options.trials:
            remedy = "give a knob an interval, such as beta=interval(1,50)"
            raise ConfigError(f"sweep.trials is for a search; {remedy}")
        grid = [point for batch in self.split_arguments(overrides, None) for point in batch]
        if len(grid) > MAX_JOBS and not options.yes:
            remedy = "if you mean it, add sweep.yes=true"
            raise ConfigError(f"{len(grid)} jobs, more than {MAX_JOBS}; {remedy}")
        named = self._points(grid)
        plan = Queue.read(folder)
        plan.add_grid(named)
        if options.halving:
            plan.rungs = plan_rungs(plan.jobs, options.halving, options.first)
        return plan, [settings for _, settings in named]

    def _search(
        self, overrides: list[Override], options: SweepOptions
    ) -> tuple[dict[str, Any], list[Settings]]:
        """What a search varies, as sweep.json holds it, and its ends. Raises ConfigError."""
        from smilevae.sweeps.search import ends, interval  # needs Optuna

        if not options.trials or options.halving:
            remedy = "say how many points with sweep.trials=N, without sweep.halving"
            raise ConfigError(f"an interval is a search: {remedy}")
        space: dict[str, Any] = {}
        fixed: dict[str, str] = {}
        choices: list[tuple[str, str]] = []
        for override in overrides:
            knob = override.get_key_element()
            value = override.value()
            if override.is_sweep_override() and knob in NOT_RESULT:
                raise ConfigError(f"{knob} cannot be searched, {ONE_VALUE}")
            if isinstance(value, IntervalSweep):
                log = "log" in value.tags
                space[knob] = interval(knob, value.start or 0.0, value.end or 0.0, log)
            elif override.is_sweep_override():
                choices += [(knob, text) for text in override.sweep_string_iterator()]
                fixed[knob] = next(override.sweep_string_iterator())
            else:
                fixed[knob] = override.get_value_element_as_str()

        # Each choice alone, beside the first ones of the other knobs.
        grid = [fixed, *(fixed | {knob: text} for knob, text in choices)]
        points = self._points([[f"{k}={v}" for k, v in words.items()] for words in grid])
        base, *others = [settings for _, settings in points]
        for (knob, text), settings in zip(choices, others):
            space.setdefault(knob, {"choices": {}})["choices"][text] = changes(base, settings)
        search = {
            "trials": options.trials,
            "at_once": self.capacity.jobs,
            "seed": base.seed,
            "base": flatten(base.plain()),
            "space": space,
        }
        return search, ends(search)

    def _points(self, grid: list[list[str]]) -> list[tuple[str, Settings]]:
        """The folder name and settings of every point.

        Raises ConfigError with every problem of every point.
        """
        threads = self.capacity.threads
        points = []
        problems = []
        for overrides in grid:
            if threads and not any(text.startswith("threads=") for text in overrides):
                overrides = [*overrides, f"threads={threads}"]
            try:
                config = self.loader.load_sweep_config(self.config, overrides)
                settings = cli.settings_from(config, overrides)
                refuse_in_sweep(settings)
            except UserError as error:
                problems += str(error).splitlines()
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(console.sentence(error))
            else:
                varied = [text for text in overrides if text.partition("=")[0] in self.varied]
                points.append((job_name(varied), settings))
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return points

    def _launch(self, queue: Queue) -> None:
        """Launch workers until no job is left that they could train.

        From now on a signal stops all jobs and raises Interrupted.
        """
        assert self.launcher is not None

        def receive(signum: int, frame: object) -> None:
            runs.Stop().install()  # a second signal does not wait
            text = "stopping: running jobs write a checkpoint; once more to stop at once"
            print(f"\n{text}", file=sys.stderr)
            open_queue(queue.folder, queue.sweep).close()  # points may have joined
            raise Interrupted(signum)

        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, receive)
        with read_write(self.config.hydra.sweep):  # Hydra 1.4 protects it
            self.config.hydra.sweep.dir = str(queue.folder)
        worker = [
            runs.override("hydra.sweep.dir", str(queue.folder)),
            "hydra.sweep.subdir=.",
            "hydra/job_logging=none",
            f"+hydra.job.env_set.{jobs.ID}='{queue.sweep}'",
        ]
        if self.capacity.tasks:
            worker.append(f"+hydra.job.env_set.{jobs.ONE_JOB}='1'")

        before = None
        while (left := self._left(queue)) and left != before:
            before = left
            most = len(left) if self.capacity.tasks else self.capacity.jobs
            num = min(len(left), most, self.max_batch_size or most)
            try:
                for result in self.launcher.launch([worker] * num, initial_job_idx=0):
                    _ = result.return_value  # raises the error of a worker
            except Exception as error:  # also of the launcher: a worker was killed, a queue refused
                reason = (str(error).strip().splitlines() or [""])[0]
                queue.say(f"the launcher ended with {type(error).__name__}: {reason}")
        if isinstance(queue, Halving):
            for line in queue.spared():
                queue.say(line)

    def _left(self, queue: Queue) -> list[tuple[str, int]]:
        with lock_of(queue.folder):
            return open_queue(queue.folder, queue.sweep).left()


def refuse_in_sweep(settings: Settings) -> None:
    """Raise ConfigError for what only a single run may have."""
    if settings.resume:
        remedy = "a sweep goes on with the line that it printed"
        raise ConfigError(f"resume={settings.resume} is a run; {remedy}")
    if settings.trainer.devices != 1:
        raise ConfigError("trainer.devices must be 1 in a sweep: jobs are spread over the devices")


class Capacity(NamedTuple):
    """How many jobs a launcher runs at a time, and the threads of each if it runs several."""

    jobs: int
    threads: int | None
    tasks: bool  # of Slurm or Ray, one a job


def capacity_of(launcher: DictConfig) -> Capacity:
    options: Any = OmegaConf.to_container(launcher)
    cores = os.cpu_count() or 1
    if "n_jobs" in options:  # joblib
        num = int(options["n_jobs"])
        num = num if num > 0 else max(1, cores + 1 + num)
        return Capacity(num, max(1, cores // num), tasks=False)
    if "cpus_per_task" in options:  # submitit
        threads = int(options["cpus_per_task"] or 1)
    elif "ray" in options:
        threads = max(1, int(options["ray"]["remote"]["num_cpus"]))
    else:
        return Capacity(1, None, tasks=False)
    return Capacity(max(1, cores // threads), threads, tasks=True)


def conclude(plan: Queue, watch: Watch) -> None:
    """Run the analysis. Raises UserError if jobs did not complete."""
    states = watch.states
    statuses = {state["status"] for state in states.values()}
    analysis = 0
    if watch.over or statuses & {"COMPLETED", "PAUSED"}:
        analysis = analyse(plan.folder)

    # Which jobs may be as they are?
    complete = {"COMPLETED", "RUNNING"}
    elsewhere = [name for name, state in states.items() if state["status"] == "RUNNING"]
    if elsewhere:
        print(f"{len(elsewhere)} jobs run in another process: {', '.join(elsewhere)}")
        complete.add("NEW")  # the other sweep goes on with them
    if plan.rungs:
        complete.add("PAUSED")
    if watch.over:
        complete |= {"PAUSED", "NEW", "INTERRUPTED", "STALE"}

    bad = {name: state for name, state in states.items() if state["status"] not in complete}
    if bad:
        again = plan.resume_line()
        if "FAILED" in statuses:
            again += " retry_failed=true"
        lines = [f"{len(bad)} of {len(states)} jobs did not complete; run them with {again}"]
        for name, state in bad.items():
            lines.append(f"{name}: {state['status']}, {state['reason'] or 'not started'}")
        raise UserError("\n".join(lines))
    if analysis:
        again = f"python -m multirun_analysis {runs.shell_path(plan.folder)}"
        raise UserError(f"the analysis failed; again with {again}")


def analyse(folder: Path) -> int:
    """Run the analysis of a sweep in its own process; gives its exit code."""
    package = str(Path(smilevae.__file__).parents[1])
    path = os.pathsep.join([package, *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "-m", "multirun_analysis", str(folder)]
    if runs.command_name("analyse").startswith("smilevae"):  # so the lines that it prints do, too
        command = [sys.argv[0], "analyse", str(folder)]
    return subprocess.run(command, env=os.environ | {"PYTHONPATH": path}).returncode


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="resumable",
    node={"_target_": f"{__name__}.ResumableSweeper", "max_batch_size": None, "params": None},
    provider="smilevae",
)
