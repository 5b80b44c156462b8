"""A trained model in Python. Shapes: B batch, C channels, S image side, D latent dimensions, I intensities."""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from smilevae import runs
from smilevae.data.images import decode
from smilevae.editing import attributes
from smilevae.evaluation import samplers
from smilevae.runs import checkpoint

Images = Tensor | np.ndarray | Sequence[Image.Image]


class Model:
    """A checkpoint's `vae` in eval mode, its `settings` and its `edits`. Raises CheckpointError.

    `attribute` is the one that edits change without a name: the evaluation's unless given.
    Images are float tensors (B, C, S, S) in [0, 1], uint8 arrays (B, S, S, C) or PIL images.

    Example:
        >>> model = smilevae.load(run)
        >>> faces = model.sample(2)
        >>> model.smile(faces, 1.5).shape == faces.shape
        True
    """

    def __init__(self, ckpt: str | os.PathLike[str], attribute: str | None = None):
        self.path = runs.find(os.fspath(ckpt))
        self.attribute = attribute
        loaded = checkpoint.load(self.path)
        self.vae = loaded.vae
        self.settings = loaded.settings

    @cached_property
    def edits(self) -> attributes.Edits:
        """The editable attributes. Raises CheckpointError without an evaluation, ConfigError."""
        return attributes.read(self.path, self.vae).with_main(self.attribute)

    @cached_property
    def sampler(self) -> samplers.Mixture:
        """Where codes come from: as in the newest evaluation; without one, the prior. Raises CheckpointError."""
        return samplers.load_sampler(self.path, self.vae.latent_dim, checkpoint.digest(self.vae))

    @torch.no_grad()
    def encode(self, images: Images) -> Tensor:
        """The posterior means of images: (B, D). Raises ValueError."""
        return self.vae.encode(self._batch(images))[0]

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(B, D) -> (B, C, S, S)."""
        return self.vae.decode(codes).clamp(0, 1)

    def draw(self, num: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """Codes (num, D) from `sampler`; `temperature` scales their spread."""
        generator = torch.Generator().manual_seed(seed)
        return self.sampler.draw(num, generator, temperature)

    def sample(self, num: int, seed: int = 0, temperature: float = 1.0) -> Tensor:
        """New faces (num, C, S, S), decoded from `draw`."""
        return self.decode(self.draw(num, seed, temperature))

    def turn(self, codes: Tensor, intensities: Sequence[float]) -> Tensor:
        """Codes at intensities of the attribute: (B, D) -> (B, I, D). Raises as `edit`."""
        return self.edits.main.edit(codes, torch.tensor(intensities, dtype=torch.float32))

    def edit(self, images: Images, amounts: Mapping[str, float]) -> Tensor:
        """Decoded images with attributes at intensities, for example {"smile": 1, "glasses": 0.5}.

        Raises CheckpointError, ConfigError, ValueError.
        """
        return self.decode(self.edits.mix(self.encode(images), amounts))

    def smile(self, images: Images, intensity: float = 1.0) -> Tensor:
        """Decoded images at an intensity of the model's attribute. Raises as `edit`."""
        return self.edit(images, {self.edits.main.name: intensity})

    def _batch(self, images: Images) -> Tensor:
        channels, side, _ = self.vae.shape
        if not isinstance(images, Tensor | np.ndarray):
            images = np.array([decode(image, side, channels).pixels for image in images])
        x = torch.as_tensor(images)
        if isinstance(images, np.ndarray) and images.dtype == np.uint8 and images.ndim == 4:
            x = x.movedim(-1, 1).float() / 255
        if not x.is_floating_point() or not len(x) or x.shape[1:] != self.vae.shape:
            shapes = f"floats {('B', *self.vae.shape)}, uint8 {('B', side, side, channels)}"
            shapes = shapes.replace("'", "")
            raise ValueError(f"images must be {shapes} or PIL images")
        if not (x.min() >= 0 and x.max() <= 1):
            raise ValueError("images must lie in [0, 1]")
        return x.float()
