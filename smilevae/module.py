"""How a VAE is trained: one step for every stage, Adam, a plateau schedule that a resume reproduces to the bit."""

import copy
import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim.swa_utils import get_ema_multi_avg_fn

from smilevae import UserError
from smilevae.batches import hash64
from smilevae.datamodule import VAL_BATCH
from smilevae.losses import beta_vae_terms, gaussian_kl, squared_error
from smilevae.metrics import active_units, negative_elbo, psnr
from smilevae.vae import VAE


class Diverged(UserError):
    """The loss is no longer a number; the checkpoints are from before."""


class VAEModule(pl.LightningModule):
    """Trains `vae` on loss = SSE + beta * KL; `epoch_metrics` holds the last epoch's `stage/term` numbers.

    Noise (the posterior's and dropout's) in a batch depends on (seed, stage, epoch, batch) alone, so that
    neither validation nor a resume moves training. `train/psnr` is of sampled reconstructions; `val/psnr`
    decodes mu, as every table does. `settings` (plain) go into the checkpoint, which rebuilds itself from them.
    """

    def __init__(self, vae: VAE, settings: dict[str, Any], fingerprint: str):
        super().__init__()
        self.vae, self.settings, self.seed = vae, settings, settings["seed"]
        self.ema = _follower(vae) if settings["ema"] else None
        self.fingerprint = fingerprint  # of the data: evaluation refuses other pictures
        self.epoch_metrics: dict[str, float] = {}
        self.kl_per_dim = torch.zeros(vae.latent_dim)  # nats, mean over the last validation
        self._sums: dict[str, Tensor] = {}  # stage -> (5,): examples, loss, recon, KL, error of mu's decoding
        self._moments = torch.zeros(3, vae.latent_dim)  # validation's sums of mu, mu^2 and KL
        self._restored: dict[str, Any] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, knobs = batch[0], self.settings["jitter"]
        if any(knobs.values()):
            uniform = self._noise(torch.rand, "jitter", self.current_epoch, batch_idx, len(x), 9)
            x = jitter(x, uniform * 2 - 1, **knobs)
        return self._step(x, "train", self.current_epoch, batch_idx)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.settings["schedule"] == "cosine":
            done = self.global_step / max(1, self.trainer.estimated_stepping_batches)
            for group in self.plateau.optimizer.param_groups:
                group["lr"] = self.settings["lr"] * one_cycle(done)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.ema is not None:  # here and not in a later hook: a checkpoint within an epoch must hold it
            soon = (1 + self.global_step) / (10 + self.global_step)  # the first weights are soon forgotten
            decay = min(self.settings["ema"], soon)
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(_moving(self.ema), _moving(self.vae), self.global_step)

    @property
    def shown(self) -> VAE:
        """The VAE that is validated, drawn and rebuilt from checkpoints: the weights' moving average if kept."""
        return self.vae if self.ema is None else self.ema

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch[0], "val", 0, batch_idx)  # the same noise every epoch: only the weights differ

    def _step(self, x: Tensor, stage: str, epoch: int, batch_idx: int) -> Tensor:
        """The batch's mean loss; its terms are added to the stage's sums."""
        torch.manual_seed(hash64(stage, self.seed, epoch, batch_idx, self.global_rank))  # dropout's
        vae = self.vae if stage == "train" else self.shown
        out = vae(x, self._noise(torch.randn, stage, epoch, batch_idx, len(x), vae.latent_dim))
        terms = beta_vae_terms(out.x_hat, x, out.mu, out.logvar, self.settings["beta"])
        loss = terms.loss.mean()
        if stage == "train" and not torch.isfinite(loss):
            raise Diverged(
                f"the loss became {loss.item()} in epoch {epoch + 1}, step {self.global_step} (recon"
                f" {terms.recon.mean().item():g}, kl {terms.kl.mean().item():g}, lr {self.lr:g}); lower lr"
            )
        with torch.no_grad():
            mu_error = terms.recon
            if stage == "val":
                mu_error = squared_error(vae.decode(out.mu), x)
                kl = gaussian_kl(out.mu, out.logvar)
                self._moments = self._moments.to(x.device) + torch.stack([out.mu, out.mu.square(), kl]).sum(1)
            sums = torch.stack([torch.ones_like(mu_error), *terms, mu_error]).to(self._wide).sum(1)
            self._sums[stage] = self._sums[stage] + sums if stage in self._sums else sums
        return loss

    def _noise(self, draw: Any, stage: str, epoch: int, batch_idx: int, num: int, width: int) -> Tensor:
        """This process's `num` rows of a batch's noise, which is the same however many processes share the batch."""
        seed = hash64("noise", stage, self.seed, epoch, batch_idx)
        generator = torch.Generator(self.device).manual_seed(seed)
        whole = VAL_BATCH if stage == "val" else self.settings["batch_size"]
        drawn = draw(whole, width, generator=generator, device=self.device)
        return drawn[self.global_rank :: self.trainer.world_size][:num]

    def on_validation_epoch_end(self) -> None:
        num = self._close("val")
        mean, square, kl = self.trainer.strategy.reduce(self._moments, reduce_op="sum").cpu() / num
        self._moments = torch.zeros_like(self._moments)
        self.kl_per_dim = kl
        variance = (square - mean.square()) * num / max(num - 1, 1)
        self.epoch_metrics["val/active_units"] = active_units(variance)
        if not math.isfinite(self.epoch_metrics["val/loss"]):  # before anything is saved
            raise Diverged(
                f"val/loss became {self.epoch_metrics['val/loss']} in epoch {self.current_epoch + 1}; lower lr"
            )

    def on_train_epoch_end(self) -> None:
        self._close("train")
        self.epoch_metrics["lr"] = self.lr
        if self.settings["schedule"] == "plateau":
            self.plateau.step(self.epoch_metrics["val/loss"])

    def _close(self, stage: str) -> float:
        """Turn a stage's sums into its metrics and start anew; gives the number of examples."""
        num, *sums = self.trainer.strategy.reduce(self._sums.pop(stage), reduce_op="sum").tolist()
        loss, recon, kl, mu_error = (total / num for total in sums)
        num_pixels = 3 * self.vae.image_size**2
        nelbo = negative_elbo(recon, kl, num_pixels)
        named = {"loss": loss, "recon": recon, "kl": kl, "nelbo": nelbo, "psnr": psnr(mu_error / num_pixels)}
        self.epoch_metrics |= {f"{stage}/{term}": value for term, value in named.items()}
        return num

    @property
    def within_epoch(self) -> bool:
        """Whether a training epoch is under way: its sums are not closed yet."""
        return "train" in self._sums

    def running_means(self) -> tuple[float, float, float]:
        """Loss, recon and KL over the running training epoch so far."""
        num, *sums = self._sums["train"].tolist()
        return sums[0] / num, sums[1] / num, sums[2] / num

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decay = {"weight_decay": self.settings["weight_decay"]} if self.settings["weight_decay"] else {}
        optimizer = (torch.optim.AdamW if decay else torch.optim.Adam)(
            self.vae.parameters(), lr=self.settings["lr"], **decay
        )
        # Lightning's automatic plateau schedule loses an update on resume; this one is stepped and saved here
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **self.settings["plateau"])
        if "plateau" in self._restored:
            self.plateau.load_state_dict(self._restored.pop("plateau"))
        return optimizer

    @property
    def lr(self) -> float:
        return self.plateau.optimizer.param_groups[0]["lr"]

    @property
    def _wide(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64  # float64 does not exist on Apple GPUs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"] = self.settings
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["plateau"] = self.plateau.state_dict()
        checkpoint["sums"] = self._sums  # of an epoch that is not over

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._restored["plateau"] = checkpoint["plateau"]  # Lightning builds the optimizer later
        self._sums = {stage: sums.to(self.device) for stage, sums in checkpoint["sums"].items()}


def one_cycle(done: float) -> float:
    """The share of the peak rate after a share `done` of training: up over a tenth, then down along a cosine to 1%."""
    if done < 0.1:
        return 0.04 + 0.96 * done / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.1) / 0.9)))


def jitter(x: Tensor, uniform: Tensor, *, shift: float, rotate: float, zoom: float, light: float) -> Tensor:
    """Faces (B, 3, S, S) moved, turned, zoomed and relit; the border is repeated, values stay in [0, 1].

    Up to `shift` pixels down and across, `rotate` degrees, e^`zoom` in size and e^(`zoom` / 2) in aspect; light
    multiplies all channels by up to e^`light`, and each by a third of that again. `uniform` (B, 9) in [-1, 1] says how
    far: down, across, angle, size, aspect, all channels, each channel.
    """
    if shift or rotate or zoom:
        down, across = uniform[:, 0:2].T * 2 * shift / x.shape[-1]
        angle, size, aspect = uniform[:, 2] * math.radians(rotate), uniform[:, 3] * zoom, uniform[:, 4] * zoom / 2
        sin, cos, wide, high = angle.sin(), angle.cos(), (-size - aspect).exp(), (-size + aspect).exp()
        rows = [cos * wide, sin * wide, -across], [-sin * high, cos * high, -down]
        where = F.affine_grid(torch.stack([torch.stack(row, 1) for row in rows], 1), list(x.shape), align_corners=False)
        x = F.grid_sample(x, where, mode="bicubic", padding_mode="border", align_corners=False).clamp(0, 1)
    if light:
        by = uniform[:, 5:6] + uniform[:, 6:] / 3
        x = (x * (light * by).exp()[:, :, None, None]).clamp(0, 1)
    return x


def _follower(vae: VAE) -> VAE:
    """A copy that is not trained and shares what is fixed anyway."""
    linear, vae.linear = vae.linear, None
    follower = copy.deepcopy(vae).requires_grad_(False)
    vae.linear = follower.linear = linear
    return follower


def _moving(vae: VAE) -> list[Tensor]:
    """Everything of a VAE that training changes, but for counters: weights, and BatchNorm's running statistics."""
    buffers = [b for name, b in vae.named_buffers() if b.is_floating_point() and not name.startswith("linear.")]
    return [*vae.parameters(), *buffers]
