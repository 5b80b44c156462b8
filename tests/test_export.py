"""The exported folder: the same model, for smilevae and for others, without a path of this machine."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY
from PIL import Image

import smilevae
from smilevae import console, runs
from smilevae.apps import export, photo
from smilevae.apps.options import ExportOptions, PhotoOptions
from smilevae.editing import attributes
from smilevae.errors import CheckpointError, ConfigError
from smilevae.evaluation.options import EvaluateOptions
from smilevae.evaluation.report import evaluate
from smilevae.runs import checkpoint

onnxruntime = pytest.importorskip("onnxruntime")
NO_CARD = "no data card was kept"


def write(run, out, **options):
    export.main(ExportOptions(ckpt=str(run), out=str(out), **options))


@pytest.fixture(scope="module")
def exported(evaluated_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "given"
    write(evaluated_run, out)
    return evaluated_run, out


def test_the_moved_folder_rebuilds_the_same_model(exported, tmp_path):
    run, out = exported
    moved = shutil.copytree(out, tmp_path / "moved")
    before = checkpoint.load(runs.find(str(run)))
    after = checkpoint.load(runs.find(str(moved)))
    assert (after.epoch, after.fingerprint) == (before.epoch, before.fingerprint)
    assert after.settings.result_settings() == before.settings.result_settings()
    assert checkpoint.digest(after.vae) == checkpoint.digest(before.vae)
    x = torch.rand(3, 3, 64, 64)
    with torch.no_grad():
        mu = before.vae.encode(x)[0]
        assert torch.equal(after.vae.encode(x)[0], mu)
        assert torch.equal(after.vae.decode(mu), before.vae.decode(mu))


@pytest.mark.parametrize("num", [1, 5])
def test_onnx_agrees_with_torch(exported, num):
    run, out = exported
    vae = checkpoint.load(runs.find(str(run))).vae
    x = torch.rand(num, 3, 64, 64)
    z = torch.randn(num, 8)
    with torch.no_grad():
        expected = [*vae.encode(x), vae.decode(z)]
    encoder = onnxruntime.InferenceSession(out / "encoder.onnx")
    decoder = onnxruntime.InferenceSession(out / "decoder.onnx")
    found = encoder.run(["mu", "logvar"], {"x": x.numpy()})
    found += decoder.run(["x_hat"], {"z": z.numpy()})
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other.numpy(), atol=1e-4)


def test_the_photo_command_takes_the_folder(exported, tmp_path):
    run, out = exported
    Image.fromarray(np.full((100, 100, 3), 120, np.uint8)).save(tmp_path / "in.png")
    results = []
    for model in (run, out):
        words = [f"ckpt={model}", f"image={tmp_path / 'in.png'}", f"out={tmp_path / 'out.png'}"]
        words += ["box=0,0,100", "intensity=2"]
        photo.main(console.parse_words(words, PhotoOptions))
        results.append((tmp_path / "out.png").read_bytes())
    assert results[0] == results[1]


def test_the_card_says_what_it_is_and_model_hubs_can_read_it(exported):
    _, out = exported
    card = (out / "README.md").read_text()
    for word in ("held-out", "people", "PSNR", "Not for judging people", "encoder.onnx"):
        assert word in card
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "other"  # the publisher's choice; hubs ask for a name then
    assert metadata["license_name"]
    assert metadata["library_name"] == "smilevae"
    assert metadata["pipeline_tag"] == "unconditional-image-generation"
    assert {"vae", "faces", "pytorch"} <= set(metadata["tags"])
    assert body.startswith("# A variational autoencoder of faces, 64 px\n")
    assert "{" not in body


def test_a_run_on_pictures_is_exported_without_a_path_and_read_again(call, pictures, tmp_path):
    small = [word for word in TINY if not word.startswith("data.")]
    run = tmp_path / "run"
    out = tmp_path / "given"
    words = [f"hydra.run.dir={run}", "data=folder", f"data.root={pictures}", "evaluate=true"]
    code, errors = call("train", *words, *small)
    assert code == 0, errors
    write(run, out)
    assert json.loads((out / "model.json").read_text())["hyper_parameters"]["data"]["root"] is None
    for path in filter(lambda path: path.is_file(), out.rglob("*")):
        content = path.read_bytes()
        for place in (tmp_path, ROOT, sys.prefix):
            assert str(place).encode() not in content, path
    path = runs.find(str(out))
    with pytest.raises(ConfigError, match="does not name the folder of its images; pass root=PATH"):
        evaluate(path, EvaluateOptions(ckpt=str(out)))
    metrics, _ = evaluate(path, EvaluateOptions(ckpt=str(out), root=str(pictures)))
    before = json.loads(next(run.rglob("metrics.json")).read_text())
    assert metrics["model"]["psnr"] == pytest.approx(before["model"]["psnr"], abs=1e-4)


def test_an_attribute_may_be_the_main_one_of_the_export(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "onnx_halves", lambda vae: {})
    run = shutil.copytree(exported[0], tmp_path / "run", symlinks=True)
    model = smilevae.load(run)
    main = model.edits.main
    assert smilevae.load(exported[1]).edits.main.gain == main.gain
    both = model.edits._replace(attributes=[main, replace(main, name="hat")])
    next(run.rglob(attributes.NAME)).write_bytes(attributes.to_bytes(model.vae, both))
    write(run, tmp_path / "hat", attribute="hat")
    assert smilevae.load(tmp_path / "hat").edits.main.name == "hat"
    assert smilevae.load(tmp_path / "hat", "smile").edits.main.name == "smile"
    problem = "attribute=coat cannot be edited; choose one of hat, smile"
    with pytest.raises(ConfigError, match=problem):
        write(run, tmp_path / "coat", attribute="coat")
    assert not (tmp_path / "coat").exists()


def test_a_folder_in_the_way_and_wrong_words_are_one_sentence(call, exported):
    run, out = exported
    usage = "smilevae export ckpt=RUN out=FOLDER"
    for words, problem in (
        ([f"ckpt={run}", f"out={out}"], "exists and is not an empty folder"),
        (["export", f"ckpt={run}", f"out={out}"], f"export is not understood; {usage}"),
        ([f"ckpt={run}"], f"out is not set; {usage}"),
    ):
        code, errors = call("export", *words)
        assert (code, errors.count("\n"), problem in errors) == (2, 1, True), errors


def test_an_export_removes_what_a_killed_one_left_and_nothing_of_the_user(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "onnx_halves", lambda vae: {})
    for name in (".given.2024.tmp", ".given.99.smilevae.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text("")
    (tmp_path / "given").mkdir()
    write(exported[0], tmp_path / "given")
    assert {path.name for path in tmp_path.iterdir()} == {"given", ".given.2024.tmp"}
    smilevae.load(tmp_path / "given")


def test_the_card_counts_the_images_if_the_run_kept_its_data_card(exported, tmp_path):
    run, out = exported
    model = json.loads((out / "model.json").read_text())
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    assert NO_CARD not in export.model_card(model, metrics, run)
    assert NO_CARD in export.model_card(model, metrics, tmp_path)
    (tmp_path / "data_card.json").write_text("{")
    assert NO_CARD in export.model_card(model, metrics, tmp_path)


def other_size(text):
    return text.replace(b'"latent_dim": 8', b'"latent_dim": 9')


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("model.json", lambda _: b"{}"),
        ("model.json", None),
        ("model.json", other_size),
        ("model.safetensors", lambda content: content[:1000]),
    ],
)
def test_a_damaged_export_is_refused(exported, tmp_path, name, spoil):
    copy = shutil.copytree(exported[1], tmp_path / "copy")
    if spoil:
        (copy / name).write_bytes(spoil((copy / name).read_bytes()))
    else:
        (copy / name).unlink()
    with pytest.raises(CheckpointError):
        checkpoint.load(runs.find(str(copy)))
