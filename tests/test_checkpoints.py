import os
import shutil

import pytest
import torch
from test_training import assert_same

from smilevae import config
from smilevae.errors import CheckpointError
from smilevae.runs import checkpoint, checkpoint_files


@pytest.fixture
def content(tiny_run):
    return checkpoint.read(tiny_run / "checkpoints" / "last.ckpt")


def test_a_checkpoint_rebuilds_its_model(tiny_run, content):
    vae, settings, fingerprint, epoch = checkpoint.load(tiny_run / "checkpoints" / "last.ckpt")
    assert not vae.training
    assert (vae.image_size, vae.latent_dim) == (64, 8)
    weights = vae.state_dict()
    assert_same({f"vae.{name}": v for name, v in weights.items()}, dict(content["state_dict"]))
    assert (settings.batch_size, fingerprint, epoch) == (8, content["fingerprint"], 4)


def test_write_then_read_is_the_same_and_what_could_not_be_read_is_not_written(tmp_path, content):
    checkpoint.write(content, tmp_path / "a.ckpt")
    again = checkpoint.read(tmp_path / "a.ckpt")
    assert again["hyper_parameters"] == content["hyper_parameters"]
    assert_same(again, content)
    before = (tmp_path / "a.ckpt").read_bytes()
    with pytest.raises(ValueError, match="a pickle that names _pytest"):
        checkpoint.write(content | {"odd": pytest.Item}, tmp_path / "a.ckpt")
    assert (tmp_path / "a.ckpt").read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.ckpt"]


def change(content, **more):
    return content | {"hyper_parameters": content["hyper_parameters"] | more}


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (
            lambda c: change(c, latent_dim=10**9),
            "settings that cannot be used .latent_dim=1000000000",
        ),
        (lambda c: change(c, image_size=65), "settings that cannot be used"),
        (lambda c: change(c, latent_dim=9), "weights do not fit"),
        (lambda c: change(c, surprise=1), "surprise is not a knob"),
        (lambda c: {k: v for k, v in c.items() if k != "smilevae"}, "not a smilevae checkpoint"),
        (lambda c: {k: v for k, v in c.items() if k != "fingerprint"}, "not a smilevae checkpoint"),
        (lambda c: c | {"state_dict": []}, "not a smilevae checkpoint"),
        (lambda c: c | {"smilevae": {"format": 99}}, "has the format 99"),
        (lambda c: torch.zeros(3), "not a smilevae checkpoint"),
    ],
)
def test_settings_that_are_not_ours_are_refused(tmp_path, content, spoil, sentence):
    torch.save(spoil(content), tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=sentence):
        checkpoint.load(tmp_path / "a.ckpt")


def test_a_damaged_last_checkpoint_is_one_sentence(tiny_run, tmp_path, content):
    last = tmp_path / "checkpoints" / "last.ckpt"
    last.parent.mkdir()
    shutil.copy(tiny_run / "checkpoints" / "last.ckpt", last)
    settings = config.checked(content["hyper_parameters"])
    assert checkpoint.resume_point(tmp_path, settings, content["fingerprint"]) == last
    last.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"last.ckpt is damaged or missing, .* a new run$"):
        checkpoint.resume_point(tmp_path, settings, content["fingerprint"])


def test_links_fall_back_to_copies(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(b"x")
    monkeypatch.setattr(os, "link", lambda *args: (_ for _ in ()).throw(OSError("no links here")))
    checkpoint_files.link(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_bytes() == b"x"
