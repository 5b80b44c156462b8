"""How a VAE is trained: one step for every stage, Adam, a schedule that a resume reproduces to the bit."""

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from smilevae.config import Settings, checked
from smilevae.data.augment import augment
from smilevae.data.batches import hash64
from smilevae.errors import Diverged
from smilevae.models.losses import Terms, beta_vae_terms, gaussian_kl, optimal_beta, squared_error
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE, VAEOutput, build_vae
from smilevae.runs import checkpoint
from smilevae.training.compiling import compiled
from smilevae.training.datamodule import VAL_BATCH

BETA_SHARE = 0.05  # of beta=auto that a batch's own optimum makes up
NOISE_AT_ONCE = 64  # batches: then a step waits for no transfer


@dataclass
class EpochState:
    """The part of a module that callbacks read: the evaluated model, the last and the running epoch's numbers.

    `eval_model` is the moving average of the weights if one is kept; `kl_per_dim` (D,) is in nats. `metrics` maps
    `stage/term` to the last epoch's mean. `sums` maps a running stage to (5,): examples, loss, recon, KL, mu's error.
    """

    eval_model: VAE
    kl_per_dim: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, stage: str, sums: Tensor) -> None:
        """Add a batch's sums; a resume restores earlier ones on the CPU."""
        self.sums[stage] = self.sums[stage].to(sums.device) + sums if stage in self.sums else sums


class VAEModule(pl.LightningModule):
    """Trains `vae` on loss = SSE + beta * KL; callbacks read `epoch`.

    A batch's noise (the posterior's and dropout's) depends on (seed, stage, epoch, batch) alone: neither validation
    nor a resume changes training. `train/psnr` is of sampled reconstructions; `val/psnr` decodes mu.
    """

    def __init__(self, vae: VAE, settings: Settings, fingerprint: str):
        super().__init__()
        self.vae, self.settings, self.seed = vae, settings, settings.seed
        self.num_pixels = 3 * vae.image_size**2
        shared = {id(vae.linear): vae.linear}  # it is fixed
        self.ema = copy.deepcopy(vae, shared).requires_grad_(False) if settings.ema else None
        self.fingerprint = fingerprint  # of the data
        self.epoch = EpochState(self.vae if self.ema is None else self.ema, torch.zeros(vae.latent_dim))
        self._losses: Any = losses
        self._drawn: dict[str, tuple[tuple[int, int], Tensor]] = {}  # a stage's (epoch, block) and its noise
        self._moments = torch.zeros(3, vae.latent_dim)  # validation's sums of mu, mu^2 and KL
        self._plateau: dict[str, Any] | None = None  # of a checkpoint: Lightning builds the optimizer after it

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, map_location: Any = None, *_: Any, **__: Any) -> "VAEModule":
        """The module of a checkpoint file, in eval mode. Reads plain tensors only. Raises CheckpointError."""
        content = checkpoint.read(Path(checkpoint_path))
        settings = checked(content["hyper_parameters"])
        module = cls(build_vae(settings), settings, content["fingerprint"])
        module.load_state_dict({k: v for k, v in content["state_dict"].items() if not k.startswith("discriminator.")})
        return module.to(map_location or "cpu").eval()

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of faces (B, 3, S, S) in [0, 1]: mu decoded."""
        return self.epoch.eval_model.decode(self.epoch.eval_model.encode(x)[0])

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        x, amounts = batch[0], self.settings.jitter.model_dump()
        if any(amounts.values()):
            uniform = self._noise(torch.rand, "jitter", self.current_epoch, batch_idx, len(x), 9)
            x = augment(x, uniform * 2 - 1, **amounts)
        loss = self._step(x, "train", self.current_epoch, batch_idx)
        if self.device.type == "cpu":  # to read the sums elsewhere waits for the device
            self.check_finite()
        return loss

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.settings.schedule == "cosine":
            done = self.global_step / max(1, self.trainer.estimated_stepping_batches)
            for group in self.plateau.optimizer.param_groups:
                group["lr"] = self.settings.lr * one_cycle(done)

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        self._average(self.global_step)  # not in a later hook: a checkpoint within an epoch holds it

    def _average(self, step: int) -> None:
        if self.ema is not None:
            decay = min(self.settings.ema, (1 + step) / (10 + step))  # forgets the first weights soon
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(_moving(self.ema), _moving(self.vae), step)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self._step(batch[0], "val", 0, batch_idx)  # the same noise every epoch

    def _step(self, x: Tensor, stage: str, epoch: int, batch_idx: int) -> Tensor:
        """The batch's mean loss; adds its terms to the stage's sums."""
        torch.manual_seed(hash64(stage, self.seed, epoch, batch_idx, self.global_rank))  # dropout's
        vae = self.vae if stage == "train" else self.epoch.eval_model
        noise = self._noise(torch.randn, stage, epoch, batch_idx, len(x), vae.latent_dim)
        beta = vae.beta + 0.0  # the backward pass needs it as it is now
        out, terms = (self._losses if stage == "train" else losses)(vae, x, noise, beta)
        loss = terms.loss.mean()
        with torch.no_grad():
            mu_error = terms.recon
            if stage == "train" and isinstance(vae.beta, Tensor):
                share = max(BETA_SHARE, 1 / (1 + self.global_step))
                vae.beta.lerp_(optimal_beta(terms.recon.mean() / self.num_pixels), share)
            if stage == "val":
                mu_error = squared_error(vae.decode(out.mu), x)
                kl = gaussian_kl(out.mu, out.logvar)
                self._moments = self._moments.to(x.device) + torch.stack([out.mu, out.mu.square(), kl]).sum(1)
            sums = torch.stack([torch.ones_like(mu_error), *terms, mu_error]).to(self._wide).sum(1)
            self.epoch.add(stage, sums)
        return loss

    def _noise(self, draw: Any, stage: str, epoch: int, batch_idx: int, num: int, width: int) -> Tensor:
        """This process's `num` rows of a batch's noise: the same on every device and for any number of processes."""
        block, index = divmod(batch_idx, NOISE_AT_ONCE)
        if self._drawn.get(stage, (None, None))[0] != (epoch, block):
            whole, first = VAL_BATCH if stage == "val" else self.settings.batch_size, block * NOISE_AT_ONCE
            many = NOISE_AT_ONCE if stage == "val" else self.trainer.num_training_batches - first
            seeds = [hash64("noise", stage, self.seed, epoch, first + k) for k in range(int(min(many, NOISE_AT_ONCE)))]
            noise = [draw(whole, width, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
            self._drawn[stage] = (epoch, block), torch.stack(noise).to(self.device)
        return self._drawn[stage][1][index, self.global_rank :: self.trainer.world_size][:num]

    def check_finite(self) -> None:
        """Raises Diverged if the running epoch's loss is not finite."""
        num, loss, recon, kl, _ = self.epoch.sums["train"].tolist()
        if not math.isfinite(loss):
            where = f"epoch {self.current_epoch + 1}, by step {self.global_step}"
            means = f"mean recon {recon / num:g}, kl {kl / num:g}, lr {self.lr:g}"
            raise Diverged(f"the loss became {loss} in {where} ({means}); lower lr")

    def on_validation_epoch_end(self) -> None:
        num = self._close("val")
        mean, square, kl = self.trainer.strategy.reduce(self._moments, reduce_op="sum").cpu() / num
        self._moments = torch.zeros_like(self._moments)
        self.epoch.kl_per_dim = kl
        variance = (square - mean.square()) * num / max(num - 1, 1)
        self.epoch.metrics["val/active_units"] = active_units(variance)
        if not math.isfinite(loss := self.epoch.metrics["val/loss"]):  # before anything is saved
            raise Diverged(f"val/loss became {loss} in epoch {self.current_epoch + 1}; lower lr")

    def on_train_epoch_end(self) -> None:
        self.check_finite()
        self._close("train")
        self.epoch.metrics["lr"] = self.lr
        if self.settings.schedule == "plateau":
            self.plateau.step(self.epoch.metrics["val/loss"])

    def _close(self, stage: str) -> float:
        """Turn a stage's sums into its metrics; gives the number of examples."""
        num, *sums = self.trainer.strategy.reduce(self.epoch.sums.pop(stage), reduce_op="sum").tolist()
        loss, recon, kl, mu_error = (total / num for total in sums)
        if isinstance(self.vae.beta, Tensor):  # it moves; these faces' own optimum compares epochs
            loss = recon + optimal_beta(recon / self.num_pixels) * kl
            self.epoch.metrics["beta"] = self.vae.beta.item()
        terms = {"loss": loss, "recon": recon, "kl": kl}
        terms |= {"nelbo": negative_elbo(recon, kl, self.num_pixels), "psnr": psnr(mu_error / self.num_pixels)}
        self.epoch.metrics |= {f"{stage}/{term}": value for term, value in terms.items()}
        return num

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.settings.compile:
            self._losses = compiled(losses, graphs=self.device.type == "cuda")
        lr, decay = self.settings.lr, self.settings.weight_decay
        kind = torch.optim.AdamW if decay else torch.optim.Adam
        optimizer = kind(self.vae.parameters(), lr=lr, weight_decay=decay, fused=True)
        optimizer._step_supports_amp_scaling = False  # Lightning refuses to clip where it is True, without need
        # Lightning's own plateau schedule loses an update on resume
        self.plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **self.settings.plateau.model_dump())
        if self._plateau:
            self.plateau.load_state_dict(self._plateau)
        return optimizer

    @property
    def lr(self) -> float:
        return self.plateau.optimizer.param_groups[0]["lr"]

    @property
    def _wide(self) -> torch.dtype:
        return torch.float32 if self.device.type == "mps" else torch.float64  # float64 does not exist on Apple GPUs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"] = self.settings.plain()
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["plateau"] = self.plateau.state_dict()
        checkpoint["sums"] = self.epoch.sums  # of a running epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._plateau = checkpoint["plateau"]
        self.epoch.sums = dict(checkpoint["sums"])


def losses(vae: VAE, x: Tensor, noise: Tensor, beta: float | Tensor) -> tuple[VAEOutput, Terms]:
    out = vae(x, noise)
    return out, beta_vae_terms(out.x_hat, x, out.mu, out.logvar, beta)


def one_cycle(done: float) -> float:
    """The share of the peak rate after a share `done` of training: up for a tenth, then a cosine down to 1%.

    A closed form: a resume needs no state, unlike SequentialLR of LinearLR and CosineAnnealingLR.
    """
    if done < 0.1:
        return 0.04 + 0.96 * done / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.1) / 0.9)))


def _moving(vae: VAE) -> list[Tensor]:
    """The weights and BatchNorm's running statistics."""
    buffers = [b for name, b in vae.named_buffers() if b.is_floating_point() and not name.startswith("linear.")]
    return [*vae.parameters(), *buffers]
