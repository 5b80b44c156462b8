"""New faces: where their codes come from, and which face they are nearest to."""

import numpy as np
import pytest
import torch

from smilevae.evaluation import realism, samplers


def test_blends_draw_where_the_codes_are():
    """Codes far from the prior: the samples have their mean and covariance; temperature scales the spread."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    mu = torch.randn(800, 3, generator=rng) @ mix + torch.tensor([5.0, -3.0, 0.0])
    logvar = torch.full_like(mu, 2 * np.log(0.3))
    fitted = samplers.fit_sampler(mu, logvar)
    assert len(fitted.means) == samplers.NUM_BLENDS
    drawn = fitted.draw(20_000, torch.Generator().manual_seed(1))
    np.testing.assert_allclose(drawn.mean(0), mu.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(mu.T) + 0.09 * np.eye(3), atol=0.2)
    calm = fitted.draw(20_000, torch.Generator().manual_seed(1), temperature=0.5)
    assert 0.4 < float(calm.std(0)[0] / drawn.std(0)[0]) < 0.6
    assert torch.equal(*(fitted.draw(5, torch.Generator().manual_seed(1)) for _ in range(2)))
    plain = samplers.prior(3).draw(20_000, rng)
    np.testing.assert_allclose(np.cov(plain.T), np.eye(3), atol=0.05)


def test_no_two_faces_of_a_sheet_are_one_blend_while_there_are_others():
    means = torch.randn(50, 3)
    exact = samplers.Mixture(torch.full((50,), 0.02), means, torch.zeros(3, 3))
    drawn = exact.draw(50, torch.Generator().manual_seed(0))
    assert len(drawn.unique(dim=0)) == 50
    assert len(exact.draw(51, torch.Generator().manual_seed(0))) == 51


def test_a_handful_of_codes_are_too_few_for_blends():
    codes = torch.randn(9, 60, generator=torch.Generator().manual_seed(0))
    fitted = samplers.fit_sampler(codes, torch.full((9, 60), -6.0))
    assert torch.equal(fitted.means, torch.zeros(1, 60))
    assert torch.equal(fitted.factor, torch.eye(60))


def test_blends_keep_more_of_the_shape_of_the_codes_than_a_gaussian_and_are_no_copies():
    """Codes with heavy tails: half of their excess kurtosis is left, where a Gaussian has none."""
    torch.manual_seed(0)
    mu = torch.distributions.Laplace(0.0, 1.0).sample((4000, 20))
    logvar = torch.full_like(mu, -8.0)

    def kurtosis(x):
        x = (x - x.mean(0)) / x.std(0)
        return float((x**4).mean() - 3)

    blends = samplers.fit_sampler(mu, logvar)
    seed = torch.Generator().manual_seed(0)
    assert kurtosis(blends.draw(4000, seed)) == pytest.approx(0.98**2 * kurtosis(mu) / 2, rel=0.35)
    unseen = torch.distributions.Laplace(0.0, 1.0).sample((500, 20))
    assert realism.copies(mu, unseen, blends.draw(500, seed)) < 0.65
    assert realism.copies(mu, unseen, mu[:500] + 0.01) > 0.99
    calm = blends.draw(4000, seed, temperature=0.5)
    np.testing.assert_allclose(calm.std(0), 0.5 * blends.draw(4000, seed).std(0), rtol=0.1)


def test_the_nearest_is_the_nearest():
    others = torch.rand(20, 3, 8, 8)
    order = [3, 17, 0]
    assert samplers.nearest(others[order] + 0.01 * torch.rand(3, 3, 8, 8), others).tolist() == order
