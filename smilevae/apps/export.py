"""A model to give away: python -m smilevae.runs.checkpoint export ckpt=RUN out=FOLDER

model.safetensors, model.json    weights, settings, what goes in and comes out; no paths of the machine
evaluation/                      dials.json, the smile's directions with their calibration; metrics.json
encoder.onnx, decoder.onnx       the same two halves for any runtime
README.md                        the model card

evaluate.py (with root=PATH of the pictures), smilevae.apps.photo and smilevae.apps.slider take the folder where they take a run.
Shapes: B batch, S image side, D latent dimensions.
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from smilevae import runs
from smilevae.editing import scorecard
from smilevae.errors import CheckpointError, ConfigError
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

PRIVATE = ("root", "unlabelled", "attributes")


class _Encoder(nn.Module):
    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.vae.encode(x)


class _Decoder(nn.Module):
    def __init__(self, vae: VAE):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z)


def main(arguments: list[str]) -> None:
    """Raises ConfigError or CheckpointError."""
    words = [argument for argument in arguments if "=" not in argument]
    options = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    if words != ["export"] or set(options) != {"ckpt", "out"} or not all(options.values()):
        given = " ".join(arguments) or "nothing"
        raise ConfigError(
            f"python -m smilevae.runs.checkpoint export ckpt=RUN out=FOLDER takes these words, not {given}"
        )
    out = Path(os.path.expanduser(options["out"]))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} is there already and not an empty folder; name a new one")
    export(checkpoint.find(options["ckpt"]), out)
    print(f"exported: {runs.short(out)}/")


def export(path: Path, out: Path) -> None:
    """Write the exported folder of a checkpoint into an empty or new folder. Raises CheckpointError, ConfigError."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
        from safetensors.torch import save
    except ImportError as error:
        raise ConfigError(f"exporting needs {error.name}, which is not installed: pip install -e '.[export]'") from None
    vae, content = checkpoint.load_vae(path)
    run = checkpoint.run_of(path)
    evaluation, again = runs.evaluated(run), f"run python evaluate.py ckpt={runs.short(path)} first"
    try:
        metrics = json.loads((evaluation / "metrics.json").read_text())
    except (OSError, ValueError):
        raise CheckpointError(f"{path} has not been evaluated; {again}") from None
    if metrics.get("weights") != checkpoint.digest(vae):
        raise CheckpointError(f"{evaluation} is of another checkpoint than {path.name}; {again}")
    settings = content["hyper_parameters"] | {"resume": None}
    settings["data"] = settings["data"] | {name: None for name in PRIVATE if name in settings["data"]}
    kept = {
        "smilevae": content["smilevae"],
        "hyper_parameters": settings,
        "fingerprint": content["fingerprint"],
        "epoch": checkpoint.epochs_trained(content),
        "contract": contract(vae),
    }
    card = json.loads((run / "data_card.json").read_text()) if (run / "data_card.json").exists() else {}
    weights = save({name: tensor.contiguous() for name, tensor in vae.state_dict().items()})
    for left in out.parent.glob(f".{out.name}.[0-9]*.tmp"):  # by one that was killed
        shutil.rmtree(left, ignore_errors=True)
    with runs.replacing(out) as work:  # a whole folder or none
        for name in ("metrics.json", "dials.json"):
            if (source := evaluation / name).exists():
                runs.write_text(work / "evaluation" / name, source.read_text())
        for name, data in onnx_halves(vae).items():
            runs.write_bytes(work / name, data)
        runs.write_text(work / "README.md", model_card(kept, metrics, card))
        runs.write_text(work / "model.json", json.dumps(kept, indent=2) + "\n")
        runs.write_bytes(work / checkpoint.EXPORTED, weights)


def contract(vae: VAE) -> dict[str, Any]:
    """What goes in and comes out, for whoever has only the ONNX files."""
    side, dims = vae.image_size, vae.latent_dim
    return {
        "encoder.onnx": {"x": f"float32 (B, 3, {side}, {side}), RGB in [0, 1]", "mu, logvar": f"float32 (B, {dims})"},
        "decoder.onnx": {"z": f"float32 (B, {dims})", "x_hat": f"float32 (B, 3, {side}, {side}), clamp to [0, 1]"},
        "smile": "z = mu + intensity * step * direction; step = gain * max(smiling - (mu . weights + bias), least)"
        " / (direction . weights), all from evaluation/dials.json; smilevae then measures each face with the reader"
        " there and corrects the step twice",
    }


def onnx_halves(vae: VAE) -> dict[str, bytes]:
    """encoder.onnx and decoder.onnx, for any number of pictures at a time: name -> content."""
    x, z = torch.rand(2, 3, vae.image_size, vae.image_size), torch.randn(2, vae.latent_dim)
    parts = {
        "encoder": (_Encoder(vae), x, ["x"], ["mu", "logvar"]),
        "decoder": (_Decoder(vae), z, ["z"], ["x_hat"]),
    }
    found = {}
    for name, (part, example, inputs, outputs) in parts.items():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the exporter's notes to its own developers
            program = torch.onnx.export(
                part.eval(), (example,), input_names=inputs, output_names=outputs,
                dynamic_shapes=({0: torch.export.Dim("B", min=1, max=4096)},), dynamo=True, verbose=False,
            )  # fmt: skip
        assert program is not None
        proto = program.model_proto
        for node in proto.graph.node:  # where on this machine the exporter found it
            del node.metadata_props[:]
            node.doc_string = ""
        found[f"{name}.onnx"] = proto.SerializeToString()
    return found


def model_card(kept: dict[str, Any], metrics: dict[str, Any], data: dict[str, Any]) -> str:
    """README.md of an exported model: what it is, from whom it learnt, how good it is, what it is for and not for."""
    settings, model = kept["hyper_parameters"], metrics["model"]
    parts = data.get("parts", {})
    people = ", ".join(f"{part}: {n['images']} pictures of {n['people']} people" for part, n in parts.items())
    smile = metrics.get("smile")
    lines = [
        f"# A variational autoencoder of faces, {settings['image_size']} px",
        f"Trained with smilevae: {settings['model']['network']} network, {settings['latent_dim']} latent dimensions,"
        f" beta {settings['beta']:g}, epoch {kept['epoch']}. Loss = SSE + beta * KL on [0, 1] pixels.",
        "",
        "## Data",
        f"Source: {settings['data']['source']}; {people or 'no data card was kept'}."
        f" People in both training and held-out part: {data.get('people_in_train_and_val', 'unknown')}.",
        "",
        "## Held-out people",
        f"{metrics['num_images']} pictures: PSNR {model['psnr']:.2f} dB, SSIM {model['ssim']:.3f},"
        f" KL {metrics['kl']:.1f} nats, loss {metrics['loss']:.1f}; beside it PCA with as many dimensions"
        f" {metrics['pca']['psnr']:.2f} dB and the mean face {metrics['mean_face']['psnr']:.2f} dB.",
        "",
        "## Smile",
        f"```\n{scorecard.format_card(smile)}\n```" if smile else "Not audited.",
        "",
        "## Use",
        "For research and teaching on generative models of faces. Not for judging people, not for identification, not"
        " for pictures of others without their consent. It has seen the people above and nobody else: other ages,"
        " skins, poses and cameras come out worse. A direction moves whatever went with smiling in its data.",
        "",
        "## Files",
        *(f"- `{name}`: {what}" for name, what in kept["contract"].items()),
        "- `evaluation/dials.json`: the directions with their calibration",
        "- `model.safetensors`, `model.json`: the model, as smilevae reads it",
    ]
    return "\n".join(lines) + "\n"
