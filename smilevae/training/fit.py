"""One training, from settings to a complete run folder."""

import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from smilevae import runs
from smilevae.config import Settings
from smilevae.data import Faces, data_card, format_card, load_faces, spectrum_of
from smilevae.data.batches import hash64
from smilevae.errors import ConfigError, UserError
from smilevae.evaluation import figures, realism
from smilevae.evaluation.samplers import sampler_of
from smilevae.models import axes, linear
from smilevae.models.vae import build_vae
from smilevae.runs import checkpoint
from smilevae.training import sharp, trackers
from smilevae.training.datamodule import FaceDataModule
from smilevae.training.module import VAEModule
from smilevae.training.progress import Progress
from smilevae.training.record import Record
from smilevae.training.tensorboard import TensorBoard

log = logging.getLogger(__name__)


Evaluate = Callable[[Path, Faces], str]  # the report of a run folder, on its faces


def fit(
    settings: Settings,
    run: runs.Run,
    stop: runs.Stop,
    evaluate: Evaluate,
    devices: list[int] | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """Train and record the result; gives the best epoch's metrics. `devices` overrides the trainer's.

    With settings.evaluate the log gets what `evaluate` says. Raises ConfigError, DataError,
    CheckpointError, Diverged, Interrupted; Paused after the epoch `until`.
    """
    can_resume = settings.resume and run.can_resume
    kept = settings.keep_memory and runs.keep_memory()
    if settings.threads:
        torch.set_num_threads(settings.threads)
    faces = load_faces(settings.data, settings.image_size)
    if settings.sharpen.epochs:
        realism.feature_space(faces)  # raises DataError before the first phase
    beta = describe(faces, settings, run)
    torch.manual_seed(hash64("weights", settings.seed))
    vae = build_vae(settings)
    if vae.linear and not can_resume:
        some = faces.axes(settings.latent_dim)
        vae.linear.load_state_dict(axes.linear_vae_weights(some, beta, settings.latent_dim))
    if isinstance(vae.beta, torch.Tensor):
        vae.beta.fill_(beta)
    module = VAEModule(vae, settings, faces.fingerprint)
    record = train(module, faces, settings, run, stop, devices, bool(can_resume), until)
    evaluated = sharpen(settings, faces, run, stop, devices) if settings.sharpen.epochs else run.dir
    machine = {"threads": torch.get_num_threads(), "keep_memory": kept} | runs.environment()
    result = record.result(settings, faces.fingerprint) | machine
    if run.is_main_process and settings.evaluate:
        log.info(_report(evaluate, evaluated, faces))
    run.complete(result)
    return record.best()[0]


def _report(evaluate: Evaluate, path: Path, faces: Faces) -> str:
    """What an evaluation says, or why it failed: the training is complete all the same."""
    try:
        return evaluate(path, faces)
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        again = f"{runs.command_name('evaluate')} {runs.hydra_argument('ckpt', path)}"
        return f"the training is complete, but its evaluation failed ({reason}); again with {again}"


def sharpen(settings: Settings, faces: Faces, run: runs.Run, stop: runs.Stop, devices: list[int] | None) -> Path:
    """The second phase, from a run's best checkpoint; gives its own run folder within the run's."""
    with contextlib.closing(runs.Run(run.dir / runs.SHARP)) as inner:
        inner.sweep, inner.meter = run.sweep, run.meter
        if runs.read_result(inner.dir):
            return inner.dir
        log.info(f"a sharper decoder, {settings.sharpen.epochs} epochs, into {runs.shell_path(inner.dir)}")
        own = settings.with_values({"epochs": settings.sharpen.epochs, "ema": sharp.EMA, "resume": None})
        inner.write_config(own)
        inner.status("RUNNING")
        vae = checkpoint.load(runs.find(str(run.dir))).vae
        mixture = sampler_of(vae, faces, "auto", settings.seed)
        space = realism.feature_space(faces)
        torch.manual_seed(hash64("discriminator", settings.seed))
        module = sharp.SharpModule(vae.train(), own, faces.fingerprint, faces.native_size, mixture, space)
        record = train(module, faces, own, inner, stop, devices, inner.can_resume)
        inner.complete(record.result(own, faces.fingerprint) | runs.environment())
        return inner.dir


def train(
    module: VAEModule,
    faces: Faces,
    settings: Settings,
    run: runs.Run,
    stop: runs.Stop,
    devices: list[int] | None,
    can_resume: bool,
    until: int | None = None,
) -> Record:
    """Train a module in a run folder, from its last checkpoint if it `can_resume`."""
    arguments = settings.trainer.model_dump() | ({"devices": devices} if devices else {})
    record = Record(run, stop, settings.checkpoint_every, arguments.pop("max_time", None), until)
    callbacks: list[pl.Callback] = []
    if run.is_main_process:
        callbacks = [TensorBoard(record, faces, settings), Progress(record)]
        if settings.logger != "tensorboard":
            callbacks.append(trackers.Tracker(record, settings))
    if not module.automatic_optimization:
        del arguments["gradient_clip_val"]  # Lightning refuses it
    first = not module.automatic_optimization or settings.warm_start == "ppca"
    trainer = build_trainer(settings.epochs, first, [record, *callbacks], arguments)
    resume = checkpoint.resume_point(run.dir, settings, faces.fingerprint) if can_resume else None
    if run.is_main_process:
        (run.dir / "result.json").unlink(missing_ok=True)  # a run with a result is complete
    try:
        trainer.fit(module, FaceDataModule(faces, settings), ckpt_path=resume, weights_only=True)
    except MisconfigurationException as error:  # of an argument that Lightning checks only now
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    if run.is_main_process:
        record.remove_others()  # for a resume with nothing left to train
        figures.preview(run.dir, faces)
    return record


def describe(faces: Faces, settings: Settings, run: runs.Run) -> float:
    """Log and write the data card, the spectrum of the faces and the forecast of a linear VAE. Gives its beta."""
    card, spectrum = data_card(faces), spectrum_of(faces, settings.latent_dim)
    beta = linear.settled_beta(spectrum, settings.beta, settings.latent_dim)
    log.info(format_card(card))
    log.info(linear.forecast(spectrum, settings.beta, settings.latent_dim))
    run.write_json("data_card.json", card)
    run.write_json("spectrum.json", spectrum._asdict())
    run.write_json("forecast.json", linear.linear_vae(spectrum, beta, settings.latent_dim))
    return beta


def build_trainer(epochs: int, first: bool, callbacks: list[pl.Callback], arguments: dict[str, Any]) -> pl.Trainer:
    """Lightning's trainer; `first` validates before it trains. Raises ConfigError for an argument it refuses."""
    try:
        return pl.Trainer(
            max_epochs=epochs,
            logger=False,  # our TensorBoard callback writes
            callbacks=callbacks,
            plugins=[callback.io for callback in callbacks if isinstance(callback, Record)],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=-1 if first else 0,
            use_distributed_sampler=False,  # EpochBatches shares batches out itself
            sync_batchnorm=torch.cuda.is_available() and arguments["accelerator"] != "cpu",
            **arguments,
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
