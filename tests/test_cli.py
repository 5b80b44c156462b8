"""User mistakes on the real command line: one sentence, the right exit code, nothing left behind."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, script
from PIL import Image
from test_images import huge_png

from smilevae import cli

CONFIG_MISTAKES = [
    ("beta=-1", "beta=-1 must be a number from 0"),
    ("beta=nan", "beta=nan must be a number"),
    ("beta=abc", "beta=abc must be a number"),
    ("latent_dim=0", "latent_dim=0 must be a whole number from 1"),
    ("latent_dim=1.5", "latent_dim=1.5 must be a whole number"),
    ("batch_size=0", "batch_size=0 must be a whole number from 2"),
    ("epochs=0", "epochs=0 must be a whole number from 1"),
    ("image_size=130", "the nearest are 128 and 144"),
    ("betta=1", "betta is not a knob; did you mean beta?"),
    ("+surprise=1", "surprise is not a knob"),
    ("model=resnet", "Could not find 'model/resnet'"),
    ("beta", "beta"),
    ("data=folder", "data.root is not set"),
    ("resume=/nowhere", "/nowhere is not a run folder"),
    ("resume=", "resume is empty"),
    ("hydra.run.dir=", "it is empty"),
    ("hydra.run.dir=README.md", "cannot be a run folder: File exists"),
    ("hydra.run.dir=/proc/x", "hydra.run.dir=/proc/x cannot be a run folder"),
    ("data=null", "need a choice"),
    ("data.root=/x", "data.root does not apply to drawn faces"),
    ("data.unlabelled=/x", "data.unlabelled does not apply to drawn faces"),
    ("data=folder data.positive=/x", "data.positive and data.negative go together"),
    ("data=celeba data.positive=/x data.negative=/y", "replace data.root; pass data=folder without data.root"),
    ("jitter.rotate=90", "jitter.rotate=90 must be a number from 0 to 45"),
    ("data.root=/a=b", "quote a value that holds ="),
]


@pytest.mark.parametrize(("override", "sentence"), CONFIG_MISTAKES, ids=[m[0] for m in CONFIG_MISTAKES])
def test_a_mistake_in_the_config_ends_with_2(call, tmp_path, monkeypatch, override, sentence):
    (tmp_path / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    code, errors = call("train", *override.split())
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert sentence in errors
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_a_mistake_in_a_real_process_is_one_sentence_too(tmp_path):
    done = script("train", "beta=-1", f"hydra.run.dir={tmp_path / 'run'}")
    assert (done.returncode, len(done.stderr.strip().splitlines())) == (2, 1)
    assert "beta=-1 must be a number from 0" in done.stderr
    assert not (tmp_path / "run").exists()


def spoil_with(name: str, data: bytes):
    return lambda root: (root / "train" / "smile" / name).write_bytes(data)


def spoil_class(root):
    shutil.rmtree(root / "train" / "non_smile")
    (root / "train" / "non_smile").mkdir()


def half(root):
    source = next((root / "train" / "smile").iterdir()).read_bytes()
    (root / "train" / "smile" / "Half_0001.jpg").write_bytes(source[: len(source) // 2])


DATA_MISTAKES = {
    "missing root": (shutil.rmtree, "is not a folder"),
    "one empty class": (spoil_class, "one class is empty"),
    "text named .jpg": (spoil_with("T_0001.jpg", b"hello"), "T_0001.jpg: not an image"),
    "zero bytes": (spoil_with("Z_0001.jpg", b""), "Z_0001.jpg: empty file"),
    "truncated": (half, "Half_0001.jpg: damaged"),
    "200 megapixels": (spoil_with("H_0001.png", huge_png(14_200)), "over the limit"),
}


@pytest.mark.parametrize("mistake", DATA_MISTAKES)
def test_a_mistake_in_the_data_ends_with_3(call, pictures, tmp_path, mistake):
    spoil, sentence = DATA_MISTAKES[mistake]
    spoil(pictures)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", "data=folder", f"data.root={pictures}")
    assert code == 3
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("ckpt", "code", "sentence"),
    [
        ("/nowhere.ckpt", 4, "does not exist"),
        ("README.md", 4, "is not a smilevae checkpoint"),
        ("conf", 4, "holds no checkpoint"),
        ("https://example.org/x.ckpt", 4, "is a URL"),
        (None, 2, "ckpt is not set"),
    ],
)
def test_a_wrong_checkpoint_is_one_sentence(call, ckpt, code, sentence):
    found, errors = call("evaluate", *([f"ckpt={ckpt}"] if ckpt else []))
    assert found == code
    assert sentence in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (ROOT / "evaluation").exists()


@pytest.mark.parametrize(
    "mistake", ["sampler=x", "temperature=-1", "temperature=a", "seed=-1", "smile=x", "judge=no.such:one"]
)
def test_a_mistake_in_an_evaluation_ends_with_2(call, tiny_run, mistake):
    code, errors = call("evaluate", f"ckpt={tiny_run}", mistake)
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors


def test_a_mistake_never_removes_what_was_there_before(call, tmp_path, tiny_run):
    """A thesis in the folder that a careless command names, and a finished run whose checkpoints are gone."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "thesis.txt").write_text("five years")
    (tmp_path / "precious" / "data_card.json").write_text("{}")
    (tmp_path / "precious" / ".notes.2024.tmp").write_text("five more")
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'precious'}", "data=folder", "data.root=/nowhere")
    assert (code, "is not empty and holds no run" in errors) == (2, True)
    assert {"thesis.txt", "data_card.json", ".notes.2024.tmp"} == {p.name for p in (tmp_path / "precious").iterdir()}
    shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    before = sorted(p.name for p in (tmp_path / "run").iterdir())
    code, errors = call("train", f"resume={tmp_path / 'run'}", "epochs=9")
    assert (code, "cannot go on" in errors) == (4, True)
    assert set(before) <= {p.name for p in (tmp_path / "run").iterdir()}


def test_paths_are_those_of_a_shell(call, tmp_path, monkeypatch):
    """A tilde is the home, and a checkpoint may be named from inside its folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    code, errors = call("train", "hydra.run.dir='~/x'", *TINY, "epochs=1")
    assert code == 0, errors
    code, errors = call("train", "resume='~/x'", "epochs=2")
    assert code == 0, errors
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]
    monkeypatch.chdir(tmp_path / "x" / "checkpoints")
    code, errors = call("evaluate", "ckpt=epoch-0002.ckpt", "edits=false", "realism=false")
    assert code == 0, errors
    assert (tmp_path / "x" / "evaluation" / "epoch-0002" / "metrics.json").exists()


def test_a_new_run_does_not_overwrite_an_old_one(call, tiny_run):
    before = (tiny_run / "config.yaml").read_bytes()
    code, errors = call("train", f"hydra.run.dir={tiny_run}", *TINY)
    assert (code, "already holds a run" in errors) == (2, True)
    assert (tiny_run / "config.yaml").read_bytes() == before
    assert (tiny_run / "result.json").exists()


def test_pipes_among_the_pictures_do_not_hang_and_odd_names_are_text(call, pictures, tmp_path):
    os.mkfifo(pictures / "train" / "smile" / "pipe_0001.jpg")
    name = os.fsdecode(b"\xff\xfe_0001.png")
    shutil.copy(next((pictures / "train" / "non_smile").iterdir()), os.path.join(pictures, "train", "smile", name))
    tiny = [knob for knob in TINY if not knob.startswith("data.")]
    run = tmp_path / "run"
    code, errors = call("train", f"hydra.run.dir={run}", "data=folder", f"data.root={pictures}", *tiny, "epochs=1")
    assert code == 0, errors
    assert json.loads((run / "data_card.json").read_text())["images"] == 53


def test_two_pictures_train_and_evaluate(call, tmp_path):
    for index in range(2):
        (tmp_path / "two").mkdir(exist_ok=True)
        Image.new("RGB", (64, 64), (90 * index, 50, 0)).save(tmp_path / "two" / f"P{index}_0001.png")
    tiny = [knob for knob in TINY if not knob.startswith("data.")]
    run = tmp_path / "run"
    where = f"data.root={tmp_path / 'two'}"
    code, errors = call("train", f"hydra.run.dir={run}", "data=folder", where, *tiny, "epochs=1", "evaluate=true")
    if code:  # one picture cannot feed BatchNorm
        assert code == 3
        assert "error:" in errors
    else:
        assert (run / "evaluation" / "best" / "reconstructions.png").exists()


def test_help_and_cfg_answer_without_torch():
    for flag in (["--help"], ["--cfg", "job"]):
        code = (
            f"import sys; from smilevae import cli\n"
            f"try: cli.main(['train', *{flag}])\nfinally: assert 'torch' not in sys.modules"
        )
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "latent_dim: 120" in done.stdout


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_of_every_command_helps_without_torch(command):
    code = f"import sys; from smilevae import cli\nsys.argv = ['x']\ntry: cli.main([*{command}, '--help'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert ("ckpt" if command else "smilevae train") in done.stdout or command == ["analyse"]
    assert len(done.stdout.splitlines()) > 4


def test_a_misspelt_command_is_one_sentence(call):
    code, errors = call("evalute")
    assert (code, errors.strip()) == (
        2, "error: evalute is not a command; there are train, evaluate, photo, app, export, analyse",
    )  # fmt: skip


def test_the_whole_command_line_runs_as_documented(tmp_path):
    """train.py, then evaluate.py with the very line that train.py printed."""
    trained = script("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY)
    assert trained.returncode == 0, trained.stderr
    line = next(text for text in trained.stdout.splitlines() if "python evaluate.py" in text)
    done = script("evaluate", line.split("evaluate.py ")[1])
    assert done.returncode == 0, done.stderr
    assert "PCA-8" in done.stdout
    assert (tmp_path / "run" / "evaluation" / "best" / "edit_strip.png").exists()


@pytest.mark.parametrize("command", ["train --help", "evaluate --help", "--help"])
def test_a_reader_that_ends_early_gets_no_traceback(command):
    line = f"{sys.executable} -m smilevae.cli {command} | true; exit ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, env=buffered)
    assert (done.stderr, done.returncode in (0, 141)) == ("", True)
