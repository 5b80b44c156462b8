"""Training on a GPU. Tests with the marker need one: python -m pytest -m gpu. Others run on a CPU."""

import importlib
import inspect
import os
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, TINY, script
from test_training import assert_same, assert_same_run, interrupted, resume, signal_at, weights
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smilevae import runs
from smilevae.config import Settings
from smilevae.data.batches import EpochBatches, FaceBatches, in_order, to_unit
from smilevae.models.vae import build_vae
from smilevae.plugins import targets
from smilevae.sweeps import mps
from smilevae.training import graphs
from smilevae.training.datamodule import FaceDataModule
from smilevae.training.fit import fit
from smilevae.training.module import VAEModule


def on_fake_gpu(module):
    """Weights without values on a GPU that need not exist; in a FakeTensorMode."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, device="cuda")
                part._parameters[name] = torch.nn.Parameter(fake, weight.requires_grad)
        for name, buffer in part._buffers.items():
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    module._device = torch.device("cuda:0")


def test_a_step_needs_no_value_back_from_a_gpu():
    """Tensors without values: an operation that reads one, or mixes devices, raises an error."""
    jitter = {"shift": 2, "rotate": 3, "zoom": 0.1, "light": 0.1}
    settings = Settings(image_size=64, batch_size=8, ema=0.9, jitter=jitter)
    module = VAEModule(build_vae(settings), settings, "data")
    gpu0 = torch.device("cuda:0")
    state = {"world_size": 1, "global_rank": 0, "current_epoch": 0, "global_step": 0}
    module._trainer = SimpleNamespace(**state, num_training_batches=3)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_gpu(module)
        images = torch.zeros(30, 64, 64, 3, dtype=torch.uint8, device=gpu0)
        faces = FaceBatches(images, torch.zeros(30, dtype=torch.long, device=gpu0))
        for index, rows in enumerate(EpochBatches(np.arange(30), 8, 0, flip=True, device=gpu0)):
            loss = module.training_step([to_unit(faces[rows][0]), None], index)
        for index, chunk in enumerate(in_order(np.arange(30), 128)):
            rows = [torch.from_numpy(part).to(gpu0) for part in chunk]
            module.validation_step([to_unit(faces[rows][0]), None], index)
        assert (index, loss.device, module.epoch.sums["train"].device) == (0, gpu0, gpu0)
        with pytest.raises(DataDependentOutputException):  # so the test can fail
            module.check_finite()


def test_the_benchmarks_fit_the_program(monkeypatch, tmp_path):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    throughput = importlib.import_module("throughput")
    importlib.import_module("gpu")
    for network in ("conv", "patch"):
        settings = throughput.settings_of(network, tmp_path)
        side = settings.image_size
        assert throughput.Notebook(settings).loss(torch.rand(2, 3, side, side)).isfinite()
    inspect.signature(fit).bind(settings, None, None, throughput.no_report)


BF16 = "trainer.precision=bf16-mixed"


@pytest.fixture
def stand_in(monkeypatch):
    """Graphs on a CPU: a capture is the step itself."""
    monkeypatch.setattr(graphs, "warm_up", lambda step: [step() for _ in range(graphs.WARM_UP)])
    monkeypatch.setattr(graphs, "capture", lambda step, pool: step)
    monkeypatch.setattr(graphs, "DEVICE", "cpu")
    monkeypatch.setattr(FaceDataModule, "fits", lambda self, device: True)


STEPS = [
    ("model=patch", "beta=auto", "ema=0.9", "jitter.shift=2", "plateau.patience=0"),
    ("model=conv", "model.widths=[4,8]", "schedule=cosine", "optimizer=adamw", BF16),
    ("objective=cyclic", "augment=false", "trainer.gradient_clip_val=null"),
]


@pytest.mark.parametrize("more", STEPS)
def test_a_step_as_one_graph_has_the_bits_of_the_plain_step(
    train, call, stand_in, monkeypatch, tmp_path, more
):
    plain = train(*more, "epochs=3", "graph=false", to="plain")
    whole = train(*more, "epochs=3", "graph=true", to="whole")
    with monkeypatch.context() as patch:
        signal_at(patch, lambda trainer: trainer.global_step == 7)  # within the second epoch
        interrupted(call, tmp_path / "cut", *more, "epochs=3", "graph=true")
    resume(call, tmp_path / "cut")
    assert_same_run(plain, whole)
    assert_same_run(plain, tmp_path / "cut")


def test_a_step_that_cannot_be_captured_runs_as_it_is(train, call, stand_in, monkeypatch, tmp_path):
    plain = train("graph=false", to="plain")

    def refuse(step, pool):
        try:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        except RuntimeError:
            raise RuntimeError("failed due to a previous error") from None  # as torch does

    monkeypatch.setattr(graphs, "capture", refuse)
    assert_same_run(plain, train(to="own"))
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'no'}", *TINY, "graph=true")
    assert code == 2
    assert "graph=true: the step cannot be captured (operation not permitted" in errors


SWA = "+callbacks.swa._target_=pytorch_lightning.callbacks.StochasticWeightAveraging"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["+trainer.accumulate_grad_batches=2"], "gradients of several batches are added"),
        (["optimizer=sgd"], "SGD is not fused"),
        (["+callbacks.own._target_=test_gpu.Looks"], "callbacks look into the step: Looks"),
        (["+optimizer.fused=false"], "Adam is not fused"),
        ([SWA, "+callbacks.swa.swa_lrs=0.01"], "callbacks look into the step: Stochastic"),
    ],
)
def test_what_a_graph_cannot_do_is_a_sentence(call, stand_in, monkeypatch, tmp_path, words, why):
    monkeypatch.setattr(targets, "KNOWN", (*targets.KNOWN, "test_gpu"))
    run = tmp_path / "run"
    code, errors = call("train", f"hydra.run.dir={run}", *TINY, "graph=true", *words)
    assert code == 2, errors
    assert f"graph=true: {why}" in errors
    assert "pass graph=auto" in errors


class Looks(pl.Callback):
    def on_after_backward(self, trainer, pl_module):
        pass


def test_a_cpu_has_no_graph(call, tmp_path):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, "graph=true")
    assert code == 2
    assert "graph=true: the faces are not in the memory of a GPU; pass graph=auto" in errors


CONTROL = """#!/usr/bin/env bash
echo "$CUDA_MPS_PIPE_DIRECTORY $* $(cat)" >> {log}
exit {code}
"""


@pytest.fixture
def one_gpu(monkeypatch, tmp_path):
    """A machine with one GPU, and a stand-in for the daemon: its log, and a way to make it fail."""
    (tmp_path / "gpus/0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(mps, "GPUS", tmp_path / "gpus")
    monkeypatch.setattr(mps, "PROBE", "")
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.delenv(mps.VISIBLE, raising=False)
    file = tmp_path / mps.CONTROL

    def daemon(code=0):
        file.write_text(CONTROL.format(log=tmp_path / "log", code=code))
        file.chmod(0o755)
        return tmp_path / "log"

    return daemon


def within_mps(error):
    with mps.shared_gpus(8):
        assert os.path.isdir(os.environ[mps.PIPE])
        assert os.environ[mps.SHARE] == "8.0"
        raise error


def test_jobs_share_a_gpu_by_mps_which_ends_with_the_sweep(one_gpu, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    log = one_gpu()
    with pytest.raises(KeyboardInterrupt):
        within_mps(KeyboardInterrupt)
    home = log.read_text().split()[0]
    assert log.read_text() == f"{home} -d \n{home}  quit\n"
    assert not {mps.PIPE, mps.LOGS, mps.SHARE} & os.environ.keys()
    assert not os.path.exists(home)


def test_without_mps_jobs_take_turns_and_a_sentence_says_so(one_gpu, capfd):
    one_gpu(code=1)
    with mps.shared_gpus(3):
        assert mps.PIPE not in os.environ
        assert os.environ[mps.SHARE] == "3.0"
    assert capfd.readouterr().out.startswith(
        "NVIDIA MPS cannot be started here, so jobs take turns"
    )


def test_a_daemon_through_which_no_process_gets_a_gpu_is_stopped(one_gpu, monkeypatch, capfd):
    log = one_gpu()
    monkeypatch.setattr(mps, "PROBE", "raise SystemExit(1)")
    with mps.shared_gpus(2):
        assert not {mps.PIPE, mps.LOGS} & os.environ.keys()
    assert log.read_text().endswith("quit\n")
    assert "NVIDIA MPS cannot be started here" in capfd.readouterr().out


def test_jobs_share_the_visible_gpus_and_the_daemon_sees_all(one_gpu, monkeypatch, tmp_path):
    for number in range(3):
        (tmp_path / f"gpus/{number}").mkdir()
    monkeypatch.setenv(mps.VISIBLE, "2,3")
    log = one_gpu()
    (tmp_path / mps.CONTROL).write_text(f'#!/bin/bash\necho "[$CUDA_VISIBLE_DEVICES]" >> {log}\n')
    with mps.shared_gpus(8):
        assert os.environ[mps.SHARE] == "4.0"
    assert log.read_text() == "[]\n[]\n"


def test_one_job_a_gpu_shares_nothing(one_gpu):
    log = one_gpu()
    with mps.shared_gpus(1):
        assert not {mps.PIPE, mps.SHARE} & os.environ.keys()
    assert not log.exists()


GPU = ("trainer=gpu", "model.dropout=0")  # dropout's masks are of the device


def trained(to, *overrides):
    run_script(f"hydra.run.dir={to}", *TINY, *GPU, "epochs=40", *overrides)
    return to


def run_script(*words):
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # for equal bits
    done = script("train", *words, env=environment)
    assert done.returncode == 0, done.stderr


def for_gpu(test):
    no_gpu = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(no_gpu, reason="no GPU here")(test))


@for_gpu
@pytest.mark.parametrize("more", [(), ("compile=true",)])
def test_200_steps_have_the_losses_of_the_cpu(tmp_path, more):
    host = runs.read_metrics(trained(tmp_path / "cpu", "trainer=cpu"))
    device = runs.read_metrics(trained(tmp_path / "gpu", "graph=true", *more))
    for name in ("train/loss", "val/loss", "val/kl"):
        losses = [line[name] for line in device]
        assert losses == pytest.approx([line[name] for line in host], rel=0.02, abs=0.05), name


@for_gpu
def test_a_graph_has_the_bits_of_the_plain_step(tmp_path):
    """With a learning rate that float32 holds exactly: a graph reads it in float32."""
    more = ("lr=0.001953125", "schedule=plateau", "+trainer.deterministic=true")
    plain = trained(tmp_path / "plain", *more, "graph=false")
    assert_same(weights(plain), weights(trained(tmp_path / "graph", *more, "graph=true")))


RESUMED = [("graph=false",), ("graph=true", "callbacks=early_stopping"), ("compile=true",), (BF16,)]


@for_gpu
@pytest.mark.parametrize("more", RESUMED)
def test_a_resume_has_the_same_bits(tmp_path, more):
    more = (*more, "+trainer.deterministic=true")
    whole = trained(tmp_path / "whole", *more)
    cut = trained(tmp_path / "cut", *more, "epochs=17")
    run_script(f"resume={cut}", "epochs=40")
    assert_same(weights(whole)["state_dict"], weights(cut)["state_dict"])


READS = """
from smilevae.plugins import Objective

class Reads(Objective):
    def loss(self, batch):
        weight = 1.0 if batch.recon.mean().item() > 0 else 0.0
        return batch.recon + batch.beta * weight * batch.kl.sum(1)
"""


@for_gpu
def test_an_objective_that_reads_a_value_back_runs_as_it_is(tmp_path):
    (tmp_path / "reads.py").write_text(READS)
    own = (f"plugin={tmp_path / 'reads.py'}", "objective=reads", "+trainer.deterministic=true")
    plain = trained(tmp_path / "plain", *own, "graph=false", "epochs=4")
    assert_same(weights(plain), weights(trained(tmp_path / "auto", *own, "epochs=4")))


class Strict(pl.Callback):
    """From an epoch's second step to its last, what waits for the device raises an error."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch and batch_idx == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Strict.steps += torch.cuda.get_sync_debug_mode() > 0
        if batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")


@for_gpu
@pytest.mark.parametrize("more", [(), (BF16, "ema=0.9", "jitter.shift=2")])
def test_no_step_waits_for_the_device(train, monkeypatch, more):
    real = pl.Trainer
    strict = lambda callbacks, **kw: real(callbacks=[*callbacks, Strict()], **kw)  # noqa: E731
    monkeypatch.setattr(pl, "Trainer", strict)
    Strict.steps = 0
    train(*GPU, *more, "epochs=3")
    assert Strict.steps == 2 * 4


@for_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_two_devices_train_as_one(tmp_path):
    losses = []
    for num in (1, 2):
        run = trained(tmp_path / str(num), f"trainer.devices={num}", "epochs=4")
        losses.append([line["val/loss"] for line in runs.read_metrics(run)])
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
