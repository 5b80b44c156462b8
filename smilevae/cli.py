"""smilevae train | evaluate | photo | app | page | export | analyse

  train      one VAE, or with -m a sweep of them        python train.py is the same
  evaluate   measure and draw a checkpoint              python evaluate.py is the same
  photo      a smile on your own photo
  app        the smile on a slider, in a browser
  page       a model as one page that opens from disk
  export     a model to give away
  analyse    the best runs of a sweep                   python -m multirun_analysis is the same

smilevae COMMAND --help shows the options of each.
"""

import contextlib
import inspect
import logging
import os
import pkgutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from smilevae import __version__, console, runs
from smilevae.config import OPEN, Settings, checked
from smilevae.errors import CheckpointError, ConfigError, Interrupted, UserError
from smilevae.plugins import loading, targets
from smilevae.runs import hub

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from smilevae.evaluation.options import EvaluateOptions

PACKAGE = Path(__file__).parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())
COMMANDS = {  # options, which cost no torch, and the function that receives them
    "evaluate": ("smilevae.evaluation.options:EvaluateOptions", "smilevae.cli:evaluate"),
    "photo": ("smilevae.apps.options:PhotoOptions", "smilevae.apps.photo:main"),
    "app": ("smilevae.apps.options:AppOptions", "smilevae.apps.slider:main"),
    "page": ("smilevae.apps.options:PageOptions", "smilevae.apps.page:main"),
    "export": ("smilevae.apps.options:ExportOptions", "smilevae.apps.export:main"),
    "analyse": ("multirun_analysis.options:AnalyseOptions", "multirun_analysis.report:main"),
}
FOLDERS = {"analyse": "folders"}  # the option that takes words without =
TREES = ("callbacks.", "logger.", "optimizer.")
NOT_SETTINGS = ("hydra", "sweep", "retry_failed")
log = logging.getLogger("smilevae")


def main(words: Sequence[str] | None = None) -> None:
    """Run one command. Exits with its code if that is not 0."""
    words = sys.argv[1:] if words is None else words
    try:
        with console.one_sentence():
            try:
                _run(words[0] if words else "--help", words[1:])
            finally:
                sys.stdout.flush()  # at the interpreter's end nothing would catch its error
    except BrokenPipeError:  # as `| head` causes
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + 13)  # SIGPIPE


def _run(command: str, words: Sequence[str]) -> None:
    if command in ("-h", "--help"):
        print(__doc__)
    elif command == "--version":
        print(f"smilevae {__version__}")
    elif command == "train":
        train(words)
    elif command in COMMANDS:
        options, function = COMMANDS[command]
        parsed = console.parse_words(words, pkgutil.resolve_name(options), FOLDERS.get(command))
        console.quiet_lightning()
        runs.keep_memory()
        pkgutil.resolve_name(function)(parsed)
    else:
        known = ", ".join(COMMANDS)
        raise ConfigError(f"{command} is not a command; there are train, {known}")


def train(words: Sequence[str]) -> None:
    """Let Hydra compose conf/train.yaml, and train: one run, or the jobs of a sweep."""
    import hydra

    console.load_plugin(words)
    sys.argv = [sys.argv[0], *words]  # for Hydra
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise errors instead of printing them
    policy = {"version_base": "1.3"}
    if _hydra_1_4():
        policy = {"execution_whitelist": "hydra_plugins.smilevae_sweeper.*"}
    register()
    hydra.main(**policy, config_path=str(CONF), config_name="train")(task)()


def register() -> None:
    """Give Hydra what conf/ names: every setting's default, each plug-in, and functions."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    store = ConfigStore.instance().store
    groups = (*OPEN, "optimizer")
    store("settings", {k: v for k, v in Settings().plain().items() if k not in groups})
    for group in OPEN:
        for name, choice in loading.choices(group).items():
            content = choice().model_dump()
            if group == "data":
                content["split_seed"] = "${seed}"  # unless given
            store(name, content, group)
    add = getattr(OmegaConf, "register_resolver" if _hydra_1_4() else "register_new_resolver")
    for function in (runs.new_run_dir, runs.fast_precision):
        if not OmegaConf.has_resolver(function.__name__):
            add(function.__name__, function, use_cache=True)


def _hydra_1_4() -> bool:
    import hydra

    return "execution_whitelist" in inspect.signature(hydra.main).parameters


def task(config: "DictConfig") -> float | None:
    """One run or one job of a sweep; gives val/nelbo of its best epoch for sweepers."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    job = HydraConfig.get()
    folder = Path(job.runtime.output_dir)
    if job.mode != RunMode.RUN:
        from smilevae.sweeps import jobs

        if jobs.ID in os.environ:
            jobs.work(folder)
            return None
        return jobs.run_job(settings_from(config, job.overrides.task), folder)
    with console.one_sentence():
        stop = runs.Stop()
        stop.install()
        run = runs.Run(folder)
        try:
            settings = settings_from(config, job.overrides.task)
            run.begin(settings)
            with run.recording():
                from smilevae.evaluation import report  # torch is imported only now
                from smilevae.training import fit

                console.quiet_lightning()
                if " " in run.code:
                    log.info("the program changed since this run began, so its result may, too")
                best = fit.fit(settings, run, stop, report.after_training)
        except (UserError, Interrupted):
            run.close()
            run.discard_if_untrained()
            raise
        if run.is_main_process:
            log.info(runs.closing_lines(run.dir, best))
        return best["val/nelbo"]


def settings_from(config: "DictConfig", overrides: Iterable[str]) -> Settings:
    """The settings of a composed config, or with `resume` that run's own. Raises ConfigError."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    register()  # in a launcher's process, too
    names = [str(key) for key in config if key not in NOT_SETTINGS]
    try:
        own = OmegaConf.masked_copy(config, names)
        settings = checked(OmegaConf.to_container(own, resolve=True, throw_on_missing=True))
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    targets.trust([settings.callbacks, settings.logger, settings.optimizer])
    if settings.resume:
        named = {text.lstrip("+~").partition("=")[0] for text in overrides}
        named |= {name.partition(".")[0] for name in named if name.startswith(TREES)}
        return runs.settings_for_resume(settings.resume, settings, named)
    data = settings.data
    if data.needs_root and not data.root:
        remedy = f"name the folder of your images: data={data.source} data.root=PATH"
        raise ConfigError(f"data.root is not set; {remedy}")
    return settings


def evaluate(options: "EvaluateOptions") -> None:
    """Print the report of a checkpoint, or of the best two configurations of a sweep."""
    from smilevae.evaluation import report

    if hub.is_name(options.ckpt):
        copy = f"smilevae export ckpt={options.ckpt} out=FOLDER"
        raise ConfigError(f"{options.ckpt} comes evaluated; to measure it again, copy it: {copy}")
    folder = Path(options.ckpt).expanduser()
    if not (folder / "sweep.json").exists():
        print(report.report(options))
        return
    from multirun_analysis import collect, configurations

    sweep = collect.collect([folder])
    top = configurations.candidates(sweep, configurations.usable(sweep, "val/nelbo"))
    if top.empty:
        raise CheckpointError(f"{folder} has no completed run yet; pass one of its run folders")
    best = {run["run"]: run["path"] / run["checkpoint"] for _, run in top.iterrows()}
    print(report.compare_checkpoints(best, runs.evaluation_folder(folder), options))

    # Their pages, to which that of the analysis leads.
    from multirun_analysis.report import analyse
    from smilevae.apps import page
    from smilevae.apps.model import Model

    for path in best.values():
        with contextlib.suppress(ConfigError):  # of a network that a page cannot draw
            page.write(Model(path), runs.run_of(path) / page.NAME)
    analyse([folder], "val/nelbo", folder / "analysis")
