"""TensorBoard: curves, KL per dimension, figures, HParams with metrics, the projector."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers.logger import Logger
from torch.nn import functional as F

from smilevae import runs
from smilevae.config import STUDY as USUAL
from smilevae.config import Settings
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.evaluation import grids
from smilevae.evaluation.figures import plain_samples, plain_strip
from smilevae.training.record import Record

MAX_ENCODED = 2000  # faces in the projector
NUM_DRAWN = 8  # faces in the figures
HP_METRICS = [f"val/{name}" for name in ("loss", "recon", "kl", "nelbo", "psnr", "active_units")]


class TensorBoard(pl.Callback):
    """Writes figures every few epochs, HParams, and the projector at the end.

    A resume purges the events after its checkpoint.
    """

    def __init__(self, record: Record, faces: Faces, settings: Settings):
        self.record = record
        self.faces = faces
        self.settings = settings
        self.order = faces.sample("val")
        self.board: Any = None
        self._pool = ThreadPoolExecutor(1)  # it encodes figures while the training goes on
        self._drawn: list[Future] = []

    def on_train_start(self, trainer: pl.Trainer, module: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        if threading.excepthook is threading.__excepthook__:
            threading.excepthook = _of_a_thread
        epoch = trainer.current_epoch + 1
        purge_step = epoch if epoch > 1 else None
        self.board = SummaryWriter(str(self.record.run.dir), purge_step=purge_step)
        # The settings; beside them HParams shows the last values of the metrics.
        settings = self.settings.result_settings()
        shown = {name: settings.get(name) for name in columns(self.record.run.dir)}
        shown = {k: value for k, value in shown.items() if isinstance(value, int | float | str)}
        for summary in hparams(shown, dict.fromkeys(HP_METRICS, float("nan"))):
            self.board.file_writer.add_summary(summary)

    def on_train_epoch_end(self, trainer: pl.Trainer, module: Any) -> None:
        epoch = self.record.num_epochs
        self.board.add_histogram("val/kl_per_dim", module.epoch.kl_per_dim, epoch)
        if epoch % self.settings.log_images_every == 0 or epoch in (1, trainer.max_epochs):
            vae = module.epoch.eval_model
            was_training = vae.training
            self._draw(vae.eval(), module.device, epoch)
            vae.train(was_training)

    @torch.no_grad()
    def _draw(self, vae: Any, device: torch.device, epoch: int) -> None:
        x = self.faces.batch(self.order[:NUM_DRAWN], device)
        mu, _ = vae.encode(x)
        pictures = {
            "reconstructions": grids.pairs(x, vae.decode(mu)),
            "samples": grids.square(plain_samples(vae, self.faces, 16)),
        }
        if self.faces.labelled("train"):
            pictures["smile_strip"] = grids.tile(plain_strip(vae, self.faces, mu[:4]))
        self._wait()
        for name, picture in pictures.items():
            small = (picture.clamp(0, 1) * 255).byte().cpu()
            job = self._pool.submit(self.board.add_image, f"pictures/{name}", small, epoch)
            self._drawn.append(job)

    def _wait(self) -> None:
        """For the figures before; raises what their thread raised."""
        for job in self._drawn:
            job.result()
        self._drawn = []

    def on_train_end(self, trainer: pl.Trainer, module: Any) -> None:
        self._wait()
        rows = self.order[:MAX_ENCODED]
        mu, _ = encode(module.epoch.eval_model, self.faces, rows)
        thumbnails = F.interpolate(self.faces.batch(rows), size=(32, 32), mode="area")
        labels = [self.faces.classes[int(smile)] for smile in self.faces.smile[rows]]
        self.board.add_embedding(mu, labels, thumbnails, trainer.current_epoch, tag="held_out")
        self.on_exception(trainer, module, None)

    def on_exception(self, trainer: pl.Trainer, module: Any, exception: Any) -> None:
        self._pool.shutdown()
        if self.board:
            self.board.close()


class Curves(Logger):
    """The metrics that Lightning logs, in the event file of a TensorBoard callback."""

    def __init__(self, tensorboard: TensorBoard):
        super().__init__()
        self.tensorboard = tensorboard

    name = "smilevae"
    version = ""

    @property
    def experiment(self) -> Any:
        return self.tensorboard.board

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """TensorBoard's callback writes them."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary

        values = []
        for name, value in metrics.items():
            if name != "epoch":
                tag = name if "/" in name else f"train/{name}"
                values.append(Summary.Value(tag=tag, simple_value=float(value)))
        self.experiment.file_writer.add_summary(Summary(value=values), step)


def _of_a_thread(error: threading.ExceptHookArgs) -> None:
    """Print what ended a thread. TensorBoard's writer is left out: it raises its error again."""
    if not type(error.thread).__module__.startswith("tensorboard."):
        threading.__excepthook__(error)


def columns(run: Path) -> list[str]:
    """The settings in HParams: those that differ among the jobs of a sweep, else the usual ones."""
    jobs = runs.read_json(run.parent / "sweep.json").get("jobs", {})
    rows = [job["settings"] for job in jobs.values()]
    names = rows[0] if rows else ()
    varied = [name for name in names if len({str(row.get(name)) for row in rows}) > 1]
    return varied or [*USUAL]
