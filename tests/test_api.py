"""import smilevae; model = smilevae.load(RUN): what a notebook uses."""

import doctest
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image

import smilevae
import smilevae.apps.model
from smilevae import CheckpointError, runs
from smilevae.runs import checkpoint


@pytest.fixture(scope="module")
def model(evaluated_run):
    return smilevae.load(evaluated_run)


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), dtype=np.uint8)


def test_tensors_arrays_and_pil_images_give_the_codes_of_the_vae(model, pixels, evaluated_run):
    x = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255
    vae = checkpoint.load(runs.find(str(evaluated_run))).vae
    with torch.no_grad():
        expected = vae.encode(x)[0]
    for images in (x, pixels, [Image.fromarray(image) for image in pixels]):
        assert torch.equal(model.encode(images), expected)
    assert expected.shape == (3, model.settings.latent_dim)
    wide = Image.fromarray(np.tile(pixels[0], (1, 2, 1)))
    assert model.encode([wide, wide.convert("L")]).shape == (2, model.settings.latent_dim)


def test_codes_become_images_and_a_seed_gives_the_same_faces(model):
    images = model.sample(5, seed=3)
    assert images.shape == (5, 3, 64, 64)
    assert torch.equal(images, images.clamp(0, 1))
    assert torch.equal(images, model.sample(5, seed=3))
    assert not torch.equal(images, model.sample(5, seed=4))
    middle = model.sampler.weights @ model.sampler.means
    torch.testing.assert_close(model.draw(1, temperature=0)[0], middle)


def test_new_faces_come_from_the_sampler_of_the_evaluation(evaluated_run, tmp_path):
    """Without an evaluation they come from the prior; a damaged sampler is an error."""
    run = shutil.copytree(evaluated_run, tmp_path / "run", symlinks=True)
    (path,) = (run / "evaluation").glob("epoch-*/sampler.safetensors")
    weights = runs.read_tensors(path)["weights"]
    known = {
        "weights": torch.ones(1),
        "means": torch.full((1, 8), 3.0),
        "factor": 0.1 * torch.eye(8),
    }
    path.write_bytes(runs.tensor_file(known, {"weights": weights}))
    codes = smilevae.load(run).draw(500)
    np.testing.assert_allclose(codes.mean(0), 3, atol=0.05)
    np.testing.assert_allclose(codes.std(0), 0.1, atol=0.02)
    not_finite = torch.full((8, 8), torch.nan)
    damaged = [{"means": torch.ones(1, 1)}, {"weights": -torch.ones(1)}, {"factor": not_finite}]
    contents = [runs.tensor_file(known | part, {"weights": weights}) for part in damaged]
    for content in (*contents, b"{"):
        path.write_bytes(content)
        with pytest.raises(
            CheckpointError, match=r"sampler.safetensors( of .*)? is damaged; run .* again"
        ):
            smilevae.load(run).draw(1)
    path.unlink()
    prior = smilevae.load(run).draw(500)
    np.testing.assert_allclose(prior.std(0), 1, atol=0.15)


def test_a_smile_of_zero_is_the_reconstruction_and_a_smile_of_two_is_not(model, pixels):
    plain = model.decode(model.encode(pixels))
    assert torch.equal(model.smile(pixels, 0), plain)
    assert not torch.allclose(model.smile(pixels, 2), plain, atol=1e-4)
    assert not model.smile(pixels).requires_grad
    problem = "attribute=hat cannot be edited; choose one of smile"
    with pytest.raises(smilevae.ConfigError, match=problem):
        model.edit(pixels, {"hat": 1})


def test_a_run_without_evaluation_encodes_but_does_not_smile(tiny_run, tmp_path, pixels):
    bare = tmp_path / "bare"
    shutil.copytree(tiny_run, bare, ignore=shutil.ignore_patterns("evaluation"))
    model = smilevae.load(bare)
    assert model.encode(pixels).shape == (3, 8)
    remedy = r"is missing; run python evaluate\.py ckpt=.* first"
    with pytest.raises(CheckpointError, match=remedy):
        model.smile(pixels)
    with pytest.raises(CheckpointError, match="does not exist"):
        smilevae.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("images", "problem"),
    [
        (torch.rand(3, 64, 64), "must be floats"),
        (torch.rand(2, 3, 32, 32), "must be floats"),
        (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), "must be floats"),
        (torch.zeros(0, 3, 64, 64), "must be floats"),
        (np.zeros((2, 3, 64, 64), np.uint8), "must be floats"),
        ([], "must be floats"),
        (torch.full((1, 3, 64, 64), 255.0), "must lie in"),
        (torch.full((1, 3, 64, 64), torch.nan), "must lie in"),
    ],
)
def test_another_shape_type_or_range_is_refused(model, images, problem):
    with pytest.raises(ValueError, match=problem):
        model.encode(images)


def test_the_example_of_the_class_runs(evaluated_run):
    names = {"smilevae": smilevae, "run": evaluated_run}
    runner = doctest.DocTestRunner()
    (example,) = doctest.DocTestFinder(recurse=False).find(smilevae.apps.model.Model, globs=names)
    runner.run(example)
    assert (runner.tries, runner.failures) == (3, 0)


@pytest.mark.slow
def test_the_notebook_runs_in_a_minute_and_is_kept_without_outputs(monkeypatch, tmp_path):
    nbformat = pytest.importorskip("nbformat")
    nbclient = pytest.importorskip("nbclient")
    notebook = nbformat.read(ROOT / "notebooks" / "first_steps.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in cells)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=place).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime - before.ru_utime  # of CPU: another program's load does not count
    assert seconds < 60
    outputs = [output for cell in cells for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output.get("name") == "stderr"]
