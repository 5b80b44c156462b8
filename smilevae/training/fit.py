"""One training, from settings to a complete run folder."""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelSummary, ProgressBar
from pytorch_lightning.loggers.logger import Logger
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from smilevae import runs
from smilevae.config import Settings
from smilevae.data.batches import hash64
from smilevae.data.card import data_card, format_card
from smilevae.data.dataset import Faces, load_faces, spectrum_of
from smilevae.errors import ConfigError, UserError
from smilevae.evaluation import figures
from smilevae.models import axes, linear
from smilevae.models.vae import build_vae, check_shapes
from smilevae.plugins import loading, targets
from smilevae.runs import checkpoint
from smilevae.training import trackers
from smilevae.training.datamodule import FaceDataModule
from smilevae.training.module import VAEModule
from smilevae.training.progress import Progress
from smilevae.training.record import Checkpoints, PlainCheckpointIO, Record
from smilevae.training.tensorboard import Curves, TensorBoard
from smilevae.training.until import Until

log = logging.getLogger(__name__)
Evaluate = Callable[[Path, Faces, Settings], str]  # the report of a run folder, on its faces


def fit(
    settings: Settings,
    run: runs.Run,
    stop: runs.Stop,
    evaluate: Evaluate,
    devices: list[int] | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Train and record the result; returns the best epoch's metrics.

    `devices` replace the trainer's. With settings.evaluate or measures the log gets what `evaluate` says.
    Raises ConfigError, DataError, CheckpointError, Diverged, Interrupted; Paused after the epoch
    `until`.
    """
    # The machine, and whether the measures are there.
    for name in settings.measures:
        loading.measure(name)
    keep_memory = settings.keep_memory and runs.keep_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)

    # The faces and what a linear VAE would reach on them.
    faces = load_faces(settings.data, settings.image_size, settings.channels)
    beta = describe(faces, settings, run)

    # The model, from a checkpoint or from random weights.
    last = None
    if settings.resume and run.can_resume:
        last = checkpoint.resume_point(run.dir, settings, faces.fingerprint)
    torch.manual_seed(hash64("weights", settings.seed))
    vae = build_vae(settings)
    if vae.linear and not last:
        some = faces.axes(settings.latent_dim)
        vae.linear.load_state_dict(axes.linear_vae_weights(some, beta, settings.latent_dim))
    if isinstance(vae.beta, torch.Tensor):
        vae.beta.fill_(beta)
    check_shapes(vae, settings.model.network)

    # Training.
    module = VAEModule(vae, settings, faces.fingerprint)
    record = train(module, faces, run, Until(stop, settings.trainer, until), devices, last)
    machine = {"threads": torch.get_num_threads(), "keep_memory": keep_memory}
    machine |= runs.environment()
    result = record.result(settings, faces.fingerprint) | machine
    if run.is_main_process and (settings.evaluate or settings.measures):
        log.info(_report(evaluate, run.dir, faces, settings))
    run.complete(result)
    return record.best()[0]


def _report(evaluate: Evaluate, path: Path, faces: Faces, settings: Settings) -> str:
    """What an evaluation says, or why it failed: the training is complete all the same."""
    try:
        return evaluate(path, faces, settings)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        again = f"{runs.command_line('evaluate', 'ckpt', path)}"
        return f"the training is complete, but its evaluation failed ({reason}); again with {again}"


def train(
    module: VAEModule,
    faces: Faces,
    run: runs.Run,
    until: Until,
    devices: list[int] | None,
    last: Path | None,
) -> Record:
    """Train a module in a run folder, from the checkpoint `last` if there is one."""
    # What writes into the folder.
    settings = module.settings
    record = Record(run)
    callbacks: list[pl.Callback] = [record]
    loggers: list[Logger] = []
    if run.is_main_process:
        board = TensorBoard(record, faces, settings)
        callbacks += [board, Progress(record)]
        loggers.append(Curves(board))
        loggers += [
            trackers.open_logger(name, node, run.dir) for name, node in settings.logger.items()
        ]
    callbacks += [callback(name, node) for name, node in settings.callbacks.items()]
    checkpoints = Checkpoints(record, until, settings.checkpoint_every)
    callbacks.append(checkpoints)

    # Lightning's trainer.
    arguments = settings.trainer.model_dump()
    arguments.pop("max_time", None)  # `until` counts it
    if devices:
        arguments["devices"] = devices
    validate_first = settings.warm_start == "ppca"
    arguments |= {"callbacks": callbacks, "logger": loggers, "default_root_dir": run.dir}
    trainer = build_trainer(settings.epochs, validate_first, arguments)
    for logger in loggers:
        if not last:  # MLflow refuses other values later, such as more epochs
            logger.log_hyperparams(settings.result_settings())

    # Train; a run without a result is not complete.
    if run.is_main_process:
        (run.dir / "result.json").unlink(missing_ok=True)
    try:
        data = FaceDataModule(faces, settings)
        trainer.fit(module, data, ckpt_path=last, weights_only=True)
    except MisconfigurationException as error:  # of an argument that Lightning checks only now
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    except RuntimeError as error:
        if type(error).__name__ != "InductorError":  # its import takes a second
            raise
        text = f"compile=true cannot build the step ({str(error).splitlines()[0]})"
        remedy = "install a C++ compiler, or pass compile=false"
        raise ConfigError(f"{text}; {remedy}") from None
    if run.is_main_process:
        checkpoints.remove_others()  # for a resume with nothing left to train
        figures.preview(run.dir, faces, trainer.strategy.root_device)
    return record


def describe(faces: Faces, settings: Settings, run: runs.Run) -> float:
    """Log and write the data card, the spectrum of the faces and the forecast of a linear VAE.

    Returns the forecast's beta.
    """
    latent_dim = settings.latent_dim
    card = data_card(faces)
    spectrum = spectrum_of(faces, latent_dim)
    beta = linear.settled_beta(spectrum, settings.beta, latent_dim)
    log.info(format_card(card))
    log.info(linear.forecast(spectrum, settings.beta, latent_dim))
    run.write_json("data_card.json", card)
    run.write_json("spectrum.json", spectrum._asdict())
    run.write_json("forecast.json", linear.linear_vae(spectrum, beta, latent_dim))
    return beta


def callback(name: str, node: Mapping[str, Any]) -> pl.Callback:
    """A callback by its `_target_`. Raises ConfigError."""
    called = targets.call(node)
    twin = type(called).__module__.startswith(
        "lightning."
    )  # they check for classes of that package
    if twin or not hasattr(called, "on_train_epoch_end"):
        raise ConfigError(
            f"callbacks.{name} is not a callback of pytorch_lightning; lightning.pytorch has other"
            " classes of the same names"
        )
    return called


def build_trainer(epochs: int, validate_first: bool, arguments: dict[str, Any]) -> pl.Trainer:
    """Lightning's trainer. Raises ConfigError for an argument that it refuses."""
    kinds = [type(callback) for callback in arguments["callbacks"]]
    on_gpu = torch.cuda.is_available() and arguments["accelerator"] != "cpu"
    defaults: dict[str, Any] = {
        "enable_progress_bar": any(issubclass(kind, ProgressBar) for kind in kinds),
        "enable_model_summary": any(issubclass(kind, ModelSummary) for kind in kinds),
        "sync_batchnorm": on_gpu,
    }
    try:
        return pl.Trainer(
            max_epochs=epochs,
            plugins=[PlainCheckpointIO()],
            num_sanity_val_steps=-1 if validate_first else 0,
            use_distributed_sampler=False,  # EpochBatches shares batches out itself
            **(defaults | arguments),
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
