"""TensorBoard: curves, KL per dimension, figures, HParams with metrics, the projector."""

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from smilevae import runs
from smilevae.config import STUDY as USUAL
from smilevae.config import Settings
from smilevae.data import Faces
from smilevae.data.batches import gather, to_unit
from smilevae.evaluation import grids
from smilevae.evaluation.figures import plain_samples, plain_strip
from smilevae.evaluation.measure import encode
from smilevae.training.record import Record

MAX_ENCODED = 2000  # faces in the projector
HP_METRICS = ("loss", "recon", "kl", "nelbo", "psnr", "active_units")


class TensorBoard(pl.callbacks.Checkpoint):
    """Writes curves every epoch, figures every few epochs, HParams and the projector at the end.

    A Checkpoint to Lightning, so that it runs after Record. A resume purges the events after its checkpoint.
    """

    def __init__(self, record: Record, faces: Faces, settings: Settings, num: int = 8):
        self.record, self.faces, self.every = record, faces, settings.log_images_every
        values = settings.result_settings()
        self.hparams = {k: values[k] for k in columns(record.run.dir) if isinstance(values.get(k), int | float | str)}
        self.rows = np.random.default_rng(0).permutation(faces.rows("val"))[:num]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = _of_a_thread
        epoch = trainer.current_epoch + 1
        self.board = SummaryWriter(str(self.record.run.dir), purge_step=epoch if epoch > 1 else None)
        names = [f"val/{name}" for name in HP_METRICS]
        for summary in hparams(self.hparams, dict.fromkeys(names, float("nan"))):  # the table shows their last values
            self.board.file_writer.add_summary(summary)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        line = dict(self.record.epochs[-1])
        epoch = line.pop("epoch")
        for name, value in line.items():
            self.board.add_scalar(name if "/" in name else f"train/{name}", value, epoch)
        self.board.add_histogram("val/kl_per_dim", pl_module.epoch.kl_per_dim, epoch)
        if epoch % self.every == 0 or epoch in (1, trainer.max_epochs):
            vae = pl_module.epoch.eval_model
            was_training = vae.training
            self._draw(vae.eval(), pl_module.device, epoch)
            vae.train(was_training)

    @torch.no_grad()
    def _draw(self, vae: Any, device: torch.device, epoch: int) -> None:
        board = self.board
        x = to_unit(torch.from_numpy(gather(self.faces.images, self.rows))).to(device)
        mu, _ = vae.encode(x)
        board.add_image("pictures/reconstructions", grids.pairs(x, vae.decode(mu)), epoch)
        board.add_image("pictures/samples", grids.square(plain_samples(vae, self.faces, 16)), epoch)
        if self.faces.labelled("train"):
            board.add_image("pictures/smile_strip", grids.tile(plain_strip(vae, self.faces, mu[:4])), epoch)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "board"):
            self.board.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        board = self.board
        rows = np.random.default_rng(0).permutation(self.faces.rows("val"))[:MAX_ENCODED]
        mu, _ = encode(pl_module.epoch.eval_model, self.faces, rows)
        images = to_unit(torch.from_numpy(gather(self.faces.images, rows)))
        thumbnails = F.interpolate(images, size=(32, 32), mode="area")
        labels = [self.faces.classes[int(smile)] for smile in self.faces.smile[rows]]
        board.add_embedding(mu, labels, thumbnails, trainer.current_epoch, tag="held_out")
        board.close()


def _of_a_thread(error: threading.ExceptHookArgs) -> None:
    """Print what ended a thread, but for TensorBoard's writer: the next write raises its error again."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def columns(run: Path) -> list[str]:
    """The settings that HParams shows: those that differ among the jobs of the run's sweep, else the usual knobs."""
    jobs = runs.read_json(run.parent / "sweep.json").get("jobs", {}).values()
    rows = [job["settings"] for job in jobs]
    varied = [name for name in (rows[0] if rows else ()) if len({str(row.get(name)) for row in rows}) > 1]
    return varied or [*USUAL]
