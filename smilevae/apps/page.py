"""A model as one page that opens from disk: a browser decodes its codes. No photo is in it.

Shapes: D latent dimensions, K channels of a layer's input, L of its output.
"""

import base64
import os
import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import torch
from markupsafe import Markup
from torch import Tensor, nn

from smilevae import runs
from smilevae.apps.model import Model
from smilevae.apps.options import PageOptions
from smilevae.editing import attributes
from smilevae.errors import ConfigError, NotEvaluated
from smilevae.evaluation import summary
from smilevae.models import layers
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

TEMPLATE = Path(__file__).with_name("page.html")
STYLE = TEMPLATE.with_name("style.css")
NAME = "face.html"  # in a run folder
MOST_BYTES = 4_000_000
LEVELS = 2047  # a number is one of 2 * LEVELS + 1 multiples of its row's scale
TINY = 1e-30  # the least scale of a row, if it is zero
NUM_FACES = 200  # new faces
NUM_AXES = 8  # latent dimensions with a slider


class Layer(NamedTuple):
    """A layer as the browser runs it.

    kind    linear; up: ConvTranspose2d(K, L, 4, 2, 1); patches: Conv2d(K, L, 3), then to pixels
    weight  (K, L), (16 K, L) or (9 K, L): kernel row, kernel column, input. Images are (S, S, C).
    """

    kind: str
    weight: Tensor
    bias: Tensor  # (L,)
    relu: bool = False


def main(options: PageOptions) -> None:
    """Write the page. Raises CheckpointError, ConfigError."""
    path = runs.find(options.ckpt)
    if not options.out and path.parent.name != "checkpoints":
        raise ConfigError("out is missing; name the new file, such as out=face.html")
    out = Path(os.path.expanduser(options.out)) if options.out else runs.run_of(path) / NAME
    if out.suffix.lower() not in (".html", ".htm") or out.is_dir():
        raise ConfigError(f"out={out} is no page; name a file that ends in .html")
    size = write(Model(path, options.attribute), out)
    print(f"page: {runs.shell_path(out)}, {size / 1e6:.1f} MB")


def write(model: Model, out: Path) -> int:
    """Write a model's page; gives its bytes. Raises CheckpointError, ConfigError."""
    content = page(model).encode()
    if len(content) > MOST_BYTES:
        reason = (
            f"the page would have {len(content) / 1e6:.1f} MB; its limit is {MOST_BYTES / 1e6:.0f}"
        )
        raise ConfigError(f"{reason}; take a smaller image_size, latent_dim or model.widths")
    runs.write_bytes(out, content)
    return len(content)


def page(model: Model) -> str:
    """The HTML of a model's page. Raises CheckpointError, ConfigError."""
    vae = model.vae
    metrics = runs.read_evaluation(model.path, "metrics.json", checkpoint.digest(vae))
    codes = model.draw(NUM_FACES)
    mean = codes.mean(0)
    spread = codes.std(0)
    plane = torch.linalg.svd(codes - mean, full_matrices=False).Vh[:2]  # (2, D)
    tensors = {"codes": codes, "plane": plane, "mean": mean[None], "spread": spread[None]}
    network = browser_layers(vae, model.settings.model.network)
    for number, layer in enumerate(network):
        tensors[f"weight{number}"] = layer.weight
        tensors[f"bias{number}"] = layer.bias[None]
    if path := vae.linear:
        tensors["linear"] = torch.cat([path.decoder, path.mean[None]])
        tensors["linear"] = tensors["linear"].unflatten(1, vae.shape).movedim(1, -1).flatten(1)
    about: dict[str, Any] = {
        "shape": vae.shape,
        "layers": [{"kind": one.kind, "relu": one.relu} for one in network],
        "axes": strongest(model, mean, spread),
        "attributes": [],
    }

    # The edits.
    try:
        editable = [one for one in model.edits.attributes if one.low < one.high]
        for number, one in enumerate(editable):
            numbers = {
                key: getattr(one, key) for key in ("name", "bias", "target", "gain", "low", "high")
            }
            about["attributes"].append(numbers | {"own": one.matrix is not None})
            tensors[f"a{number}"] = torch.stack([one.direction, one.weights])
            if one.matrix is not None:
                tensors[f"m{number}"] = one.matrix
    except NotEvaluated:  # without labels there are no edits
        if model.attribute:
            raise
    about["tensors"], packed = pack(tensors)
    environment = jinja2.Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    with runs.whole(model.path, "metrics.json", jinja2.TemplateError):
        text = summary.summary(metrics, Path()).splitlines()
        lines = [text[0], *text[1 + len(summary.quality(metrics)) : -1]]
        return environment.from_string(TEMPLATE.read_text("utf-8")).render(
            about=about,
            packed=packed,
            settings=model.settings,
            metrics=metrics,
            lines=[
                line for line in lines if not line.startswith("Also editable")
            ],  # the sliders say it
            references=summary.references(metrics),
            num_faces=NUM_FACES,
            style=Markup(STYLE.read_text("utf-8")),
            least_step=attributes.LEAST_STEP,
            least_rise=attributes.LEAST_RISE,
        )


def strongest(model: Model, mean: Tensor, spread: Tensor) -> list[dict[str, float]]:
    """The latent dimensions that change the image most, and their shares of its variance."""
    steps = torch.diag(spread)
    change = (model.decode(mean + steps) - model.decode(mean - steps)).flatten(1) / 2
    variance = change.square().sum(1)
    order = variance.argsort(descending=True)[:NUM_AXES].tolist()
    return [{"axis": i, "share": float(variance[i] / variance.sum())} for i in order]


def browser_layers(vae: VAE, name: str) -> list[Layer]:
    """The decoder's layers, with BatchNorm and the scaling of images in them. Raises ConfigError."""
    if name not in ("conv", "patch"):
        raise ConfigError(f"a page cannot draw model={name}; take a model of model=conv or patch")
    found: list[Layer] = []
    for layer in vae.decoder.modules():
        if isinstance(layer, nn.Linear):
            found.append(Layer("linear", layer.weight.T, layer.bias))
        elif isinstance(layer, nn.Unflatten):
            found[-1] = channels_last(found[-1], tuple(layer.unflattened_size))
        elif isinstance(layer, nn.ConvTranspose2d):
            found.append(up(layer))
        elif isinstance(layer, layers.ToPatches):
            found.append(to_patches(layer))
        elif isinstance(layer, nn.BatchNorm2d):
            found[-1] = normalised(found[-1], layer)
        elif isinstance(layer, nn.ReLU):
            found[-1] = found[-1]._replace(relu=True)
    weight, bias = found[-1][1:3]
    scale = 0.5 if vae.normalize else 1.0
    middle = 0.0 if vae.linear else 0.5
    found[-1] = found[-1]._replace(weight=weight * scale, bias=bias * scale + middle)
    return found


def channels_last(layer: Layer, shape: tuple[int, ...]) -> Layer:
    """A linear layer that gives (S, S, L) instead of `shape` (L, S, S)."""
    weight, bias = (part.unflatten(-1, shape).movedim(-3, -1).flatten(-3) for part in layer[1:3])
    return layer._replace(weight=weight, bias=bias)


def up(layer: nn.ConvTranspose2d) -> Layer:
    weight = layer.weight.permute(2, 3, 0, 1).flatten(0, 2)
    bias = torch.zeros(weight.shape[1]) if layer.bias is None else layer.bias
    return Layer("up", weight, bias)


def to_patches(layer: layers.ToPatches) -> Layer:
    """Its outputs are ordered row, column, colour of a patch."""
    weight, bias = (
        part.unflatten(0, (layer.channels, -1)).transpose(0, 1).flatten(0, 1)
        for part in layer.parameters()
    )
    return Layer("patches", weight.permute(2, 3, 1, 0).flatten(0, 2), bias)


def normalised(layer: Layer, norm: nn.BatchNorm2d) -> Layer:
    """A layer with the BatchNorm behind it in its weights."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    shift = norm.bias - norm.running_mean * scale
    repeats = layer.weight.shape[1] // len(scale)  # pixels of a linear layer
    weight = layer.weight * scale.repeat(repeats)
    bias = layer.bias * scale.repeat(repeats) + shift.repeat(repeats)
    return layer._replace(weight=weight, bias=bias)


def pack(tensors: dict[str, Tensor]) -> tuple[dict[str, list[int]], str]:
    """Matrices as whole numbers with a scale a row: name -> rows, columns, first number and
    first scale; base64.

    All low bytes come first, then all high bytes, then the scales in float32; zlib compresses them.
    """
    index: dict[str, list[int]] = {}
    numbers: list[np.ndarray] = []
    scales: list[np.ndarray] = []
    for name, tensor in tensors.items():
        matrix = tensor.detach().cpu().numpy()
        index[name] = [*matrix.shape, sum(n.size for n in numbers), sum(s.size for s in scales)]
        scale = np.maximum(abs(matrix).max(1), TINY).astype("<f4") / LEVELS
        numbers.append((matrix / scale[:, None]).round().astype("<i2").ravel())
        scales.append(scale)
    pairs = np.concatenate(numbers).view(np.uint8).reshape(-1, 2)
    content = pairs.T.tobytes() + np.concatenate(scales).tobytes()
    return index, base64.b64encode(zlib.compress(content, 9)).decode()
