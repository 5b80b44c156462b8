"""The second phase: only the decoder moves, beside the first run; a resume gives the same bits."""

import pytest
import test_training as first_phase
import torch
from conftest import TINY, slow
from test_training import assert_same, assert_same_run, read, refused, resume, weights
from torch import nn

from smilevae import runs
from smilevae.evaluation.summary import SETS
from smilevae.runs import checkpoint, checkpoint_files
from smilevae.training import sharp
from smilevae.training.module import VAEModule

FACES = ("data.num_smiling=50", "data.num_not_smiling=50", "data.val_fraction=0.3")
SHARP = (*FACES, "sharpen.epochs=2", "epochs=2")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """The decoder learns from the first step."""
    monkeypatch.setattr(sharp, "WARM_UP", 1)
    monkeypatch.setattr(sharp, "PASSES", 2)


def test_only_the_decoder_moves_and_the_first_phase_stays(train, call, tmp_path):
    plain = train(*SHARP, "sharpen.epochs=0", to="plain")
    run = train(*SHARP, "evaluate=true", to="run")
    assert_same(weights(plain)["state_dict"], weights(run)["state_dict"])
    inner = run / runs.SHARP
    assert read(inner, "status.json")["status"] == "COMPLETED"
    before = checkpoint.load(runs.find(str(run))).vae.state_dict()
    last = checkpoint.load(inner / "checkpoints" / "last.ckpt").vae.state_dict()
    moved = {name for name in before if not torch.equal(before[name], last[name])}
    assert moved
    assert all(name.startswith("decoder.") and "running" not in name for name in moved)

    lines = runs.read_metrics(inner)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    distances = [line["val/distance"] for line in lines]
    best = read(inner, "result.json")["best"]
    assert best["val/distance"] == min(distances)
    assert checkpoint_files.epoch_of(runs.find(str(inner))) == best["epoch"]
    terms = {"sharp/discriminator", "sharp/real_logit", "sharp/fake_logit", "train/recon"}
    assert terms <= lines[-1].keys()
    shared = weights(inner, runs.find(str(inner)).name)["state_dict"]
    assert not any(name.startswith("discriminator.") for name in shared)
    module = VAEModule.load_from_checkpoint(inner / "checkpoints" / "last.ckpt")
    assert torch.equal(module.epoch.eval_model.decoder[0].weight, last["decoder.0.weight"])
    evaluated = read(inner, "evaluation/best/metrics.json")
    assert not (run / "evaluation").exists()
    assert set(evaluated["realism"]) == {*SETS}
    assert f"pass resume={runs.shell_path(run)}" in refused(call, 2, inner)
    assert "remove it first" in refused(call, 2, run, "epochs=5")


@pytest.mark.parametrize("step", [11, pytest.param(3, marks=slow)])
def test_an_interrupted_second_phase_goes_on_to_the_same_bits(
    train, call, monkeypatch, tmp_path, step
):
    def wanted(trainer, module):
        at_step = trainer.fit_loop.epoch_loop.total_batch_idx == step
        return at_step and isinstance(module, sharp.SharpModule)

    whole = train(*SHARP, to="whole")
    run = tmp_path / "broken"
    with monkeypatch.context() as patch:
        first_phase.signal_at(patch, wanted)
        first_phase.interrupted(call, run, *SHARP)
    assert not (run / "result.json").exists()
    resume(call, run)
    assert_same_run(whole / runs.SHARP, run / runs.SHARP)


@slow
def test_a_finished_run_can_be_sharpened_later_as_if_at_once(train, call):
    at_once = train(*SHARP, to="at_once")
    run = train(*SHARP, "sharpen.epochs=0", to="later")
    resume(call, run, "sharpen.epochs=2")
    assert_same_run(at_once / runs.SHARP, run / runs.SHARP)
    assert "has trained 2 epochs already" in refused(call, 2, run, "sharpen.epochs=2")


@slow
def test_a_killed_first_phase_is_sharpened_by_its_resume(train, call, monkeypatch, tmp_path):
    whole = train(*SHARP, to="whole")
    run = tmp_path / "broken"
    with monkeypatch.context() as patch:
        first_phase.die_after_save(patch, 1)
        with pytest.raises(first_phase.Killed):
            train(*SHARP, "checkpoint_every=0", to="broken")
    resume(call, run)
    assert_same_run(whole / runs.SHARP, run / runs.SHARP)


def test_shifts_are_of_whole_pixels_and_colours_are_kept_where_nothing_is_drawn(monkeypatch):
    """With light, colour and contrast in the middle, a pixel is one of the image, or black."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    x = torch.arange(2 * 3 * 64 * 64).view(2, 3, 64, 64) / 1e5 + 0.01
    y = sharp.diff_augment(x)
    kept = y[:, 0] != 0
    assert 0.3 < kept.float().mean() < 0.95
    for image, moved, there in zip(x, y, kept):
        assert torch.isin((moved[0][there] * 1e5).round(), (image[0] * 1e5).round()).all()


def test_the_balance_equals_two_gradients_in_a_layer():
    layer = nn.Conv2d(3, 3, 3)
    images = layer(torch.rand(2, 3, 8, 8))
    first, second = torch.randn_like(images), 100 * torch.randn_like(images)
    by = sharp.balance(images, layer.weight, first, second)
    (of_first,) = torch.autograd.grad(images, layer.weight, first, retain_graph=True)
    (of_second,) = torch.autograd.grad(images, layer.weight, by * second)
    torch.testing.assert_close(of_first.norm(), of_second.norm())


def test_the_discriminator_learns_sharp_from_blurred():
    from smilevae.editing.classifier import blur

    torch.manual_seed(0)
    network = sharp.Discriminator(8)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(60):
        real = torch.rand(16, 3, 1, 1) * torch.rand(16, 1, 32, 32)
        logits, wrong = network(torch.cat([real, blur(real, 2.0)])).chunk(2)
        loss = nn.functional.softplus(-logits).mean() + nn.functional.softplus(wrong).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert logits.mean() > 0 > wrong.mean()


@pytest.mark.parametrize(
    ("word", "expected", "sentence"),
    [
        ("sharpen.epochs=1", 3, "each part needs 20 faces; add images"),
        ("trainer.devices=2", 2, "pass trainer.devices=1"),
    ],
)
def test_too_few_faces_and_several_processes_are_refused(call, tmp_path, word, expected, sentence):
    words = (f"hydra.run.dir={tmp_path / 'r'}", *TINY, "sharpen.epochs=1", word)
    code, errors = call("train", *words)
    assert code == expected
    assert sentence in errors
    assert not (tmp_path / "r").exists()
