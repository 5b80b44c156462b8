import io
import json
import math
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from conftest import ROOT
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smilevae import cli, config, console, runs
from smilevae.config import FIELDS, Settings, checked
from smilevae.errors import ConfigError, allowed
from smilevae.evaluation.options import EvaluateOptions
from smilevae.models.architectures import Conv

laws = settings(deadline=None, derandomize=True, max_examples=100)
WORDS = {name: allowed(field.annotation, field.metadata) for name, field in FIELDS.items()}
texts = st.text(st.characters(exclude_categories=("C",)), min_size=1)


def composed(*overrides: str):
    cli.register()
    version = {} if cli._hydra_1_4() else {"version_base": "1.3"}
    with initialize_config_dir(str(ROOT / "conf"), **version):
        return compose("train", overrides=list(overrides))


def from_words(*overrides: str) -> Settings:
    return cli.settings_from(composed(*overrides), overrides)


def test_the_public_knobs_and_their_defaults_are_frozen():
    """Renaming one breaks users; so does another default, for it is the source study's."""
    frozen = {"beta": 1, "latent_dim": 120, "batch_size": 32, "epochs": 150, "lr": 5e-4}
    frozen |= {"normalize": False, "image_size": 128, "seed": 0}
    assert {name: Settings().flat()[name] for name in config.STUDY} == frozen
    assert Settings().model.network == "conv"


@pytest.mark.parametrize(
    "group", ["trainer", "experiment", "logger", "callbacks", "optimizer", "debug"]
)
def test_every_recipe_composes_checks_and_opens_with_its_command(group):
    files = sorted((ROOT / "conf" / group).glob("*.yaml"))
    assert files
    for file in files:
        assert from_words(f"{group}={file.stem}")
        assert file.read_text().startswith("# ")


@pytest.mark.parametrize("source", ["celeba", "folder", "smiling_or_not", "torchvision"])
def test_every_source_of_images_has_the_common_knobs_and_follows_the_seed(source):
    data = from_words(f"data={source}", "data.root=/x", "seed=3").data
    assert (data.source, data.root, data.split_seed) == (source, "/x", 3)


def test_a_command_line_without_words_gives_the_defaults_and_the_split_follows_the_seed():
    assert from_words() == Settings()
    assert from_words("seed=3").data.split_seed == 3
    assert from_words("seed=3", "data.split_seed=1").data.split_seed == 1


def test_a_group_or_an_experiment_wins_over_the_defaults_and_a_word_over_both():
    assert from_words("experiment=warm").model.dropout == 0
    assert from_words("experiment=warm", "model=conv", "lr=1").model.network == "conv"
    assert from_words("experiment=warm", "lr=1").lr == 1
    assert from_words("trainer=cpu", "+trainer.max_time=00:01:00:00").trainer.accelerator == "cpu"


def bounds(name: str) -> tuple[float, float, bool]:
    """The range of a number, and whether it is a whole one."""
    words = WORDS[name].split()
    low, high = (float(words[words.index(word) + 1]) for word in ("from", "to"))
    return low, high, "whole" in words


@pytest.mark.parametrize("name", [name for name in WORDS if "number from" in WORDS[name][:20]])
def test_numbers_must_be_finite_and_in_range(name):
    base = Settings(image_size=64, model=Conv(widths=[8, 16]))
    low, high, whole = bounds(name)
    wrong = [low - 1, high + 1, math.nan, math.inf, "abc", True, [1]]
    for value in [*wrong, low + 0.5] if whole else wrong:
        with pytest.raises(ConfigError):
            base.with_values({name: value})
    base.with_values({name: int(low) if whole else low})


OPEN = {"data.source", "model.network", "objective.name", "callbacks", "logger", "optimizer"}
OPEN |= {"plugin"}
KNOBS = sorted(FIELDS.keys() - OPEN)  # test_plugins and test_trackers have the others


def values_of(name: str):
    """A strategy of the values that a knob takes."""
    words = WORDS[name]
    if name == "data.person_pattern":
        return st.sampled_from([r"^(.+)_\d+\.\w+$", "(.+)", r"a(b)\\'\"c", "(=)"])
    if name == "measures":
        return st.lists(st.sampled_from(["disentanglement", "mine"]))
    if name == "model.widths":
        return st.lists(st.integers(1, 4096), min_size=1, max_size=4)
    if name == "graph":
        return st.sampled_from(["auto", True, False])
    if words == "true or false":
        return st.booleans()
    if words.startswith("one of "):
        return st.sampled_from(words.removeprefix("one of ").split(", "))
    if name.startswith("trainer."):
        return st.just(FIELDS[name].default)
    if words == "a text":  # OmegaConf would fill in ${...}
        paths = texts.filter(lambda text: "$" not in text).map(lambda text: f"/{text}")
        return st.none() | paths
    low, high, whole = bounds(name)
    if whole:
        return st.integers(int(low), int(high))
    return st.just(FIELDS[name].default) | st.floats(low, high)  # a default may be an int


@st.composite
def changed_settings(draw) -> tuple[Settings, dict]:
    """Valid settings, and the few values by which they differ from the defaults."""
    names = draw(st.lists(st.sampled_from(KNOBS), max_size=5, unique=True))
    changes = {name: draw(values_of(name)) for name in names if name != "resume"}
    try:
        return Settings().with_values(changes), changes
    except ConfigError:
        assume(False)
        raise


def word(name: str, value: object) -> str:
    return runs.override(name, value) if isinstance(value, str) else f"{name}={json.dumps(value)}"


@settings(laws, max_examples=40)
@given(changed_settings())
def test_files_checkpoints_and_the_command_line_give_the_same_settings(drawn):
    first, changes = drawn
    plain = first.plain()
    assert checked(yaml.safe_load(yaml.safe_dump(plain))) == first
    assert checked(json.loads(json.dumps(plain))) == first
    file = io.BytesIO()
    torch.save(plain, file)
    file.seek(0)
    assert checked(torch.load(file, weights_only=True)) == first
    result = first.result_settings()
    assert Settings().with_values(result).result_settings() == result
    assume(first.data.root or first.data.source != "folder")
    words = [word(name, value) for name, value in changes.items()]
    assert from_words("data.split_seed=0", *words) == first


@laws
@given(st.sampled_from(KNOBS), st.data())
def test_only_settings_that_change_the_result_are_result_settings(name, data):
    base = Settings()
    try:
        other = base.with_values({name: data.draw(values_of(name))})
    except ConfigError:
        assume(False)
    expected = other != base and name not in config.NOT_RESULT  # 1.0 is 1
    assert (other.result_settings() != base.result_settings()) == expected


@laws
@given(texts)
def test_a_text_is_the_same_to_hydra_a_shell_and_our_own_commands(text):
    quoted = runs.override("ckpt", text)
    assert parsed(quoted) == text
    assert console.parse_words([quoted], EvaluateOptions).ckpt == text
    (word,) = shlex.split(runs.hydra_argument("ckpt", Path("/", text)))
    assert Path(parsed(word)).resolve() == Path("/", text).resolve()


def parsed(override: str) -> object:
    return OverridesParser.create().parse_override(override).value()


def test_the_schema_holds_every_setting():
    assert all(field.description for field in FIELDS.values())
    command = [sys.executable, "-m", "smilevae.config"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert set(json.loads(done.stdout)["properties"]) == set(Settings.model_fields)


def test_a_setting_that_is_missing_is_named():
    """A default would stand for a value that nobody knows."""
    plain = Settings().plain()
    del plain["beta"], plain["trainer"]["precision"], plain["data"]["val_fraction"]
    missing = "beta is missing\ntrainer.precision is missing\ndata.val_fraction is missing; data=s"
    with pytest.raises(ConfigError, match=missing):
        checked(plain)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "ckpt is not set; python evaluate.py ckpt="),
        (["ckpt=a", "smle=true"], "smle is not an option"),
        (["ckpt=a", "seed=x"], "seed=x must be a whole number from 0"),
        (["ckpt=a", "temperature=nan"], "temperature=nan must be a number from 0 to 10"),
        (["ckpt=a", "sampler=x"], "sampler=x must be one of auto, prior"),
        (["ckpt=a", "realism=x"], "realism=x must be true or false"),
        (["ckpt=a", "--verbose"], "--verbose is not understood"),
        (["a"], "a is not understood"),
    ],
)
def test_a_mistake_among_options_is_one_sentence(words, sentence):
    with pytest.raises(ConfigError, match=sentence):
        console.parse_words(words, EvaluateOptions)


@pytest.mark.parametrize("word", ["ckpt=a=b,c", "ckpt='a=b,c'", 'ckpt="a=b,c"'])
def test_words_are_taken_as_typed_or_quoted_as_for_hydra(word):
    assert console.parse_words([word], EvaluateOptions).ckpt == "a=b,c"
