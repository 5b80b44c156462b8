"""New faces: where their codes come from, and which face they are nearest to."""

import numpy as np
import pytest
import torch

from smilevae.evaluation import samplers


def test_a_mixture_draws_where_the_codes_are():
    """Codes far from the prior: the mixture's samples have their mean and covariance; temperature scales the spread."""
    rng = torch.Generator().manual_seed(0)
    mix = torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 0.1]])
    mu = torch.randn(800, 3, generator=rng) @ mix + torch.tensor([5.0, -3.0, 0.0])
    logvar = torch.full_like(mu, 2 * np.log(0.3))
    some = {"mu": mu, "logvar": logvar, "sampler": "mixture"}
    drawn = samplers.draw_codes(20_000, torch.Generator().manual_seed(1), **some)
    np.testing.assert_allclose(drawn.mean(0), mu.mean(0), atol=0.1)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(mu.T) + 0.09 * np.eye(3), atol=0.2)
    calm = samplers.draw_codes(20_000, torch.Generator().manual_seed(1), temperature=0.5, **some)
    assert 0.4 < float(calm.std(0)[0] / drawn.std(0)[0]) < 0.6
    again = samplers.draw_codes(5, torch.Generator().manual_seed(1), **some)
    assert torch.equal(again, samplers.draw_codes(5, torch.Generator().manual_seed(1), **some))
    plain = samplers.draw_codes(20_000, rng, mu=mu, logvar=logvar)
    np.testing.assert_allclose(np.cov(plain.T), np.eye(3), atol=0.05)
    with pytest.raises(ValueError, match="sampler=x"):
        samplers.draw_codes(1, rng, mu=mu, logvar=logvar, sampler="x")


def test_the_nearest_is_the_nearest():
    others = torch.rand(20, 3, 8, 8)
    order = [3, 17, 0]
    assert samplers.nearest(others[order] + 0.01 * torch.rand(3, 3, 8, 8), others).tolist() == order
