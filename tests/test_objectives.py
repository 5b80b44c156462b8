"""Objectives against the papers' formulas in float64, against pythae, and in closed form."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from smilevae.models import objectives as ours
from smilevae.models.losses import gaussian_kl, squared_error
from smilevae.plugins import Batch
from smilevae.plugins.loading import choices

NUM_FACES = 50


def draw(batch_size=5, latent_dim=3, scale=1.0, dtype=torch.float32):
    """x, noise, prior, and the differentiable x_hat, mu and logvar."""
    torch.manual_seed(0)
    prior = torch.randn(batch_size, latent_dim)
    noise, mu, logvar = torch.randn(3, batch_size, latent_dim)
    x, x_hat = torch.rand(2, batch_size, 3, 2, 2)
    fixed = [tensor.to(dtype) for tensor in (x, noise, prior)]
    inputs = [x_hat, scale * mu, (2 * scale * logvar).clamp(-10, 10)]
    return [*fixed, *(tensor.to(dtype).requires_grad_() for tensor in inputs)]


def batch_of(tensors, beta=2.0, progress=0.3, num_faces=NUM_FACES):
    x, noise, _, x_hat, mu, logvar = tensors
    z = mu + noise * (logvar / 2).exp()
    recon, kl = squared_error(x_hat, x), gaussian_kl(mu, logvar)
    return Batch(x, x_hat, mu, logvar, z, recon, kl, beta, progress, num_faces)


def kl_of(mu, logvar):
    return (mu**2 + np.exp(logvar) - 1 - logvar) / 2


def beta_tc(mu, logvar, z, num_faces=NUM_FACES):
    cost = 0
    for i, row in enumerate(z):
        densities = norm.pdf(row, mu, np.exp(logvar / 2))
        q = densities.prod(1).sum() / (len(z) * num_faces)
        factorised = np.prod(densities.sum(0) / (len(z) * num_faces))
        cost += np.log(densities[i].prod() / q) + 6 * np.log(q / factorised)
        cost += np.log(factorised / norm.pdf(row).prod())
    return cost / len(z)


def dip(mu, logvar, diagonal, with_variance, correction=0):
    cost = kl_of(mu, logvar).sum(1).mean()
    for i, a in enumerate(mu.T):
        for j, b in enumerate(mu.T):
            covariance = ((a - a.mean()) * (b - b.mean())).sum() / (len(mu) - correction)
            if i == j and with_variance:
                covariance += np.exp(logvar[:, i]).mean()
            cost += diagonal * (covariance - 1) ** 2 if i == j else 10 * covariance**2
    return cost


def mean_kernel(a, b, skip_same):
    pairs = [(i, j) for i in range(len(a)) for j in range(len(b)) if i != j or not skip_same]
    c = 2 * a.shape[1]
    return np.mean([c / (c + ((a[i] - b[j]) ** 2).sum()) for i, j in pairs])


def info(mu, logvar, z, prior, skip_same=True):
    mmd = mean_kernel(z, z, skip_same) + mean_kernel(prior, prior, skip_same)
    mmd -= 2 * mean_kernel(z, prior, False)
    return 0.5 * kl_of(mu, logvar).sum(1).mean() + (0.5 + 1000 - 1) * mmd


BITS = ours.FreeBits(nats=1.5)
RIGHT = [  # the mean cost of mu, logvar, z and prior samples, at progress 0.3
    (ours.BetaVae(), lambda m, v, z, p: kl_of(m, v).sum(1).mean()),
    (ours.BetaTc(), lambda m, v, z, p: beta_tc(m, v, z)),
    (ours.DipI(), lambda m, v, z, p: dip(m, v, 100, False)),
    (ours.DipII(), lambda m, v, z, p: dip(m, v, 10, True)),
    (ours.InfoVae(), info),
    (ours.Capacity(), lambda m, v, z, p: 1000 * abs(kl_of(m, v).sum(1) - 25 * 0.6).mean()),
    (BITS, lambda m, v, z, p: np.maximum(1.5, kl_of(m, v).mean(0)).sum()),
    (ours.Warmup(over=0.5), lambda m, v, z, p: 0.6 * kl_of(m, v).sum(1).mean()),
    (ours.Cyclic(cycles=5, over=0.8), lambda m, v, z, p: 0.625 * kl_of(m, v).sum(1).mean()),
]
WRONG = [  # plausible mistakes
    (ours.BetaTc(), lambda m, v, z, p: beta_tc(m, v, z, num_faces=1)),
    (ours.DipI(), lambda m, v, z, p: dip(m, v, 100, False, correction=1)),
    (ours.DipII(), lambda m, v, z, p: dip(m, v, 10, False)),
    (ours.InfoVae(), lambda m, v, z, p: info(m, v, z, p, skip_same=False)),
    (BITS, lambda m, v, z, p: np.maximum(1.5, kl_of(m, v)).sum(1).mean()),
]
NAMES = [objective.choice for objective, _ in RIGHT]


def by_differences(cost, beta=2.0, step=1e-5):
    """The mean loss in float64 and its gradients by central differences."""
    x, noise, prior, *inputs = (tensor.detach().double().numpy() for tensor in draw())

    def loss():
        x_hat, mu, logvar = inputs
        z = mu + noise * np.exp(logvar / 2)
        return ((x_hat - x) ** 2).sum() / len(x) + beta * cost(mu, logvar, z, prior)

    results = [loss()] + [np.zeros_like(array) for array in inputs]
    for array, gradient in zip(inputs, results[1:]):
        for index in np.ndindex(array.shape):
            for side in (1, -1):
                array[index] += side * step
                gradient[index] += side * loss() / (2 * step)
                array[index] -= side * step
    return results


def deviation(objective, oracle):
    """The largest deviation of loss and gradients, relative to the largest element of each."""
    tensors = draw()
    torch.manual_seed(0)  # as before the prior samples of `draw`
    loss = objective.loss(batch_of(tensors)).mean()
    results = [loss.detach(), *torch.autograd.grad(loss, tensors[3:])]
    pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(results, oracle, strict=True)]
    return max(abs(a - b).max() / abs(b).max() for a, b in pairs)


@pytest.mark.parametrize(("objective", "cost"), RIGHT, ids=NAMES)
def test_loss_and_gradients_agree_with_the_paper_in_float64(objective, cost):
    assert deviation(objective, by_differences(cost)) < 1e-5


@pytest.mark.parametrize(("objective", "cost"), WRONG, ids=lambda o: getattr(o, "choice", "wrong"))
def test_a_wrong_formula_is_noticed(objective, cost):
    assert deviation(objective, by_differences(cost)) > 1e-3


PYTHAE = {
    "BetaVAE": (ours.BetaVae(), {"beta": 1.0}, "mu logvar z"),
    "BetaTCVAE": (ours.BetaTc(), {"beta": 6.0, "use_mss": False}, "mu logvar z num_faces"),
    "INFOVAE_MMD_": (ours.InfoVae(), {"alpha": 0.5, "lbd": 1e3, "scales": [1.0]},
                     "z prior mu logvar"),
    "DisentangledBetaVAE": (ours.Capacity(), {"beta": 1e3, "C": 25.0, "warmup_epoch": 9},
                            "mu logvar z epoch"),
}  # fmt: skip


@pytest.mark.parametrize("model", PYTHAE)
def test_loss_and_gradients_agree_with_pythae(model):
    """pythae halves the squared error: the loss at beta = 2 is twice its loss."""
    pythae = pytest.importorskip("pythae.models")
    objective, knobs, arguments = PYTHAE[model]
    config = getattr(pythae, model + "Config")((12,), latent_dim=3, **knobs)
    theirs = getattr(pythae, model.rstrip("_"))(config)
    tensors = draw(dtype=torch.float64)
    batch = batch_of(tensors)
    known = batch._asdict() | {"prior": tensors[2], "epoch": 6}  # of 10: progress 0.3 of 0.5
    values = [known[name] for name in arguments.split()]
    loss = 2 * theirs.loss_function(batch.x_hat, batch.x, *values)[0]
    oracle = [loss.detach(), *torch.autograd.grad(loss, tensors[3:])]
    assert deviation(objective, oracle) < 1e-5


@pytest.mark.parametrize("progress", [0.0, 0.3, 1.0])
def test_without_their_terms_objectives_are_beta_vae(progress):
    batch = batch_of(draw(), progress=progress)
    for objective in (
        *(ours.FreeBits(nats=0), ours.Capacity(nats=0, gamma=1), ours.InfoVae(alpha=0, scale=1)),
        *(ours.DipI(off_diagonal=0, diagonal=0), ours.DipII(off_diagonal=0, diagonal=0)),
        *(ours.Warmup(over=progress / 2), ours.Cyclic(over=0)),
    ):
        torch.testing.assert_close(objective.loss(batch), ours.BetaVae().loss(batch))


def costs(mu, logvar, tc, num_faces=1):
    """Of BetaTc, for each code."""
    torch.manual_seed(2)
    x = torch.zeros(len(mu), 1)
    tensors = (x, torch.randn(mu.shape), None, x, mu, logvar)
    return ours.BetaTc(tc=tc).loss(batch_of(tensors, beta=1.0, num_faces=num_faces))


def test_beta_tc_in_closed_form():
    # Codes of the prior: MI and TC are 0; N adds its constant
    prior = torch.zeros(300, 4)
    for tc in (0, 1, 6):
        constant = (tc - 1) * (4 - 1) * math.log(NUM_FACES)
        assert costs(prior, prior, tc).numpy() == pytest.approx(0, abs=1e-4)
        assert costs(prior, prior, tc, NUM_FACES).numpy() == pytest.approx(constant, abs=1e-4)

    # Two correlated dimensions of variance 1: TC = -log(1 - correlation^2) / 2
    for correlation in (0.0, 0.6):
        covariance = torch.tensor([[0.7, correlation], [correlation, 0.7]])
        torch.manual_seed(1)
        mu = torch.randn(1000, 2) @ torch.linalg.cholesky(covariance).T
        logvar = torch.full_like(mu, math.log(0.3))
        tc = (costs(mu, logvar, 1) - costs(mu, logvar, 0)).mean().item()
        assert tc == pytest.approx(-math.log(1 - correlation**2) / 2, abs=0.04)

    # tc = 1: the expectation is the KL
    mu, logvar = (row.expand(1000, 3) for row in torch.tensor([[1, -0.5, 0], [-1, 0.5, -2.0]]))
    cost = costs(mu, logvar, 1, NUM_FACES)
    error = cost.std() / math.sqrt(len(cost))
    assert abs(cost.mean() - gaussian_kl(mu, logvar)[0].sum()) < 4 * error


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=25, deadline=None, derandomize=True)
@given(batch_size=st.integers(2, 9), latent_dim=st.integers(1, 8), scale=st.sampled_from([1, 30]))
def test_losses_and_gradients_are_finite(name, batch_size, latent_dim, scale):
    objective = choices("objective")[name]()
    tensors = draw(batch_size, latent_dim, scale)
    batch = batch_of(tensors, beta=torch.tensor(0.5))
    torch.manual_seed(0)
    loss = objective.loss(batch)
    assert loss.shape == (batch_size,)
    gradients = torch.autograd.grad(loss.mean(), tensors[3:])
    assert all(tensor.isfinite().all() for tensor in (loss, *gradients))


def test_names_and_imports_for_the_help():
    assert (ours.DipI.choice, ours.DipII.choice, len(NAMES)) == ("dip_i", "dip_ii", 9)
    code = f"import sys, {ours.__name__}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
