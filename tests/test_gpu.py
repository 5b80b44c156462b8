"""What a GPU does. The first test needs none; the others: python -m pytest -m gpu."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import ROOT, TINY
from test_training import assert_same, weights
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smilevae import runs
from smilevae.config import Settings
from smilevae.data.batches import EpochBatches, FaceBatches, in_order, to_unit
from smilevae.models.vae import build_vae
from smilevae.training.module import VAEModule

gpu = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")]
GPU = (
    "trainer=gpu",
    "model.dropout=0",
    "epochs=40",
)  # 200 steps; dropout's masks are of the device


def on_fake_gpu(module):
    """Weights without values on a GPU that need not exist; in a FakeTensorMode."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None:
                fake = torch.empty(weight.shape, device="cuda")
                part._parameters[name] = torch.nn.Parameter(
                    fake, requires_grad=weight.requires_grad
                )
        for name, buffer in part._buffers.items():
            part._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
    module._device = torch.device("cuda:0")


def test_a_step_needs_no_value_back_from_a_gpu():
    """Tensors without values: an operation that reads one, or mixes devices, raises an error."""
    jitter = {"shift": 2, "rotate": 3, "zoom": 0.1, "light": 0.1}
    settings = Settings(image_size=64, batch_size=8, ema=0.9, jitter=jitter)
    module, gpu0 = VAEModule(build_vae(settings), settings, "data"), torch.device("cuda:0")
    state = {
        "world_size": 1,
        "global_rank": 0,
        "current_epoch": 0,
        "num_training_batches": 3,
        "global_step": 0,
    }
    module._trainer = SimpleNamespace(**state)
    with FakeTensorMode(allow_non_fake_inputs=True):
        on_fake_gpu(module)
        kinds = {"images": torch.uint8, "smile": torch.long}
        shapes = {"images": (30, 64, 64, 3), "smile": (30,)}
        faces = FaceBatches(
            **{name: torch.zeros(shapes[name], dtype=kinds[name], device=gpu0) for name in kinds}
        )
        for index, rows in enumerate(EpochBatches(np.arange(30), 8, 0, flip=True, device=gpu0)):
            loss = module.training_step([to_unit(faces[rows][0]), None], index)
        for index, chunk in enumerate(in_order(np.arange(30), 128)):
            module.validation_step(
                [to_unit(faces[[torch.from_numpy(part).to(gpu0) for part in chunk]][0]), None],
                index,
            )
        assert (index, loss.device, module.epoch.sums["train"].device) == (0, gpu0, gpu0)
        with pytest.raises(DataDependentOutputException):  # so the test can fail
            module.check_finite()


def train(to, *overrides):
    command = [sys.executable, "train.py", f"hydra.run.dir={to}", *TINY, *GPU, *overrides]
    environment = os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}  # for equal bits
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return to


for_gpu = lambda test: gpu[0](gpu[1](test))  # noqa: E731


@for_gpu
@pytest.mark.parametrize("compile", [False, True])
def test_200_steps_have_the_losses_of_the_cpu(tmp_path, compile):
    host = runs.read_metrics(train(tmp_path / "cpu", "trainer=cpu"))
    device = runs.read_metrics(train(tmp_path / "gpu", f"compile={compile}"))
    for name in ("train/loss", "val/loss", "val/kl"):
        one, two = ([line[name] for line in lines] for lines in (host, device))
        assert one == pytest.approx(two, rel=0.02, abs=0.05), name


@for_gpu
@pytest.mark.parametrize("more", [(), ("compile=true",), ("trainer.precision=bf16-mixed",)])
def test_a_resume_has_the_same_bits(tmp_path, more):
    more = (*more, "+trainer.deterministic=true")
    whole, cut = train(tmp_path / "whole", *more), train(tmp_path / "cut", *more, "epochs=17")
    done = subprocess.run(
        [sys.executable, "train.py", f"resume={cut}", "epochs=40"],
        **{"cwd": ROOT, "capture_output": True, "text": True},
        env=os.environ | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"},
    )
    assert done.returncode == 0, done.stderr
    assert_same(weights(whole)["state_dict"], weights(cut)["state_dict"])


class Strict(pl.Callback):
    """From the second step of an epoch to its last, whatever waits for the device raises an error."""

    steps = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch and batch_idx == 1:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        Strict.steps += torch.cuda.get_sync_debug_mode() > 0
        if batch_idx + 1 == trainer.num_training_batches:
            torch.cuda.set_sync_debug_mode("default")


@for_gpu
@pytest.mark.parametrize(
    "more", [(), ("trainer.precision=bf16-mixed", "ema=0.9", "jitter.shift=2")]
)
def test_no_step_waits_for_the_device(call, monkeypatch, tmp_path, more):
    real = pl.Trainer
    monkeypatch.setattr(
        pl, "Trainer", lambda callbacks, **kw: real(callbacks=[*callbacks, Strict()], **kw)
    )
    Strict.steps = 0
    code, errors = call(
        "train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, *GPU, *more, "epochs=3"
    )
    assert code == 0, errors
    assert Strict.steps == 2 * 4


@for_gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU here")
def test_two_devices_train_as_one(tmp_path):
    one, two = (
        runs.read_metrics(train(tmp_path / str(n), f"trainer.devices={n}", "epochs=4"))
        for n in (1, 2)
    )
    assert [line["val/loss"] for line in one] == pytest.approx(
        [line["val/loss"] for line in two], rel=0.01
    )
