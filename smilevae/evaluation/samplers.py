"""Codes of new faces: from the prior, or blends of training codes.

The likelihood of codes with hundreds of dimensions orders samplers otherwise than the distance of their faces to real
ones: blends come nearest (docs/results.md).

Shapes: N codes, D dimensions, K components.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae import runs
from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.errors import CheckpointError, NotEvaluated
from smilevae.evaluation.options import Sampler
from smilevae.models.vae import VAE

MIN_CODES = 10
NUM_BLENDS, BLEND_NOISE = 1000, 0.15  # noise: its share of the variance
MAX_REFERENCE = 2000  # training faces that codes are drawn from and new faces are compared with
NAME = "sampler.json"  # in an evaluation folder: the parts of a Mixture


class Mixture(NamedTuple):
    """A Gaussian mixture of codes. `factor` is the Cholesky factor of the covariance of all components."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    factor: Tensor  # (D, D)

    def draw(self, num: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """(num, D); `temperature` scales the spread about the mean."""
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise, mean = torch.randn(num, self.means.shape[1], generator=generator), self.weights @ self.means
        return mean + temperature * (self.means[component] - mean + noise @ self.factor.T)


def prior(num_dims: int) -> Mixture:
    return Mixture(torch.ones(1), torch.zeros(1, num_dims), torch.eye(num_dims))


def to_json(mixture: Mixture, digest: str) -> str:
    """The content of sampler.json: a sampler for the weights with this digest."""
    parts = {name: part.double().numpy().round(5).tolist() for name, part in mixture._asdict().items()}
    return json.dumps({"weights": digest, "sampler": parts}) + "\n"


def kept(path: Path, num_dims: int, digest: str) -> Mixture:
    """The sampler that a checkpoint's evaluation used; without an evaluation, the prior. Raises CheckpointError."""
    try:
        parts = runs.read_evaluation(path, NAME, digest)["sampler"]
        mixture = Mixture(*(torch.tensor(parts[name], dtype=torch.float32) for name in Mixture._fields))
        num = len(mixture.weights)
        fits = [tuple(part.shape) for part in mixture] == [(num,), (num, num_dims), (num_dims, num_dims)]
        positive = (mixture.weights >= 0).all() and mixture.weights.sum() > 0
        if not (fits and positive and all(part.isfinite().all() for part in mixture)):
            raise ValueError
        return mixture
    except NotEvaluated:
        return prior(num_dims)
    except (ValueError, KeyError, TypeError, RuntimeError):
        again = f"run {runs.command_name('evaluate')} ckpt={runs.shell_path(path)}"
        raise CheckpointError(f"{NAME} of {path} is damaged; {again} again") from None


def fit_sampler(mu: Tensor, logvar: Tensor, seed: int = 0) -> Mixture:
    """Where new codes are drawn from: blends of the codes of training faces, mu and logvar (N, D).

    With fewer than MIN_CODES codes it is the prior.
    """
    return prior(mu.shape[1]) if len(mu) < MIN_CODES else _blends(mu, logvar, seed)


def _blends(mu: Tensor, logvar: Tensor, seed: int) -> Mixture:
    """Pairs of codes, added about their mean, with noise: a mixture with the mean and covariance of the codes.

    It is the smoothed bootstrap that keeps the variance (Silverman 1986, section 6.4.1), of pairs: near no one code.
    """
    pairs = torch.randint(len(mu), (2, NUM_BLENDS), generator=torch.Generator().manual_seed(seed))
    mean = mu.mean(0)
    centres = mean + ((1 - BLEND_NOISE) / 2) ** 0.5 * (mu[pairs] - mean).sum(0)
    covariance = BLEND_NOISE * torch.cov(mu.double().T, correction=0) + logvar.double().exp().mean(0).diag()
    return Mixture(torch.full((NUM_BLENDS,), 1 / NUM_BLENDS), centres, torch.linalg.cholesky(covariance).float())


def sampler_of(vae: VAE, faces: Faces, sampler: Sampler, seed: int = 0, most: int = MAX_REFERENCE) -> Mixture:
    """A sampler fitted to the codes of `most` training faces and their mirror images."""
    if sampler == "prior":
        return prior(vae.latent_dim)
    rows = np.random.default_rng(0).permutation(faces.rows("train"))[:most]
    (mu, logvar), (mirrored_mu, mirrored_logvar) = (encode(vae, faces, rows, mirrored) for mirrored in (False, True))
    return fit_sampler(torch.cat([mu, mirrored_mu]), torch.cat([logvar, mirrored_logvar]), seed)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """For each of (B, 3, S, S) the position of the nearest of (N, 3, S, S) by squared error: (B,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)
