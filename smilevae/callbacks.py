"""What happens around training: the record and its checkpoints, TensorBoard's pictures, the progress line."""

import logging
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from lightning_fabric.plugins import CheckpointIO
from torch.nn import functional as F

from smilevae import DataError, checkpoints, grids, knobs, latents
from smilevae.batches import gather, to_unit
from smilevae.datasets import UNKNOWN, Faces
from smilevae.measure import encode
from smilevae.pictures import INTENSITIES, decode_rows
from smilevae.runs import Interrupted, Run, Stop, identity
from smilevae.smile import mean_difference

log = logging.getLogger(__name__)
NUM_BEST = 2
MAX_ENCODED = 2000  # faces behind the smile direction and in the projector that TensorBoard shows
HP_KNOBS = (
    "beta",
    "latent_dim",
    "batch_size",
    "epochs",
    "lr",
    "normalize",
    "image_size",
    "seed",
    "augment",
    "warm_start",
    "schedule",
    "ema",
    "model.network",
    "model.dropout",
    "data.source",
    "data.confound",
)
HP_METRICS = ("val/loss", "val/recon", "val/kl", "val/nelbo", "val/psnr", "val/active_units")


class PlainCheckpointIO(CheckpointIO):
    """Lightning's checkpoints through our one writer and one reader."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        checkpoints.write(checkpoint, Path(path))

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return checkpoints.read(path)

    def remove_checkpoint(self, path: Any) -> None:
        Path(path).unlink(missing_ok=True)


class Record(pl.callbacks.Checkpoint):
    """Writes metrics.jsonl and the checkpoints at every epoch's end; stops where a signal asked for it.

    Its state is the list of epochs so far: the best two follow from it, and a resumed run rewrites the same file.
    """

    def __init__(self, run: Run, stop: Stop):
        self.run, self.stop = run, stop
        self.epochs: list[dict[str, Any]] = []
        self._start = self.images_per_second = 0.0

    def best(self) -> list[dict[str, Any]]:
        """The epochs of the best checkpoints, best first."""
        return sorted(self.epochs, key=lambda line: (line["val/loss"], line["epoch"]))[:NUM_BEST]

    def result(self, settings: dict[str, Any], fingerprint: str) -> dict[str, Any]:
        """What result.json says of the training, with paths relative to the run. Raises DataError for no epoch."""
        if not self.epochs:
            raise DataError("no training step was made; add pictures")
        best = self.best()
        return {
            "identity": identity(settings, fingerprint),
            "data_fingerprint": fingerprint,
            "settings": knobs.flatten(settings),
            "checkpoints": [f"checkpoints/{checkpoints.best_name(line['epoch'])}" for line in best],
            "best": best[0],
            "final": self.epochs[-1],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epochs = [dict(line) for line in state["epochs"]]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._start, self._seen = time.perf_counter(), 0
        self.stop.install(deferred=True)  # after Lightning's own handlers
        if not self.epochs and "val/loss" in pl_module.epoch_metrics:  # a warm start is worth a checkpoint
            log.info(f"epoch 0, the linear optimum: val loss {pl_module.epoch_metrics['val/loss']:.1f}")
            self._close_epoch(trainer, pl_module, 0)
        elif trainer.is_global_zero and self.epochs and not pl_module.within_epoch:
            self.name_best()  # a kill may have come between last.ckpt and its second name

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.stop.deferred = False

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if self.stop.signum:
            raise Interrupted(self.stop.signum)
        self._start, self._seen = time.perf_counter(), 0

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._seen += len(batch[0]) * trainer.world_size
        self.images_per_second = self._seen / (time.perf_counter() - self._start)
        if self.stop.signum and batch_idx + 1 < trainer.num_training_batches:
            self._save(trainer)
            raise Interrupted(self.stop.signum)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close_epoch(trainer, pl_module, trainer.current_epoch + 1)

    def _close_epoch(self, trainer: pl.Trainer, pl_module: Any, epoch: int) -> None:
        speed = round(self.images_per_second, 1)
        self.epochs.append({"epoch": epoch, **pl_module.epoch_metrics, "images_per_second": speed})
        if trainer.is_global_zero:
            self.run.write_metrics(self.epochs)
        self._save(trainer)
        if trainer.is_global_zero:
            self.name_best()

    def _save(self, trainer: pl.Trainer) -> None:
        last = self.run.checkpoints / "last.ckpt"
        if trainer.is_global_zero:
            checkpoints.keep_previous(last)
        trainer.save_checkpoint(last, weights_only=False)  # with the optimizer, for a resume

    def name_best(self) -> None:
        """Give last.ckpt, if its epoch is among the best, that epoch's name; remove those that no longer are."""
        epoch, keep = self.epochs[-1]["epoch"], {line["epoch"] for line in self.best()}
        named = self.run.checkpoints / checkpoints.best_name(epoch)
        if epoch in keep and not named.exists():
            checkpoints.link(self.run.checkpoints / "last.ckpt", named)
        checkpoints.prune(self.run.checkpoints, keep)


class TensorBoard(pl.callbacks.Checkpoint):
    """Scalars and KL per dimension every epoch, pictures every few; HParams with metrics; at the end the projector.

    A Checkpoint to Lightning, so that it comes after Record. The x axis is the epoch; a resumed run purges what a
    killed one wrote after its last checkpoint.
    """

    def __init__(self, record: Record, faces: Faces, settings: dict[str, Any], num: int = 8):
        self.record, self.faces, self.every = record, faces, settings["log_images_every"]
        flat = knobs.flatten(settings)
        self.hparams = {name: flat[name] for name in HP_KNOBS if flat.get(name) is not None}
        self.rows = np.random.default_rng(0).permutation(faces.rows("val"))[:num]

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        epoch = trainer.current_epoch + 1
        self.board = SummaryWriter(str(self.record.run.dir), purge_step=epoch if epoch > 1 else None)

        self.noise = torch.randn(16, pl_module.shown.latent_dim, generator=torch.Generator().manual_seed(0))
        names = [f"hp/{name.replace('/', '_')}" for name in HP_METRICS]
        for summary in hparams(self.hparams, dict.fromkeys(names, float("nan"))):  # no metrics, no HParams table
            self.board.file_writer.add_summary(summary)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        line = self.record.epochs[-1]
        epoch = line["epoch"]
        for name, value in line.items():
            if name != "epoch":
                self.board.add_scalar(name if "/" in name else f"train/{name}", value, epoch)
        self.board.add_histogram("val/kl_per_dim", pl_module.kl_per_dim, epoch)
        if epoch % self.every == 0 or epoch in (1, trainer.max_epochs):
            vae, was_training = pl_module.shown, pl_module.shown.training
            vae.eval()
            with torch.no_grad():
                self._draw(vae, pl_module.device, epoch)
            vae.train(was_training)

    def _draw(self, vae: Any, device: torch.device, epoch: int) -> None:
        board = self.board
        x = to_unit(torch.from_numpy(gather(self.faces.images, self.rows))).to(device)
        mu, _ = vae.encode(x)
        board.add_image("pictures/reconstructions", grids.pairs(x, vae.decode(mu)), epoch)
        board.add_image("pictures/samples", grids.square(vae.decode(self.noise.to(device))), epoch)
        train = np.random.default_rng(0).permutation(self.faces.rows("train"))[:MAX_ENCODED]
        smile = torch.from_numpy(self.faces.smile[train])
        if (smile == 1).any() and (smile == 0).any():
            direction = mean_difference(encode(vae, self.faces, train)[0], smile).to(device)
            strip = latents.shift(mu[:4], direction, torch.tensor(INTENSITIES, device=device))
            board.add_image("pictures/smile_strip", grids.tile(decode_rows(vae, strip)), epoch)

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        if hasattr(self, "board"):
            self.board.close()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not trainer.is_global_zero:
            return
        board, best = self.board, self.record.best()[0]
        for name in HP_METRICS:
            board.add_scalar(f"hp/{name.replace('/', '_')}", best[name], trainer.current_epoch)
        rows = np.random.default_rng(0).permutation(self.faces.rows("val"))[:MAX_ENCODED]
        mu, _ = encode(pl_module.shown, self.faces, rows)
        thumbnails = F.interpolate(
            to_unit(torch.from_numpy(gather(self.faces.images, rows))), size=(32, 32), mode="area"
        )
        words = {1: "smiling", 0: "not smiling", UNKNOWN: "no label"}
        labels = [words[int(smile)] for smile in self.faces.smile[rows]]
        board.add_embedding(mu, labels, thumbnails, trainer.current_epoch, tag="held_out")
        board.close()


class Progress(pl.Callback):
    """One line over the whole training on a terminal; one log line an epoch elsewhere."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self._bar: Any = None
        self._shown = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        if not (sys.stderr.isatty() and trainer.is_global_zero):
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("epoch"),
            MofNCompleteColumn(),
            BarColumn(24),
            TimeRemainingColumn(),
            TextColumn("{task.description}"),
        )
        self._bar = Progress(*columns, console=Console(stderr=True))
        self._task = self._bar.add_task("", total=trainer.max_epochs, completed=trainer.current_epoch)
        self._bar.start()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        now = time.monotonic()
        if self._bar and now - self._shown > 0.5:  # reading the sums waits for the device
            self._shown = now
            done = trainer.current_epoch + (batch_idx + 1) / trainer.num_training_batches
            loss, recon, kl = pl_module.running_means()
            text = f"loss {loss:.1f}  recon {recon:.1f}  kl {kl:.1f}  {self.record.images_per_second:.0f} images/s"
            self._bar.update(self._task, completed=round(done, 2), description=text)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        found = pl_module.epoch_metrics
        line = (
            f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  val loss {found['val/loss']:.1f}"
            f"  recon {found['val/recon']:.1f}  kl {found['val/kl']:.1f}  psnr {found['val/psnr']:.2f} dB"
            f"  active {found['val/active_units']}  {self.record.images_per_second:.0f} images/s"
        )
        if self._bar:
            self._bar.update(self._task, completed=trainer.current_epoch + 1)
            self._bar.console.print(line, highlight=False)
        elif trainer.is_global_zero:
            log.info(line)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._close()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None
