"""Codes of new faces: from the prior, or from a mixture fitted to training codes (Ghosh et al. 1903.12436).

Shapes: N codes, D dimensions, K components.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import Faces
from smilevae.data.encode import encode
from smilevae.evaluation.options import Sampler
from smilevae.models import latents
from smilevae.models.vae import VAE

SHAPES = (("full", 1), ("tied", 4), ("tied", 16), ("diag", 1), ("diag", 16))  # covariance, components
MIN_CODES = 10
MAX_REFERENCE = 2000  # training faces that codes are drawn from and new faces are compared with


class Mixture(NamedTuple):
    """A Gaussian mixture of codes: `factors` are the Cholesky factors of its covariances."""

    weights: Tensor  # (K,)
    means: Tensor  # (K, D)
    factors: Tensor  # (K, D, D)

    def draw(self, num: int, generator: torch.Generator, temperature: float = 1.0) -> Tensor:
        """(num, D); `temperature` scales the spread of each component."""
        component = torch.multinomial(self.weights, num, replacement=True, generator=generator)
        noise = temperature * torch.randn(num, self.means.shape[1], generator=generator)
        codes = self.means[component]
        for k, factor in enumerate(self.factors):
            codes[component == k] += noise[component == k] @ factor.T
        return codes

    def log_prob(self, codes: Tensor) -> Tensor:
        """Log densities in nats: (N, D) -> (N,)."""
        normal = torch.distributions.MultivariateNormal(self.means, scale_tril=self.factors)
        return torch.logsumexp(self.weights.log() + normal.log_prob(codes[:, None]), 1)


def prior(num_dims: int) -> Mixture:
    return Mixture(torch.ones(1), torch.zeros(1, num_dims), torch.eye(num_dims)[None])


def fit_sampler(mu: Tensor, logvar: Tensor, sampler: Sampler = "auto", seed: int = 0) -> Mixture:
    """Where new codes are drawn from; mu and logvar (N, D) are of training faces.

    "mixture": of the mixtures with SHAPES, fitted to four fifths of the codes, the one under which the others are most
    likely. "auto": that one, or the prior if they are more likely under it.
    """
    num = mu.shape[1]
    if sampler == "prior" or len(mu) < MIN_CODES:
        return prior(num)
    order = torch.randperm(len(mu), generator=torch.Generator().manual_seed(seed))
    most, held = order[len(mu) // 5 :], order[: len(mu) // 5]
    noise = torch.randn(len(held), num, generator=torch.Generator().manual_seed(seed))
    codes = latents.reparameterise(mu[held], logvar[held], noise)
    fits = {shape: _fit(mu[most], logvar[most], *shape, seed) for shape in SHAPES if shape[1] < len(most) // 4}
    likely = {shape: mixture.log_prob(codes).mean().item() for shape, mixture in fits.items()}
    best = max(likely, key=lambda shape: likely[shape])
    if sampler == "auto" and prior(num).log_prob(codes).mean() > likely[best]:
        return prior(num)
    return _fit(mu, logvar, *best, seed)


def _fit(mu: Tensor, logvar: Tensor, shape: str, components: int, seed: int) -> Mixture:
    """A mixture of mu, widened by the mean posterior variance."""
    from sklearn.mixture import GaussianMixture

    fit = GaussianMixture(components, covariance_type=shape, random_state=seed, reg_covar=1e-4).fit(mu.double().numpy())
    covariances = torch.from_numpy(fit.covariances_)
    if shape != "full":
        covariances = covariances.diag_embed() if shape == "diag" else covariances.expand(components, -1, -1)
    factors = torch.linalg.cholesky(covariances + logvar.double().exp().mean(0).diag())
    return Mixture(*(torch.as_tensor(part).float() for part in (fit.weights_, fit.means_, factors)))


def sampler_of(vae: VAE, faces: Faces, sampler: Sampler, seed: int = 0) -> Mixture:
    """A sampler fitted to the codes of (MAX_REFERENCE) training faces and their mirror images."""
    if sampler == "prior":
        return prior(vae.latent_dim)
    rows = np.random.default_rng(0).permutation(faces.rows("train"))[:MAX_REFERENCE]
    (mu, logvar), (mirrored_mu, mirrored_logvar) = (encode(vae, faces, rows, mirrored) for mirrored in (False, True))
    return fit_sampler(torch.cat([mu, mirrored_mu]), torch.cat([logvar, mirrored_logvar]), sampler, seed)


def nearest(images: Tensor, others: Tensor) -> Tensor:
    """For each of (B, 3, S, S) the position of the nearest of (N, 3, S, S) by squared error: (B,)."""
    return torch.cdist(images.flatten(1), others.flatten(1)).argmin(1)
