"""A model to give away, in one folder without paths of this machine."""

import copy
import json
import os
import shutil
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import torch
from safetensors.torch import save

from smilevae import runs
from smilevae.apps.options import ExportOptions
from smilevae.config import PLACES
from smilevae.editing import attributes
from smilevae.errors import ConfigError, NotEvaluated
from smilevae.evaluation import samplers, summary
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint, files, hub

CARD = Path(__file__).with_name("model_card.md")
PRIVATE: dict[str, Any] = {
    **dict.fromkeys(("resume", "plugin", *(f"data.{name}" for name in PLACES))),
    **{"logger": {}, "callbacks": {}},
}


def main(options: ExportOptions) -> None:
    """Write the exported folder, whole or not at all. Raises CheckpointError, ConfigError."""
    out = Path(os.path.expanduser(options.out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"out={out} exists and is not an empty folder; name a new one")
    for package in ("onnx", "onnxscript"):
        if find_spec(package) is None:
            missing = f"exporting needs {package}, which is not installed"
            raise ConfigError(f"{missing}: pip install -e '.[export]'")
    path = runs.find(options.ckpt)
    vae, settings, fingerprint, epoch = checkpoint.load(path)
    digest = checkpoint.digest(vae)
    metrics = runs.read_evaluation(path, "metrics.json", digest)
    sampler = samplers.load_sampler(path, vae.latent_dim, digest)
    model = {
        "smilevae": {"format": checkpoint.FORMAT},
        "hyper_parameters": settings.with_values(PRIVATE).plain(),
        "fingerprint": fingerprint,
        "epoch": epoch,
    }
    with runs.whole(path, "metrics.json", jinja2.TemplateError):
        card = model_card(model, metrics, runs.run_of(path))
    contents = {
        "evaluation/metrics.json": (json.dumps(metrics) + "\n").encode(),
        f"evaluation/{samplers.NAME}": samplers.to_bytes(sampler, digest),
        "README.md": card.encode(),
        "model.json": (json.dumps(model, indent=2) + "\n").encode(),
        runs.EXPORTED: save({n: tensor.contiguous() for n, tensor in vae.state_dict().items()}),
    }
    try:
        edits = attributes.read(path, vae).with_main(options.attribute)
        contents[f"evaluation/{attributes.NAME}"] = attributes.to_bytes(vae, edits)
    except NotEvaluated:  # without labels there are no edits
        if options.attribute:
            raise
    for left in out.parent.glob(f".{out.name}.[0-9]*{files.TEMPORARY}"):  # of a killed process
        shutil.rmtree(left, ignore_errors=True)
    with runs.replacing(out) as work:
        for name, content in (contents | onnx_halves(vae)).items():
            runs.write_bytes(work / name, content)
        if options.hub is not None:
            print(f"uploaded: {hub.upload(work, options.hub)}; if it is new, only you see it")
    print(f"exported: {runs.shell_path(out)}/")


def onnx_halves(vae: VAE) -> dict[str, bytes]:
    """encoder.onnx and decoder.onnx, for any number of images: name -> content."""
    files = {}
    for method, example, inputs, outputs in (
        ("encode", torch.rand(2, *vae.shape), ["x"], ["mu", "logvar"]),
        ("decode", torch.randn(2, vae.latent_dim), ["z"], ["x_hat"]),
    ):
        half = copy.deepcopy(vae)
        half.forward = getattr(half, method)  # type: ignore[method-assign]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # notes to the exporter's developers
            batch = {0: torch.export.Dim("B", min=1, max=4096)}
            program = torch.onnx.export(
                half, (example,), input_names=inputs, output_names=outputs,
                dynamic_shapes=(batch,), dynamo=True, verbose=False,
            )  # fmt: skip
        assert program
        proto = program.model_proto
        for node in proto.graph.node:  # paths of this machine
            del node.metadata_props[:]
            node.doc_string = ""
        files[f"{method}r.onnx"] = proto.SerializeToString()
    return files


def model_card(model: dict[str, Any], metrics: dict[str, Any], run: Path) -> str:
    """README.md of an exported model."""
    data = {"parts": {}} | runs.read_json(run / "data_card.json")
    edits = summary.edit_table(metrics).text() if "edits" in metrics else None
    card = jinja2.Template(CARD.read_text(), keep_trailing_newline=True)
    return card.render(model=model, data=data, metrics=metrics, edits=edits)
