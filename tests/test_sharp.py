"""The second phase: only the decoder moves, beside the first run; a resume gives the same bits."""

import pytest
import torch
from conftest import ROOT, TINY, slow
from test_training import (
    Killed,
    assert_same,
    assert_same_run,
    die_after_save,
    read,
    signal_at,
    weights,
)
from torch import nn

from smilevae import runs
from smilevae.evaluation.summary import SETS
from smilevae.runs import checkpoint
from smilevae.training import sharp
from smilevae.training.module import VAEModule

SHARP = (
    "data.num_smiling=50",
    "data.num_not_smiling=50",
    "data.val_fraction=0.3",
    "sharpen.epochs=2",
    "epochs=2",
)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    at_once(monkeypatch)


def at_once(monkeypatch):
    """The decoder learns from the first step."""
    monkeypatch.setattr(sharp, "WARM_UP", 1)
    monkeypatch.setattr(sharp, "PASSES", 2)


def test_only_the_decoder_moves_and_the_first_phase_stays(train, call, tmp_path):
    plain = train(*SHARP, "sharpen.epochs=0", to="plain")
    run = train(*SHARP, "evaluate=true", to="run")
    assert_same(weights(plain)["state_dict"], weights(run)["state_dict"])
    inner = run / runs.SHARP
    assert read(inner, "status.json")["status"] == "COMPLETED"
    before, after = (
        checkpoint.load(runs.find(str(path))).vae.state_dict() for path in (run, inner)
    )
    last = {
        k.removeprefix("ema."): v
        for k, v in weights(inner)["state_dict"].items()
        if k.startswith("ema.")
    }
    moved = {name for name in before if not torch.equal(before[name], last[name])}
    assert moved
    assert all(name.startswith("decoder.") and "running" not in name for name in moved)
    assert set(before) == set(after)

    lines = runs.read_metrics(inner)
    assert [line["epoch"] for line in lines] == [0, 1, 2]
    distances = [line["val/distance"] for line in lines]
    best = read(inner, "result.json")["best"]
    assert best["val/distance"] == min(distances)
    assert runs.epoch_of(runs.find(str(inner))) == best["epoch"]
    assert {"sharp/discriminator", "sharp/real_logit", "sharp/fake_logit", "train/recon"} <= lines[
        -1
    ].keys()
    assert not any(
        name.startswith("discriminator.")
        for name in weights(inner, runs.find(str(inner)).name)["state_dict"]
    )
    module = VAEModule.load_from_checkpoint(inner / "checkpoints" / "last.ckpt")
    assert torch.equal(module.epoch.eval_model.decoder[0].weight, last["decoder.0.weight"])
    evaluated = read(inner, "evaluation/best/metrics.json")
    assert not (run / "evaluation").exists()
    assert set(evaluated["realism"]) == {*SETS}
    code, errors = call("train", f"resume={inner}")
    assert code == 2
    assert f"pass resume={runs.shell_path(run)}" in errors
    code, errors = call("train", f"resume={run}", "epochs=5")
    assert code == 2
    assert "remove it first" in errors


@pytest.mark.parametrize("step", [11, pytest.param(3, marks=slow)])
def test_an_interrupted_second_phase_goes_on_to_the_same_bits(
    train, call, monkeypatch, tmp_path, step
):
    whole = train(*SHARP, to="whole")
    signal_at(
        monkeypatch,
        lambda trainer, module: (
            isinstance(module, sharp.SharpModule)
            and trainer.fit_loop.epoch_loop.total_batch_idx == step
        ),
    )
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'broken'}", *TINY, *SHARP)
    assert code == 130
    assert "to go on: python train.py resume=" in errors
    assert not (tmp_path / "broken" / "result.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    at_once(monkeypatch)
    code, errors = call("train", f"resume={tmp_path / 'broken'}")
    assert code == 0, errors
    assert_same_run(whole / runs.SHARP, tmp_path / "broken" / runs.SHARP)


def test_a_finished_run_can_be_sharpened_later_as_if_at_once(train, call, monkeypatch):
    at_once = train(*SHARP, to="at_once")
    run = train(*SHARP, "sharpen.epochs=0", to="later")
    code, errors = call("train", f"resume={run}", "sharpen.epochs=2")
    assert code == 0, errors
    assert_same(
        weights(at_once / runs.SHARP)["state_dict"], weights(run / runs.SHARP)["state_dict"]
    )
    code, errors = call("train", f"resume={run}", "sharpen.epochs=2")
    assert code == 2
    assert "has trained 2 epochs already" in errors


@slow
def test_a_killed_first_phase_is_sharpened_by_its_resume(train, call, monkeypatch, tmp_path):
    whole = train(*SHARP, to="whole")
    die_after_save(monkeypatch, 1)
    with pytest.raises(Killed):
        train(*SHARP, "checkpoint_every=0", to="broken")
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    at_once(monkeypatch)
    code, errors = call("train", f"resume={tmp_path / 'broken'}")
    assert code == 0, errors
    assert_same(
        weights(whole / runs.SHARP)["state_dict"],
        weights(tmp_path / "broken" / runs.SHARP)["state_dict"],
    )


def test_shifts_are_of_whole_pixels_and_colours_are_kept_where_nothing_is_drawn(monkeypatch):
    """With light, colour and contrast in the middle, a pixel is one of the image, or black."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, 0.5))
    x = torch.arange(2 * 3 * 64 * 64).view(2, 3, 64, 64) / 1e5 + 0.01
    y = sharp.diff_augment(x)
    kept = y[:, 0] != 0
    assert 0.3 < kept.float().mean() < 0.95
    for image, moved, there in zip(x, y, kept):
        values = torch.isin((moved[0][there] * 1e5).round(), (image[0] * 1e5).round())
        assert values.all()


def test_the_balance_equals_two_gradients_in_a_layer():
    layer = nn.Conv2d(3, 3, 3)
    images = layer(torch.rand(2, 3, 8, 8))
    first, second = torch.randn_like(images), 100 * torch.randn_like(images)
    by = sharp.balance(images, layer.weight, first, second)
    grads = [
        torch.autograd.grad(images, layer.weight, g, retain_graph=True)[0]
        for g in (first, by * second)
    ]
    torch.testing.assert_close(grads[0].norm(), grads[1].norm())


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


def test_too_few_faces_are_refused_before_training(call, tmp_path):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'r'}", *TINY, "sharpen.epochs=1")
    assert code == 3
    assert "each part needs 20 faces; add images" in errors
    assert not (tmp_path / "r").exists()


def test_processes_that_train_together_are_refused(call, tmp_path):
    code, errors = call(
        "train", f"hydra.run.dir={tmp_path / 'r'}", *TINY, "sharpen.epochs=1", "trainer.devices=2"
    )
    assert code == 2
    assert "pass trainer.devices=1" in errors
