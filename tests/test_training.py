"""The whole path on the real config, shrunk: the run folder, determinism, resume, interruption, divergence."""

import copy
import itertools
import json
import math
import os
import platform
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, TINY, script, slow

from smilevae import runs
from smilevae.config import checked
from smilevae.data import load_faces
from smilevae.data.augment import augment
from smilevae.models.metrics import negative_elbo
from smilevae.runs import checkpoint
from smilevae.training import fit
from smilevae.training.datamodule import VAL_BATCH
from smilevae.training.module import EpochState, VAEModule, losses, one_cycle
from smilevae.training.record import Record

TERMS = ("loss", "recon", "kl", "nelbo", "psnr")


def read(run, name):
    return json.loads((run / name).read_text())


def weights(run, name="last.ckpt"):
    return checkpoint.read(run / "checkpoints" / name)


def assert_same(one, two):
    """Equal to the bit: tensors, and everything around them but times."""
    if isinstance(one, dict):
        assert one.keys() == two.keys()
        for key in one:
            if key not in ("images_per_second", "hyper_parameters"):
                assert_same(one[key], two[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(two)
        for a, b in zip(one, two):
            assert_same(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, two)
    else:
        assert one == two or (one != one and two != two)


# the contract


def test_the_run_folder_keeps_its_contract(tiny_run):
    assert read(tiny_run, "status.json")["status"] == "COMPLETED"
    settings = runs.read_settings(tiny_run)
    assert "${" not in (tiny_run / "config.yaml").read_text()
    lines = runs.read_metrics(tiny_run)
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    for line in lines:
        assert {f"{stage}/{term}" for stage in ("train", "val") for term in TERMS} <= line.keys()
        assert line["val/loss"] == pytest.approx(line["val/recon"] + settings.beta * line["val/kl"])
        assert line["val/nelbo"] == pytest.approx(negative_elbo(line["val/recon"], line["val/kl"], 3 * 64**2))
        assert line["images_per_second"] > 0
    result = read(tiny_run, "result.json")
    best = sorted(lines, key=lambda line: line["val/loss"])[:2]
    assert result["checkpoints"] == [f"checkpoints/epoch-{line['epoch']:04d}.ckpt" for line in best]
    assert result["best"] == best[0]
    assert {"identity", "data_fingerprint", "wall_seconds", "threads", "versions", "peak_memory_mb"} <= result.keys()
    assert result["keep_memory"] == (platform.libc_ver()[0] == "glibc")
    kept = {path.name for path in (tiny_run / "checkpoints").iterdir()}
    assert kept == {"last.ckpt", "previous.ckpt", *(os.path.basename(name) for name in result["checkpoints"])}
    assert not any(set(str(path.relative_to(tiny_run))) & set("=,") for path in tiny_run.rglob("*"))
    assert read(tiny_run, "data_card.json")["people_in_train_and_val"] == 0
    assert "epoch 4/4" in (tiny_run / "train.log").read_text()


def test_checkpoints_are_of_the_epochs_in_their_names(tiny_run):
    for path in runs.ranked(tiny_run):
        content = checkpoint.read(path)
        assert content["epoch"] + 1 == runs.epoch_of(path)
        assert content["callbacks"]["Record"]["epochs"][-1]["epoch"] == runs.epoch_of(path)


def test_training_learns(train):
    lines = runs.read_metrics(train("epochs=20", "data.cache=false"))
    assert lines[-1]["val/loss"] < 0.6 * lines[0]["val/loss"]
    assert lines[-1]["train/psnr"] > lines[0]["train/psnr"] + 1


@pytest.mark.parametrize("ema", [0, 0.9])
def test_the_first_validation_agrees_with_plain_torch(train, ema):
    """val/loss of epoch 1 again from its checkpoint, in float64, without Lightning."""
    from smilevae.data import batches
    from smilevae.models.losses import beta_vae_terms

    run = train("epochs=1", "beta=3", f"ema={ema}")
    vae, settings, *_ = checkpoint.load(run / "checkpoints" / "epoch-0001.ckpt")
    faces = load_faces(settings.data, 64)
    x = batches.to_unit(torch.from_numpy(np.array(faces.images[faces.rows("val")])))
    noise = torch.Generator().manual_seed(batches.hash64("noise", "val", 0, 0, 0))
    with torch.no_grad():
        out = vae(x, torch.randn(VAL_BATCH, 8, generator=noise)[: len(x)])
    terms = beta_vae_terms(*(t.double() for t in (out.x_hat, x, out.mu, out.logvar)), beta=3.0)
    line = runs.read_metrics(run)[0]
    assert line["val/loss"] == pytest.approx(terms.loss.mean().item(), rel=1e-5)
    assert line["val/active_units"] == (out.mu.var(0) > 0.01).sum()


# determinism and resume


def test_two_runs_are_equal_to_the_bit_with_and_without_the_cache(train):
    one, two = train(to="one"), train("data.cache=false", "evaluate=true", to="two")
    assert_same(weights(one), weights(two))
    assert read(one, "result.json")["identity"] == read(two, "result.json")["identity"]
    other = train("seed=1", to="other")
    assert not torch.equal(
        weights(one)["state_dict"]["vae.encoder.1.weight"], weights(other)["state_dict"]["vae.encoder.1.weight"]
    )


def test_validating_less_often_does_not_change_training(train):
    one = train("epochs=2", to="one")
    two = train("epochs=2", "+trainer.limit_val_batches=1", "data.val_fraction=0.2", to="two")
    assert_same(weights(one)["state_dict"], weights(two)["state_dict"])


COSINE = (
    *("schedule=cosine", "weight_decay=0.01", "ema=0.9"),
    *("jitter.shift=2", "jitter.rotate=5", "jitter.zoom=0.1", "jitter.light=0.1"),
)
RECIPES = {
    "plateau": ("plateau.patience=0",),
    "cosine": COSINE,
    "plateau, warm start": ("plateau.patience=0", "warm_start=ppca"),
    "cosine, warm start": (*COSINE, "warm_start=ppca", "beta=auto"),
}
WHERE = (*(f"epoch {n}" for n in range(1, 5)), *(f"step {n}" for n in (1, 7, 8, 14, 18)))  # 5 steps an epoch
RESUMES = [
    pytest.param(
        *(where, workers, recipe),
        id=f"{where}, {recipe}, {workers} workers",
        marks=[] if workers == 0 and recipe in ("plateau", "cosine, warm start") and where in WHERE[1::2] else slow,
    )
    for where, workers, recipe in itertools.product(WHERE, (0, 2), RECIPES)
]


class Killed(BaseException):
    pass


@pytest.mark.parametrize(("where", "workers", "recipe"), RESUMES)
@pytest.mark.scorecard(4, "resume = uninterrupted: epoch ends and steps x workers x schedules x warm start: equal bits")
def test_resume_is_equal_to_the_uninterrupted_run(train, call, monkeypatch, where, workers, recipe, tmp_path):
    """Killed after the checkpoint of an epoch, or stopped by a signal at a step; 5 steps an epoch, 4 epochs."""
    knobs_ = ("epochs=4", f"num_workers={workers}", *RECIPES[recipe])
    whole = train(*knobs_, to="whole")
    kind, number = where.split()
    if kind == "epoch":
        save = Record._save

        def then_die(self, trainer):
            save(self, trainer)
            if self.epochs[-1]["epoch"] == int(number):
                raise Killed

        monkeypatch.setattr(Record, "_save", then_die)
        with pytest.raises(Killed):
            train(*knobs_, "checkpoint_every=0", to="broken")
    else:
        batch_end = Record.on_train_batch_end

        def signalled(self, trainer, *args):
            if trainer.global_step == int(number):
                self.stop._receive(signal.SIGINT, None)
            batch_end(self, trainer, *args)

        monkeypatch.setattr(Record, "on_train_batch_end", signalled)
        code, errors = call("train", f"hydra.run.dir={tmp_path / 'broken'}", *TINY, *knobs_)
        assert code == 130
        assert "to go on: python train.py resume=" in errors
        assert read(tmp_path / "broken", "status.json")["status"] == "INTERRUPTED"
        assert weights(tmp_path / "broken")["global_step"] == int(number)
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    code, errors = call("train", f"resume={tmp_path / 'broken'}")
    assert code == 0, errors
    assert_same(weights(whole), weights(tmp_path / "broken"))
    assert_same(runs.read_metrics(whole), runs.read_metrics(tmp_path / "broken"))
    assert read(whole, "result.json")["checkpoints"] == read(tmp_path / "broken", "result.json")["checkpoints"]
    for path in runs.ranked(whole):
        assert_same(checkpoint.read(path), weights(tmp_path / "broken", path.name))


def test_a_real_kill_is_resumed_to_the_same_weights(train, tmp_path, call):
    """kill -9 of a real process somewhere within training."""
    whole = train("epochs=30", to="whole")
    run = tmp_path / "killed"
    command = [sys.executable, "train.py", f"hydra.run.dir={run}", *TINY, "epochs=30"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(runs.read_metrics(run)) < 5 and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert read(run, "status.json")["status"] == "RUNNING"
    assert 5 <= len(runs.read_metrics(run)) < 30
    code, errors = call("train", f"resume={run}")
    assert code == 0, errors
    assert_same(weights(whole), weights(run))


class Clock:
    """time.perf_counter that only tests move."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


def test_checkpoints_are_written_when_they_are_due(train, monkeypatch):
    """A second passes with each of 5 steps an epoch; every 8 seconds one is due, within an epoch too."""
    from smilevae.training import record

    clock, saved, batch_end, save = Clock(), [], Record.on_train_batch_end, Record._save

    def second(self, *args):
        clock.now += 1
        batch_end(self, *args)

    def noted(self, trainer):
        assert {path.name for path in self.io.kept} <= self._best_names()  # not one for each better epoch
        save(self, trainer)
        kept = {path.name for path in self.run.checkpoints.glob("epoch-*.ckpt")}
        assert kept == self._best_names()  # on the disk with last.ckpt
        saved.append(trainer.global_step)

    monkeypatch.setattr(record.time, "perf_counter", clock.perf_counter)
    monkeypatch.setattr(Record, "on_train_batch_end", second)
    monkeypatch.setattr(Record, "_save", noted)
    run = train("epochs=6", "checkpoint_every=8")
    assert saved == [5, 14, 23, 30]  # the first epoch, then the step after 8 seconds, the end
    assert [len(content["optimizer_states"]) for content in [weights(run)]] == [1]
    assert not any("optimizer_states" in checkpoint.read(path) for path in runs.ranked(run))


def test_a_kill_at_the_very_end_leaves_no_checkpoint_too_many(train, call):
    """After the last last.ckpt, before those that it replaces are removed."""
    run = train()
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    (run / "result.json").unlink()
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "epoch-0000.ckpt")
    code, errors = call("train", f"resume={run}")
    assert code == 0, errors
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept
    assert (run / "result.json").exists()


def test_a_kill_before_the_first_last_checkpoint_starts_anew(train, call):
    run = train("epochs=1")
    before = weights(run)
    for name in ("checkpoints/last.ckpt", "result.json"):
        (run / name).unlink()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-0001.ckpt"]
    code, errors = call("train", f"resume={run}")
    assert code == 0, errors
    assert_same(before["state_dict"], weights(run)["state_dict"])


def test_an_error_leaves_the_best_checkpoints_since_the_last_one(train, call, monkeypatch, tmp_path):
    def fail(self, *args):
        if self.current_epoch == 4:
            raise RuntimeError("a cable was pulled")

    from smilevae.training.module import VAEModule

    monkeypatch.setattr(VAEModule, "on_train_epoch_start", fail, raising=False)
    with pytest.raises(RuntimeError, match="cable"):
        train("epochs=9")
    run = tmp_path / "run"
    best = sorted(runs.read_metrics(run), key=lambda line: line["val/loss"])[:2]
    assert [path.name for path in runs.ranked(run)][:2] == [runs.best_name(line["epoch"]) for line in best]
    assert weights(run)["callbacks"]["Record"]["epochs"][-1]["epoch"] == 1


@slow
@pytest.mark.parametrize("kills", [3, 20])
def test_kills_with_checkpoints_by_time_lose_no_more_than_their_interval(train, tmp_path, kills):
    """kill -9 at random moments of training; the weights, the best two and the metrics are those of an unbroken run."""
    every, epochs, rng, repeated = 0.5, f"epochs={60 * kills}", random.Random(0), []
    whole, run = train(epochs, to="whole"), tmp_path / "killed"
    words = [f"hydra.run.dir={run}", *TINY, epochs, f"checkpoint_every={every}"]
    last = run / "checkpoints" / "last.ckpt"
    for _ in range(kills):
        before = len(runs.read_metrics(run))
        command = [sys.executable, "train.py", *words]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while len(runs.read_metrics(run)) == before and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        started = time.time()
        time.sleep(rng.uniform(0, 3 * every))
        killed = time.time()
        process.kill()
        assert process.wait() == -signal.SIGKILL
        repeated.append(killed - max(last.stat().st_mtime, started))
        words = [f"resume={run}"]
    done = script("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    print(f"{kills} kills: seconds repeated {max(repeated):.2f} at most, {sum(repeated) / kills:.2f} on average")
    assert max(repeated) < every + 0.5  # and the time of a step and a write
    assert_same(runs.read_metrics(whole), runs.read_metrics(run))
    assert read(whole, "result.json")["checkpoints"] == read(run, "result.json")["checkpoints"]
    for path in (*runs.ranked(whole), whole / "checkpoints" / "last.ckpt"):
        assert_same(weights(whole, path.name)["state_dict"], weights(run, path.name)["state_dict"])


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=slow)])
def test_a_real_signal_keeps_what_was_learnt_and_says_how_to_go_on(tmp_path, signum, code):
    run = tmp_path / "run"
    command = [sys.executable, "train.py", f"hydra.run.dir={run}", *TINY, "epochs=100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while len(runs.read_metrics(run)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signum)
    start = time.monotonic()
    _, errors = process.communicate(timeout=60)
    assert time.monotonic() - start < 10
    assert process.returncode == code
    assert "to go on: python train.py resume=" in errors
    assert "Traceback" not in errors
    assert read(run, "status.json")["status"] == "INTERRUPTED"
    assert weights(run)["global_step"] >= 10


def test_more_epochs_go_on_from_the_end(train, call):
    run = train("epochs=2")
    code, errors = call("train", f"resume={run}")
    assert (code, "has trained 2 epochs already" in errors) == (2, True)
    code, errors = call("train", f"resume={run}", "epochs=4")
    assert code == 0, errors
    assert len(runs.read_metrics(run)) == 4
    assert read(run, "result.json")["final"]["epoch"] == 4


def test_a_resume_that_would_change_the_result_is_refused_by_name(train, call):
    run = train("epochs=2")
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file() and path.name != "train.log"}
    code, errors = call("train", f"resume={run}", "epochs=3", "beta=7", "batch_size=16")
    assert code == 2
    assert f"beta=7 would change the result of {run}, which has beta=1" in errors
    assert "batch_size=16 would change" in errors
    code, errors = call("train", f"resume={run}", "experiment=smile", "epochs=3")
    assert code == 2
    assert f"an experiment does not apply to resume={run}, which has its own settings; leave it out" in errors
    assert before == {path: path.read_bytes() for path in before}


def test_a_resume_on_other_pictures_is_refused_and_paths_are_found_from_anywhere(call, pictures, tmp_path, monkeypatch):
    tiny = [knob for knob in TINY if not knob.startswith("data.")]
    monkeypatch.chdir(pictures.parent)
    code, errors = call("train", "hydra.run.dir=run", "data=folder", "data.root=pictures", *tiny)
    assert code == 0, errors
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["data"]["root"] == str(pictures)
    monkeypatch.chdir("/")
    assert call("evaluate", f"ckpt={tmp_path / 'run'}")[0] == 0
    next((pictures / "train" / "smile").iterdir()).unlink()
    code, errors = call("train", f"resume={tmp_path / 'run'}", "epochs=3")
    assert (code, "the pictures changed since this run began" in errors) == (4, True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [(), ("schedule=cosine", "jitter.shift=1", "jitter.light=0.1", "ema=0.9", "warm_start=ppca")]
)
def test_two_processes_train_nearly_as_one_does(tmp_path, more):
    """Real processes over gloo share batch and noise; on a CPU each has BatchNorm's statistics of its own half."""
    lines = {}
    for devices in (1, 2):
        run = tmp_path / str(devices)
        some = ("model.dropout=0", "trainer.accelerator=cpu", f"trainer.devices={devices}", "epochs=4")
        done = script("train", f"hydra.run.dir={run}", *TINY, *some, *more)
        assert done.returncode == 0, done.stderr
        assert read(run, "status.json")["status"] == "COMPLETED"
        assert weights(run)["global_step"] == 20  # a batch is shared out, not multiplied
        lines[devices] = runs.read_metrics(run)
    assert lines[1][-1]["train/loss"] < lines[1][-4]["train/loss"]
    if "warm_start=ppca" in more:  # epoch 0 is the linear VAE, which has no BatchNorm
        assert lines[1][0]["epoch"] == 0
        for name in ("val/loss", "val/recon", "val/kl", "val/psnr"):
            assert lines[1][0][name] == pytest.approx(lines[2][0][name], rel=1e-4)
    for one, two in zip(lines[1], lines[2], strict=True):
        for name in {"train/loss", "train/recon", "train/kl", "lr"} & one.keys():  # val: running statistics of 4 faces
            assert one[name] == pytest.approx(two[name], rel=0.25, abs=0.5), (name, one["epoch"])


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    done = script("train", f"hydra.run.dir={tmp_path / 'r'}", *TINY, "trainer=cpu", "trainer.devices=2", "batch_size=9")
    assert done.returncode == 2, done.stderr
    assert "batch_size=9 cannot be shared by 2 processes; make it a multiple" in done.stderr


def test_half_precision_layers_give_full_precision_terms(train):
    run = train("trainer.precision=bf16-mixed", "epochs=3")
    lines = runs.read_metrics(run)
    assert lines[-1]["val/loss"] < lines[0]["val/loss"]
    assert all(v.dtype == torch.float32 for k, v in weights(run)["state_dict"].items() if k.endswith("weight"))


def test_only_hardware_may_change_on_resume_and_only_what_is_named(train, call):
    run = train("epochs=1", "trainer.gradient_clip_val=123.0")
    code, errors = call("train", f"resume={run}", "epochs=2", "trainer.precision=bf16-mixed")
    assert (code, "trainer.precision=bf16-mixed would change the result" in errors) == (2, True)
    code, errors = call("train", f"resume={run}", "epochs=2", "trainer.accelerator=cpu")
    assert code == 0, errors
    found = yaml.safe_load((run / "config.yaml").read_text())["trainer"]
    assert (found["gradient_clip_val"], found["accelerator"]) == (123.0, "cpu")


def test_an_edited_config_and_too_few_epochs_are_refused_on_resume(train, call):
    run = train("epochs=2")
    code, errors = call("train", f"resume={run}", "epochs=1")
    assert (code, "has trained 2 epochs already" in errors) == (2, True)
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("latent_dim: 8", "latent_dim: 9"))
    code, errors = call("train", f"resume={run}", "epochs=3")
    assert (code, "config.yaml says latent_dim=9, trained was 8" in errors) == (4, True)


def test_a_run_killed_before_its_result_is_finished_by_resume(train, call):
    run = train("epochs=2")
    before = read(run, "result.json")
    (run / "result.json").unlink()
    code, errors = call("train", f"resume={run}")
    assert code == 0, errors
    assert read(run, "result.json")["checkpoints"] == before["checkpoints"]


# failures


@pytest.mark.parametrize("recipe", ["plateau", "cosine, warm start"])
def test_faces_kept_on_the_device_give_the_same_bits(train, monkeypatch, recipe):
    """What a GPU does, with device=cpu: faces, an epoch's indices and its noise lie there before the first step."""
    from smilevae.training.datamodule import FaceDataModule

    host = train(*RECIPES[recipe], "jitter.shift=2", to="host")
    asked = []
    monkeypatch.setattr(FaceDataModule, "fits", lambda self, device: asked.append(device.type) or True)
    device = train(*RECIPES[recipe], "jitter.shift=2", to="device")
    assert asked == ["cpu"]
    assert_same(weights(host)["state_dict"], weights(device)["state_dict"])
    assert_same(runs.read_metrics(host), runs.read_metrics(device))


@slow
def test_a_compiled_run_is_the_plain_one_but_for_the_last_bits_and_resumes_to_the_bit(train, tmp_path):
    """Dropout's masks are the same, and the second process builds nothing."""
    plain, whole = train(to="plain"), tmp_path / "whole"
    done = script("train", f"hydra.run.dir={whole}", *TINY, "compile=true")
    assert done.returncode == 0, done.stderr
    losses = [[line["train/loss"] for line in runs.read_metrics(run)] for run in (plain, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    cache = Path(os.environ["XDG_CACHE_HOME"], "smilevae", "compiled")
    built = set(cache.rglob("*.so"))
    assert built
    run = tmp_path / "cut"
    script_ = script("train", f"hydra.run.dir={run}", *TINY, "compile=true", "epochs=1")
    assert script_.returncode == 0, script_.stderr
    done = script("train", f"resume={run}", "epochs=2")
    assert done.returncode == 0, done.stderr
    assert_same(weights(whole)["state_dict"], weights(run)["state_dict"])
    assert set(cache.rglob("*.so")) == built


@slow
def test_compile_without_a_compiler_is_one_sentence(tmp_path):
    nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = script("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "compile=true", env=os.environ | nowhere)
    assert done.returncode == 2, done.stderr
    assert re.search(
        r"error: compile=true cannot build the step .*install a C\+\+ compiler, or pass compile=false", done.stderr
    )
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_divergence_fails_with_its_step_and_keeps_the_last_checkpoint(train, call, monkeypatch, tmp_path):
    from smilevae.training import module

    real, calls = module.beta_vae_terms, []

    def poisoned(*args):
        calls.append(1)
        terms = real(*args)
        return (
            terms._replace(loss=terms.loss * math.nan) if len(calls) == 8 else terms
        )  # the second epoch's second step

    monkeypatch.setattr(module, "beta_vae_terms", poisoned)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY)
    assert code == 1
    assert "the loss became nan in epoch 2, by step 6" in errors
    status = read(tmp_path / "run", "status.json")
    assert status["status"] == "FAILED"
    assert "the loss became nan" in status["reason"]
    assert not (tmp_path / "run" / "result.json").exists()
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run")["state_dict"].values())


def test_a_mistake_in_a_trainer_argument_is_one_sentence(call, tmp_path):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "trainer.accelerator=abacus")
    assert code == 2
    assert errors.startswith("error: trainer: ")
    assert not (tmp_path / "run").exists()


@slow
def test_a_sweep_gives_each_job_a_folder_named_by_its_knobs(call, tmp_path):
    code, errors = call("train", "-m", f"hydra.sweep.dir={tmp_path}", *TINY, "epochs=1", "beta=1,10", "seed=0,1")
    assert code == 0, errors
    assert {p.name for p in tmp_path.glob("beta*")} == {f"beta-{b}_seed-{s}" for b in (1, 10) for s in (0, 1)}
    found = {tuple(sorted(p.parent.relative_to(tmp_path).parts)) for p in tmp_path.rglob("result.json")}
    assert len(found) == 4
    for path in tmp_path.rglob("config.yaml"):
        config = yaml.safe_load(path.read_text())
        assert f"beta-{config['beta']}" in path.parent.name
        assert f"seed-{config['seed']}" in path.parent.name


def test_a_warm_start_begins_at_the_linear_optimum(train):
    """Epoch 0 is the closed form, computed here from numpy's singular values, and is kept if nothing beats it."""
    run = train("warm_start=ppca", "latent_dim=6", "epochs=2", "lr=0.00000001", "data.num_smiling=60")
    first, *_ = runs.read_metrics(run)
    assert first["epoch"] == 0
    content = checkpoint.read(run / "checkpoints" / "last.ckpt")
    faces = load_faces(checked(content["hyper_parameters"]).data, 64)
    seen = faces.images[faces.rows("train")].astype(float) / 255
    seen = np.concatenate([seen, seen[:, :, ::-1]]).reshape(-1, 3 * 64**2)
    held = faces.images[faces.rows("val")].astype(float).reshape(-1, 3 * 64**2) / 255 - seen.mean(0)
    _, singular, axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)
    variances, s = singular[:6] ** 2 / len(seen), 0.5
    along = held @ axes[:6].T
    kl = 0.5 * ((variances - s) / variances**2 * along**2 + s / variances - 1 - np.log(s / variances)).sum(1).mean()
    assert first["val/kl"] == pytest.approx(kl, rel=1e-3)
    error = (held**2).sum(1).mean() - (along**2 * (1 - (s / variances) ** 2)).sum(1).mean()
    assert first["val/psnr"] == pytest.approx(-10 * np.log10(error / (3 * 64**2)), abs=1e-3)
    forecast = json.loads((run / "forecast.json").read_text())
    assert first["val/kl"] == pytest.approx(forecast["kl"], rel=1e-3)
    assert first["val/psnr"] == pytest.approx(forecast["psnr"], abs=1e-3)
    assert first["val/loss"] == pytest.approx(forecast["loss"], rel=0.05)  # few faces: sampled codes
    assert first["val/active_units"] <= forecast["active_units"] == 6


@pytest.mark.parametrize("more", [(), ("ema=0.9", "warm_start=ppca", "latent_dim=300")])
def test_beta_auto_is_the_moving_average_of_each_batchs_optimum(train, monkeypatch, more):
    seen = []

    def watched(vae, x, noise, beta):
        out, terms = losses(vae, x, noise, beta)
        if torch.is_grad_enabled():
            seen.append((beta.item(), terms.recon.mean().item()))
        return out, terms

    monkeypatch.setattr("smilevae.training.module.losses", watched)
    run = train("beta=auto", "epochs=3", "evaluate=true", *more)
    beta = first = seen[0][0]
    for step, (used, recon) in enumerate(seen):
        assert used == pytest.approx(beta, rel=1e-5)
        beta += max(0.05, 1 / (1 + step)) * (2 * recon / (3 * 64**2) + 2 / 12 / 255**2 - beta)
    assert len(seen) == 15
    last = weights(run)["state_dict"]
    assert last["vae.beta"].item() == pytest.approx(beta, rel=1e-5)
    assert f"forecast for beta={first:.4g} (auto)" in (run / "train.log").read_text()
    lines = [line for line in runs.read_metrics(run) if line["epoch"]]
    assert lines[-1]["beta"] == last["vae.beta"].item()
    for line in lines:  # a loss at the faces' own optimum orders epochs as the bound does
        own = 2 * line["val/recon"] / (3 * 64**2)
        assert line["val/loss"] == pytest.approx(line["val/recon"] + own * line["val/kl"], rel=1e-3)
    by_loss, by_bound = (sorted(lines, key=lambda line: line[name]) for name in ("val/loss", "val/nelbo"))
    assert by_loss == by_bound
    best, evaluated = read(run, "result.json")["best"], read(run, "evaluation/best/metrics.json")
    assert evaluated["loss"] == pytest.approx(best["val/loss"], rel=0.02)  # other noise
    assert evaluated["beta"] == pytest.approx(2 * evaluated["recon"] / (3 * 64**2), rel=1e-3)


def test_a_warm_start_resumes_to_the_same_bits(train, tmp_path):
    whole = train("warm_start=ppca", "epochs=3", to="whole")
    train("warm_start=ppca", "epochs=1", to="part")
    code = train(f"resume={tmp_path / 'part'}", "epochs=3", to="part")
    assert code == tmp_path / "part"
    one, two = (checkpoint.read(path / "checkpoints" / "last.ckpt")["state_dict"] for path in (whole, code))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert [line["epoch"] for line in runs.read_metrics(code)] == [0, 1, 2, 3]


def test_the_moving_average_is_one(train, monkeypatch):
    """ema after n steps again, from the weights that every step left."""
    seen = []
    step = VAEModule.optimizer_step

    def watched(self, *args, **kwargs):
        step(self, *args, **kwargs)
        seen.append({name: weight.detach().clone() for name, weight in self.vae.named_parameters()})

    monkeypatch.setattr(VAEModule, "optimizer_step", watched)
    begun = {}
    monkeypatch.setattr(VAEModule, "on_fit_start", lambda self: begun.update(copy.deepcopy(self.vae.state_dict())))
    run = train("epochs=1", "ema=0.5")
    average = {name: begun[name] for name in seen[0]}
    for number, weights_ in enumerate(seen):
        decay = min(0.5, (1 + number) / (10 + number))
        average = {name: (1 - decay) * weights_[name] + decay * a for name, a in average.items()}
    content = checkpoint.read(run / "checkpoints" / "last.ckpt")["state_dict"]
    assert len(seen) == 5
    for name, value in average.items():
        torch.testing.assert_close(content[f"ema.{name}"], value, rtol=1e-4, atol=1e-6)


def test_the_cosine_rises_falls_and_ends_with_the_epochs(train, call):
    rates = [one_cycle(done) for done in np.linspace(0, 1, 1001)]
    assert rates[0] == pytest.approx(0.04)
    assert max(rates) == pytest.approx(1) == pytest.approx(one_cycle(0.1))
    assert rates[-1] == pytest.approx(0.01)
    assert max(abs(np.diff(rates))) < 0.01
    run = train("schedule=cosine", "epochs=3")
    lrs = [line["lr"] for line in runs.read_metrics(run)]
    assert lrs[0] > lrs[1] > lrs[2] > 0
    code, errors = call("train", f"resume={run}", "epochs=9")
    assert (code, "schedule=cosine, which ends at epochs=3" in errors) == (2, True)


def test_augment_moves_turns_zooms_and_lights_by_the_given_amounts():
    """A blurred spot, whose centre of mass and spread say where it went."""
    side, still = 64, {"shift": 0, "rotate": 0, "zoom": 0, "light": 0}
    y, x = torch.meshgrid(torch.arange(side) - 31.5, torch.arange(side) - 31.5, indexing="ij")
    spot = (0.8 * torch.exp(-((x - 15) ** 2 + y**2) / 20)).expand(1, 3, side, side)  # to the right of the centre

    def moved(how, **knobs):
        out = augment(spot, torch.tensor([how], dtype=torch.float32), **still | knobs)[0].double()
        centre = [(out[0] * axis).sum() / out[0].sum() for axis in (y, x)]
        return [float(c) for c in centre], out

    zeros = [0.0] * 9
    assert torch.equal(
        moved(zeros, shift=4, rotate=8, zoom=0.1)[1][:, 8:-8, 8:-8].round(decimals=5),
        spot[0].double()[:, 8:-8, 8:-8].round(decimals=5),
    )
    assert moved([1, -0.5, *zeros[2:]], shift=4)[0] == pytest.approx([4, 13], abs=0.05)
    turned = moved([0, 0, 1, *zeros[3:]], rotate=30)[0]
    assert [abs(turned[0]), turned[1]] == pytest.approx([15 * 0.5, 15 * 0.866], abs=0.1)
    assert moved([0, 0, 0, 1, *zeros[4:]], zoom=0.2)[0] == pytest.approx([0, 15 * np.exp(0.2)], abs=0.1)
    assert moved([0, 0, 0, 0, 1, *zeros[5:]], zoom=0.2)[0] == pytest.approx([0, 15 * np.exp(0.1)], abs=0.1)
    lit = moved([*zeros[:5], 1, 1, 0, -1], light=0.3)[1] / spot[0]
    for channel, gain in enumerate((0.4, 0.3, 0.2)):
        middle = lit[channel][y.abs() + (x - 15).abs() < 3]
        torch.testing.assert_close(
            middle,
            (spot[0, 0][y.abs() + (x - 15).abs() < 3] * np.exp(gain)).clamp(max=1).double()
            / spot[0, 0][y.abs() + (x - 15).abs() < 3],
            rtol=1e-4,
            atol=1e-4,
        )
    assert moved([*zeros[:5], 1, 1, 1, 1], light=0.9)[1].max() == 1
    torch.testing.assert_close(augment(spot, torch.ones(1, 9), **still), spot)


# what Lightning would allow


def slowly(hook, seconds):
    def wrapped(*args):
        time.sleep(seconds)
        hook(*args)

    return wrapped


def test_a_time_limit_ends_as_interrupted_and_a_resume_gives_the_same_bits(tmp_path, train, call, monkeypatch):
    """trainer.max_time: a checkpoint within the epoch, exit 143, and what remains is trained by the resume."""
    whole = train("epochs=40", "log_images_every=1000", to="whole")
    monkeypatch.setattr(Record, "on_train_batch_end", slowly(Record.on_train_batch_end, 0.02))
    code, errors = call(
        "train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "epochs=40", "log_images_every=1000",
        "+trainer.max_time='00:00:00:01'",
    )  # fmt: skip
    assert (code, "to go on: python train.py resume=" in errors) == (143, True)
    status = read(tmp_path / "run", "status.json")
    assert (status["status"], status["reason"]) == ("INTERRUPTED", "trainer.max_time is over")
    assert 0 < runs.epochs_done(tmp_path / "run") < 40
    monkeypatch.undo()
    code, errors = call("train", f"resume={tmp_path / 'run'}", "+trainer.max_time='00:01:00:00'")
    assert code == 0, errors
    assert_same(weights(whole)["state_dict"], weights(tmp_path / "run")["state_dict"])


@pytest.mark.parametrize("word", ["+trainer.limit_val_batches=0.5", "+trainer.limit_train_batches=0.01"])
def test_what_lightning_refuses_only_when_it_trains_is_one_sentence(call, tmp_path, word):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, word)
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert errors.startswith("error: trainer: You requested to check")
    assert not (tmp_path / "run").exists()


def test_an_evaluation_that_fails_leaves_a_complete_training(train, capfd, monkeypatch):
    from smilevae.evaluation import report

    def fails(options):
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(report, "report", fails)
    said = []
    monkeypatch.setattr(fit.log, "info", said.append)
    run = train("evaluate=true")
    assert runs.state(run)["status"] == "COMPLETED"
    (line,) = [line for line in said if "evaluation failed" in line]
    assert line.startswith("the training is complete, but its evaluation failed (ZeroDivisionError: float division")
    assert f"again with python evaluate.py ckpt={runs.shell_path(run)}" in line


@pytest.mark.parametrize("word", ["+trainer.check_val_every_n_epoch=2", "+trainer.limit_val_batches=0"])
def test_a_training_without_a_validation_every_epoch_is_refused(call, tmp_path, word):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, word)
    assert (code, "leaves no val/loss of every epoch" in errors) == (2, True)
    assert not (tmp_path / "run").exists()


def test_sums_that_a_resume_restored_on_the_cpu_move_to_the_device_of_the_batch():
    """Lightning restores a checkpoint before it moves the model. `meta` stands for a GPU."""
    state = EpochState(torch.nn.Identity(), torch.zeros(1), sums={"train": torch.ones(5)})
    state.add("train", torch.ones(5, device="meta"))
    assert state.sums["train"].device.type == "meta"
    state = EpochState(torch.nn.Identity(), torch.zeros(1), sums={"train": torch.ones(5)})
    state.add("train", torch.ones(5))
    assert state.sums["train"].tolist() == [2] * 5


def test_lightnings_own_load_from_checkpoint_works(tiny_run):
    path = runs.find(str(tiny_run))
    module = VAEModule.load_from_checkpoint(path, map_location="cpu")
    x = torch.rand(2, 3, 64, 64)
    vae = checkpoint.load(path).vae
    with torch.no_grad():
        assert torch.equal(module(x), vae.decode(vae.encode(x)[0]))
    assert not module.training
