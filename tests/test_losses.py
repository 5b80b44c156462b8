import numpy as np
import pytest
import torch
from torch.distributions import Normal, kl_divergence

from smilevae.models.losses import beta_vae_terms, gaussian_kl, optimal_beta, squared_error


def test_kl_agrees_with_torch_distributions():
    mu, logvar = 3 * torch.randn(2, 50, 7, dtype=torch.float64)
    oracle = kl_divergence(Normal(mu, torch.exp(logvar / 2)), Normal(0.0, 1.0))
    torch.testing.assert_close(gaussian_kl(mu, logvar), oracle)


def test_kl_is_zero_at_the_prior_only_and_exact_near_it():
    zero = torch.zeros(1, 1, dtype=torch.float64)
    assert gaussian_kl(zero, zero).item() == 0
    quarter_of_square = pytest.approx(1e-18 / 4, rel=1e-6, abs=1e-25)
    assert gaussian_kl(zero, zero + 1e-9).item() == quarter_of_square


def test_squared_error_of_the_mean_face_is_the_variance():
    x = torch.rand(40, 3, 8, 8, dtype=torch.float64)
    errors = squared_error(x.mean(0).expand_as(x), x)
    assert errors.shape == (40,)
    torch.testing.assert_close(errors.mean(), x.var(0, correction=0).sum())


@pytest.mark.parametrize("beta", [0.0, 1.0, 10.0, 50.0])
def test_loss_is_recon_plus_beta_kl_per_example(beta):
    x, x_hat = torch.rand(2, 6, 3, 8, 8)
    mu, logvar = torch.randn(2, 6, 5)
    terms = beta_vae_terms(x_hat, x, mu, logvar, beta)
    assert all(term.shape == (6,) for term in terms)
    torch.testing.assert_close(terms.loss, terms.recon + beta * terms.kl)
    one = beta_vae_terms(x_hat[3:4], x[3:4], mu[3:4], logvar[3:4], beta)  # no example sees another
    torch.testing.assert_close(one.loss[0], terms.loss[3])


@pytest.mark.parametrize("mse", [0.3, 1e-3, 0.0])
def test_the_optimal_beta_is_the_most_likely_variance_of_pixels_of_8_bits(mse):
    """Against the sample: a guess that is off by `mse`, of values that were rounded to 1/255."""
    rng = np.random.default_rng(0)
    value = rng.random(200_000)
    guess = value + np.sqrt(mse) * rng.standard_normal(len(value))
    rounded = np.round(value * 255) / 255
    assert optimal_beta(mse) / 2 == pytest.approx(((rounded - guess) ** 2).mean(), rel=0.02)


def test_gradients_agree_with_finite_differences():
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    inputs = [torch.rand_like(x), *torch.randn(2, 2, 3, dtype=torch.float64)]
    for tensor in inputs:
        tensor.requires_grad_()

    def loss(x_hat, mu, logvar):
        return beta_vae_terms(x_hat, x, mu, logvar, 4.0).loss

    assert torch.autograd.gradcheck(loss, inputs)
