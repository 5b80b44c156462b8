"""What a step computes, and the closed forms of its schedule and its average."""

import math

import torch
from torch import Tensor

from smilevae.errors import ConfigError
from smilevae.models.losses import Terms, beta_vae_terms, gaussian_kl, squared_error
from smilevae.models.vae import VAE, VAEOutput
from smilevae.plugins import Batch, Objective


def losses(vae: VAE, x: Tensor, noise: Tensor, beta: float | Tensor) -> tuple[VAEOutput, Terms]:
    out = vae(x, noise)
    return out, beta_vae_terms(out.x_hat, x, out.mu, out.logvar, beta)


def train_losses(
    vae: VAE,
    x: Tensor,
    noise: Tensor,
    beta: float | Tensor,
    objective: Objective,
    progress: float | Tensor,
    num_faces: int,
) -> tuple[VAEOutput, Terms]:
    """As `losses`, with the loss of an objective."""
    out = vae(x, noise)
    recon = squared_error(out.x_hat, x)
    kl = gaussian_kl(out.mu, out.logvar)
    batch = Batch(x, out.x_hat, out.mu, out.logvar, out.z, recon, kl, beta, progress, num_faces)
    with torch.autocast(x.device.type, enabled=False):  # it would multiply in bf16
        loss = objective.loss(batch)
    if loss.shape != recon.shape:
        shapes = f"{tuple(loss.shape)}; it must be {tuple(recon.shape)}, one number an example"
        raise ConfigError(f"objective={objective.choice}: the loss is {shapes}")
    return out, Terms(loss, recon, kl.sum(1))


def seed_generators(seed: int, device: torch.device) -> None:
    """As torch.manual_seed, which takes a millisecond where a kind of device is absent."""
    if device.type not in ("cpu", "cuda"):
        torch.manual_seed(seed)
        return
    torch.default_generator.manual_seed(seed)
    for generator in torch.cuda.default_generators:
        generator.manual_seed(seed)


def one_cycle(done: float) -> float:
    """The share of the peak rate after a share `done` of training.

    It rises for a tenth, then follows a cosine down to 1%. A closed form: a resume needs no
    state, unlike SequentialLR of LinearLR and CosineAnnealingLR.
    """
    if done < 0.1:
        return 0.04 + 0.96 * done / 0.1
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, (done - 0.1) / 0.9)))


def moving(vae: VAE) -> list[Tensor]:
    """The weights and BatchNorm's running statistics."""
    named = vae.named_buffers()
    buffers = [buffer for name, buffer in named if not name.startswith("linear.")]
    return [*vae.parameters(), *(buffer for buffer in buffers if buffer.is_floating_point())]
