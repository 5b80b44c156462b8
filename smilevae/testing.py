"""Checks for your own networks, objectives and sources of images, for the tests beside them.

Each check raises AssertionError with a sentence that says what is wrong.

Example:
    >>> from smilevae.models.architectures import Conv
    >>> check_network(Conv(widths=[8, 16]))
"""

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor

from smilevae.data.dataset import load_faces
from smilevae.models.losses import gaussian_kl, squared_error
from smilevae.models.vae import VAE, check_shapes
from smilevae.plugins import Batch, Network, Objective, Source

NUM = 3  # examples of a batch


def check_network(
    network: Network, image_size: int = 64, latent_dim: int = 8, channels: int = 3
) -> None:
    """Check what a training, a resume and an evaluation need of a network."""
    torch.manual_seed(0)
    vae = VAE(network, image_size, latent_dim, channels=channels)
    x = torch.rand(NUM, *vae.shape)

    # Shapes.
    check_shapes(vae, network.network)

    # Gradients.
    (squared_error(vae.train()(x).x_hat, x).mean() + vae.encode(x)[1].square().mean()).backward()
    for name, parameter in vae.named_parameters():
        gradient = parameter.grad
        if gradient is None:
            raise AssertionError(f"{name} has no effect on the loss")
        _require(bool(gradient.isfinite().all()), f"the gradient of {name} is not finite")

    # An image alone, and among others.
    vae.eval()
    alone = vae.decode(vae.encode(x[:1])[0])
    among = vae.decode(vae.encode(x)[0])[:1]
    close = torch.allclose(alone, among, rtol=1e-3, atol=1e-4)
    _require(close, "in eval mode an image's output depends on the other images of its batch")

    # The same bits from the same seed, also after a checkpoint.
    first = _two_steps(vae, x, resume=False)
    second = _two_steps(vae, x, resume=True)
    for name, tensor in first.items():
        _require(torch.equal(tensor, second[name]), f"a resume changes {name}")

    # Any device.
    with torch.device("meta"):
        meta = VAE(network, image_size, latent_dim, channels=channels)
    try:
        meta(x.to("meta"), torch.zeros(NUM, latent_dim, device="meta"))
    except RuntimeError as error:
        raise AssertionError(f"it works on one device only: {error}") from None

    # A warm start sets the last layers to zero.
    linear = VAE(network, image_size, latent_dim, linear=True, channels=channels).eval()
    zero = not linear.encode(x)[0].any()
    _require(zero, "the last layer that is registered is not the last that is applied")


def check_objective(objective: Objective, latent_dim: int = 8) -> None:
    """Check what a training and a resume need of an objective."""
    batch = _batch(objective, latent_dim)

    # One finite number for each example, and finite gradients.
    loss = _loss(objective, batch)
    shapes = f"{tuple(loss.shape)}; it must be ({NUM},), one number an example"
    _require(loss.shape == (NUM,), f"the loss is {shapes}")
    _require(bool(loss.isfinite().all()), "the loss is not finite")
    loss.mean().backward()
    for name in ("x_hat", "mu", "logvar"):
        gradient = getattr(batch, name).grad
        finite = gradient is None or bool(gradient.isfinite().all())
        _require(finite, f"the gradient of {name} is not finite")
    _require(batch.x_hat.grad is not None, "the loss does not depend on the reconstruction")

    # The same bits from the same seed.
    _require(torch.equal(loss, _loss(objective, batch)), "the same seed gives another loss")

    # An example alone, and among others.
    if not objective.uses_batch:
        fields = {name: _first(value) for name, value in batch._asdict().items()}
        alone = _loss(objective, Batch(**fields))
        same = torch.allclose(alone, loss[:1], rtol=1e-5)
        _require(same, "an example's loss depends on the others; set uses_batch = True")

    # Any device.
    fields = {name: _meta(value) for name, value in batch._asdict().items()}
    try:
        objective.loss(Batch(**fields))
    except (RuntimeError, NotImplementedError) as error:
        raise AssertionError(f"it works on one device only: {error}") from None


def check_source(source: Source, image_size: int = 64) -> None:
    """Check what a training, a resume and an evaluation need of a source of images."""
    examples = list(source.examples())
    _require(bool(examples), "it has no examples")

    # Names and texts.
    names = [example.name for example in examples]
    _require(len(set(names)) == len(names), "two examples have the same name")
    for example in examples:
        texts = (example.name, example.label, example.person, example.part, example.digest)
        _require(all(type(text) is str for text in texts), f"{example.name}: a field is no text")
        _require(example.part in ("train", "test"), f"{example.name}: part is {example.part}")
        made = callable(example.image) and not example.digest
        _require(not made, f"{example.name}: a function needs a digest")

    # The same images, names and order each time.
    first = load_faces(source, image_size)
    second = load_faces(source.model_copy(update={"cache": False}), image_size)
    _require(first.fingerprint == second.fingerprint, "a second look finds other images")
    _require(np.array_equal(first.images, second.images), "a second look finds other pixels")

    # What else is known.
    for name, values in source.attributes_of(first.names).items():
        shape = np.shape(values)
        _require(shape == (len(first.names),), f"{name} has the shape {shape}")


def _batch(objective: Objective, latent_dim: int) -> Batch:
    """Random images and codes, some far from the prior."""
    torch.manual_seed(0)
    x = torch.rand(NUM, 3, 8, 8)
    x_hat = torch.rand(NUM, 3, 8, 8).requires_grad_()
    mu = (3 * torch.randn(NUM, latent_dim)).requires_grad_()
    logvar = torch.linspace(-10, 10, NUM * latent_dim).view(NUM, -1).requires_grad_()
    z = mu + torch.exp(0.5 * logvar) * torch.randn(NUM, latent_dim)
    recon = squared_error(x_hat, x)
    kl = gaussian_kl(mu, logvar)
    progress = 0.5 if objective.scheduled else float("nan")
    return Batch(x, x_hat, mu, logvar, z, recon, kl, 1.0, progress, 1000)


def _loss(objective: Objective, batch: Batch) -> Tensor:
    torch.manual_seed(1)
    return objective.loss(batch)


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) else value


def _meta(value: Any) -> Any:
    return value.to("meta") if isinstance(value, Tensor) else value


def _two_steps(vae: VAE, x: Tensor, resume: bool) -> dict[str, Tensor]:
    """The weights after two steps, with or without a checkpoint and a new model between them."""
    trained = copy.deepcopy(vae).train()
    for step in range(2):
        torch.manual_seed(step)
        optimizer = torch.optim.SGD(trained.parameters(), lr=1e-4)
        squared_error(trained(x).x_hat, x).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        if resume:
            weights = trained.state_dict()
            trained = copy.deepcopy(vae).train()
            trained.load_state_dict(weights)
    return trained.state_dict()


def _require(condition: bool, problem: str) -> None:
    if not condition:
        raise AssertionError(problem)
