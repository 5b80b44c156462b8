import contextlib
import copy
import functools
import json
import math
import subprocess
import sys

import pytest
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from smilevae import cli, config, console, errors, runs
from smilevae.config import FIELDS, Settings
from smilevae.errors import ConfigError
from smilevae.evaluation.options import EvaluateOptions


@functools.cache
def _composed(*overrides: str):
    cli.register_resolvers()
    with initialize_config_dir(str(ROOT / "conf"), **({} if cli._hydra_1_4() else {"version_base": "1.3"})):
        return compose("train", overrides=list(overrides))


def composed(*overrides: str):
    return copy.deepcopy(_composed(*overrides))


def settings(*overrides: str) -> Settings:
    return cli.settings_from(composed(*overrides), overrides)


def limits(name: str) -> tuple[float, float]:
    bounds = errors.limits(FIELDS[name])
    return bounds["ge"], bounds["le"]


def test_the_public_knobs_and_their_defaults_are_frozen():
    """Renaming one breaks users; so does another default, for it is the source study's."""
    frozen = {
        **{"beta": 1, "latent_dim": 120, "batch_size": 32, "epochs": 150, "lr": 5e-4},
        **{"normalize": False, "image_size": 128, "seed": 0},
    }
    plain = settings().plain()
    assert {name: plain[name] for name in frozen} == frozen
    assert list(plain)[:8] == list(frozen)
    assert plain["model"]["network"] == "conv"


def test_conf_and_settings_have_the_same_defaults():
    assert settings() == Settings()


@pytest.mark.parametrize("group", ["data", "model", "trainer", "experiment"])
def test_every_recipe_composes_checks_and_opens_with_its_command(group):
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    assert files
    for file in files:
        if file.stem != "base":
            more = ["data.root=/x"] if file.stem == "folder" else []
            assert settings(f"{group}={file.stem}", *more)
        assert file.read_text().startswith("# ")


def test_every_setting_stands_in_conf_and_has_a_line_of_documentation():
    names = set()
    for overrides in ((), ("data=folder", "data.root=x")):
        config_ = OmegaConf.to_container(composed(*overrides), resolve=False)
        for name, value in config_.items():
            names |= {f"{name}.{leaf}" for leaf in value} if isinstance(value, dict) else {name}
    assert set(FIELDS) <= names
    assert all(field.description for field in FIELDS.values())


NUMBERS = [name for name, field in FIELDS.items() if errors.limits(field)]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_must_be_finite_and_in_range(name):
    def rejected(value) -> bool:
        config_ = composed("model=patch")
        OmegaConf.update(config_, name, value)
        with contextlib.suppress(ConfigError):
            cli.settings_from(config_, [])
            return False
        return True

    low, high = limits(name)
    for value in (low - 1, high + 1, math.nan, math.inf, "abc", True, [1]):
        assert rejected(value), value
    whole = "float" not in str(FIELDS[name].annotation)
    if whole:
        assert rejected(low + 0.5)
    if name != "image_size":
        assert not rejected(low)


MISTAKES = [
    (["image_size=130"], "image_size=130 does not fit this network; the nearest are 128 and 144"),
    (["image_size=65"], "image_size=65 does not fit this network; the nearest are 64 and 80"),
    (["normalize=maybe"], "normalize=maybe must be true or false"),
    (["model.network=resnet"], "model.network=resnet is unknown; choose one of conv, patch"),
    (["model.widths=[]"], "model.widths=[] must be 1 to 6 whole numbers"),
    (["model.widths=[8,-1]"], "must be 1 to 6 whole numbers"),
    (["beta=car"], "beta=car must be a number from 0 to 1e\\+06 or auto"),
    (["lr=null"], "lr is empty; give it a value"),
    (["+betta=1"], "betta is not a knob; did you mean beta?"),
    (["+model.depth=1"], "model.depth is not a knob"),
    (["data=folder"], "data.root is not set"),
    (["batch_size=${latentdim}"], "latentdim"),
    (["beta=-1", "lr=0"], "beta=-1 .*\nlr=0 "),
    (["+trainer.check_val_every_n_epoch=2"], "check_val_every_n_epoch=2 .* every epoch"),
    (["+trainer.limit_val_batches=0"], "limit_val_batches=0 .* every epoch"),
    (["+trainer.max_time=soon"], "trainer.max_time=soon must be DD:HH:MM:SS"),
    (["+trainer.max_steps=7"], "max_steps=7 .* every epoch"),
    (["trainer.precision=64-true"], "trainer.precision=64-true is unknown here; choose one of 32-true, bf16-mixed"),
    (["logger=csv"], "logger=csv is unknown; choose one of tensorboard, wandb"),
]


@pytest.mark.parametrize(("overrides", "sentence"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_gives_one_sentence(overrides, sentence):
    with pytest.raises(ConfigError, match=sentence.replace("[]", r"\[\]")):
        settings(*overrides)


def test_settings_are_frozen_and_survive_yaml_and_json():
    first = settings("data.confound=0.5", "model.widths=[8,16,32]", "lr=0.001")
    with pytest.raises(Exception, match="frozen"):
        first.beta = 2
    assert config.checked(yaml.safe_load(yaml.safe_dump(first.plain()))) == first
    assert config.checked(json.loads(json.dumps(first.plain()))) == first


def test_a_setting_that_is_missing_is_named():
    plain = Settings().plain()
    del plain["beta"], plain["trainer"], plain["data"]["val_fraction"]
    with pytest.raises(ConfigError, match=r"beta is missing\ndata\.val_fraction is missing\ntrainer is missing"):
        config.checked(plain)


def test_the_identity_changes_with_the_settings_that_change_the_result_only():
    base = Settings()
    for name in config.SAME_RESULT:
        if name.startswith("data.") and name != "data.cache":
            continue  # a folder of its own source
        default = FIELDS[name].default
        kind = {"logger": "mlflow", type(None): "x", bool: not default}
        other = base.with_values({name: kind.get(name, kind.get(type(default), 3))})
        assert other.identity("f") == base.identity("f"), name
        assert other.result_settings() == base.result_settings()
    others = [
        base.with_values({"beta": 2}).identity("f"),
        base.with_values({"data.val_fraction": 0.3}).identity("f"),
        base.with_values({"trainer.devices": 2}).identity("f"),
        base.identity("g"),
        base.identity("f", "another program"),
    ]
    assert len({base.identity("f"), *others}) == 6


def test_one_is_one_whether_typed_with_a_point_or_not():
    assert Settings(beta=1.0).result_settings() == Settings(beta=1).result_settings()


def test_the_schema_and_the_table_hold_every_setting():
    schema = Settings.model_json_schema()
    assert set(schema["properties"]) == set(Settings.model_fields)
    done = subprocess.run([sys.executable, "-m", "smilevae.config"], cwd=ROOT, capture_output=True, text=True)
    assert all(f"| `{name}` |" in done.stdout for name in FIELDS)
    done = subprocess.run([sys.executable, "-m", "smilevae.config", "schema"], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout) == json.loads(json.dumps(schema))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "ckpt is not set; python evaluate.py ckpt="),
        (["ckpt=a", "smle=true"], "smle is not an option"),
        (["ckpt=a", "seed=x"], "seed=x must be a whole number from 0"),
        (["ckpt=a", "temperature=nan"], "temperature=nan must be a number from 0 to 10"),
        (["ckpt=a", "sampler=x"], "sampler=x is unknown; choose one of auto, prior"),
        (["ckpt=a", "smile=x"], "smile=x must be true or false"),
        (["ckpt=a", "--verbose"], "--verbose is not understood"),
        (["a"], "a is not understood"),
    ],
)
def test_a_mistake_among_options_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        console.parse_words(words, EvaluateOptions)


@pytest.mark.parametrize("word", ["ckpt=a=b,c", "ckpt='a=b,c'", 'ckpt="a=b,c"'])
def test_words_are_taken_as_typed_or_quoted_as_for_hydra(word):
    assert console.parse_words([word, "judge=m:C"], EvaluateOptions).ckpt == "a=b,c"
    assert console.parse_words([word, "judge=m:C"], EvaluateOptions).classifier == "m:C"
    assert console.parse_words([runs.override("ckpt", "it's \\ me")], EvaluateOptions).ckpt == "it's \\ me"
