import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from scipy.stats import norm
from skimage.metrics import peak_signal_noise_ratio

from smilevae.models.linear import Spectrum, forecast, linear_vae, pca_psnr, settled_beta
from smilevae.models.metrics import active_units, negative_elbo, psnr

SPECTRUM = Spectrum([9.0, 4.0, 1.0], [8.0, 5.0, 1.0], 15.0, 48)


def test_psnr_agrees_with_scikit_image():
    a, b = np.random.default_rng(0).random((2, 16, 16, 3))
    oracle = peak_signal_noise_ratio(a, b, data_range=1.0)
    assert psnr(((a - b) ** 2).mean()) == pytest.approx(oracle)
    assert psnr(0.0) == math.inf


def test_active_units_counts_what_moves():
    mu = torch.randn(500, 4) * torch.tensor([1.0, 0.2, 0.05, 0.0])  # variances 1, 0.04, 0.0025, 0
    assert active_units(mu.var(0)) == 2


def test_negative_elbo_is_the_bound_at_the_best_decoder_variance():
    """Against scipy: minimise the Gaussian code length over the decoder's sd, the slow way."""
    errors = np.random.default_rng(1).normal(scale=0.1, size=(20, 48))
    recon, kl = (errors**2).sum(1).mean(), 3.5

    def cost(log_sd: float) -> float:
        return -norm.logpdf(errors, scale=math.exp(log_sd)).sum(1).mean() + kl

    best = minimize_scalar(cost, bounds=(-6, 1), method="bounded", options={"xatol": 1e-9})
    assert negative_elbo(recon, kl, 48) == pytest.approx(best.fun, rel=1e-6)


def test_at_beta_zero_the_forecast_is_pca_and_names_no_kl():
    """The optimal KL is infinite, and a linear autoencoder is PCA (Baldi & Hornik 1989)."""
    optimum = linear_vae(SPECTRUM, 0.0, 2)
    assert optimum["kl"] is None
    assert optimum["loss"] == optimum["recon"] == pytest.approx(15 - 8 - 5)
    assert optimum["psnr"] == pca_psnr(SPECTRUM, 2) == psnr(2 / 48)
    json.dumps(optimum, allow_nan=False)
    text = forecast(SPECTRUM, 0.0, 2)
    assert "plain autoencoder, which pays no KL; PCA with 2 components" in text
    assert "nats" not in text


def test_the_forecast_nears_pca_as_beta_falls_to_zero():
    small = linear_vae(SPECTRUM, 1e-9, 2)
    assert small["psnr"] == pytest.approx(pca_psnr(SPECTRUM, 2))
    assert linear_vae(SPECTRUM, 1e-12, 2)["kl"] > small["kl"] > 20


def test_the_settled_beta_is_the_one_with_the_lowest_bound():
    """Against scipy, over beta, on a spectrum like that of faces."""
    variances = 200 / np.arange(1, 101) ** 1.5
    held_out = (0.9 * variances).tolist()
    spectrum = Spectrum(variances.tolist(), held_out, 1.2 * float(variances.sum()), 12288)
    settled = settled_beta(spectrum, "auto", 60)
    fixed_point = 2 * linear_vae(spectrum, settled, 60)["recon"] / 12288
    assert settled == pytest.approx(fixed_point, rel=1e-6)

    def bound(log_beta):
        found = linear_vae(spectrum, math.exp(log_beta), 60)
        return negative_elbo(found["recon"], found["kl"], 12288)

    best = minimize_scalar(bound, bounds=(-12, 2), method="bounded", options={"xatol": 1e-9})
    assert math.log(settled) == pytest.approx(best.x, abs=0.1)
    assert settled_beta(spectrum, 3, 60) == 3
    assert f"beta={settled:.4g} (auto)" in forecast(spectrum, "auto", 60)


def test_a_perfect_reconstruction_has_a_finite_forecast():
    exact = Spectrum([1.0], [1.0], 1.0, 48)
    assert math.isfinite(pca_psnr(exact, 1))
    assert math.isfinite(linear_vae(exact, 0.0, 1)["psnr"])
