"""Networks and objectives of others: the file of docs/extend.md, packages, attacks, the checks."""

import json
import math
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
import yaml
from conftest import ROOT, TINY, slow
from faults import Process
from torch import nn

from smilevae import runs, testing
from smilevae.config import Settings, checked
from smilevae.models.architectures import Conv, Patch
from smilevae.plugins import Batch, Network, Objective, kinds, knob, loading
from smilevae.runs import checkpoint

FACES = TINY[4:]  # all but the network's knobs
pytestmark = pytest.mark.usefixtures("forget_plugins")
MAIN = "from smilevae import cli; cli.main()"
MINE = ("model=dense", "model.hidden=16", "objective=sparse", "objective.gamma=2")


@pytest.fixture
def file(tmp_path):
    """The file of docs/extend.md."""
    text = (ROOT / "docs" / "extend.md").read_text()
    code = re.search(r"<!-- my_vae.py: begin -->\n```python\n(.*?)```", text, re.S)[1]
    assert len(code.splitlines()) <= 40
    path = tmp_path / "my_vae.py"
    path.write_text(code)
    return path


def test_the_file_of_the_docs_trains_resumes_evaluates_and_exports(file, call, tmp_path):
    run = tmp_path / "run"
    plugin = f"plugin={file}"
    assert call("train", f"hydra.run.dir={run}", plugin, *FACES, *MINE)[0] == 0
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["model"] == {"network": "dense", "hidden": 16}
    assert settings["objective"] == {"name": "sparse", "gamma": 2}
    assert "the program changed" not in (run / "train.log").read_text()
    file.write_text(file.read_text() + "# changed\n")
    runs.code.cache_clear()  # another process would look again
    assert call("train", f"resume={run}", plugin, "epochs=3")[0] == 0
    assert "the program changed since this run began" in (run / "train.log").read_text()
    assert call("evaluate", f"ckpt={run}", plugin)[0] == 0
    assert call("export", f"ckpt={run}", plugin, f"out={tmp_path / 'given'}")[0] == 0
    assert str(tmp_path) not in (tmp_path / "given" / "model.json").read_text()
    exported = checkpoint.load(tmp_path / "given" / "model.safetensors").vae
    trained = checkpoint.load(runs.find(str(run))).vae
    assert all(map(torch.equal, exported.state_dict().values(), trained.state_dict().values()))


BRIGHTNESS = """
from smilevae.plugins import Measure, Score

class Brightness(Measure):
    def scores(self, vae, faces):
        x_hat = vae(faces.batch(faces.rows("val"))).x_hat
        return {"mean": Score(x_hat.mean().item(), "mean of pixels", "%", "higher", {"half": 0.5})}
"""


def test_a_measure_is_on_the_page_and_a_column_of_the_analysis(call, tmp_path):
    file = tmp_path / "bright.py"
    file.write_text(BRIGHTNESS)
    words = [
        f"plugin={file}",
        *FACES,
        "model=patch",
        "model.widths=[4]",
        "latent_dim=2",
        "epochs=1",
    ]
    for seed in (0, 1):
        run = tmp_path / f"s/seed-{seed}"
        done = call(
            "train", f"hydra.run.dir={run}", *words, f"seed={seed}", "measures=[brightness]"
        )
        assert done[0] == 0
    out = run / "evaluation" / "best"
    score = json.loads((out / "metrics.json").read_text())["measures"]["brightness"]["mean"]
    assert 0.2 < score["value"] < 0.8
    page = (out / "index.html").read_text()
    assert all(text in page for text in ("Brightness", "mean of pixels", "higher is better"))
    assert call("analyse", tmp_path / "s", "rank_by=brightness/mean")[0] == 0
    top = json.loads((tmp_path / "s/analysis/top.json").read_text())
    assert "by brightness/mean" in top["explanation"][0]
    for name in ("runs", "configurations"):
        header = (tmp_path / f"s/analysis/{name}.csv").read_text().partition("\n")[0]
        assert "brightness/mean" in header.split(",")

    code, problem = call("train", f"hydra.run.dir={tmp_path / 'no'}", *words, "measures=[bright]")
    assert code == 2
    assert "measures=bright is not loaded" in problem
    (out / "metrics.json").write_text("{}")
    code, problem = call("analyse", tmp_path / "s", "rank_by=brightness/mean")
    assert code == 2
    assert "1 completed runs lack it" in problem


@slow
def test_a_killed_run_goes_on_to_the_same_bits(file, tmp_path):
    words = ["train.py", f"plugin={file}", *FACES, *MINE, "epochs=3", "checkpoint_every=0"]
    for name, killed in (("whole", False), ("killed", True)):
        run = tmp_path / name
        process = Process(tmp_path, *words, f"hydra.run.dir={run}")
        if killed:
            process.wait_for((run / "checkpoints" / "last.ckpt").exists)
            process.end(signal.SIGKILL)
            process = Process(tmp_path, "train.py", f"plugin={file}", f"resume={run}")
        assert process.end() == 0, process.output()
    loading.load_file(str(file))
    whole, killed = (
        checkpoint.load(tmp_path / name / "checkpoints/last.ckpt").vae.state_dict()
        for name in ("whole", "killed")
    )
    assert all(map(torch.equal, whole.values(), killed.values()))


@slow
def test_a_sweep_over_a_knob_of_an_objective(file, tmp_path):
    sweep = tmp_path / "sweep"
    words = [f"plugin={file}", *FACES, *MINE[:3], "objective.gamma=1,5", "epochs=1"]
    command = [sys.executable, "train.py", "-m", f"hydra.sweep.dir={sweep}", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    assert "objective.gamma=5 instead of 1" in done.stdout
    page = (sweep / "analysis" / "index.html").read_text()
    assert "objective.gamma" in page
    assert re.search(r"evaluate.py ckpt=\S+ plugin=\S*my_vae.py", page)
    assert "the program changed" not in done.stdout
    (status,) = {json.loads(path.read_text())["code"] for path in sweep.glob("*/status.json")}
    assert status != runs.code_now()  # it covers the file


@slow
def test_a_run_whose_plugin_is_not_loaded_names_it(file, call, tmp_path):
    run = tmp_path / "run"
    assert call("train", f"hydra.run.dir={run}", f"plugin={file}", *FACES, *MINE)[0] == 0
    os.environ.pop(loading.REQUESTED)
    for command, word in (("train", "resume"), ("evaluate", "ckpt"), ("export", "ckpt")):
        out = [f"out={tmp_path / 'given'}"] if command == "export" else []
        done = subprocess.run(
            [sys.executable, "-c", MAIN, command, f"{word}={run}", *out],
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert done.returncode in (2, 4)
        assert len(done.stderr.splitlines()) == 1
        assert "dense is not loaded" in done.stderr
        assert "plugin=FILE.py" in done.stderr


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("model=dense", "model.hidden=0"), "model.hidden=0 must be a whole number from 1 to 8192"),
        (("model=dense", "model.hiden=9"), "model.hiden is not a knob; did you mean model.hidden?"),
        (("objective=sparse", "objective.gamma=x"), "objective.gamma=x must be a number from 0"),
        (("objective=spars",), "Could not find 'objective/spars'"),
        (("model=mine",), "name the file of your own one with plugin=FILE.py"),
    ],
)
def test_knobs_of_plugins_are_checked(file, call, tmp_path, words, sentence):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", f"plugin={file}", *words)
    assert (code, (tmp_path / "run").exists()) == (2, False)
    assert sentence in errors


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (None, "is not a Python file"),
        ("import nothing_such\n", "line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("x = 1\nclass :\n", "line 2: SyntaxError"),
        ("\n\n1 / 0\n", "line 3: ZeroDivisionError"),
        (
            "from smilevae.plugins import Network\nclass Conv(Network):\n    pass\n",
            "model=conv is defined twice",
        ),
    ],
)
def test_a_file_that_cannot_be_loaded_is_one_sentence(call, tmp_path, text, sentence):
    path = tmp_path / "mine.py"
    if text:
        path.write_text(text)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", f"plugin={path}", *FACES)
    assert (code, len(errors.splitlines())) == (2, 1)
    assert sentence in errors


@pytest.mark.parametrize(
    ("before", "after", "sentence"),
    [
        (
            "2 * latent_dim)",
            "latent_dim)",
            "model=dense: the encoder gives (2, 8) for a batch of 2; it must give (2, 16)",
        ),
        (
            "nn.Unflatten(1, shape)",
            "nn.Unflatten(1, (4, *shape[1:]))",
            "model=dense: the decoder fails: RuntimeError: unflatten: Provided sizes",
        ),
        (
            "self.gamma * batch.mu.abs().sum(1)",
            "self.gamma * batch.mu.abs()",
            "objective=sparse: the loss is (8, 8); it must be (8,), one number an example",
        ),
    ],
)
def test_a_wrong_shape_is_one_sentence(call, tmp_path, file, before, after, sentence):
    assert before in file.read_text()
    file.write_text(file.read_text().replace(before, after))
    words = (f"plugin={file}", *FACES, *MINE)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *words)
    assert code == 2
    assert sentence in errors


@slow
def test_an_installed_package_needs_no_file(file, tmp_path):
    info = tmp_path / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[smilevae.plugins]\nmine = my_vae\n")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [
            sys.executable,
            "train.py",
            f"hydra.run.dir={tmp_path / 'run'}",
            *FACES,
            *MINE,
            "epochs=1",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("choice", ["model.network", "objective.name", "data.source"])
def test_no_file_of_a_run_imports_a_module(train, call, tmp_path, monkeypatch, choice):
    """A run folder, a checkpoint and an export that name a module with a side effect."""
    mark = tmp_path / "imported"
    evil = tmp_path / "evil.py"
    monkeypatch.syspath_prepend(tmp_path)
    evil.write_text(f"open({str(mark)!r}, 'w').close()\n")
    run = train(f"plugin={ROOT / 'smilevae' / 'models' / 'latents.py'}")
    os.environ.pop(loading.REQUESTED)
    loading.load_file.cache_clear()
    config = yaml.safe_load((run / "config.yaml").read_text())
    group, _, key = choice.partition(".")
    config |= {"plugin": str(evil), group: {key: "evil"}}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for path in (run / "checkpoints").glob("*.ckpt"):
        content = torch.load(path, weights_only=True)
        torch.save(content | {"hyper_parameters": config}, path)
    for command, word in (("train", "resume"), ("evaluate", "ckpt"), ("export", "ckpt")):
        out = [f"out={tmp_path / 'given'}"] if command == "export" else []
        code, errors = call(command, f"{word}={run}", *out)
        assert code in (2, 4)
        assert f"{choice}=evil is not loaded" in errors
    assert not mark.exists()


def test_settings_of_a_plugin_survive_yaml_pickle_and_flat_names(file):
    import pickle

    loading.load_file(str(file))
    mine = loading.choices("model")["dense"](hidden=7)
    plain = Settings().plain() | {"model": mine.model_dump()}
    settings = checked(yaml.safe_load(yaml.safe_dump(plain)))
    assert settings.model.hidden == 7
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert Settings().with_values(settings.flat()) == settings
    assert "model.widths" not in settings.result_settings()


class Good(Network):
    hidden: int = knob(8, "units", 1, 64)

    def encoder(self, shape, latent_dim):
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 2 * latent_dim))

    def decoder(self, shape, latent_dim):
        return nn.Sequential(nn.Linear(latent_dim, math.prod(shape)), nn.Unflatten(1, shape))


kinds.CHOICES["model"].pop(Good.choice)  # other tests shall not see it


class Mixing(nn.Module):
    def forward(self, x):
        return x + x.mean(0)


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.spare = nn.Linear(2, 2)

    def forward(self, x):
        return x


class Forgetful(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()), persistent=False)

    def forward(self, x):
        if self.training:
            self.seen = self.seen + 1
        return x * (1 + self.seen)


class OneDevice(nn.Module):
    def forward(self, x):
        return x + torch.zeros(x.shape[1], device="cpu")


class Backwards(nn.Sequential):
    """Layers that are registered in another order than they are applied in."""

    def __init__(self, size):
        super().__init__()
        self.last = nn.Linear(4, size)
        self.first = nn.Linear(size, 4)

    def forward(self, x):
        return self.last(self.first(x).relu())


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (lambda size: nn.Linear(size, size + 1), "the encoder gives"),
        (lambda size: Mixing(), "depends on the other images"),
        (lambda size: Unused(), "has no effect on the loss"),
        (lambda size: Forgetful(), "a resume changes"),
        (lambda size: OneDevice(), "one device only"),
        (Backwards, "not the last that is applied"),
    ],
)
def test_the_checks_notice_a_bad_network(module, problem):
    class Bad(Good):
        def encoder(self, shape, latent_dim):
            return nn.Sequential(super().encoder(shape, latent_dim), module(2 * latent_dim))

    testing.check_network(Good())
    with pytest.raises(Exception, match=problem):
        testing.check_network(Bad())


@pytest.mark.parametrize(
    ("loss", "problem"),
    [
        (lambda batch: (batch.recon + batch.kl.sum(1)).mean(), "the loss is"),
        (lambda batch: batch.recon + batch.kl.sum(1).mean(), "set uses_batch"),
        (lambda batch: batch.recon * batch.progress, "the loss is not finite"),
        (lambda batch: batch.recon + batch.logvar.exp().exp().sum(1), "not finite"),
        (
            lambda batch: (
                batch.recon + 0 * batch.kl.sum(1).sqrt() * (batch.mu - batch.mu).sum(1).sqrt()
            ),
            "gradient of mu",
        ),
        (lambda batch: batch.kl.sum(1), "does not depend on the reconstruction"),
        (lambda batch: batch.recon + torch.zeros(3, device="cpu"), "one device only"),
    ],
)
def test_the_checks_notice_a_bad_objective(loss, problem):
    class Bad(Objective):
        uses_batch = problem == "one device only"

        def loss(self, batch: Batch):
            return loss(batch)

    with pytest.raises(AssertionError, match=problem):
        testing.check_objective(Bad())


@pytest.mark.parametrize("network", [Conv(widths=[4, 8]), Patch(widths=[8, 4])])
def test_our_networks_pass_the_checks(network):
    testing.check_network(network)


@pytest.mark.parametrize("name", sorted(loading.choices("objective")))
def test_our_objectives_pass_the_checks(name):
    testing.check_objective(loading.choices("objective")[name]())
