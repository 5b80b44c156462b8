"""The variational autoencoder (Kingma & Welling 1312.6114). Shapes: B batch, S image side, D latent dimensions."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from smilevae import latents
from smilevae.knobs import size_multiple
from smilevae.networks import NETWORKS

LOGVAR_BOUND = 10.0  # posterior sd within [e^-5, e^5]: far from overflow, wide enough never to bind in training


class VAEOutput(NamedTuple):
    """x_hat (B, 3, S, S) in [0, 1] units, not clamped; mu, logvar and z (B, D)."""

    x_hat: Tensor
    mu: Tensor
    logvar: Tensor
    z: Tensor


class VAE(nn.Module):
    """An encoder, a decoder and the pixel scaling between them.

    x is always in [0, 1]. With `normalize` the encoder sees (x - 0.5) / 0.5 and the decoder's output is
    scaled alike, which changes conditioning only: what leaves this class is back in [0, 1] units, and
    float32 whatever precision the layers run in.

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
        self.to(memory_format=torch.channels_last)  # 1.3 to 2.5 times faster strided convolutions on CPU

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z | x): (B, 3, S, S) -> (B, D) twice; |logvar| <= LOGVAR_BOUND, softly."""
        x = x.contiguous(memory_format=torch.channels_last)
        mu, raw = self.encoder((x - 0.5) / 0.5 if self.normalize else x).float().chunk(2, dim=1)
        return mu, LOGVAR_BOUND * torch.tanh(raw / LOGVAR_BOUND)

    def decode(self, z: Tensor) -> Tensor:
        """Mean of p(x | z) in [0, 1] units, not clamped: (B, D) -> (B, 3, S, S)."""
        return 0.5 + self.decoder(z).float() * (0.5 if self.normalize else 1.0)  # an untrained decoder draws mid-grey

    def forward(self, x: Tensor, generator: torch.Generator | None = None) -> VAEOutput:
        mu, logvar = self.encode(x)
        z = latents.reparameterise(mu, logvar, generator)
        return VAEOutput(self.decode(z), mu, logvar, z)
