import math

import torch
from scipy.stats import kstest, norm

from smilevae.models import latents


def test_reparameterise_samples_the_posterior():
    noise = torch.randn(20000, 1, generator=torch.Generator().manual_seed(0))
    z = latents.reparameterise(torch.tensor(2.0), torch.tensor(-1.0), noise)
    assert kstest(z.flatten().numpy(), norm(2.0, math.exp(-0.5)).cdf).pvalue > 0.01


def test_reparameterise_is_differentiable_and_a_function_of_its_noise():
    mu, logvar = torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2, requires_grad=True)
    noise = torch.randn(3, 2)
    first = latents.reparameterise(mu, logvar, noise)
    torch.testing.assert_close(first.detach(), noise)
    assert not torch.equal(latents.reparameterise(mu, logvar), latents.reparameterise(mu, logvar))
    first.sum().backward()
    torch.testing.assert_close(mu.grad, torch.ones(3, 2))
    torch.testing.assert_close(logvar.grad, noise / 2)  # of sd * noise at sd 1


def test_interpolation_starts_and_ends_at_its_codes_and_is_straight():
    a, b = torch.randn(2, 4, 6)
    path = latents.interpolate(a, b, 5)
    assert path.shape == (4, 5, 6)
    torch.testing.assert_close(path[:, 0], a)
    torch.testing.assert_close(path[:, -1], b)
    torch.testing.assert_close(path[:, 2], (a + b) / 2)


def test_traversal_moves_one_dimension_only():
    z, values = torch.randn(3, 5), torch.tensor([-2.0, 0.0, 2.0])
    codes = latents.traverse(z, 4, values)
    assert torch.equal(codes[:, :, 4], values.expand(3, 3))
    assert torch.equal(codes[:, :, :4], z[:, None, :4].expand(3, 3, 4))


def test_shift_is_linear_in_the_intensity_and_nothing_at_zero():
    z, direction = torch.randn(3, 5), torch.randn(5)
    codes = latents.shift(z, direction, torch.tensor([-1.0, 0.0, 2.0]))
    assert torch.equal(codes[:, 1], z)
    torch.testing.assert_close(codes[:, 2] - z, -2 * (codes[:, 0] - z))
