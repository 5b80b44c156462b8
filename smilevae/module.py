"""How a VAE is trained: one step for every stage, Adam, a plateau schedule that a resume reproduces to the bit."""

import math
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor

from smilevae import CheckpointError, UserError
from smilevae.datasets import hash64
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
        self.fingerprint = fingerprint  # of the data: evaluation refuses other pictures
        self.epoch_metrics: dict[str, float] = {}
        self.kl_per_dim = torch.zeros(vae.latent_dim)  # nats, mean over the last validation
        self._sums: dict[str, Tensor] = {}  # stage -> (5,): examples, loss, recon, KL, error of mu's decoding
        self._moments = torch.zeros(3, vae.latent_dim)  # validation's sums of mu, mu^2 and KL
        self._restored: dict[str, Any] = {}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return self._step(batch[0], "train", self.current_epoch, batch_idx)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch[0], "val", 0, batch_idx)  # the same noise every epoch: only the weights differ

    def _step(self, x: Tensor, stage: str, epoch: int, batch_idx: int) -> Tensor:
        """The batch's mean loss; its terms are added to the stage's sums."""
        torch.manual_seed(hash64(stage, self.seed, epoch, batch_idx, self.global_rank))
        out = self.vae(x)
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
                mu_error = squared_error(self.vae.decode(out.mu), x)
                kl = gaussian_kl(out.mu, out.logvar)
                self._moments = self._moments.to(x.device) + torch.stack([out.mu, out.mu.square(), kl]).sum(1)
            sums = torch.stack([torch.ones_like(mu_error), *terms, mu_error]).to(self._wide).sum(1)
            self._sums[stage] = self._sums[stage] + sums if stage in self._sums else sums
        return loss

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
        # for callbacks that monitor it
        self.log("val/loss", self.epoch_metrics["val/loss"], logger=False, sync_dist=True)

    def on_train_epoch_end(self) -> None:
        self._close("train")
        self.epoch_metrics["lr"] = self.lr
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
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings["lr"])
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
        if checkpoint["fingerprint"] != self.fingerprint:
            raise CheckpointError("the pictures changed since this run began; restore them, or start a new run")
        self._restored["plateau"] = checkpoint["plateau"]  # Lightning builds the optimizer later
        self._sums = {stage: sums.to(self.device) for stage, sums in checkpoint["sums"].items()}
