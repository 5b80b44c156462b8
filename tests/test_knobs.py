import contextlib
import copy
import functools
import math

import pytest
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from smilevae import config, console, runs
from smilevae.errors import ConfigError


@functools.cache
def _composed(*overrides: str):
    console.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("train", overrides=list(overrides))


def composed(*overrides: str):
    return copy.deepcopy(_composed(*overrides))


def settings(*overrides: str) -> dict:
    return runs.settings_of(composed(*overrides), overrides)


def test_the_public_knobs_and_their_defaults_are_frozen():
    """Renaming one breaks users; so does another default, for it is the source study's."""
    frozen = {
        **{"beta": 1, "latent_dim": 120, "batch_size": 32, "epochs": 150, "lr": 5e-4},
        **{"normalize": False, "image_size": 128, "seed": 0},
    }
    found = settings()
    assert {name: found[name] for name in frozen} == frozen
    assert list(found)[:8] == list(frozen)
    assert found["model"]["network"] == "conv"


@pytest.mark.parametrize("group", ["data", "model", "trainer", "experiment"])
def test_every_recipe_composes_checks_and_opens_with_its_command(group):
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    assert files
    for file in files:
        if file.stem != "base":
            more = ["data.root=/x"] if file.stem == "folder" else []
            assert settings(f"{group}={file.stem}", *more)
        assert file.read_text().startswith("# ")


def test_every_knob_of_the_config_is_checked_and_every_checked_knob_exists():
    flat = {*config.flatten(settings("data=synthetic")), *config.flatten(settings("data=folder", "data.root=x"))}
    assert flat == set(config.KNOBS)


@pytest.mark.parametrize(("name", "knob"), [item for item in config.KNOBS.items() if item[1].kind in (int, float)])
def test_numbers_must_be_finite_and_in_range(name, knob):
    def rejected(value) -> bool:
        config = composed("model=patch")
        OmegaConf.update(config, name, value)
        with contextlib.suppress(ConfigError):
            runs.settings_of(config, [])
            return False
        return True

    for value in (knob.low - 1, knob.high + 1, math.nan, math.inf, "abc", True, [1]):
        assert rejected(value), value
    if knob.kind is int:
        assert rejected(knob.low + 0.5)
    if name != "image_size":
        assert not rejected(knob.kind(knob.low))


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["image_size=130"], "image_size=130 does not fit this network; the nearest are 128 and 144"),
        (["image_size=65"], "image_size=65 does not fit this network; the nearest are 64 and 80"),
        (["normalize=maybe"], "normalize=maybe must be true or false"),
        (["model.network=resnet"], "model.network=resnet is unknown; choose one of conv, patch"),
        (["model.widths=[]"], "model.widths=[] must be 1 to 6 whole numbers"),
        (["model.widths=[8,-1]"], "must be 1 to 6 whole numbers"),
        (["lr=null"], "lr is empty; give it a value"),
        (["+betta=1"], "betta is not a knob"),
        (["data=folder"], "data.root is not set"),
        (["batch_size=${latentdim}"], "latentdim"),
        (["beta=-1", "lr=0"], "beta=-1 .*\nlr=0 "),
    ],
)
def test_a_mistake_gives_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("[]", r"\[\]")):
        settings(*overrides)
