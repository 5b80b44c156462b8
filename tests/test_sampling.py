"""New faces: where their codes come from, and which face they are nearest to."""

import numpy as np
import pytest
import torch
from scipy.stats import multivariate_normal

from smilevae.evaluation import realism, samplers


def test_a_mixture_draws_where_the_codes_are():
    """Codes far from the prior: the mixture's samples have their mean and covariance; temperature scales the spread."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    mu = torch.randn(800, 3, generator=rng) @ mix + torch.tensor([5.0, -3.0, 0.0])
    logvar = torch.full_like(mu, 2 * np.log(0.3))
    for sampler in ("mixture", "auto"):
        fitted = samplers.fit_sampler(mu, logvar, sampler)
        drawn = fitted.draw(20_000, torch.Generator().manual_seed(1))
        np.testing.assert_allclose(drawn.mean(0), mu.mean(0), atol=0.1)
        np.testing.assert_allclose(np.cov(drawn.T), np.cov(mu.T) + 0.09 * np.eye(3), atol=0.2)
    calm = fitted.draw(20_000, torch.Generator().manual_seed(1), temperature=0.5)
    assert 0.4 < float(calm.std(0)[0] / drawn.std(0)[0]) < 0.6
    assert torch.equal(*(fitted.draw(5, torch.Generator().manual_seed(1)) for _ in range(2)))
    plain = samplers.fit_sampler(mu, logvar, "prior").draw(20_000, rng)
    np.testing.assert_allclose(np.cov(plain.T), np.eye(3), atol=0.05)


@pytest.mark.parametrize("shape", samplers.SHAPES)
def test_a_mixtures_density_is_that_of_scipy(shape):
    mu = torch.randn(200, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([2.0, 1.0, 0.5])
    fitted = samplers._fit(mu, torch.full_like(mu, -2.0), *shape, 0)
    factor = fitted.factor.double().numpy()
    parts = [
        weight * multivariate_normal(mean, factor @ factor.T).pdf(mu)
        for weight, mean in zip(*(part.double().numpy() for part in fitted[:2]))
    ]
    np.testing.assert_allclose(
        fitted.log_prob(mu), np.log(sum(np.asarray(part) for part in parts)), rtol=1e-3, atol=1e-4
    )


def test_auto_blends_and_a_handful_of_codes_are_too_few():
    codes = torch.randn(200, 60, generator=torch.Generator().manual_seed(0))
    assert len(samplers.fit_sampler(codes, torch.full_like(codes, -6.0)).means) == samplers.NUM_BLENDS
    fitted = samplers.fit_sampler(codes[:9], torch.full((9, 60), -6.0))
    assert torch.equal(fitted.means, torch.zeros(1, 60))
    assert torch.equal(fitted.factor, torch.eye(60))


def test_a_mixture_finds_clusters_by_the_likelihood_of_codes_held_back():
    rng = torch.Generator().manual_seed(0)
    mu = (6 * torch.randn(4, 2, generator=rng)).repeat(100, 1) + 0.3 * torch.randn(400, 2, generator=rng)
    fitted = samplers.fit_sampler(mu, torch.full_like(mu, -4.0), "mixture")
    assert len(fitted.means) > 1
    one = samplers._fit(mu, torch.full_like(mu, -4.0), "tied", 1, 0)
    assert fitted.log_prob(mu).mean() > one.log_prob(mu).mean() + 1


def test_blends_keep_more_of_the_shape_of_the_codes_than_a_gaussian_and_are_no_copies():
    """Codes with heavy tails: half of their excess kurtosis is left, where a Gaussian has none."""
    torch.manual_seed(0)
    mu = torch.distributions.Laplace(0.0, 1.0).sample((4000, 20))
    logvar = torch.full_like(mu, -8.0)

    def kurtosis(x):
        x = (x - x.mean(0)) / x.std(0)
        return float((x**4).mean() - 3)

    blends, mixture = (samplers.fit_sampler(mu, logvar, name) for name in ("auto", "mixture"))
    seed = torch.Generator().manual_seed(0)
    assert kurtosis(blends.draw(4000, seed)) == pytest.approx(0.85**2 * kurtosis(mu) / 2, rel=0.35)
    unseen = torch.distributions.Laplace(0.0, 1.0).sample((500, 20))
    assert realism.copies(mu, unseen, blends.draw(500, seed)) < 0.6
    assert realism.copies(mu, unseen, mu[:500] + 0.01) > 0.99
    calm = blends.draw(4000, seed, temperature=0.5)
    np.testing.assert_allclose(calm.std(0), 0.5 * blends.draw(4000, seed).std(0), rtol=0.1)
    assert mixture.log_prob(unseen).mean() > blends.log_prob(unseen).mean()  # likelihood orders them otherwise


def test_the_nearest_is_the_nearest():
    others = torch.rand(20, 3, 8, 8)
    order = [3, 17, 0]
    assert samplers.nearest(others[order] + 0.01 * torch.rand(3, 3, 8, 8), others).tolist() == order
