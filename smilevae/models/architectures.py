"""The networks that come with smilevae, and their knobs."""

import math
from typing import TYPE_CHECKING, Annotated

from annotated_types import Ge, Le, Len

from smilevae.plugins import Network, Number, Shape, knob

if TYPE_CHECKING:
    from torch import nn

Widths = Annotated[list[Annotated[int, Ge(1), Le(4096)]], Len(1, 6)]
WIDTHS = "channels of the blocks"
DROPOUT = "share of channels that Dropout2d sets to zero"


class Conv(Network):
    """The source study's network: strided blocks, each of which halves the side."""

    widths: Widths = knob([32, 64, 128, 256], WIDTHS)
    dropout: Number = knob(0.1, DROPOUT, 0, 0.95)

    def encoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        from smilevae.models.networks import conv_encoder

        return conv_encoder(shape, latent_dim, self.widths, self.dropout)

    def decoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        from smilevae.models.networks import conv_decoder

        return conv_decoder(shape, latent_dim, self.widths, self.dropout)

    def size_multiple(self) -> int:
        return 2 ** len(self.widths)


class Patch(Network):
    """Space to depth first: about three times the images per second of conv on a CPU."""

    widths: Widths = knob([32, 64, 128], WIDTHS)
    dropout: Number = knob(0.0, DROPOUT, 0, 0.95)
    shortcut: int = knob(0, "mu gets a linear map of the image shrunk to this side; 0: none", 0, 64)

    def encoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        from smilevae.models.networks import patch_encoder

        return patch_encoder(shape, latent_dim, self.widths, self.dropout, self.shortcut)

    def decoder(self, shape: Shape, latent_dim: int) -> "nn.Module":
        from smilevae.models.networks import patch_decoder

        return patch_decoder(shape, latent_dim, self.widths, self.dropout)

    def size_multiple(self) -> int:
        return math.lcm(4 * 2 ** (len(self.widths) - 1), self.shortcut or 1)
