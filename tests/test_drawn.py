"""The model `drawn`, which comes with smilevae."""

import io
import os
import re
import shutil
import subprocess
import sys
import tomllib

import numpy as np
import torch
from conftest import ROOT, slow
from PIL import Image
from test_app import ask, started
from test_config import from_words

import smilevae
from smilevae import config
from smilevae.data.synthetic import SyntheticFaces
from smilevae.runs import hub

FILES = sorted(path for path in hub.DRAWN.rglob("*") if path.is_file())


def test_it_is_small_and_whole_and_in_the_wheel():
    names = {str(path.relative_to(hub.DRAWN)) for path in FILES}
    evaluation = {f"evaluation/{name}" for name in ("edits.safetensors", "sampler.safetensors")}
    assert {"README.md", "model.json", "model.safetensors"} | evaluation <= names
    assert sum(path.stat().st_size for path in FILES) < 3e6
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    data = project["tool"]["setuptools"]["package-data"]
    listed = {path for glob in data["smilevae.apps.drawn"] for path in hub.DRAWN.glob(glob)}
    globs = data["smilevae.apps.drawn.evaluation"]
    listed |= {path for glob in globs for path in (hub.DRAWN / "evaluation").glob(glob)}
    assert set(FILES) - listed == set()


def test_its_recipe_is_in_conf_and_its_card_gives_our_licence():
    found = smilevae.load("drawn").settings.flat()
    wanted = from_words("experiment=drawn").flat()
    different = {name for name in wanted if found[name] != wanted[name]}
    assert different - set(config.NOT_RESULT) - {"trainer.precision"} == set()
    card = (hub.DRAWN / "README.md").read_text()
    assert re.search("^license: mit$", card, re.M)
    assert "onnx" not in card


def test_it_draws_faces_that_it_has_never_seen_and_makes_them_smile():
    """Better than 25 dB; the fixed grey image has 12 dB. A wrong weight file is worse than both."""
    model = smilevae.load("drawn")
    faces = SyntheticFaces(30, 0, 0, seed=77)
    images = torch.stack([image_of(faces, row) for row in range(30)])
    error = (model.decode(model.encode(images)) - images).square().mean((1, 2, 3))
    assert float((-10 * error.log10()).mean()) > 25
    assert float(model.sample(30).std(0).mean()) > 0.05  # they differ
    assert {"smile", "glasses", "hair_length"} <= {one.name for one in model.edits.attributes}


def image_of(faces: SyntheticFaces, row: int) -> torch.Tensor:
    """(3, 64, 64)"""
    image = faces.draw(row).convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(image)).movedim(-1, 0) / 255


def test_it_is_not_evaluated_in_its_place(call):
    before = [path.stat().st_mtime_ns for path in FILES]
    code, errors = call("evaluate", "ckpt=drawn")
    assert (code, errors.count("\n")) == (2, 1), errors
    assert "smilevae export ckpt=drawn out=FOLDER" in errors
    assert [path.stat().st_mtime_ns for path in FILES] == before


def test_a_folder_of_this_name_comes_first(call, evaluated_run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(evaluated_run, "drawn")
    assert smilevae.load("drawn").path.is_relative_to(tmp_path)


def test_one_version_everywhere():
    citation = (ROOT / "CITATION.cff").read_text()
    assert re.search(r"^version: (.*)$", citation, re.M)[1] == smilevae.__version__
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(r"^## \[(\d.*?)\]", changes, re.M)[1] == smilevae.__version__
    command = [sys.executable, "-m", "smilevae", "--version"]
    said = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout
    assert said == f"smilevae {smilevae.__version__}\n"


@slow
def test_from_a_wheel_in_an_empty_folder_it_draws_a_page_and_is_on_the_slider(tmp_path):
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    for name in ("smilevae", "conf", "hydra_plugins", "multirun_analysis"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run([*pip, "wheel", "--no-deps", "-w", tmp_path, source], check=True)
    (wheel,) = tmp_path.glob("smilevae-*.whl")
    assert wheel.stat().st_size < 12e6
    place = tmp_path / "installed"
    subprocess.run([*pip, "install", "--no-deps", "--target", place, wheel], check=True)
    empty = tmp_path / "empty"
    empty.mkdir()
    command = [sys.executable, "-m", "smilevae", "page", "ckpt=drawn", "out=face.html"]
    environment = os.environ | {"PYTHONPATH": str(place)}
    subprocess.run(command, env=environment, cwd=empty, check=True)
    assert (empty / "face.html").stat().st_size > 1e5
    with started("app", "ckpt=drawn", "port=0", path=place, cwd=empty) as (_, line):
        port = int(line.split("127.0.0.1:")[1].split("/")[0])
        status, _, body = ask(port, "/new?seed=1&value=1")
    assert status == 200
    assert Image.open(io.BytesIO(body)).size[0] >= 64
