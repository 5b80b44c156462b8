"""One training from settings to result; importable, so that a process of its own can be handed it."""

import logging
import time
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from smilevae import ConfigError, batches, callbacks, checkpoints, datasets, evaluation, linear, pictures, ppca, runs
from smilevae.datamodule import FaceDataModule
from smilevae.module import VAEModule

log = logging.getLogger(__name__)


def fit(settings: dict[str, Any], run: runs.Run, stop: runs.Stop, devices: list[int] | None = None) -> dict[str, Any]:
    """Build the parts, train, record the result; gives the best epoch's metrics. `devices` overrides the trainer's.

    With settings["resume"] the run's last checkpoint is gone on from, if it had come to one. Raises ConfigError,
    DataError, CheckpointError, module.Diverged. With settings["evaluate"] a run is complete once it is evaluated.
    """
    start, goes_on = time.perf_counter(), settings["resume"] and run.goes_on
    if settings["threads"]:
        torch.set_num_threads(settings["threads"])
    faces = datasets.load_faces(**settings["data"], image_size=settings["image_size"])
    run.write_json("data_card.json", faces.card())
    log.info(datasets.format_card(faces.card()))
    spectrum = datasets.spectrum_of(faces, settings["data"].get("cache", True))
    point = spectrum, settings["beta"], settings["latent_dim"]
    run.write_json("spectrum.json", spectrum._asdict())
    run.write_json("forecast.json", linear.linear_vae(*point))
    log.info(linear.forecast(*point))
    data = FaceDataModule(faces, **{k: settings[k] for k in ("batch_size", "seed", "augment", "num_workers")})
    torch.manual_seed(batches.hash64("weights", settings["seed"]))
    vae = checkpoints.build_vae(settings)
    if vae.linear and not goes_on:
        vae.linear.load_state_dict(ppca.linear_vae_weights(faces.axes, settings["beta"], settings["latent_dim"]))
    module = VAEModule(vae, settings, faces.fingerprint)
    record = callbacks.Record(run, stop)
    try:
        trainer = pl.Trainer(
            max_epochs=settings["epochs"],
            logger=False,  # callbacks.TensorBoard writes under the run folder's own name
            callbacks=[record, callbacks.TensorBoard(record, faces, settings), callbacks.Progress(record)],
            plugins=[callbacks.PlainCheckpointIO()],
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=-1 if vae.linear else 0,  # the linear optimum is epoch 0
            use_distributed_sampler=False,  # EpochBatches shares batches out itself
            **settings["trainer"] | ({"devices": devices} if devices else {}),
        )
    except (TypeError, ValueError, MisconfigurationException) as error:
        raise ConfigError(f"trainer: {str(error).splitlines()[0]}") from None
    if trainer.strategy.root_device.type == "cpu" and "16" in str(trainer.precision) and not halves_pay():
        raise ConfigError(f"trainer.precision={trainer.precision} only slows this processor down; leave it at 32-true")
    resume = checkpoints.resume_point(run.dir, settings, faces.fingerprint) if goes_on else None
    if run.leads:
        (run.dir / "result.json").unlink(missing_ok=True)  # a run with a result is complete, and this one goes on
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    if run.leads:
        record.name_best()  # a resume with nothing left to train has not come to it
        pictures.preview(run.dir, faces)
    seconds = {"wall_seconds": round(time.perf_counter() - start, 1), "threads": torch.get_num_threads()}
    result = record.result(settings, faces.fingerprint) | seconds | runs.environment()
    if run.leads and settings["evaluate"]:
        log.info(evaluation.report(str(run.dir)))
    run.complete(result)
    return record.best()[0]


def halves_pay(size: int = 1024, repeats: int = 5) -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones: measured, best of a few."""
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.ones(size, size, dtype=dtype)
        a @ a
        times = []
        for _ in range(repeats):
            begin = time.perf_counter()
            a @ a
            times.append(time.perf_counter() - begin)
        seconds[dtype] = min(times)
    return seconds[torch.bfloat16] < seconds[torch.float32]
