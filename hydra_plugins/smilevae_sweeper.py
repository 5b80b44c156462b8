"""Hydra's plugin: a sweeper that checks every point first and can go on, and a callback that checks a single run."""

import contextlib
import hashlib
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

import smilevae
from smilevae import cli, console, runs
from smilevae.errors import ConfigError, Interrupted, UserError
from smilevae.sweeps import jobs
from smilevae.sweeps.plan import Job, Plan
from smilevae.sweeps.watch import Watch

MAX_JOBS = 200  # more ask for sweep.yes=true
MAX_NAME = 150


class CheckBeforeStart(Callback):
    """Ends a run with exit code 2 on a bad setting, before Hydra writes anything. SystemExit passes through Hydra."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with console.one_sentence():
            cli.settings_from(config, config.hydra.overrides.task)
            folder = str(config.hydra.run.dir)
            try:
                if not folder:
                    raise OSError(0, "it is empty")
                Path(folder).mkdir(parents=True, exist_ok=True)
                if not os.access(folder, os.W_OK):
                    raise OSError(0, "it may not be written")
            except OSError as error:
                raise ConfigError(f"hydra.run.dir={folder} cannot be a run folder: {error.strerror}") from None


class ResumableSweeper(BasicSweeper):
    """Hydra's grid and launchers. All points are checked before the first job; completed jobs are not launched again.

    Raises ConfigError before the first job, UserError (exit code 1) after the last if some did not complete,
    Interrupted after a signal.
    """

    config: DictConfig

    def sweep(self, arguments: list[str]) -> None:
        folder = Path(os.path.expanduser(str(self.config.hydra.sweep.dir))).absolute()
        for name, value in {
            "retry_failed": self.config.retry_failed,
            "sweep.yes": self.config.sweep.get("yes"),
        }.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{name}={value} must be true or false")
        points = self._points(arguments)
        plan = Plan(folder, points, sys.argv[1:])
        left = plan.left(self.config.retry_failed)
        if left and (code := jobs.in_process(jobs.forecast, [job.settings for _, job in points])):
            sys.exit(code)  # the process has printed why no job can run
        plan.claim()
        print(f"{len(plan.wanted)} jobs in {runs.short(plan.folder)}, {len(left)} to run; each logs to its train.log")
        print(f"if this is cut off: {plan.resume_line()}", flush=True)
        watch = Watch(plan)
        with watch.running():
            try:
                self._launch(plan, left, watch)
            except (Interrupted, KeyboardInterrupt):
                watch.say(f"interrupted | {watch.summary()}")
                print(f"to go on: {plan.resume_line()}", file=sys.stderr)
                raise
        watch.say(f"over: {watch.summary()}")
        states = {name: state["status"] for name, state in watch.states.items()}
        failed_analysis = "COMPLETED" in states.values() and _analyse(plan.folder)
        if elsewhere := [name for name, status in states.items() if status == "RUNNING"]:
            print(f"{len(elsewhere)} jobs run in another process: {', '.join(elsewhere)}")
        if bad := [name for name, status in states.items() if status not in ("COMPLETED", "RUNNING")]:
            again = " retry_failed=true" if "FAILED" in states.values() else ""
            lines = [f"{len(bad)} of {len(states)} jobs did not complete; run them with {plan.resume_line()}{again}"]
            lines += [f"{name}: {states[name]}, {watch.states[name]['reason'] or 'not started'}" for name in bad]
            raise UserError("\n".join(lines))
        if failed_analysis:
            raise UserError(f"the analysis failed; again with python -m multirun_analysis {runs.short(plan.folder)}")

    def _launch(self, plan: Plan, names: list[str], watch: Watch) -> None:
        """Hand the jobs to the launcher. A signal stops all of them first."""

        def receive(signum: int, frame: object) -> None:
            runs.Stop().install()  # a second signal does not wait
            print("\nstopping: running jobs write a checkpoint; once more to stop at once", file=sys.stderr)
            jobs.stop_jobs([plan.folder / name for name in plan.wanted], watch.id, signum)
            raise Interrupted(signum)

        assert self.launcher is not None
        for logger in ("hydra", "hydra_plugins"):  # the watch reports the jobs
            logging.getLogger(logger).setLevel(logging.WARNING)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, receive)
        with read_write(self.config.hydra.sweep):  # Hydra 1.4 protects it
            self.config.hydra.sweep.dir = str(plan.folder)
        shared = [runs.override("hydra.sweep.dir", str(plan.folder)), f"+hydra.job.env_set.{jobs.ID}='{watch.id}'"]
        every = [[*plan.jobs[name].overrides, *shared, runs.override("hydra.sweep.subdir", name)] for name in names]
        for batch in self.split_overrides_to_chunks(every, self.max_batch_size) if every else []:
            try:
                self.launcher.launch(list(batch), initial_job_idx=0)
            except Exception as error:  # of the launcher: a worker was killed, a queue refused
                reason = str(error).strip().splitlines()
                watch.say(f"the launcher ended with {type(error).__name__}: {reason[0] if reason else ''}")

    def _points(self, arguments: list[str]) -> list[tuple[str, Job]]:
        """Every point with its folder name. Raises ConfigError with every problem of every point."""
        assert self.hydra_context is not None
        loader = self.hydra_context.config_loader
        parsed = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        varied = {override.get_key_element() for override in parsed if override.is_sweep_override()}
        grid = [list(point) for batch in self.split_arguments(parsed, None) for point in batch]
        if len(grid) > MAX_JOBS and not self.config.sweep.yes:
            raise ConfigError(f"{len(grid)} jobs, more than {MAX_JOBS}; if you mean it, add sweep.yes=true")
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
                name = job_name([text for text in overrides if text.partition("=")[0] in varied])
                points.append((name, Job(overrides, settings)))
            except UserError as error:
                problems += str(error).splitlines()
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(console.sentence(error))
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return points


def job_name(varied: list[str]) -> str:
    """The folder name of a job, from the overrides that differ between jobs: beta-1_batch_size-32."""
    name = re.sub(r"[^\w.+-]", "-", "_".join(text.lstrip("+").replace("=", "-", 1) for text in varied))
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}_{hashlib.blake2b(name.encode(), digest_size=4).hexdigest()}"
    return name if name.strip(".") else "job"


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
