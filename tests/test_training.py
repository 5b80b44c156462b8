"""The whole path on the real config, shrunk: run folder, determinism, resume, stops, divergence."""

import copy
import math
import os
import platform
import random
import re
import shutil
import signal
import time

import numpy as np
import pytest
import torch
from conftest import TINY, script, slow
from faults import Process

from smilevae import runs
from smilevae.config import checked
from smilevae.data.augment import augment
from smilevae.data.dataset import load_faces
from smilevae.models.metrics import negative_elbo
from smilevae.models.objectives import BetaVae
from smilevae.runs import checkpoint, checkpoint_files
from smilevae.training import datamodule, fit
from smilevae.training.module import EpochState, VAEModule
from smilevae.training.progress import epoch_line
from smilevae.training.record import Checkpoints, Record
from smilevae.training.steps import one_cycle, train_losses

TERMS = ("loss", "recon", "kl", "nelbo", "psnr")


def read(run, name):
    return runs.read_json(run / name)


def weights(run, name="last.ckpt"):
    return checkpoint.read(run / "checkpoints" / name)


def resume(call, run, *words):
    code, errors = call("train", f"resume={run}", *words)
    assert code == 0, errors


def interrupted(call, run, *words, code=130):
    """Train until something stops it, with a line to go on."""
    ended, errors = call("train", f"hydra.run.dir={run}", *TINY, *words)
    assert ended == code, errors
    assert "to go on: python train.py resume=" in errors
    assert read(run, "status.json")["status"] == "INTERRUPTED"


def refused(call, expected, run, *words):
    """The sentence with which a resume ends."""
    code, errors = call("train", f"resume={run}", *words)
    assert code == expected, errors
    return errors


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
        bound = negative_elbo(line["val/recon"], line["val/kl"], 3 * 64**2)
        assert line["val/nelbo"] == pytest.approx(bound)
        assert line["images_per_second"] > 0
    result = read(tiny_run, "result.json")
    best = sorted(lines, key=lambda line: line["val/loss"])[:2]
    assert result["checkpoints"] == [f"checkpoints/epoch-{line['epoch']:04d}.ckpt" for line in best]
    assert result["best"] == best[0]
    assert {"data_fingerprint", "threads", "versions", "peak_memory_mb"} <= result.keys()
    assert result["keep_memory"] == (platform.libc_ver()[0] == "glibc")
    names = {path.name for path in (tiny_run / "checkpoints").iterdir()}
    assert names == {"last.ckpt", *(os.path.basename(name) for name in result["checkpoints"])}
    assert runs.find(str(tiny_run)) == tiny_run / result["checkpoints"][0]
    for path in runs.ranked(tiny_run):
        content = checkpoint.read(path)
        epoch = checkpoint_files.epoch_of(path)
        assert content["epoch"] + 1 == epoch == checkpoint.epochs_trained(content)
    assert not any(set(str(path.relative_to(tiny_run))) & set("=,") for path in tiny_run.rglob("*"))
    assert read(tiny_run, "data_card.json")["people_in_train_and_val"] == 0
    assert "epoch 4/4" in (tiny_run / "train.log").read_text()


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
        out = vae(x, torch.randn(datamodule.VAL_BATCH, 8, generator=noise)[: len(x)])
    terms = beta_vae_terms(*(t.double() for t in (out.x_hat, x, out.mu, out.logvar)), beta=3.0)
    line = runs.read_metrics(run)[0]
    assert line["val/loss"] == pytest.approx(terms.loss.mean().item(), rel=1e-5)
    assert line["val/active_units"] == (out.mu.var(0) > 0.01).sum()


@pytest.mark.parametrize(
    ("losses", "shown"),
    [
        ([507.3], "epoch 1/150  val loss 507.3"),
        ([190.0, 181.0], "epoch 2/150  val loss 181.0 (best, was 190.0)"),
        ([179.2, 179.3, 181.0], "epoch 3/150  val loss 181.0 (best 179.2 in epoch 1)"),
    ],
)
def test_an_epochs_line_says_whether_the_loss_fell_and_how_long_it_still_takes(losses, shown):
    terms = {"val/psnr": 24.08, "val/kl": 54.5}
    epochs = [{"epoch": n, "val/loss": loss, **terms} for n, loss in enumerate(losses, 1)]
    line = epoch_line(epochs, 150, 170)
    assert line == f"{shown}  PSNR 24.1 dB  KL 54.5 nats  3 min left"
    long = [line | {"epoch": 900 + line["epoch"], "val/loss": 12_345.6} for line in epochs]
    assert len(epoch_line(long, 1000, 3000)) <= 100
    assert "left" not in epoch_line(epochs, 150, 0)


# determinism and resume


def test_two_runs_are_equal_to_the_bit_with_and_without_the_cache(train):
    one, two = train(to="one"), train("data.cache=false", "evaluate=true", to="two")
    assert_same(weights(one), weights(two))
    first = [weights(run)["state_dict"]["vae.encoder.1.weight"] for run in (one, train("seed=1"))]
    assert not torch.equal(*first)


def test_validation_does_not_change_training(train, monkeypatch):
    one = train(to="one")
    monkeypatch.setattr(datamodule, "VAL_BATCH", 4)  # more batches
    two = train(to="two")
    assert_same(weights(one)["state_dict"], weights(two)["state_dict"])


JITTER = ("jitter.shift=2", "jitter.rotate=5", "jitter.zoom=0.1", "jitter.light=0.1")
COSINE = ("schedule=cosine", "optimizer=adamw", "ema=0.9", *JITTER)
RECIPES = {
    "plateau": ("plateau.patience=0",),
    "cosine": COSINE,
    "plateau, warm start": ("plateau.patience=0", "warm_start=ppca"),
    "cosine, warm start": (*COSINE, "warm_start=ppca", "beta=auto"),
}
MOMENTS = ["epoch 1", "epoch 2", "epoch 3", "epoch 4"]
MOMENTS += ["step 1", "step 7", "step 8", "step 14", "step 18"]  # 5 steps an epoch


def pairwise():
    """Each pair of a moment, a recipe and a number of workers; some cases run by default."""
    for i, moment in enumerate(MOMENTS):
        for j, recipe in enumerate(RECIPES):
            workers = 2 * ((i + j) % 2)
            quick = workers == 0 and recipe in ("plateau", "cosine, warm start")
            name = f"{moment}, {recipe}, {workers} workers"
            yield pytest.param(moment, recipe, workers, id=name, marks=[] if quick else slow)


WHOLE = {}  # recipe -> its uninterrupted run, trained once


@pytest.fixture
def whole(train, recipe, tmp_path_factory):
    if recipe not in WHOLE:
        folder = tmp_path_factory.mktemp("whole")
        WHOLE[recipe] = train("epochs=4", *RECIPES[recipe], to=folder)
    return WHOLE[recipe]


class Killed(BaseException):
    pass


def signal_at(monkeypatch, wanted):
    """The process gets SIGINT at the end of the step for which wanted(trainer) holds."""
    batch_end = Checkpoints.on_train_batch_end

    def signalled(self, trainer, module, *args):
        if wanted(trainer):
            self.until.stop._receive(signal.SIGINT, None)
        batch_end(self, trainer, module, *args)

    monkeypatch.setattr(Checkpoints, "on_train_batch_end", signalled)


def die_after_save(monkeypatch, epoch):
    """The process dies after it has written last.ckpt of an epoch."""
    save = Checkpoints._save

    def then_die(self, trainer):
        save(self, trainer)
        if self.record.num_epochs == epoch:
            raise Killed

    monkeypatch.setattr(Checkpoints, "_save", then_die)


@pytest.mark.parametrize(("moment", "recipe", "workers"), [*pairwise()])
@pytest.mark.scorecard(
    4, "resume = uninterrupted: every pair of epoch end or step, schedule and warm start, workers"
)
def test_resume_is_equal_to_the_uninterrupted_run(
    train, whole, call, monkeypatch, moment, recipe, workers, tmp_path
):
    """Killed after the checkpoint of an epoch, or stopped by a signal at a step."""
    run = tmp_path / "broken"
    knobs = ("epochs=4", f"num_workers={workers}", *RECIPES[recipe])
    kind, number = moment.split()
    with monkeypatch.context() as patch:
        if kind == "epoch":
            die_after_save(patch, int(number))
            with pytest.raises(Killed):
                train(*knobs, "checkpoint_every=0", to="broken")
        else:
            signal_at(patch, lambda trainer: trainer.global_step == int(number))
            interrupted(call, run, *knobs)
            assert weights(run)["global_step"] == int(number)
    resume(call, run)
    assert_same_run(whole, run)


def assert_same_run(one, two):
    """Equal to the bit: the metrics, the list of the best checkpoints, and every checkpoint."""
    assert_same(runs.read_metrics(one), runs.read_metrics(two))
    assert read(one, "result.json")["checkpoints"] == read(two, "result.json")["checkpoints"]
    for path in (*runs.ranked(one), one / "checkpoints" / "last.ckpt"):
        assert_same(weights(one, path.name), weights(two, path.name))


@pytest.mark.parametrize(
    "kills",
    [pytest.param(1, marks=slow), pytest.param(3, marks=slow), pytest.param(20, marks=slow)],
)
def test_a_killed_training_loses_no_more_than_the_interval_of_its_checkpoints(
    train, tmp_path, kills
):
    """kill -9 at random moments; the run is that of an unbroken one."""
    every = 0.5
    epochs = f"epochs={60 * kills}"
    rng = random.Random(0)
    repeated = []
    unbroken = train(epochs, to="whole")
    run = tmp_path / "killed"
    words = [f"hydra.run.dir={run}", *TINY, epochs, f"checkpoint_every={every}"]
    last = run / "checkpoints" / "last.ckpt"
    for _ in range(kills):
        before = len(runs.read_metrics(run))
        process = Process(tmp_path, "train.py", *words)
        process.wait_for(lambda before=before: len(runs.read_metrics(run)) > before)
        started = time.time()
        time.sleep(rng.uniform(0, 3 * every))
        killed = time.time()
        assert process.end(signal.SIGKILL) == -signal.SIGKILL
        repeated.append(killed - max(last.stat().st_mtime, started))
        words = [f"resume={run}"]
    assert read(run, "status.json")["status"] == "RUNNING"
    assert len(runs.read_metrics(run)) < 60 * kills
    done = script("train", f"resume={run}")
    assert done.returncode == 0, done.stderr
    print(f"{kills} kills: seconds repeated {max(repeated):.2f} at most")
    assert max(repeated) < every + 0.5  # and the time of a step and a write
    assert_same_run(unbroken, run)


def test_checkpoints_are_written_when_they_are_due(train, monkeypatch):
    """A second passes with each of 5 steps an epoch; a checkpoint is due every 8 seconds."""
    from smilevae.training import record

    now = 0.0  # of time.perf_counter
    saved = []
    batch_end = Record.on_train_batch_end
    save = Checkpoints._save

    def second(self, *args):
        nonlocal now
        now += 1
        batch_end(self, *args)

    def noted(self, trainer):
        epochs = self.record.epochs
        assert checkpoints_of(self) <= best_of(epochs[: self._num_saved]) | best_of(epochs)
        save(self, trainer)
        assert checkpoints_of(self) == best_of(epochs)
        saved.append(trainer.global_step)

    def checkpoints_of(self):
        return {path.name for path in self.run.checkpoints.glob("epoch-*.ckpt")}

    def best_of(epochs):
        best = sorted(epochs, key=lambda line: line["val/loss"])[:2]
        return {runs.best_name(line["epoch"]) for line in best}

    monkeypatch.setattr(record.time, "perf_counter", lambda: now)
    monkeypatch.setattr(Record, "on_train_batch_end", second)
    monkeypatch.setattr(Checkpoints, "_save", noted)
    run = train("epochs=6", "checkpoint_every=8")
    assert saved == [5, 14, 23, 30]  # the first epoch, then the step after 8 seconds, the end
    assert len(weights(run)["optimizer_states"]) == 1
    assert not any("optimizer_states" in checkpoint.read(path) for path in runs.ranked(run))


def test_a_kill_at_the_very_end_leaves_no_checkpoint_too_many(train, call):
    """After the last last.ckpt, before those that it replaces are removed."""
    run = train()
    kept = {path.name for path in (run / "checkpoints").iterdir()}
    (run / "result.json").unlink()
    shutil.copy(run / "checkpoints" / "last.ckpt", run / "checkpoints" / "epoch-0000.ckpt")
    resume(call, run)
    assert {path.name for path in (run / "checkpoints").iterdir()} == kept
    assert (run / "result.json").exists()


def test_a_kill_before_the_first_last_checkpoint_starts_anew(train, call):
    run = train("epochs=1")
    before = weights(run)
    for name in ("checkpoints/last.ckpt", "result.json"):
        (run / name).unlink()
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["epoch-0001.ckpt"]
    resume(call, run)
    assert_same(before["state_dict"], weights(run)["state_dict"])


def test_an_error_leaves_the_best_checkpoints_since_the_last_one(train, monkeypatch, tmp_path):
    def fail(self, *args):
        if self.current_epoch == 4:
            raise RuntimeError("a cable was pulled")

    monkeypatch.setattr(VAEModule, "on_train_epoch_start", fail, raising=False)
    with pytest.raises(RuntimeError, match="cable"):
        train("epochs=9")
    run = tmp_path / "run"
    best = sorted(runs.read_metrics(run), key=lambda line: line["val/loss"])[:2]
    names = [path.name for path in runs.ranked(run)]
    assert names[:2] == [runs.best_name(line["epoch"]) for line in best]
    assert weights(run)["callbacks"]["Record"]["epochs"][-1]["epoch"] == 1


def test_ctrl_c_keeps_what_was_learnt_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    process = Process(tmp_path, "train.py", f"hydra.run.dir={run}", *TINY, "epochs=100000")
    process.wait_for(lambda: len(runs.read_metrics(run)) >= 2)
    start = time.monotonic()
    assert process.end(signal.SIGINT) == 130
    assert time.monotonic() - start < 10
    assert "to go on: python train.py resume=" in process.output()
    assert "Traceback" not in process.output()
    assert read(run, "status.json")["status"] == "INTERRUPTED"
    assert weights(run)["global_step"] >= 10


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("", "RUN has trained 4 epochs already"),
        ("epochs=3", "RUN has trained 4 epochs already"),
        ("epochs=5 beta=7", "beta=7 would change the result of RUN, which has beta=1"),
        ("epochs=5 beta=7 batch_size=16", "batch_size=16 would change"),
        ("trainer.precision=bf16-mixed epochs=5", "trainer.precision=bf16-mixed would change"),
        ("experiment=smile epochs=5", "does not apply to resume=RUN, which has its own settings"),
    ],
)
def test_a_resume_that_would_change_the_result_is_refused_by_name(tiny_run, call, words, sentence):
    files = [path for path in tiny_run.rglob("*") if path.is_file() and path.name != "train.log"]
    before = {path: path.read_bytes() for path in files}
    errors = refused(call, 2, tiny_run, *words.split())
    assert sentence.replace("RUN", str(tiny_run)) in errors
    assert before == {path: path.read_bytes() for path in before}


def test_a_resume_on_other_pictures_is_refused_and_paths_are_found_from_anywhere(
    call, pictures, tmp_path, monkeypatch
):
    tiny = [knob for knob in TINY if not knob.startswith("data.")]
    monkeypatch.chdir(pictures.parent)
    code, errors = call("train", "hydra.run.dir=run", "data=folder", "data.root=pictures", *tiny)
    assert code == 0, errors
    assert runs.read_settings(tmp_path / "run").data.root == str(pictures)
    monkeypatch.chdir("/")
    assert call("evaluate", f"ckpt={tmp_path / 'run'}")[0] == 0
    next((pictures / "train" / "smile").iterdir()).unlink()
    errors = refused(call, 4, tmp_path / "run", "epochs=3")
    assert "the images changed since this run began" in errors


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [(), ("schedule=cosine", "jitter.shift=1", "jitter.light=0.1", "ema=0.9", "warm_start=ppca")],
)
def test_two_processes_train_nearly_as_one_does(tmp_path, more):
    """Real processes over gloo share batch and noise, but not BatchNorm's statistics."""
    lines = {}
    for devices in (1, 2):
        run = tmp_path / str(devices)
        words = ("trainer.accelerator=cpu", f"trainer.devices={devices}", "epochs=4", *more)
        done = script("train", f"hydra.run.dir={run}", *TINY, "model.dropout=0", *words)
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
        names = {"train/loss", "train/recon", "train/kl", "lr"}  # val: statistics of 4 faces
        for name in names & one.keys():
            assert one[name] == pytest.approx(two[name], rel=0.25, abs=0.5), (name, one["epoch"])


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused(tmp_path):
    words = ("trainer=cpu", "trainer.devices=2", "batch_size=9")
    done = script("train", f"hydra.run.dir={tmp_path / 'r'}", *TINY, *words)
    assert done.returncode == 2, done.stderr
    assert "batch_size=9 cannot be shared by 2 processes; make it a multiple" in done.stderr


def test_half_precision_layers_give_full_precision_terms(train):
    run = train("trainer.precision=bf16-mixed", "epochs=3")
    lines = runs.read_metrics(run)
    assert lines[-1]["val/loss"] < lines[0]["val/loss"]
    for name, value in weights(run)["state_dict"].items():
        assert value.dtype == torch.float32 or not name.endswith("weight")


def test_more_epochs_and_hardware_change_on_resume_and_only_what_is_named(train, call):
    run = train("epochs=1", "trainer.gradient_clip_val=123.0")
    resume(call, run, "epochs=2", "trainer.accelerator=cpu")
    assert [line["epoch"] for line in runs.read_metrics(run)] == [1, 2]
    assert read(run, "result.json")["final"]["epoch"] == 2
    found = runs.read_settings(run).trainer
    assert (found.gradient_clip_val, found.accelerator) == (123.0, "cpu")
    text = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(text.replace("latent_dim: 8", "latent_dim: 9"))
    assert "config.yaml says latent_dim=9, trained was 8" in refused(call, 4, run, "epochs=3")


@pytest.mark.parametrize("recipe", ["plateau", "cosine, warm start"])
def test_faces_kept_on_the_device_give_the_same_bits(train, monkeypatch, recipe):
    """What a GPU does, with device=cpu: faces, indices and noise are there before a step."""
    host = train(*RECIPES[recipe], "jitter.shift=2", to="host")
    asked = []
    fits = lambda self, device: asked.append(device.type) or True  # noqa: E731
    monkeypatch.setattr(datamodule.FaceDataModule, "fits", fits)
    device = train(*RECIPES[recipe], "jitter.shift=2", to="device")
    assert asked == ["cpu"]
    assert_same(weights(host)["state_dict"], weights(device)["state_dict"])
    assert_same(runs.read_metrics(host), runs.read_metrics(device))


@slow
def test_a_compiled_run_is_the_plain_one_but_for_the_last_bits_and_resumes_to_the_bit(
    train, tmp_path
):
    """Dropout's masks are the same, and the second process builds nothing."""
    cache = tmp_path / "cache"
    environment = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(cache)}

    def compiled(*words):
        done = script("train", *words, env=environment)
        assert done.returncode == 0, done.stderr
        return set(cache.rglob("*.so"))

    plain = train(to="plain")
    whole = tmp_path / "whole"
    built = compiled(f"hydra.run.dir={whole}", *TINY, "compile=true")
    assert built
    losses = [[line["train/loss"] for line in runs.read_metrics(run)] for run in (plain, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    cut = tmp_path / "cut"
    compiled(f"hydra.run.dir={cut}", *TINY, "compile=true", "epochs=1")
    assert compiled(f"resume={cut}", "epochs=2") == built
    assert_same(weights(whole)["state_dict"], weights(cut)["state_dict"])


@slow
def test_compile_without_a_compiler_is_one_sentence(tmp_path):
    nowhere = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    words = (f"hydra.run.dir={tmp_path / 'run'}", *TINY, "compile=true")
    done = script("train", *words, env=os.environ | nowhere)
    assert done.returncode == 2, done.stderr
    assert re.search(r"error: compile=true cannot build .*a C\+\+ compiler, or", done.stderr)
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_divergence_fails_with_its_step_and_keeps_the_last_checkpoint(call, monkeypatch, tmp_path):
    real = BetaVae.loss
    calls = []

    def poisoned(self, batch):
        calls.append(1)
        second_epochs_second_step = len(calls) == 7
        loss = real(self, batch)
        return loss * math.nan if second_epochs_second_step else loss

    monkeypatch.setattr(BetaVae, "loss", poisoned)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY)
    assert code == 1
    assert "the loss became nan in epoch 2, by step 6" in errors
    status = read(tmp_path / "run", "status.json")
    assert status["status"] == "FAILED"
    assert "the loss became nan" in status["reason"]
    assert not (tmp_path / "run" / "result.json").exists()
    assert all(torch.isfinite(v).all() for v in weights(tmp_path / "run")["state_dict"].values())


TOO_FEW = "You requested to check"
NOT_EVERY_EPOCH = "leaves no val/loss of every epoch"


@pytest.mark.parametrize(
    ("word", "sentence"),
    [
        ("trainer.accelerator=abacus", "error: trainer: "),
        ("+trainer.limit_val_batches=0.5", f"error: trainer: {TOO_FEW}"),
        ("+trainer.limit_train_batches=0.01", f"error: trainer: {TOO_FEW}"),
        ("+trainer.check_val_every_n_epoch=2", NOT_EVERY_EPOCH),
        ("+trainer.limit_val_batches=0", NOT_EVERY_EPOCH),
    ],
)
def test_a_trainer_argument_that_cannot_work_is_one_sentence(call, tmp_path, word, sentence):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, word)
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert sentence in errors
    assert not (tmp_path / "run").exists()


def test_a_warm_start_begins_at_the_linear_optimum(train):
    """Epoch 0 is the closed form, computed here from numpy's singular values."""
    warm = ("warm_start=ppca", "latent_dim=6", "data.num_smiling=60")
    run = train(*warm, "epochs=2", "lr=0.00000001")
    first, *_ = runs.read_metrics(run)
    assert first["epoch"] == 0
    content = checkpoint.read(run / "checkpoints" / "last.ckpt")
    faces = load_faces(checked(content["hyper_parameters"]).data, 64)
    seen = faces.images[faces.rows("train")].astype(float) / 255
    seen = np.concatenate([seen, seen[:, :, ::-1]]).reshape(-1, 3 * 64**2)
    held = faces.images[faces.rows("val")].astype(float).reshape(-1, 3 * 64**2) / 255 - seen.mean(0)
    _, singular, axes = np.linalg.svd(seen - seen.mean(0), full_matrices=False)
    variances = singular[:6] ** 2 / len(seen)
    s = 0.5
    along = held @ axes[:6].T
    of_mean = (variances - s) / variances**2 * along**2
    kl = 0.5 * (of_mean + s / variances - 1 - np.log(s / variances)).sum(1).mean()
    assert first["val/kl"] == pytest.approx(kl, rel=1e-3)
    error = (held**2).sum(1).mean() - (along**2 * (1 - (s / variances) ** 2)).sum(1).mean()
    assert first["val/psnr"] == pytest.approx(-10 * np.log10(error / (3 * 64**2)), abs=1e-3)
    forecast = read(run, "forecast.json")
    assert first["val/kl"] == pytest.approx(forecast["kl"], rel=1e-3)
    assert first["val/psnr"] == pytest.approx(forecast["psnr"], abs=1e-3)
    # Few faces: sampled codes.
    assert first["val/loss"] == pytest.approx(forecast["loss"], rel=0.05)
    assert first["val/active_units"] <= forecast["active_units"] == 6


@pytest.mark.parametrize("more", [(), ("ema=0.9", "warm_start=ppca", "latent_dim=300")])
def test_beta_auto_is_the_moving_average_of_each_batchs_optimum(train, monkeypatch, more):
    seen = []

    def watched(vae, x, noise, beta, *others):
        out, terms = train_losses(vae, x, noise, beta, *others)
        seen.append((beta.item(), terms.recon.mean().item()))
        return out, terms

    monkeypatch.setattr("smilevae.training.module.train_losses", watched)
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
    by_loss = sorted(lines, key=lambda line: line["val/loss"])
    assert by_loss == sorted(lines, key=lambda line: line["val/nelbo"])
    best = read(run, "result.json")["best"]
    evaluated = read(run, "evaluation/best/metrics.json")
    assert evaluated["loss"] == pytest.approx(best["val/loss"], rel=0.02)  # other noise
    assert evaluated["beta"] == pytest.approx(2 * evaluated["recon"] / (3 * 64**2), rel=1e-3)


def test_the_moving_average_is_one(train, monkeypatch):
    """ema after n steps again, from the weights that every step left."""
    seen = []
    step = VAEModule.optimizer_step

    def watched(self, *args, **kwargs):
        step(self, *args, **kwargs)
        seen.append({name: weight.detach().clone() for name, weight in self.vae.named_parameters()})

    monkeypatch.setattr(VAEModule, "optimizer_step", watched)
    begun = {}
    begin = lambda self: begun.update(copy.deepcopy(self.vae.state_dict()))  # noqa: E731
    monkeypatch.setattr(VAEModule, "on_fit_start", begin)
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
    assert "schedule=cosine, which ends at epochs=3" in refused(call, 2, run, "epochs=9")


def test_augment_moves_turns_zooms_and_lights_by_the_given_amounts():
    """A blurred spot, whose centre of mass and spread say where it went."""
    side, still = 64, {"shift": 0, "rotate": 0, "zoom": 0, "light": 0}
    y, x = torch.meshgrid(torch.arange(side) - 31.5, torch.arange(side) - 31.5, indexing="ij")
    # to the right of the centre
    spot = (0.8 * torch.exp(-((x - 15) ** 2 + y**2) / 20)).expand(1, 3, side, side)

    def moved(how, **knobs):
        out = augment(spot, torch.tensor([how], dtype=torch.float32), **still | knobs)[0].double()
        centre = [(out[0] * axis).sum() / out[0].sum() for axis in (y, x)]
        return [float(c) for c in centre], out

    zeros = [0.0] * 9
    unmoved = moved(zeros, shift=4, rotate=8, zoom=0.1)[1]
    inner = (slice(None), slice(8, -8), slice(8, -8))
    assert torch.equal(unmoved[inner].round(decimals=5), spot[0].double()[inner].round(decimals=5))
    assert moved([1, -0.5, *zeros[2:]], shift=4)[0] == pytest.approx([4, 13], abs=0.05)
    turned = moved([0, 0, 1, *zeros[3:]], rotate=30)[0]
    assert [abs(turned[0]), turned[1]] == pytest.approx([15 * 0.5, 15 * 0.866], abs=0.1)
    zoomed = moved([0, 0, 0, 1, *zeros[4:]], zoom=0.2)[0]
    assert zoomed == pytest.approx([0, 15 * np.exp(0.2)], abs=0.1)
    widened = moved([0, 0, 0, 0, 1, *zeros[5:]], zoom=0.2)[0]
    assert widened == pytest.approx([0, 15 * np.exp(0.1)], abs=0.1)
    lit = moved([*zeros[:5], 1, 1, 0, -1], light=0.3)[1]
    bright = y.abs() + (x - 15).abs() < 3
    for channel, gain in enumerate((0.4, 0.3, 0.2)):
        expected = (spot[0, 0][bright].double() * np.exp(gain)).clamp(max=1)
        torch.testing.assert_close(lit[channel][bright], expected, rtol=1e-4, atol=1e-4)
    assert moved([*zeros[:5], 1, 1, 1, 1], light=0.9)[1].max() == 1
    torch.testing.assert_close(augment(spot, torch.ones(1, 9), **still), spot)


# what Lightning would allow


def test_a_time_limit_ends_as_interrupted_and_a_resume_gives_the_same_bits(
    tmp_path, train, call, monkeypatch
):
    """trainer.max_time: a checkpoint within the epoch, exit 143; a resume trains the rest."""
    run = tmp_path / "run"
    words = ("epochs=40", "log_images_every=1000")
    whole = train(*words, to="whole")
    batch_end = Checkpoints.on_train_batch_end

    def slowly(*args):
        time.sleep(0.02)
        batch_end(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "on_train_batch_end", slowly)
        interrupted(call, run, *words, "+trainer.max_time='00:00:00:01'", code=143)
    assert read(run, "status.json")["reason"] == "trainer.max_time is over"
    assert 0 < runs.epochs_done(run) < 40
    resume(call, run, "+trainer.max_time='00:01:00:00'")
    assert_same(weights(whole)["state_dict"], weights(run)["state_dict"])


def test_an_evaluation_that_fails_leaves_a_complete_training(train, capfd, monkeypatch):
    from smilevae.evaluation import report

    def fails(*_):
        raise ZeroDivisionError("float division by zero")

    monkeypatch.setattr(report, "evaluate_model", fails)
    said = []
    monkeypatch.setattr(fit.log, "info", said.append)
    run = train("evaluate=true")
    assert runs.state(run)["status"] == "COMPLETED"
    (line,) = [line for line in said if "evaluation failed" in line]
    assert line.startswith("the training is complete, but its evaluation failed (ZeroDivisionError")
    assert f"again with python evaluate.py ckpt={runs.shell_path(run)}" in line


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_sums_that_a_resume_restored_on_the_cpu_move_to_the_device_of_the_batch(device):
    """Lightning restores a checkpoint before it moves the model. `meta` stands for a GPU."""
    state = EpochState(torch.nn.Identity(), torch.zeros(1), sums={"train": torch.ones(5)})
    state.add("train", torch.full((5,), 3.0, device=device))
    assert state.sums["train"].device.type == device
    assert device == "meta" or state.sums["train"].tolist() == [4] * 5


def test_lightnings_own_load_from_checkpoint_works(tiny_run):
    path = runs.find(str(tiny_run))
    module = VAEModule.load_from_checkpoint(path, map_location="cpu")
    x = torch.rand(2, 3, 64, 64)
    vae = checkpoint.load(path).vae
    with torch.no_grad():
        assert torch.equal(module(x), vae.decode(vae.encode(x)[0]))
    assert not module.training
