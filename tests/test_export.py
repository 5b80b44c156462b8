import json
import os
import shutil
import subprocess
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
WINDOWS = """
import ctypes, os, pathlib, signal, sys
import cv2, filelock, numpy, onnxscript, platformdirs, sklearn, torch, torchvision  # those of this system
missing = {"resource", "fcntl", "pwd", "grp", "termios", "readline"}
for name in missing:
    sys.modules[name] = None
for name in ("uname", "fork", "getuid", "geteuid", "getloadavg", "sched_getaffinity", "O_DIRECTORY", "O_NOFOLLOW"):
    delattr(os, name)
for name in ("SIGKILL", "SIGPIPE", "SIGHUP", "SIGALRM", "SIGUSR1", "pthread_sigmask", "SIG_BLOCK", "SIG_UNBLOCK"):
    delattr(signal, name)
open_posix, replace_posix, library = os.open, os.replace, ctypes.CDLL

def open_file(path, *rest, **options):
    if os.path.isdir(path):
        raise PermissionError(13, "Permission denied", str(path))
    return open_posix(path, *rest, **options)

def replace(source, target):
    if os.path.isdir(target):
        raise PermissionError(13, "Access is denied", str(source))
    return replace_posix(source, target)

def load_library(name, *rest, **options):
    if name is None:
        raise TypeError("LoadLibrary() argument 1 must be str, not None")
    return library(name, *rest, **options)

def read_text(self, encoding=None, errors=None):
    return self.read_bytes().decode(encoding or "cp1252", errors or "strict")

os.open, os.replace, ctypes.CDLL, pathlib.Path.read_text = open_file, replace, load_library, read_text
"""


@pytest.fixture(scope="module")
def exported(evaluated_run, tmp_path_factory):
    out = tmp_path_factory.mktemp("export") / "given"
    export.main(ExportOptions(ckpt=str(evaluated_run), out=str(out)))
    return evaluated_run, out


def test_the_folder_rebuilds_the_same_model_in_another_process(exported, tmp_path):
    run, out = exported
    moved = tmp_path / "moved"
    shutil.copytree(out, moved)
    x = torch.rand(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, torch; from smilevae.runs import checkpoint, find\n"
        "vae, _, _, epoch = checkpoint.load(find(sys.argv[1]))\n"
        "x = torch.from_numpy(np.load(sys.argv[2]))\n"
        "with torch.no_grad(): np.save(sys.argv[3], vae.decode(vae.encode(x)[0]).numpy())\n"
        "print(epoch)"
    )
    words = [moved, tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    vae, _, _, epoch = checkpoint.load(runs.find(str(run)))
    assert int(done.stdout) == epoch
    with torch.no_grad():
        expected = vae.decode(vae.encode(x)[0]).numpy()
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), expected, atol=1e-5)


@pytest.mark.parametrize("num", [1, 5])
def test_onnx_agrees_with_torch(exported, num):
    run, out = exported
    vae = checkpoint.load(runs.find(str(run))).vae
    x, z = torch.rand(num, 3, 64, 64), torch.randn(num, 8)
    with torch.no_grad():
        mu, logvar = vae.encode(x)
        x_hat = vae.decode(z)
    sessions = {n: onnxruntime.InferenceSession(out / f"{n}.onnx") for n in ("encoder", "decoder")}
    found = sessions["encoder"].run(["mu", "logvar"], {"x": x.numpy()})
    np.testing.assert_allclose(found[0], mu.numpy(), atol=1e-4)
    np.testing.assert_allclose(found[1], logvar.numpy(), atol=1e-4)
    np.testing.assert_allclose(
        sessions["decoder"].run(["x_hat"], {"z": z.numpy()})[0], x_hat.numpy(), atol=1e-4
    )


def test_photo_and_evaluation_take_the_folder(exported, tmp_path):
    run, out = exported
    Image.fromarray(np.full((100, 100, 3), 120, np.uint8)).save(tmp_path / "in.png")
    results = []
    for model in (run, out):
        words = [f"ckpt={model}", f"image={tmp_path / 'in.png'}", f"out={tmp_path / 'out.png'}"]
        words += ["box=0,0,100", "intensity=2"]
        photo.main(console.parse_words(words, PhotoOptions))
        results.append((tmp_path / "out.png").read_bytes())
    assert results[0] == results[1]
    copy = tmp_path / "again"
    shutil.copytree(out, copy)
    metrics, _ = evaluate(runs.find(str(copy)), EvaluateOptions(ckpt=str(copy)))
    before = json.loads(next(run.rglob("metrics.json")).read_text())
    assert metrics["model"]["psnr"] == pytest.approx(before["model"]["psnr"], abs=1e-4)


def test_nothing_of_the_machine_leaves_it_and_the_card_says_what_it_is(exported):
    run, out = exported
    text = "".join(path.read_text() for path in (out / "model.json", out / "README.md"))
    assert str(run.parent) not in text
    assert json.loads((out / "model.json").read_text())["hyper_parameters"]["data"]["root"] is None
    card = (out / "README.md").read_text()
    for word in ("held-out", "people", "PSNR", "Not for judging people", "encoder.onnx"):
        assert word in card


def test_model_hubs_can_read_the_card(exported):
    _, front, body = (exported[1] / "README.md").read_text().split("---\n", 2)
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
    run, out = tmp_path / "run", tmp_path / "given"
    code, errors = call(
        "train",
        f"hydra.run.dir={run}",
        "data=folder",
        f"data.root={pictures}",
        *small,
        "evaluate=true",
    )
    assert code == 0, errors
    export.main(ExportOptions(ckpt=str(run), out=str(out)))
    for path in out.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert not any(
                str(place).encode() in content for place in (tmp_path, ROOT, sys.prefix)
            ), path
    edits = smilevae.load(run).edits
    assert smilevae.load(out).edits.main.gain == edits.main.gain
    vae = smilevae.load(run).vae
    hat = edits._replace(attributes=[edits.main, replace(edits.main, name="hat")])
    next(run.rglob(attributes.NAME)).write_bytes(attributes.to_bytes(vae, hat))
    export.main(ExportOptions(ckpt=str(run), out=str(tmp_path / "hat"), attribute="hat"))
    assert smilevae.load(tmp_path / "hat").edits.main.name == "hat"
    assert smilevae.load(tmp_path / "hat", "smile").edits.main.name == "smile"
    with pytest.raises(
        ConfigError, match="attribute=coat cannot be edited; choose one of hat, smile"
    ):
        export.main(ExportOptions(ckpt=str(run), out=str(tmp_path / "coat"), attribute="coat"))
    assert not (tmp_path / "coat").exists()
    with pytest.raises(ConfigError, match="does not name the folder of its images; pass root=PATH"):
        evaluate(runs.find(str(out)), EvaluateOptions(ckpt=str(out)))
    metrics, _ = evaluate(runs.find(str(out)), EvaluateOptions(ckpt=str(out), root=str(pictures)))
    before = json.loads(next(run.rglob("metrics.json")).read_text())
    assert metrics["model"]["psnr"] == pytest.approx(before["model"]["psnr"], abs=1e-3)


def test_a_folder_in_the_way_an_unevaluated_run_and_wrong_words_are_one_sentence(
    call, exported, tiny_run, tmp_path
):
    run, out = exported
    for words, problem in (
        ([f"ckpt={run}", f"out={out}"], "exists and is not an empty folder"),
        (
            ["export", f"ckpt={run}", f"out={out}"],
            "export is not understood; smilevae export ckpt=RUN out=FOLDER",
        ),
        ([f"ckpt={run}"], "out is not set; smilevae export ckpt=RUN out=FOLDER"),
    ):
        code, errors = call("export", *words)
        assert (code, errors.count("\n"), problem in errors) == (2, 1, True), errors
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run, bare, ignore=shutil.ignore_patterns("evaluation"))
    with pytest.raises(CheckpointError, match=r"run python evaluate\.py"):
        export.main(ExportOptions(ckpt=str(bare), out=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_windows_loads_a_model_edits_photos_and_exports(exported, tmp_path):
    """Without the modules, functions and signals that only POSIX has, and where a folder cannot be opened."""
    run, out = exported
    Image.fromarray(np.full((100, 100, 3), 120, np.uint8)).save(tmp_path / "in.png")
    (tmp_path / "given").mkdir()
    code = f"""
import smilevae
from smilevae import cli
model = smilevae.load({str(out)!r})
assert model.smile(model.sample(2)).shape == (2, 3, 64, 64)
cli.main(["photo", "ckpt={out}", "image=in.png", "box=0,0,100", "out=edited/out.png"])
cli.main(["export", "ckpt={run}", "out=given"])
smilevae.load("given")
"""
    done = subprocess.run(
        [sys.executable, "-c", WINDOWS + code],
        env=os.environ | {"PYTHONPATH": str(ROOT), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=300,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "edited" / "out.png").exists()
    assert not [path for path in tmp_path.rglob(".*") if path.name.endswith(".tmp")]


def test_an_export_removes_what_a_killed_one_left_and_nothing_of_the_user(
    exported, tmp_path, monkeypatch
):
    monkeypatch.setattr(export, "onnx_halves", lambda vae: {})
    mine, left = tmp_path / ".given.2024.tmp", tmp_path / ".given.99.smilevae.tmp"
    for folder in (mine, left):
        folder.mkdir()
        (folder / "file").write_text("")
    export.main(ExportOptions(ckpt=str(exported[0]), out=str(tmp_path / "given")))
    assert {path.name for path in tmp_path.iterdir()} == {"given", ".given.2024.tmp"}


def test_the_card_of_a_second_phase_counts_the_images_of_its_run(exported, tmp_path):
    run, out = exported
    model = json.loads((out / "model.json").read_text())
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    sharp = tmp_path / "sharp"
    sharp.mkdir()
    assert "no data card was kept" in export.model_card(model, metrics, sharp)
    shutil.copy(run / "data_card.json", tmp_path)
    card = export.model_card(model, metrics, sharp)
    assert card == export.model_card(model, metrics, run)
    assert "no data card was kept" not in card
    assert "no data card was kept" in export.model_card(
        model, metrics, tmp_path / "another"
    )  # is no second phase
    (sharp / "data_card.json").write_text("{")
    assert "no data card was kept" in export.model_card(model, metrics, sharp)


def test_a_damaged_export_is_refused(exported, tmp_path):
    _, out = exported
    for spoil in (
        lambda p: (p / "model.json").write_text("{}"),
        lambda p: (p / "model.json").unlink(),
        lambda p: (p / "model.safetensors").write_bytes(
            (p / "model.safetensors").read_bytes()[:1000]
        ),
        lambda p: (p / "model.json").write_text(
            (p / "model.json").read_text().replace('"latent_dim": 8', '"latent_dim": 9')
        ),
    ):
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        spoil(copy)
        with pytest.raises(CheckpointError):
            checkpoint.load(runs.find(str(copy)))
