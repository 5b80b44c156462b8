"""Drawn sweeps over knobs of every kind: a job a point, in a folder that holds what it says."""

import itertools
import random
import re
import signal
import types

import pytest
import yaml
from conftest import TINY, slow

from hydra_plugins import smilevae_sweeper
from smilevae.config import flatten
from smilevae.sweeps import claim, jobs

# knob -> values as they are typed, and as config.yaml holds them
KNOBS = {
    "beta": {"0": 0, "1": 1, "2.5": 2.5, "1e-3": 0.001, "auto": "auto"},
    "latent_dim": {"4": 4, "8": 8, "300": 300},
    "batch_size": {"8": 8, "12": 12},
    "epochs": {"1": 1, "2": 2, "3": 3},
    "lr": {"0.002": 0.002, "1e-4": 0.0001},
    "seed": {"0": 0, "1": 1, "7": 7},
    "normalize": {"true": True, "false": False},
    "augment": {"true": True, "false": False},
    "schedule": {"plateau": "plateau", "cosine": "cosine"},
    "ema": {"0": 0, "0.9": 0.9},
    "plateau.patience": {"2": 2, "8": 8},
    "jitter.shift": {"0": 0, "2": 2, "1.5": 1.5},
    "model": {"conv": "conv", "patch": "patch"},
    "model.widths": {"[8,16]": [8, 16], "[8,16,32]": [8, 16, 32]},
    "model.dropout": {"0.0": 0, "0.25": 0.25},
    "data.val_fraction": {"0.2": 0.2, "0.3": 0.3},
    "data.split_seed": {"0": 0, "5": 5},
    "data.person_pattern": {
        rf"'{pattern}'": pattern for pattern in (r"^(.+)/_\d+\.\w+$", r"^(.+)\\_x$", "(.+)")
    },
    "data.num_smiling": {"24": 24, "30": 30},
    "data.confound": {"-0.5": -0.5, "0.5": 0.5},
    "trainer.gradient_clip_val": {"1": 1, "null": None},
    "trainer.precision": {"32-true": "32-true", "bf16-mixed": "bf16-mixed"},
    "+trainer.accumulate_grad_batches": {"1": 1, "2": 2},
}
ALIKE = {  # these tell no jobs apart
    "threads": {"1": 1, "2": 2},
    "evaluate": {"true": True, "false": False},
    "num_workers": {"0": 0, "1": 1},
    "keep_memory": {"true": True, "false": False},
    "checkpoint_every": {"1": 1, "60": 60},
    "log_images_every": {"1": 1, "10": 10},
    "data.attributes": {"/a.csv": "/a.csv", "/b.csv": "/b.csv"},
    "data.cache": {"true": True, "false": False},
    "trainer.accelerator": {"cpu": "cpu", "auto": "auto"},
}


@pytest.fixture
def trained_at_once(monkeypatch):
    """Jobs are complete without a training. All before a job's first step is the real thing."""

    def in_process(function, *arguments):
        if function is not jobs.forecast:
            queue, run, _ = claim(*arguments)
            run.write_config(queue.jobs[run.dir.name])
            run.complete({"best": {"epoch": 1, "val/nelbo": 0.0}, "checkpoints": []})
            run.close()
        return types.SimpleNamespace(exitcode=0, pid=0)

    monkeypatch.setattr(jobs, "in_process", in_process)
    monkeypatch.setattr(smilevae_sweeper, "analyse", lambda folder: 0)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def drawn(rng: random.Random) -> dict[str, dict]:
    """One to three knobs with one to three values; now and then one that tells no jobs apart."""
    names = rng.sample([*KNOBS], rng.choice((1, 2, 2, 3)))
    sweep = {
        name: dict(rng.sample([*KNOBS[name].items()], rng.randint(1, len(KNOBS[name]))))
        for name in names
    }
    if rng.random() < 0.25:
        name = rng.choice([*ALIKE])
        sweep[name] = dict(rng.sample([*ALIKE[name].items()], rng.choice((1, 2))))
    return sweep


@pytest.mark.parametrize("num", [4, pytest.param(60, marks=slow)])
def test_every_point_of_a_drawn_sweep_is_a_job_of_its_own(call, tmp_path, trained_at_once, num):
    rng = random.Random(0)
    refused = 0
    for number in range(num):
        sweep = drawn(rng)
        folder = tmp_path / f"sweep-{number}"
        words = [f"{knob}={','.join(values)}" for knob, values in sweep.items()]
        fixed = [word for word in TINY if word.partition("=")[0] not in sweep]
        code, errors = call("train", "-m", f"hydra.sweep.dir={folder}", *fixed, *words)
        if alike := [knob for knob in sweep if knob in ALIKE and len(sweep[knob]) > 1]:
            assert (code, errors.count("\n")) == (2, 1), (words, errors)
            assert f"{alike[0]} cannot be swept, because it tells no jobs apart" in errors
            assert not folder.exists()
            refused += 1
            continue
        assert code == 0, (words, errors)
        files = folder.glob("*/config.yaml")
        held = {file.parent.name: flatten(yaml.safe_load(file.read_text())) for file in files}
        points = list(itertools.product(*(values.items() for values in sweep.values())))
        assert len(held) == len(points), (words, held)
        for point in points:
            wanted = {knob.lstrip("+"): value for knob, (_, value) in zip(sweep, point)}
            if "model" in wanted:
                wanted["model.network"] = wanted.pop("model")
            (name,) = [name for name, config in held.items() if wanted.items() <= config.items()]
            for knob, texts in zip(sweep, point):
                if len(sweep[knob]) > 1:  # Hydra writes 1e-4 as 0.0001 and true as True
                    parts = [f"{knob.lstrip('+')}-{text}" for text in texts]
                    parts = [re.sub(r"[^\w.+-]", "-", part) for part in parts]
                    assert any(part in name for part in parts), (words, name)
    assert refused or num < 60
