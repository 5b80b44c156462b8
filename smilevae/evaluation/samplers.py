"""Codes of new faces: from the prior, or blends of training codes.

A better likelihood of codes does not mean better faces: those of blends come nearest to real ones
(docs/results.md).

Shapes: N codes, D dimensions, K components.
"""

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from smilevae import runs
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.errors import NotEvaluated
from smilevae.evaluation.options import Sampler
from smilevae.models.vae import VAE

MIN_CODES = 10
NUM_BLENDS = 1000
BLEND_NOISE = 0.02  # its share of the variance
MAX_REFERENCE = 2000  # training faces that codes are drawn from and new faces are compared with
NAME = "sampler.safetensors"  # in an evaluation folder: the parts of a Mixture


class Mixture(NamedTuple):
    """A Gaussian mixture of codes. `factor` is the Cholesky factor of the covariance of all components."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    factor: Tensor  # (D, D)

    def draw(self, num: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """(num, D), of different components if there are so many; `temperature` scales the spread
        about the mean.
        """
        repeat = num > len(self.weights.nonzero())
        component = torch.multinomial(self.weights, num, repeat, generator=generator)
        noise = torch.randn(num, self.means.shape[1], generator=generator)
        mean = self.weights @ self.means
        return mean + temperature * (self.means[component] - mean + noise @ self.factor.T)


def prior(num_dims: int) -> Mixture:
    return Mixture(torch.ones(1), torch.zeros(1, num_dims), torch.eye(num_dims))


def to_bytes(sampler: Mixture, weights: str) -> bytes:
    """The content of sampler.safetensors, for the model weights with this digest."""
    return runs.tensor_file(sampler._asdict(), {"weights": weights})


def load_sampler(path: Path, num_dims: int, weights: str) -> Mixture:
    """The sampler that a checkpoint's evaluation used; without an evaluation, the prior.

    Raises CheckpointError.
    """
    try:
        content = runs.read_evaluation(path, NAME, weights, runs.read_tensors)
    except NotEvaluated:
        return prior(num_dims)
    with runs.whole(path, NAME):
        parts = [content["tensors"][name] for name in Mixture._fields]
        num = parts[0].numel()
        shapes = [(num,), (num, num_dims), (num_dims, num_dims)]
        if any(part.shape != shape for part, shape in zip(parts, shapes)):
            raise ValueError("a shape is wrong")
        if (parts[0] < 0).any() or not 0 < parts[0].sum() < torch.inf:
            raise ValueError("these are no weights")
        if not all(part.isfinite().all() for part in parts):
            raise ValueError("a number is not finite")
    return Mixture(*parts)


def fit_sampler(mu: Tensor, logvar: Tensor) -> Mixture:
    """Pairs of the codes of training faces (N, D), added about their mean, with noise.

    They keep the mean and covariance of the codes: the smoothed bootstrap that keeps the variance
    (Silverman 1986, section 6.4.1), of pairs. With fewer than MIN_CODES codes it is the prior.
    """
    if len(mu) < MIN_CODES:
        return prior(mu.shape[1])
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randint(len(mu), (2, NUM_BLENDS), generator=generator)
    mean = mu.mean(0)
    centres = mean + ((1 - BLEND_NOISE) / 2) ** 0.5 * (mu[pairs] - mean).sum(0)
    posterior = logvar.double().exp().mean(0).diag()
    covariance = BLEND_NOISE * torch.cov(mu.double().T, correction=0) + posterior
    weights = torch.full((NUM_BLENDS,), 1 / NUM_BLENDS)
    return Mixture(weights, centres, torch.linalg.cholesky(covariance).float())


def sampler_of(vae: VAE, faces: Faces, sampler: Sampler, most: int = MAX_REFERENCE) -> Mixture:
    """A sampler fitted to the codes of `most` training faces and their mirror images."""
    if sampler == "prior":
        return prior(vae.latent_dim)
    rows = faces.sample("train", most)
    codes = [encode(vae, faces, rows, mirrored) for mirrored in (False, True)]
    mu, logvar = (torch.cat(parts) for parts in zip(*codes))
    return fit_sampler(mu, logvar)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """For each of (B, 3, S, S) the position of the nearest of (N, 3, S, S) by squared error: (B,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)
