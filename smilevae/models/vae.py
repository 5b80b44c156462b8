"""The variational autoencoder (Kingma & Welling 1312.6114). Shapes: B batch, S image side, D latent dimensions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smilevae.config import Settings, size_multiple
from smilevae.models import latents
from smilevae.models.losses import beta_vae_terms
from smilevae.models.networks import NETWORKS

LOGVAR_BOUND = 10.0  # posterior sd within [e^-5, e^5]: far from overflow, wide enough never to bind in training


REFINE_RATE = 0.05  # in latent units, of which the prior has 1


class VAEOutput(NamedTuple):
    """x_hat (B, 3, S, S) in [0, 1] units, not clamped; mu, logvar and z (B, D)."""

    x_hat: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor


class LinearPath(nn.Module):
    """A linear VAE beside the network, fixed at its optimum: what the network adds is the rest. P = 3 S^2 pixels."""

    mean: Tensor
    encoder: Tensor
    decoder: Tensor
    logvar: Tensor

    def __init__(self, image_size: int, latent_dim: int):
        super().__init__()
        num_pixels = 3 * image_size**2
        for name, shape in {
            "mean": (num_pixels,),
            "encoder": (latent_dim, num_pixels),
            "decoder": (latent_dim, num_pixels),
            "logvar": (latent_dim,),
        }.items():
            self.register_buffer(name, torch.zeros(shape))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mu = (x.flatten(1) - self.mean) @ self.encoder.T
        return mu, self.logvar.expand_as(mu)

    def decode(self, z: Tensor, image_size: int) -> Tensor:
        return (self.mean + z @ self.decoder).view(-1, 3, image_size, image_size)


class VAE(nn.Module):
    """An encoder, a decoder and the pixel scaling between them.

    x is always in [0, 1]. With `normalize` the encoder sees (x - 0.5) / 0.5 and the decoder's output is
    scaled alike, which changes conditioning only: what leaves this class is back in [0, 1] units, and
    float32 whatever precision the layers run in. With `linear` a LinearPath lies beside the network, whose
    last layers then start at zero: an untrained VAE is the linear one.

    Raises ValueError for an unknown network or an image_size its layers cannot halve exactly.
    """

    def __init__(
        self,
        *,
        network: str,
        widths: Sequence[int],
        dropout: float,
        image_size: int,
        latent_dim: int,
        normalize: bool,
        linear: bool = False,
    ):
        super().__init__()
        if network not in NETWORKS:
            raise ValueError(f"unknown network {network!r}: choose one of {', '.join(NETWORKS)}")
        multiple = size_multiple(network, len(widths))
        if image_size % multiple or image_size < multiple:
            raise ValueError(f"image_size={image_size} is not a multiple of {multiple}")
        encoder, decoder = NETWORKS[network]
        self.encoder = encoder(image_size, latent_dim, widths, dropout)
        self.decoder = decoder(image_size, latent_dim, widths, dropout)
        self.image_size, self.latent_dim = image_size, latent_dim
        self.normalize = normalize
        self.linear = LinearPath(image_size, latent_dim) if linear else None
        for path in (self.encoder, self.decoder) if linear else ():
            layers = [
                layer for layer in path.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)
            ]
            for parameter in layers[-1].parameters():
                nn.init.zeros_(parameter)
        self.to(memory_format=torch.channels_last)  # 1.3 to 2.5 times faster strided convolutions on CPU

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x): (B, 3, S, S) -> (B, D) twice; |logvar| <= LOGVAR_BOUND, softly."""
        x = x.contiguous(memory_format=torch.channels_last)
        mu, raw = self.encoder((x - 0.5) / 0.5 if self.normalize else x).float().chunk(2, dim=1)
        logvar = LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND)
        if self.linear is None:
            return mu, logvar
        linear_mu, linear_logvar = self.linear.encode(x)
        return linear_mu + mu, linear_logvar + logvar

    def refine(self, x: Tensor, beta: float, steps: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """mu and logvar after `steps` of Adam on each face's own loss, from `encode`'s: (B, 3, S, S) -> (B, D) twice.

        The encoder answers at once and somewhat wrongly for faces it has not seen; this closes that gap, the weights
        stay (semi-amortised inference: Kim et al. 1802.02550).
        """
        with torch.no_grad():
            mu, logvar = (code.clone() for code in self.encode(x))
        with torch.inference_mode(False), torch.enable_grad():
            codes = [mu.requires_grad_(), logvar.requires_grad_()]
            optimizer = torch.optim.Adam(codes, lr=REFINE_RATE)
            for step in range(steps):
                optimizer.param_groups[0]["lr"] = REFINE_RATE * (1 - step / steps)  # its own noise must die away
                z = latents.reparameterise(mu, logvar, torch.randn(mu.shape, generator=generator, device=mu.device))
                loss = beta_vae_terms(self.decode(z), x, mu, logvar, beta).loss.sum()
                mu.grad, logvar.grad = torch.autograd.grad(loss, codes)
                optimizer.step()
        return mu.detach(), logvar.detach().clamp(-LOGVAR_BOUND, LOGVAR_BOUND)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x | z) in [0, 1] units, not clamped: (B, D) -> (B, 3, S, S)."""
        base = 0.5 if self.linear is None else self.linear.decode(z, self.image_size)  # mid-grey, or the linear VAE
        return base + self.decoder(z).float() * (0.5 if self.normalize else 1.0)

    def forward(self, x: Tensor, noise: Tensor | None = None) -> VAEOutput:
        mu, logvar = self.encode(x)
        z = latents.reparameterise(mu, logvar, noise)
        return VAEOutput(self.decode(z), mu, logvar, z)


def build_vae(settings: Settings) -> VAE:
    """The network that a run's settings describe, with new weights."""
    shared = {"image_size": settings.image_size, "latent_dim": settings.latent_dim, "normalize": settings.normalize}
    return VAE(**settings.model.model_dump(), **shared, linear=settings.warm_start == "ppca")
