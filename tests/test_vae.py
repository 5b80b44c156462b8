import copy

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from skimage.measure import block_reduce
from torch import nn

from smilevae.config import Settings
from smilevae.models import layers
from smilevae.models.architectures import Conv, Patch
from smilevae.models.vae import LOGVAR_BOUND, VAE

CONV = Conv()
PATCH = Patch()
SHORT = Patch(shortcut=32)


def build(model, image_size=64, latent_dim=5, **more):
    return VAE(model, image_size, latent_dim, **more)


both = pytest.mark.parametrize("model", [CONV, PATCH], ids=["conv", "patch"])
all_three = pytest.mark.parametrize("model", [CONV, PATCH, SHORT], ids=["conv", "patch", "short"])


@all_three
@pytest.mark.parametrize("image_size", [64, 96, 128])
def test_shapes_and_gradients_reach_every_weight(model, image_size):
    vae, x = build(model, image_size=image_size), torch.rand(4, 3, image_size, image_size)
    out = vae(x)
    assert out.x_hat.shape == x.shape
    assert out.mu.shape == out.logvar.shape == out.z.shape == (4, 5)
    (out.x_hat.square().sum() + out.logvar.sum()).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in vae.parameters())


def test_conv_is_the_source_studys_network():
    vae = build(CONV, image_size=128, latent_dim=120)
    kinds = [type(m) for m in vae.encoder[0]]
    assert [kind.__name__ for kind in kinds] == ["Conv2d", "BatchNorm2d", "ReLU", "Dropout2d"]
    down = [m for m in vae.encoder.modules() if isinstance(m, nn.Conv2d)]
    assert [m.stride for m in down] == [(2, 2)] * 4
    up = [m for m in vae.decoder.modules() if isinstance(m, nn.ConvTranspose2d)]
    assert [m.stride for m in up] == [(2, 2)] * 4
    assert sum(p.numel() for p in vae.parameters()) == pytest.approx(7.3e6, rel=0.01)


def plain(module):
    """The same layers as PyTorch has them."""
    module = copy.copy(module)
    if type(module).__module__ == layers.__name__ and type(module) is not layers.Layers:
        module.__class__ = type(module).__base__
    return nn.Sequential(*map(plain, module)) if isinstance(module, nn.Sequential) else module


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@both
def test_our_layers_give_pytorchs_results_and_gradients(model, dropout, training):
    """In float64: outputs, gradients of inputs and weights, running statistics, dropout's masks."""
    ours = build(model.model_copy(update={"dropout": dropout})).double().train(training)
    theirs = copy.deepcopy(ours)
    theirs.encoder, theirs.decoder = plain(theirs.encoder), plain(theirs.decoder)
    results = []
    for vae in (ours, theirs):
        torch.manual_seed(1)
        x = torch.rand(6, 3, 64, 64, dtype=torch.float64, requires_grad=True)
        codes = vae.encoder(x)
        pictures = vae.decoder(codes[:, :5])
        (pictures.square().sum() + codes.sum()).backward()
        gradients = [p.grad for p in vae.parameters()]
        results.append([codes, pictures, x.grad, *gradients, *vae.buffers()])
    for one, two in zip(*results, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-9)


def test_our_layers_are_what_trains(monkeypatch):
    """Without them the test above compares PyTorch with itself."""
    calls = []
    ours = layers._NormReluDrop.apply
    monkeypatch.setattr(layers._NormReluDrop, "apply", lambda *args: calls.append(1) or ours(*args))
    vae = build(CONV)
    vae(torch.rand(2, 3, 64, 64))
    assert len(calls) == 8
    with torch.autocast("cpu", torch.bfloat16):
        vae(torch.rand(2, 3, 64, 64))
    vae.eval()(torch.rand(2, 3, 64, 64))
    assert len(calls) == 8


def test_patch_has_no_layer_of_three_channels_at_full_resolution():
    for module in build(PATCH).modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
            assert min(module.in_channels, module.out_channels) >= 32


def test_a_shortcut_adds_a_linear_map_of_the_small_image_to_mu():
    encoder = build(Patch(shortcut=16)).encoder.eval()
    x = torch.rand(4, 3, 64, 64)
    plain = encoder(x)
    torch.testing.assert_close(plain, encoder.encoder(x))  # it begins at zero

    nn.init.normal_(encoder.linear.weight)
    small = block_reduce(x.numpy(), (1, 1, 4, 4), np.mean).reshape(4, -1) - 0.5
    added = small @ encoder.linear.weight.detach().numpy().T
    mu, raw = plain.chunk(2, dim=1)
    expected = torch.cat([mu + torch.from_numpy(added), raw], dim=1)
    torch.testing.assert_close(encoder(x), expected, rtol=1e-4, atol=1e-4)


@both
def test_settings_refuse_the_image_sizes_that_the_layers_cannot_halve(model):
    multiple = model.size_multiple()
    Settings(model=model, image_size=64 + multiple)
    with pytest.raises(ValidationError, match="does not fit this network"):
        Settings(model=model, image_size=64 + multiple // 2)


def test_normalize_changes_what_the_network_sees_and_not_the_units_of_its_output():
    """The same function written in both conventions gives the same [0, 1] pictures."""
    plain, scaled = build(PATCH).eval(), build(PATCH, normalize=True).eval()
    scaled.load_state_dict(plain.state_dict())
    x = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(scaled.encode((x + 1) / 2), plain.encode(x))
    z = torch.randn(2, 5)
    torch.testing.assert_close(scaled.decode(z) - 0.5, (plain.decode(z) - 0.5) / 2)


def test_logvar_is_bounded_softly():
    vae = build(PATCH).eval()
    with torch.no_grad():
        vae.encoder[-1].bias[5:] = 1e6
    _, logvar = vae.encode(torch.rand(2, 3, 64, 64))
    assert (logvar <= LOGVAR_BOUND).all()
    with torch.no_grad():
        vae.encoder[-1].bias[5:] = 1.0
        vae.encoder[-1].weight.zero_()
    assert vae.encode(torch.rand(1, 3, 64, 64))[1][0, 0].item() == pytest.approx(1.0, abs=0.01)


def test_a_new_vae_begins_near_the_prior_and_near_grey():
    vae = build(CONV).eval()
    out = vae(torch.rand(8, 3, 64, 64))
    assert out.mu.abs().max() < 0.5
    assert out.logvar.abs().max() < 0.5
    assert (out.x_hat.mean() - 0.5).abs() < 0.25


def test_eval_mode_is_per_example():
    vae, x = build(PATCH).eval(), torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(vae.encode(x)[0][2:3], vae.encode(x[2:3])[0], atol=1e-6, rtol=1e-4)
