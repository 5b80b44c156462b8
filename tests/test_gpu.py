"""What a GPU does. The first test needs none; the others: python -m pytest -m gpu."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from conftest import TINY, script
from test_training import assert_same, weights
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from smilevae import runs
from smilevae.config import Settings
from smilevae.data.batches import EpochBatches, FaceBatches, in_order, to_unit
from smilevae.models.vae import build_vae
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


BF16 = "trainer.precision=bf16-mixed"
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
@pytest.mark.parametrize("compile", [False, True])
def test_200_steps_have_the_losses_of_the_cpu(tmp_path, compile):
    host = runs.read_metrics(trained(tmp_path / "cpu", "trainer=cpu"))
    device = runs.read_metrics(trained(tmp_path / "gpu", f"compile={compile}"))
    for name in ("train/loss", "val/loss", "val/kl"):
        losses = [line[name] for line in device]
        assert losses == pytest.approx([line[name] for line in host], rel=0.02, abs=0.05), name


@for_gpu
@pytest.mark.parametrize("more", [(), ("compile=true",), (BF16,)])
def test_a_resume_has_the_same_bits(tmp_path, more):
    more = (*more, "+trainer.deterministic=true")
    whole = trained(tmp_path / "whole", *more)
    cut = trained(tmp_path / "cut", *more, "epochs=17")
    run_script(f"resume={cut}", "epochs=40")
    assert_same(weights(whole)["state_dict"], weights(cut)["state_dict"])


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
