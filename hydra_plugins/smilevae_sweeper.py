"""What Hydra calls before anything runs: every knob of every point is checked, every folder claimed."""

import contextlib
import logging
import os
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
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

import smilevae
from smilevae import cli, console, runs
from smilevae.config import Settings
from smilevae.errors import ConfigError, Interrupted, UserError
from smilevae.sweeps import jobs
from smilevae.sweeps.plan import Plan, job_name
from smilevae.sweeps.watch import Watch

MAX_JOBS = 200  # more ask for sweep.yes=true


class CheckBeforeStart(Callback):
    """Ends with the sentences and exit code 2 on a bad knob; Hydra swallows exceptions here, but not SystemExit."""

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with console.one_sentence():
            cli.settings_from(config, config.hydra.overrides.task)
            where = str(config.hydra.run.dir)
            try:
                if not where:
                    raise OSError(0, "it is empty")
                Path(where).mkdir(parents=True, exist_ok=True)
                if not os.access(where, os.W_OK):
                    raise OSError(0, "it may not be written")
            except OSError as error:
                raise ConfigError(f"hydra.run.dir={where} cannot be a run folder: {error.strerror}") from None


class ResumableSweeper(BasicSweeper):
    """Hydra's own grid and launchers; before them all points are checked, after them every outcome is told.

    Jobs that a resumed sweep has completed are not launched again. Raises ConfigError before the first job, UserError
    (exit code 1) after the last if some did not complete, Interrupted after a signal.
    """

    def sweep(self, arguments: list[str]) -> None:
        assert self.config is not None
        config = self.config
        folder = Path(os.path.expanduser(str(config.hydra.sweep.dir))).absolute()
        for knob, value in {"retry_failed": config.retry_failed, "sweep.yes": config.sweep.get("yes")}.items():
            if not isinstance(value, bool):
                raise ConfigError(f"{knob}={value} must be true or false")
        points = self._points(arguments)
        plan = Plan(folder, points, sys.argv[1:])
        left = plan.left(config.retry_failed)
        if left and (code := jobs.forecast([settings for _, _, settings in points])):
            sys.exit(code)  # no job could run; it has said why
        plan.claim()
        print(f"{len(plan.wanted)} jobs in {runs.short(plan.folder)}, {len(left)} to run; each logs to its train.log")
        print(f"if this is cut off: {plan.resume_line()}", flush=True)
        with Watch(plan) as watch:
            try:
                self._launch(plan, left, watch)
            except (Interrupted, KeyboardInterrupt):
                watch.say(f"interrupted | {watch.summary()}")
                print(f"to go on: {plan.resume_line()}", file=sys.stderr)
                raise
        watch.say(f"over: {watch.summary()}")
        code = 0
        if any(state["status"] == "COMPLETED" for state in watch.states.values()):
            path = os.pathsep.join(
                filter(None, [str(Path(smilevae.__file__).parents[1]), os.environ.get("PYTHONPATH")])
            )
            analysis = [sys.executable, "-m", "multirun_analysis", str(plan.folder)]
            code = subprocess.run(analysis, env=os.environ | {"PYTHONPATH": path}).returncode
        elsewhere = [name for name, state in watch.states.items() if state["status"] == "RUNNING"]
        if elsewhere:
            print(f"{len(elsewhere)} jobs run in another process: {', '.join(elsewhere)}")
        bad = {n: s for n, s in watch.states.items() if s["status"] not in ("COMPLETED", "RUNNING")}
        if bad:
            again = " retry_failed=true" if any(state["status"] == "FAILED" for state in bad.values()) else ""
            count = f"{len(bad)} of {len(plan.wanted)} jobs did not complete"
            lines = [f"{count}; run them with {plan.resume_line()}{again}"]
            lines += [f"{name}: {state['status']}, {state['reason'] or 'not started'}" for name, state in bad.items()]
            raise UserError("\n".join(lines))
        if code:
            raise UserError(f"the analysis failed; again with python -m multirun_analysis {runs.short(plan.folder)}")

    def _launch(self, plan: Plan, names: list[str], watch: Watch) -> None:
        """Hand the jobs to the launcher, folder by folder; a signal stops them all first."""

        def receive(signum: int, frame: object) -> None:
            runs.Stop().install()  # a second one does not wait
            print("\nstopping: running jobs write a checkpoint; once more to stop at once", file=sys.stderr)
            watch.stop_jobs(signum)
            raise Interrupted(signum)

        assert self.config is not None
        assert self.launcher is not None
        for chatter in ("hydra", "hydra_plugins"):  # the watch tells it better
            logging.getLogger(chatter).setLevel(logging.WARNING)
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, receive)
        with open_dict(self.config.hydra):
            self.config.hydra.sweep.dir = str(plan.folder)
        shared = [runs.override("hydra.sweep.dir", str(plan.folder)), f"+hydra.job.env_set.{jobs.ID}='{watch.id}'"]
        batches = [
            [*plan.jobs[name]["overrides"], *shared, runs.override("hydra.sweep.subdir", name)] for name in names
        ]
        for batch in self.split_overrides_to_chunks(batches, self.max_batch_size) if batches else []:
            try:
                self.launcher.launch(list(batch), initial_job_idx=0)
            except Exception as error:  # the engine itself: a worker was killed, a queue refused
                reason = str(error).strip().splitlines()
                watch.say(f"the launcher ended with {type(error).__name__}: {reason[0] if reason else ''}")

    def _points(self, arguments: list[str]) -> list[tuple[str, list[str], Settings]]:
        """Every point as (folder name, overrides, settings). Raises ConfigError with all that is wrong anywhere."""
        assert self.config is not None
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
                    raise ConfigError(f"resume={settings.resume} is one run; a sweep prints the line that continues it")
                if settings.trainer.devices != 1:
                    raise ConfigError("trainer.devices must be 1 in a sweep: jobs are spread over the devices instead")
                name = job_name([text for text in overrides if text.partition("=")[0] in varied])
                points.append((name, overrides, settings))
            except UserError as error:
                problems += str(error).splitlines()
            except (HydraException, OmegaConfBaseException) as error:
                problems.append(console.sentence(error))
        if problems:
            raise ConfigError("\n".join(dict.fromkeys(problems)))
        return points


def threads_per_job(launcher: DictConfig) -> int | None:
    """How many threads a job may use beside its neighbours; None where jobs run one after the other."""
    found = OmegaConf.to_container(launcher)
    assert isinstance(found, dict)
    if "n_jobs" in found:  # joblib
        num = int(found["n_jobs"])
        num = num if num > 0 else max(1, (os.cpu_count() or 1) + 1 + num)
        return max(1, (os.cpu_count() or 1) // num)
    if "cpus_per_task" in found:  # submitit
        return int(found["cpus_per_task"] or 1)
    with contextlib.suppress(KeyError, TypeError):  # Ray
        return max(1, int(found["ray"]["remote"]["num_cpus"]))
    return None


ConfigStore.instance().store(
    group="hydra/sweeper",
    name="resumable",
    node={"_target_": f"{__name__}.ResumableSweeper", "max_batch_size": None, "params": None},
    provider="smilevae",
)
