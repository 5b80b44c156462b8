"""What a training step minimises. Shapes: B batch, D latent dimensions.

Each loss is SSE + beta * (cost of the code in nats): beta is twice the decoder's variance. A cost
that the paper defines for a batch is added to each example, so that the mean is the paper's.
"""

import math
from typing import TYPE_CHECKING, ClassVar

from smilevae.plugins import Batch, Number, Objective, knob

if TYPE_CHECKING:
    from torch import Tensor


class BetaVae(Objective):
    """SSE + beta * KL: decoder variance beta / 2. Higgins et al. 2017, eq. 4."""

    def loss(self, batch: Batch) -> "Tensor":
        return batch.recon + batch.beta * batch.kl.sum(1)


class BetaTc(Objective):
    """SSE + beta * (MI + tc * TC + dimension-wise KL). Chen et al. 1802.04942, eq. 4.

    MI is the mutual information of face and code, TC the total correlation of the code. The
    densities of codes over all N faces are estimated by minibatch-weighted sampling (eq. 3):
    q(z) = sum_k q(z | x_k) / (B N). N adds the constant (tc - 1) (D - 1) log N to the cost.
    """

    uses_batch: ClassVar[bool] = True
    tc: Number = knob(6, "weight of the total correlation; 1: as beta_vae, on average", 0, 1000)

    def loss(self, batch: Batch) -> "Tensor":
        batch_size, latent_dim = batch.z.shape
        zero = batch.z.new_zeros(())
        log_weight = math.log(batch_size * batch.num_faces)

        # Log-densities of each code, summed over dimensions: (B,)
        pairs = _log_normal(batch.z[:, None], batch.mu, batch.logvar)  # (B, B, D)
        log_q_given_x = pairs.diagonal().sum(0)
        log_q = pairs.sum(2).logsumexp(1) - log_weight
        log_q_factorised = pairs.logsumexp(1).sum(1) - latent_dim * log_weight
        log_prior = _log_normal(batch.z, zero, zero).sum(1)

        mutual_information = log_q_given_x - log_q
        total_correlation = log_q - log_q_factorised
        dimension_wise_kl = log_q_factorised - log_prior
        cost = mutual_information + self.tc * total_correlation + dimension_wise_kl
        return batch.recon + batch.beta * cost


class DipI(Objective):
    """SSE + beta * (KL + penalty of Cov[mu]). Kumar et al. 1711.00848, eq. 6.

    The penalty is off_diagonal * sum_{i != j} Cov_ij^2 + diagonal * sum_i (Cov_ii - 1)^2.
    """

    uses_batch: ClassVar[bool] = True
    off_diagonal: Number = knob(10, "weight of the squared covariances of mu", 0, 1e6)
    diagonal: Number = knob(100, "weight of the squared (variance of mu - 1)", 0, 1e6)

    def loss(self, batch: Batch) -> "Tensor":
        penalty = _identity_penalty(_covariance(batch.mu), self.off_diagonal, self.diagonal)
        return batch.recon + batch.beta * (batch.kl.sum(1) + penalty)


class DipII(Objective):
    """SSE + beta * (KL + penalty of Cov[z]). Kumar et al. 1711.00848, eq. 7.

    The penalty is that of DipI, of Cov[z] = E[variance of q(z | x)] + Cov[mu].
    """

    uses_batch: ClassVar[bool] = True
    off_diagonal: Number = knob(10, "weight of the squared covariances of z", 0, 1e6)
    diagonal: Number = knob(10, "weight of the squared (variance of z - 1)", 0, 1e6)

    def loss(self, batch: Batch) -> "Tensor":
        covariance = batch.logvar.exp().mean(0).diag() + _covariance(batch.mu)
        penalty = _identity_penalty(covariance, self.off_diagonal, self.diagonal)
        return batch.recon + batch.beta * (batch.kl.sum(1) + penalty)


class InfoVae(Objective):
    """SSE + beta * ((1 - alpha) KL + (alpha + scale - 1) MMD). Zhao et al. 1706.02262, eq. 6.

    MMD compares the codes of the batch with as many samples of the prior: the unbiased estimate
    and the inverse multiquadratic kernel of Tolstikhin et al. 1711.01558, algorithm 2. Its tails
    are heavy: codes far from the prior keep a gradient, which an RBF kernel does not give them.
    """

    uses_batch: ClassVar[bool] = True
    alpha: Number = knob(0.5, "share of the KL that is removed; 1: the MMD alone", 0, 1)
    scale: Number = knob(1000, "weight of the MMD, which is at most about 2", 1, 1e6)

    def loss(self, batch: Batch) -> "Tensor":
        import torch

        prior = torch.randn_like(batch.z)
        batch_size = len(batch.z)
        num_pairs = max(batch_size * (batch_size - 1), 1)

        # Mean kernel of different codes, of different prior samples, and of one of each
        codes = (_inverse_multiquadratic(batch.z, batch.z).sum() - batch_size) / num_pairs
        priors = (_inverse_multiquadratic(prior, prior).sum() - batch_size) / num_pairs
        across = _inverse_multiquadratic(batch.z, prior).mean()

        mmd = codes + priors - 2 * across
        cost = (1 - self.alpha) * batch.kl.sum(1) + (self.alpha + self.scale - 1) * mmd
        return batch.recon + batch.beta * cost


class Capacity(Objective):
    """SSE + beta * gamma * |KL - C|, where C rises from 0. Burgess et al. 1804.03599, eq. 8."""

    scheduled: ClassVar[bool] = True
    gamma: Number = knob(1000, "weight of the distance between KL and capacity", 0, 1e6)
    nats: Number = knob(25, "capacity at the end of its rise, in nats", 0, 10_000)
    over: Number = knob(0.5, "share of the training over which the capacity rises", 0, 1)

    def loss(self, batch: Batch) -> "Tensor":
        capacity = self.nats * _rise(batch.progress, self.over)
        distance = (batch.kl.sum(1) - capacity).abs()
        return batch.recon + batch.beta * self.gamma * distance


class FreeBits(Objective):
    """SSE + beta * sum_j max(nats, mean KL_j). Kingma et al. 1606.04934, eq. 16.

    The mean is that of the batch. An example keeps its own KL in the dimensions above the minimum.
    """

    uses_batch: ClassVar[bool] = True
    nats: Number = knob(0.25, "KL of a dimension, in nats, below which it costs no less", 0, 100)

    def loss(self, batch: Batch) -> "Tensor":
        cost = batch.kl.where(batch.kl.mean(0) > self.nats, self.nats)
        return batch.recon + batch.beta * cost.sum(1)


class Warmup(Objective):
    """SSE + beta * weight * KL. Sønderby et al. 1602.02282, section 2.3.

    The weight rises from 0 to 1, and stays at 1.
    """

    scheduled: ClassVar[bool] = True
    over: Number = knob(0.1, "share of the training over which the weight of the KL rises", 0, 1)

    def loss(self, batch: Batch) -> "Tensor":
        weight = _rise(batch.progress, self.over)
        return batch.recon + batch.beta * weight * batch.kl.sum(1)


class Cyclic(Objective):
    """SSE + beta * weight * KL. Fu et al. 1903.10145, eqs. 6 and 7.

    In each cycle the weight rises from 0 to 1, and stays at 1 until the next cycle.
    """

    scheduled: ClassVar[bool] = True
    cycles: int = knob(4, "how often the weight of the KL rises from 0 to 1", 1, 1000)
    over: Number = knob(0.5, "share of each cycle over which the weight rises", 0, 1)

    def loss(self, batch: Batch) -> "Tensor":
        weight = _rise(batch.progress * self.cycles % 1, self.over)
        return batch.recon + batch.beta * weight * batch.kl.sum(1)


def _rise(progress: "float | Tensor", over: Number) -> "float | Tensor":
    """Rises linearly from 0 to 1 while progress goes from 0 to `over`, and stays at 1."""
    if not over:
        return 1.0
    risen = progress / over
    return min(risen, 1.0) if isinstance(risen, float) else risen.clamp(max=1.0)


def _log_normal(z: "Tensor", mu: "Tensor", logvar: "Tensor") -> "Tensor":
    """Log-density of N(mu, exp(logvar)) at z, of each element.

    The difference is scaled before it is squared: a small variance does not overflow.
    """
    scaled = (z - mu) * (-0.5 * logvar).exp()
    return -0.5 * (math.log(2 * math.pi) + logvar + scaled.square())


def _covariance(mu: "Tensor") -> "Tensor":
    """Covariance over the batch, divided by B: (B, D) -> (D, D)."""
    centred = mu - mu.mean(0)
    return centred.T @ centred / len(mu)


def _identity_penalty(covariance: "Tensor", off_diagonal: Number, diagonal: Number) -> "Tensor":
    """Weighted squared distance of a covariance from the identity matrix: (D, D) -> ()."""
    variances = covariance.diagonal()
    covariances = covariance - variances.diag()
    return off_diagonal * covariances.square().sum() + diagonal * (variances - 1).square().sum()


def _inverse_multiquadratic(a: "Tensor", b: "Tensor") -> "Tensor":
    """C / (C + |a_i - b_j|^2), where C = 2 D suits a prior N(0, I): (B, D) twice -> (B, B)."""
    c = 2 * a.shape[1]
    return c / (c + (a[:, None] - b).square().sum(2))
