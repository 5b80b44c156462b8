"""Numbers against independent oracles, and every picture there and as it should be."""

import copy
import dataclasses
import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY
from PIL import Image
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torchmetrics.functional.image import structural_similarity_index_measure

from smilevae import runs
from smilevae.data import dataset
from smilevae.data.dataset import load_faces
from smilevae.data.encode import encode
from smilevae.editing import attributes
from smilevae.editing.attributes import mean_difference
from smilevae.errors import CheckpointError
from smilevae.evaluation import compare, figures, measure, report, samplers, summary
from smilevae.evaluation.grids import GAP, pairs, square, tile
from smilevae.evaluation.options import EvaluateOptions
from smilevae.models.axes import mirrored_axes, principal_axes, streamed_axes
from smilevae.runs import checkpoint

PICTURES = {"reconstructions.png", "samples.png", "edit_strip.png", "interpolation.png"}
PICTURES |= {"traversal.png", "nearest.png"}
FILES = {"index.html", "metrics.json", "faces.json", "sampler.safetensors"}


@pytest.fixture(scope="module")
def evaluated(evaluated_run):
    """The metrics of the evaluated run."""
    return runs.read_json(evaluated_run / "evaluation" / "best" / "metrics.json")


def evaluate(path, **options):
    return report.evaluate(path, EvaluateOptions(ckpt=str(path), **options))


@pytest.fixture(scope="module")
def model(tiny_run):
    vae, settings, *_ = checkpoint.load(runs.find(str(tiny_run)))
    return vae, load_faces(settings.data, 64)


def test_principal_components_agree_with_a_singular_value_decomposition():
    x = torch.randn(30, 200, dtype=torch.float64) @ torch.randn(200, 200, dtype=torch.float64)
    mean, basis, variances = principal_axes(x, 7)
    _, s, v = np.linalg.svd(x.numpy() - x.numpy().mean(0), full_matrices=False)
    assert basis.shape == (200, 7)
    np.testing.assert_allclose(np.abs(v[:7] @ basis.numpy()), np.eye(7), atol=1e-6)
    np.testing.assert_allclose(mean, x.mean(0))
    np.testing.assert_allclose(variances, s[:7] ** 2 / 30)
    assert principal_axes(x, 500)[1].shape == (200, 29)  # never more than the rank


def test_axes_of_more_faces_than_fit_in_memory_are_the_exact_ones():
    generator = torch.Generator().manual_seed(0)
    scales = torch.arange(1, 401) ** -0.6
    x = torch.randn(900, 400, generator=generator) * scales @ torch.randn(400, 400) + 3
    exact, streamed = principal_axes(x, 40), streamed_axes(lambda: x.split(100), 40)
    torch.testing.assert_close(streamed.mean, exact.mean)
    torch.testing.assert_close(streamed.variances, exact.variances, rtol=1e-3, atol=0)
    cosines = torch.linalg.svdvals(exact.basis[:, :20].T @ streamed.basis)
    assert cosines.min() > 0.999
    assert streamed_axes(lambda: x[:30].split(7), 200).basis.shape == (400, 29)


def test_the_axes_of_mirrored_images_are_those_of_both():
    x = torch.rand(20, 3, 8, 8, dtype=torch.float64)
    whole, halves = principal_axes(torch.cat([x, x.flip(3)]).flatten(1), 60), mirrored_axes(x, 60)
    assert halves.basis.shape == whole.basis.shape == (192, 39)
    torch.testing.assert_close(halves.mean, whole.mean)
    torch.testing.assert_close(halves.variances, whole.variances)
    torch.testing.assert_close(halves.basis @ halves.basis.T, whole.basis @ whole.basis.T)


def test_a_large_set_streams_its_axes_and_forecasts_the_same(model, monkeypatch):
    _, faces = model
    exact = faces.axes()
    monkeypatch.setattr(dataset, "AT_ONCE", 20 * faces.images[0].size)
    many = dataclasses.replace(faces)
    some = exact.variances > exact.variances.sum() / 200
    variances = many.axes().variances
    torch.testing.assert_close(variances[some], exact.variances[some], rtol=1e-3, atol=0)


def test_the_table_agrees_with_scikit_image(evaluated, model):
    vae, faces = model
    x = faces.batch(faces.rows("val"))
    with torch.no_grad():
        guess = vae.decode(vae.encode(x)[0])
    a, b = (t.permute(0, 2, 3, 1).double().numpy() for t in (x, guess))
    row = evaluated["model"]
    assert row["mse"] == pytest.approx(((a - b) ** 2).mean(), rel=1e-4)
    assert row["psnr"] == pytest.approx(peak_signal_noise_ratio(a, b, data_range=1.0), abs=1e-3)
    options = {"data_range": 1.0, "channel_axis": 2, "gaussian_weights": True, "sigma": 1.5}
    options |= {"use_sample_covariance": False, "full": True}
    maps = [structural_similarity(p, q, **options)[1] for p, q in zip(a, b)]
    assert row["ssim"] == pytest.approx(np.mean(maps), abs=0.003)  # it mirrors borders otherwise
    same = structural_similarity_index_measure(guess.double(), x.double(), data_range=1.0)
    assert row["ssim"] == pytest.approx(same.item(), abs=1e-5)


def test_the_references_agree_with_plain_numpy(evaluated, model):
    _, faces = model
    train, val = (faces.images[faces.rows(part)].astype(float) / 255 for part in ("train", "val"))
    train = np.concatenate([train, train[:, :, ::-1]]).reshape(2 * len(train), -1)
    val = val.reshape(len(val), -1)
    mean = train.mean(0)
    assert evaluated["mean_face"]["mse"] == pytest.approx(((val - mean) ** 2).mean(), rel=1e-4)
    axes = np.linalg.svd(train - mean, full_matrices=False)[2][:8]
    residual = (val - mean) - (val - mean) @ axes.T @ axes
    assert evaluated["pca"]["mse"] == pytest.approx((residual**2).mean(), rel=1e-3)
    assert evaluated["pca_dim"] == 8


def test_the_metrics_are_consistent(model):
    vae, faces = model
    vae = copy.copy(vae)
    vae.beta = 3.0
    metrics = measure.measure(vae, faces, seed=0)
    recon, kl = metrics["recon"], metrics["kl"]
    assert metrics["loss"] == pytest.approx(recon + 3 * kl, rel=1e-6)
    assert metrics["loss_study_units"] == pytest.approx(4 * recon + 3 * kl)
    assert sum(metrics["kl_per_dim"]) == pytest.approx(kl, rel=1e-4)
    assert metrics["mean_face"]["mse"] >= metrics["pca"]["mse"]
    psnr, nelbo = (np.array(metrics["faces"][key]) for key in ("psnr", "nelbo"))
    assert len(psnr) == len(faces.rows("val"))
    assert (10 ** (-psnr / 10)).mean() == pytest.approx(metrics["model"]["mse"], rel=1e-5)
    assert nelbo.mean() == pytest.approx(metrics["nelbo"])


def test_native_size_numbers_stand_beside_where_the_faces_are_smaller(train):
    run = train("image_size=96", "epochs=1", "data.num_smiling=10", "data.num_not_smiling=10")
    metrics, _ = evaluate(runs.find(str(run)))
    assert metrics["native_size"] == 64
    for name in ("model", "mean_face", "pca"):
        assert metrics[name]["native_psnr"] == pytest.approx(metrics[name]["psnr"], abs=1.5)
    assert "PSNR at 64 px" in summary.quality_table(metrics).columns


def test_every_picture_is_there(evaluated_run):
    out = evaluated_run / "evaluation" / "best"
    assert {p.name for p in out.iterdir()} == PICTURES | FILES | {"edits.safetensors"}
    for name in PICTURES:
        with Image.open(out / name) as image:
            pixels = np.asarray(image.convert("RGB"))
        assert min(pixels.shape[:2]) >= 64
        assert pixels.std() > 5


def test_an_evaluation_repeated_is_the_same_to_the_bit(evaluated_run, evaluated, tmp_path):
    shutil.copytree(evaluated_run, tmp_path / "again")
    again, out = evaluate(runs.find(str(tmp_path / "again")))
    assert again == evaluated
    before = evaluated_run / "evaluation" / "best" / figures.STRIP
    assert (out / figures.STRIP).read_bytes() == before.read_bytes()


def test_a_lone_checkpoint_file_is_enough(tiny_run, tmp_path):
    shutil.copy(runs.find(str(tiny_run)), tmp_path / "mine.ckpt")
    metrics, out = evaluate(tmp_path / "mine.ckpt")
    assert out == tmp_path / "evaluation"
    assert metrics["checkpoint"] == "mine.ckpt"


@pytest.fixture
def train_on(call, tmp_path):
    """Train a tiny run on a folder of pictures: train_on(root, *words) -> its path."""

    def run(root, *words):
        tiny = [knob for knob in TINY if not knob.startswith("data.")]
        words = [f"hydra.run.dir={tmp_path / 'run'}", "data=folder", f"data.root={root}", *words]
        code, errors = call("train", *tiny, *words)
        assert code == 0, errors
        return tmp_path / "run"

    return run


def test_moved_pictures_are_found_by_root_and_changed_ones_refused(call, train_on, pictures):
    run = train_on(pictures, "epochs=1")
    moved = pictures.rename(pictures.with_name("elsewhere"))
    code, errors = call("evaluate", f"ckpt={run}")
    assert (code, "is not a folder" in errors) == (3, True)
    assert not (run / "evaluation").exists()
    code, errors = call("evaluate", f"ckpt={run}", f"root={moved}")
    assert code == 0, errors
    next((moved / "train" / "smile").iterdir()).unlink()
    with pytest.raises(CheckpointError, match="other images"):
        evaluate(runs.find(str(run)), root=str(moved))


def test_pictures_without_labels_train_and_evaluate_but_for_the_smile(train_on, pictures):
    run = train_on(pictures / "train" / "smile", "evaluate=true", "data.val_fraction=0.4")
    found = {p.name for p in (run / "evaluation" / "best").iterdir()}
    assert found == PICTURES - {figures.STRIP} | FILES


def test_encoding_is_in_eval_mode_and_leaves_the_mode_as_it_was(model):
    vae, faces = model
    rows = faces.rows("train")[:9]
    expected = encode(vae, faces, rows)[0]
    vae.train()
    again = encode(vae, faces, rows)[0]
    assert vae.training
    vae.eval()
    assert torch.equal(expected, again)
    alone = encode(vae, faces, rows[3:4])[0]
    torch.testing.assert_close(expected[3:4], alone, atol=1e-5, rtol=1e-4)


def serving(path, weights):
    """Whether photo and app have the edits, the sampler and the numbers of these weights."""
    vae = checkpoint.load(path).vae
    attributes.read(path, vae)
    assert runs.read_evaluation(path, "metrics.json", weights)["weights"] == weights
    return len(samplers.load_sampler(path, vae.latent_dim, weights).means) == samplers.NUM_BLENDS


def test_during_a_second_evaluation_the_edits_serve_at_every_moment(copied, monkeypatch):
    _, path, _ = copied
    weights = checkpoint.digest(checkpoint.load(path).vae)
    replace = os.replace
    moments = []

    def watched(source, target):
        assert serving(path, weights)
        replace(source, target)
        assert serving(path, weights)
        moments.append(Path(target).name)

    monkeypatch.setattr(os, "replace", watched)
    evaluate(path, seed=3)
    assert FILES | {"edits.safetensors"} <= set(moments)


@pytest.mark.parametrize(
    ("owner", "name", "at"),
    [
        (report.fitting, "fit_edits", ""),
        (report.samplers, "sampler_of", ""),
        (report.figures, "draw", ""),
        (report.page, "page", ""),
        (report.runs, "write_bytes", "metrics.json"),
    ],
)
def test_a_second_evaluation_that_fails_leaves_what_the_first_one_wrote(
    copied, monkeypatch, owner, name, at
):
    _, path, _ = copied
    folder = runs.evaluation_folder(path)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    whole = getattr(owner, name)

    def full(first, *others):
        if at in str(first):
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole(first, *others)

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(OSError, match="No space"):
        evaluate(path, seed=3, sampler="prior")
    assert before == {file.name: file.read_bytes() for file in folder.iterdir()}


def test_an_evaluation_that_ends_without_edits_removes_those_of_an_earlier_one(copied, monkeypatch):
    _, path, _ = copied
    monkeypatch.setattr(report.fitting, "fit_edits", lambda *_: None)
    metrics, folder = evaluate(path)
    left = {file.name for file in folder.iterdir()}
    assert not left & {"edits.safetensors", "edit_strip.png"}
    assert "No edits: " in metrics["left_out"][-1]
    with pytest.raises(CheckpointError):
        attributes.read(path, checkpoint.load(path).vae)


def test_one_face_has_no_active_units(model):
    vae, faces = model
    rows = faces.rows("val")
    part = np.where(np.arange(len(faces.part)) == rows[0], "val", "train")
    alone = dataclasses.replace(faces, part=part)
    metrics = measure.measure(vae, alone, seed=0)
    assert metrics["active_units"] is None
    assert summary.loss_line(metrics).endswith(f"x KL {metrics['kl']:.1f}")
    json.dumps(metrics, allow_nan=False)


def test_of_many_faces_the_strip_finds_a_rare_class(model, monkeypatch):
    """One training face smiles, and it is not among the first of a random order."""
    vae, faces = model
    monkeypatch.setattr(figures, "MAX_REFERENCE", 5)
    smile = np.zeros_like(faces.smile)
    smile[np.random.default_rng(0).permutation(faces.rows("train"))[-1]] = 1
    rare = dataclasses.replace(faces, smile=smile)
    with torch.no_grad():
        assert figures.plain_strip(vae, rare, torch.zeros(2, 8)).isfinite().all()


def test_the_smile_direction_separates_planted_smiles():
    """A planted shift in code space is found, and moving along it carries one class onto the other."""
    generator = torch.Generator().manual_seed(0)
    planted = torch.randn(16, generator=generator)
    labels = torch.arange(4000) % 2
    mu = torch.randn(4000, 16, generator=generator) + labels[:, None] * planted
    direction = mean_difference(mu, labels)
    assert torch.cosine_similarity(direction, planted, dim=0) > 0.99
    assert direction.norm() == pytest.approx(planted.norm().item(), rel=0.05)


@pytest.mark.parametrize("shape", [(2, 3), (1, 4), (5, 1)])
def test_a_grid_has_the_bits_of_torchvisions(shape):
    from torchvision.utils import make_grid

    images = torch.rand(*shape, 3, 8, 8) * 1.4 - 0.2
    flat = images.clamp(0, 1).flatten(0, 1)
    assert torch.equal(tile(images), make_grid(flat, nrow=shape[1], padding=GAP, pad_value=1.0))


def test_pairs_put_each_original_above_its_own_reconstruction():
    x = torch.arange(8).view(8, 1, 1, 1).expand(8, 3, 4, 4) / 10
    grid, step = pairs(x, x + 0.05, num_columns=4), 4 + GAP
    for index in range(8):
        row, column = 2 * (index // 4), index % 4
        top = grid[0, GAP + row * step, GAP + column * step]
        below = grid[0, GAP + (row + 1) * step, GAP + column * step]
        assert top.item() == pytest.approx(index / 10)
        assert below.item() == pytest.approx(index / 10 + 0.05)
    assert square(x).shape == (3, 2 * step + GAP, 2 * step + GAP)


@pytest.fixture
def copied(evaluated_run, tmp_path):
    """A copy of the evaluated run: its folder, its best checkpoint and its last one."""
    run = tmp_path / "copied"
    shutil.copytree(evaluated_run, run, symlinks=True)
    best, last = runs.find(str(run)), run / "checkpoints" / "last.ckpt"
    content = checkpoint.read(last)
    weights = content["state_dict"]
    weights |= {name: t + 0.01 for name, t in weights.items() if t.is_floating_point()}
    checkpoint.write({key: content[key] for key in content if key != "settings"}, last)
    return run, best, last


def test_without_edits_the_earlier_ones_stay(copied):
    _, best, _ = copied
    _, out = evaluate(best, edits=False)
    assert (out / "edit_strip.png").exists()
    attributes.read(best, checkpoint.load(best).vae)


def test_two_checkpoints_of_a_run_keep_two_evaluations(copied):
    run, best, last = copied
    before = (run / "evaluation" / best.stem / "edits.safetensors").read_bytes()
    metrics, out = evaluate(last)
    assert out == run / "evaluation" / "last"
    assert metrics["checkpoint"] == "checkpoints/last.ckpt"
    assert (run / "evaluation" / best.stem / "edits.safetensors").read_bytes() == before
    for path in (best, last):
        attributes.read(path, checkpoint.load(path).vae)
    link = run / "evaluation" / "best"
    assert link.is_symlink()
    assert str(link.readlink()) == best.stem  # relative: a moved run keeps it
    (run / "evaluation" / "last" / "edits.safetensors").write_bytes(before)
    with pytest.raises(CheckpointError, match=r"another checkpoint than last\.ckpt"):
        attributes.read(last, checkpoint.load(last).vae)


def test_a_read_only_run_is_evaluated_into_the_current_folder(copied, tmp_path, monkeypatch):
    run, best, _ = copied
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: run not in (path, *path.parents))
    vae = checkpoint.load(best).vae
    assert attributes.read(best, vae).main.name == "smile"
    _, out = evaluate(best)
    assert out == Path("evaluation-copied") / best.stem
    shutil.rmtree(run / "evaluation")
    assert attributes.read(best, vae).main.name == "smile"


def evaluation(folder, psnr, people, fingerprint="f", first=0):
    """An evaluation folder with faces.json, as compare needs it."""
    folder.mkdir()
    rows = {
        f"{first + i}": {"person": str(who), "psnr": v, "nelbo": -v}
        for i, (who, v) in enumerate(zip(people, psnr))
    }
    (folder / compare.NAME).write_text(json.dumps(rows))
    return {"data_fingerprint": fingerprint, "image_size": 64}, folder


def test_two_models_are_compared_on_the_same_faces_over_people(tmp_path):
    rng = np.random.default_rng(0)
    people, hard = np.arange(60) // 2, rng.normal(20, 3, 60)
    a, b = hard + rng.normal(0.3, 0.2, 60), hard + rng.normal(0, 0.2, 60)
    one = evaluation(tmp_path / "a", a, people)
    other = evaluation(tmp_path / "b", b, people)
    sentence = compare.difference({"A": one, "B": other})
    expected = stats.ttest_1samp((a - b).reshape(30, 2).mean(1), 0)
    interval = expected.confidence_interval(0.95)
    numbers = f"PSNR {(a - b).mean():+.3g} dB (95% {interval.low:+.3g} to {interval.high:+.3g})"
    assert f"A minus B, 60 faces of 30 people; {numbers}: A is better; nELBO -" in sentence
    assert sentence.endswith(": A is better")
    some = evaluation(tmp_path / "c", b[20:], people[20:], first=20)
    assert "40 faces of 20 people" in compare.difference({"A": one, "C": some})
    assert "cannot tell" in compare.difference({"A": one, "A2": one})


@pytest.mark.parametrize(
    ("people", "change", "why"),
    [
        ("XX", {}, "faces of one person"),
        ("XY", {"fingerprint": "g"}, "different faces"),
        ("XY", {"first": 900}, "different faces"),
    ],
)
def test_models_are_not_compared_on_other_faces_or_one_person(tmp_path, people, change, why):
    one = evaluation(tmp_path / "a", [20.0, 21.0], people)
    other = evaluation(tmp_path / "b", [20.5, 21.0], people, **change)
    sentence = compare.difference({"A": one, "B": other})
    assert sentence == f"A and B hold out {why}, so they are not compared face by face"
