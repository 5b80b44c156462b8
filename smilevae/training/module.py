"""How a VAE is trained: one step for every stage, Adam, a schedule that a resume repeats."""

import copy
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.optim.swa_utils import get_ema_multi_avg_fn

from smilevae.config import Settings, checked
from smilevae.data.augment import augment
from smilevae.data.batches import hash64
from smilevae.errors import ConfigError, Diverged
from smilevae.models.losses import Terms, gaussian_kl, optimal_beta, squared_error
from smilevae.models.metrics import active_units, negative_elbo, psnr
from smilevae.models.vae import VAE, VAEOutput, build_vae
from smilevae.plugins import targets
from smilevae.runs import checkpoint
from smilevae.training.graphs import MOST_VALIDATED, WholeStep, obstacle
from smilevae.training.noise import Noise
from smilevae.training.steps import losses, moving, one_cycle, seed_generators, train_losses

BETA_SHARE = 0.05  # of beta=auto that a batch's own optimum makes up
Labelled = tuple[Tensor, Tensor]  # images, smiles; where a step is a graph, rows and flips
Scalar = float | Tensor


@dataclass
class EpochState:
    """What callbacks read of a module: the evaluated model and the numbers of an epoch.

    eval_model    the moving average of the weights if one is kept, else the trained model
    kl_per_dim    (D,) in nats
    metrics       `stage/term` -> the last epoch's mean
    sums          running stage -> (5,): examples, loss, recon, KL, error of mu decoded
    """

    eval_model: VAE
    kl_per_dim: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, stage: str, sums: Tensor) -> None:
        """Add a batch's sums, (5,); a resume restores earlier ones on the CPU."""
        earlier = self.sums.get(stage, torch.zeros(5)).to(sums.device, sums.dtype)
        self.sums[stage] = earlier + sums


class VAEModule(pl.LightningModule):
    """Trains `vae` on the loss of an objective; callbacks read `epoch`.

    Validation's loss is SSE + beta * KL whatever the objective, so it compares between runs.

    A batch's noise (the posterior's and dropout's) depends on (seed, stage, epoch, batch) alone:
    neither validation nor a resume changes training. `train/psnr` is of sampled reconstructions;
    `val/psnr` is of mu decoded.
    """

    def __init__(self, vae: VAE, settings: Settings, fingerprint: str):
        super().__init__()
        self.vae = vae
        self.settings = settings
        self.fingerprint = fingerprint  # of the data
        self.num_faces = 0  # of the training part; see `setup`
        self.num_pixels = vae.num_pixels
        self.ema = None
        if settings.ema:
            shared = {id(vae.linear): vae.linear}  # the linear path is fixed
            self.ema = copy.deepcopy(vae, shared).requires_grad_(False)
        self.epoch = EpochState(self.ema or vae, torch.zeros(vae.latent_dim))
        self.plateau: ReduceLROnPlateau | None = None
        self._plateau_state: dict[str, Any] = {}  # of a checkpoint, read before the optimizer
        self._train_losses: Callable[..., tuple[VAEOutput, Terms]] = train_losses
        self._noise = Noise(self)
        self.moments = torch.zeros(3, vae.latent_dim)  # validation's sums of mu, mu^2 and KL
        self.whole_step: WholeStep | None = None  # where a training step is one CUDA graph

    @classmethod
    def load_from_checkpoint(
        cls, checkpoint_path: Any, map_location: Any = None, *_: Any, **__: Any
    ) -> "VAEModule":
        """The module of a checkpoint file, in eval mode. Raises CheckpointError."""
        content = checkpoint.read(Path(checkpoint_path))
        settings = checked(content["hyper_parameters"])
        module = cls(build_vae(settings), settings, content["fingerprint"])
        module.load_state_dict(content["state_dict"])
        return module.to(map_location or "cpu").eval()

    def setup(self, stage: str) -> None:
        self.num_faces = len(self.trainer.datamodule.faces.rows("train"))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions of faces (B, 3, S, S) in [0, 1]: mu decoded."""
        mu, _ = self.epoch.eval_model.encode(x)
        return self.epoch.eval_model.decode(mu)

    def training_step(self, batch: Labelled, batch_idx: int) -> Tensor | None:
        """The batch's mean loss; None where `optimizer_step` does it all."""
        where = (self.current_epoch, batch_idx)
        num = len(batch[0])
        drawn = [self._noise(torch.randn, "train", *where, num, self.vae.latent_dim)]
        if any(self.settings.jitter.model_dump().values()):
            drawn.append(self._noise(torch.rand, "jitter", *where, num, 9))
        if self.whole_step:
            self.whole_step.inputs = [*batch, *drawn]
            return None
        self.seed("train", *where)
        loss, sums = self.learn(batch[0], self.share(), self.progress(), *drawn)
        self.epoch.add("train", sums)
        if self.device.type == "cpu":  # elsewhere, to read the sums waits for the device
            self.check_finite()
        return loss

    def learn(
        self, x: Tensor, share: Scalar, progress: Scalar, noise: Tensor, *uniform: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The mean loss of a batch, and the sums of its terms. A moving beta moves by `share`."""
        if uniform:
            x = augment(x, uniform[0] * 2 - 1, **self.settings.jitter.model_dump())
        vae = self.vae
        beta = vae.beta + 0.0  # a copy: the backward pass needs it as it is now
        rest = (self.settings.objective, progress, self.num_faces)
        _, terms = self._train_losses(vae, x, noise, beta, *rest)
        loss = terms.loss.mean()
        with torch.no_grad():
            if isinstance(vae.beta, Tensor):
                vae.beta.lerp_(optimal_beta(terms.recon.mean() / self.num_pixels), share)
            return loss, self._sums_of(terms, terms.recon)

    def validation_step(self, batch: Labelled, batch_idx: int) -> None:
        self.seed("val", 0, batch_idx)
        x, _ = batch
        noise = self._noise(torch.randn, "val", 0, batch_idx, len(x), self.vae.latent_dim)
        if self.whole_step and sum(self.trainer.num_val_batches) <= MOST_VALIDATED:
            self.whole_step.validate(batch_idx, x, noise)
            return
        sums, moments = self.validated(x, noise)
        self.epoch.add("val", sums)
        self.moments = self.moments.to(x.device) + moments

    @torch.no_grad()
    def validated(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The sums of a batch's terms, and those of mu, its square and the KL (3, D)."""
        vae = self.epoch.eval_model
        out, terms = losses(vae, x, noise, vae.beta)
        kl = gaussian_kl(out.mu, out.logvar)
        moments = torch.stack([out.mu, out.mu.square(), kl]).sum(1)
        return self._sums_of(terms, squared_error(vae.decode(out.mu), x)), moments

    def _sums_of(self, terms: Terms, mu_error: Tensor) -> Tensor:
        """As EpochState.sums."""
        wide = torch.float32 if mu_error.device.type == "mps" else torch.float64  # Apple lacks it
        return torch.stack([torch.ones_like(mu_error), *terms, mu_error]).to(wide).sum(1)

    def seed(self, stage: str, epoch: int, batch_idx: int) -> None:
        """Seed the generators from which dropout draws."""
        seed = hash64(stage, self.settings.seed, epoch, batch_idx, self.global_rank)
        seed_generators(seed, self.device)

    def share(self) -> float:
        """How far a moving beta moves in this step."""
        return max(BETA_SHARE, 1 / (1 + self.global_step))

    def progress(self) -> float:
        """The share of the training's steps that are done; nan for an objective without one."""
        if not self.settings.objective.scheduled:
            return math.nan
        return self.global_step / max(1, int(self.trainer.estimated_stepping_batches))

    def check_finite(self) -> None:
        """Raise Diverged if the running epoch's loss is not finite."""
        num, loss, recon, kl, _ = self.epoch.sums["train"].tolist()
        if not math.isfinite(loss):
            moment = f"in epoch {self.current_epoch + 1}, by step {self.global_step}"
            terms = f"mean recon {recon / num:g}, kl {kl / num:g}, lr {self.lr:g}"
            raise Diverged(f"the loss became {loss} {moment} ({terms}); lower lr")

    def on_validation_epoch_end(self) -> None:
        """Close the epoch. Validation is its last part, so callbacks then find all metrics."""
        training = not self.trainer.sanity_checking  # else it is before the first epoch
        if training:
            self.check_finite()
            self._close("train")
            self.epoch.metrics["lr"] = self.lr
        num = self._close("val")
        moments = self.trainer.strategy.reduce(self.moments, reduce_op="sum").cpu() / num
        mean, square, self.epoch.kl_per_dim = moments
        self.moments = torch.zeros_like(self.moments)
        variance = (square - mean.square()) * num / max(num - 1, 1)
        self.epoch.metrics["val/active_units"] = active_units(variance)
        loss = self.epoch.metrics["val/loss"]
        if not math.isfinite(loss):  # before anything is saved
            raise Diverged(f"val/loss became {loss} in epoch {self.current_epoch + 1}; lower lr")
        if training:  # for callbacks at the end of validation; the record logs the whole epoch
            several = self.trainer.world_size > 1
            self.log_dict(self.epoch.metrics, logger=False, sync_dist=several)
        if self.plateau and training:
            self.plateau.step(loss)

    def _close(self, stage: str) -> float:
        """Turn a stage's sums into its metrics; returns the number of examples."""
        sums = self.trainer.strategy.reduce(self.epoch.sums.pop(stage), reduce_op="sum")
        num, *totals = sums.tolist()
        loss, recon, kl, mu_error = (total / num for total in totals)
        if isinstance(self.vae.beta, Tensor):  # it moves; these faces' optimum compares epochs
            loss = recon + optimal_beta(recon / self.num_pixels) * kl
            self.epoch.metrics["beta"] = self.vae.beta.item()
        self.epoch.metrics |= {
            f"{stage}/loss": loss,
            f"{stage}/recon": recon,
            f"{stage}/kl": kl,
            f"{stage}/nelbo": negative_elbo(recon, kl, self.num_pixels),
            f"{stage}/psnr": psnr(mu_error / self.num_pixels),
        }
        return num

    def configure_optimizers(self) -> torch.optim.Optimizer:
        settings = self.settings
        try:
            make = targets.call(settings.optimizer)
            options = {"lr": settings.lr}
            if "fused" in inspect.signature(make).parameters and "fused" not in settings.optimizer:
                options["fused"] = True
            self.optimizer = make(self.vae.parameters(), **options)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"optimizer: {str(error).splitlines()[0]}") from None
        # Lightning refuses to clip where it is True, without need
        self.optimizer._step_supports_amp_scaling = False

        # How a step runs.
        why = "graph=false" if settings.graph is False else obstacle(self.trainer, self.optimizer)
        if why and settings.graph is True:
            raise ConfigError(f"graph=true: {why}; pass graph=auto")
        self.whole_step = None if why else WholeStep(self, settings.graph is True)
        if settings.compile:
            cuda_graphs = self.device.type == "cuda" and not self.whole_step
            # dropout's masks are those of the plain step
            more: Any = {"fallback_random": True, "triton.cudagraphs": cuda_graphs}
            self._train_losses = torch.compile(train_losses, options=more)

        # The schedule.
        if settings.schedule == "plateau":  # Lightning's would lose an update on resume
            self.plateau = ReduceLROnPlateau(self.optimizer, **settings.plateau.model_dump())
            self.plateau.load_state_dict(self._plateau_state)
        return self.optimizer

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.settings.schedule == "cosine":
            done = self.global_step / max(1, self.trainer.estimated_stepping_batches)
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.lr * one_cycle(done)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        if self.whole_step:
            optimizer_closure()  # training_step
            self.whole_step(epoch, batch_idx)
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        self._average()  # not later: a checkpoint within an epoch holds it

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        if not self.whole_step:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    def on_fit_end(self) -> None:
        self.whole_step = None  # Lightning takes the weights from the device

    def _average(self) -> None:
        """Update the moving average of the weights."""
        if self.ema is not None:
            step = self.global_step
            decay = min(self.settings.ema, (1 + step) / (10 + step))  # forgets the first soon
            with torch.no_grad():
                get_ema_multi_avg_fn(decay)(moving(self.ema), moving(self.vae), step)

    @property
    def lr(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["hyper_parameters"] = self.settings.plain()
        checkpoint["fingerprint"] = self.fingerprint
        checkpoint["plateau"] = self.plateau.state_dict() if self.plateau else {}
        checkpoint["sums"] = self.epoch.sums  # of a running epoch

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._plateau_state = checkpoint["plateau"]
        self.epoch.sums = dict(checkpoint["sums"])
