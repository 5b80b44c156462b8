"""Mistakes on the command line: one sentence, the right exit code, nothing left behind."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, TINY, script

from smilevae import cli

CONFIG_MISTAKES = [
    ("beta=-1", "beta=-1 must be a number from 0 to 1000000 or auto"),
    ("beta=nan", "beta=nan must be a number"),
    ("lr=null", "lr is empty; give it a value"),
    ("latent_dim=1.5", "latent_dim=1.5 must be a whole number from 1 to 4096"),
    ("normalize=maybe", "normalize=maybe must be true or false"),
    ("model.network=resnet", "model.network=resnet is not loaded; name the file"),
    ("model.network=patch", "model.shortcut is missing; model=patch sets it"),
    ("model.widths=[8,-1]", "1 to 6 values, each a whole number from 1 to 4096"),
    ("model.widths=[]", "model.widths=[] must be 1 to 6 values"),
    ("image_size=130", "image_size=130 does not fit this network; the nearest are 128 and 144"),
    ("image_size=65", "the nearest are 64 and 80"),
    ("betta=1", "betta is not a knob; did you mean beta?"),
    ("+betta=1", "betta is not a knob; did you mean beta?"),
    ("+surprise=1", "surprise is not a knob; see --help"),
    ("+model.depth=1", "model.depth is not a knob"),
    ("~beta", "beta is missing"),
    ("model=resnet", "Could not find 'model/resnet'"),
    ("beta", "beta"),
    ("batch_size=${latentdim}", "latentdim"),
    ("data=null", "need a choice"),
    ("data=folder", "data.root is not set"),
    ("data.root=/x", "data.root does not apply to drawn faces"),
    ("data.unlabelled=/x", "data.unlabelled does not apply to drawn faces"),
    ("data=folder data.root=/x data.num_smiling=5", "data.num_smiling is a knob of data=synthetic"),
    ("channels=2", "channels=2 must be one of 1, 3"),
    ("data.person_pattern=.+", "must be a regular expression with a group in brackets"),
    ("data.val_fraction=0.6 data.test_fraction=0.6", "are too large; lower one"),
    ("data.root=/a=b", "quote a value that holds ="),
    ("data.root=~/a", "quote a value that holds ="),
    ("warm_start=ppca beta=0", "warm_start=ppca has no optimum at beta=0"),
    ("+trainer.check_val_every_n_epoch=2", "check_val_every_n_epoch=2 leaves no val/loss"),
    ("+trainer.limit_val_batches=0", "limit_val_batches=0 leaves no val/loss"),
    ("+trainer.max_steps=7", "max_steps=7 leaves no val/loss"),
    ("+trainer.max_time=soon", "trainer.max_time=soon must be DD:HH:MM:SS"),
    ("trainer.precision=64-true", "must be one of 32-true, bf16-mixed, 16-mixed"),
    ("logger=comet", "Could not find 'logger/comet'"),
    ("resume=/nowhere", "/nowhere is not a run folder"),
    ("resume=", "resume is empty"),
    ("hydra.run.dir=", "it is empty"),
    ("hydra.run.dir=README.md", "cannot be a run folder: File exists"),
    ("hydra.run.dir=/proc/x", "hydra.run.dir=/proc/x cannot be a run folder"),
]


@pytest.mark.parametrize(("words", "sentence"), CONFIG_MISTAKES)
def test_a_mistake_in_the_config_ends_with_2(call, tmp_path, monkeypatch, words, sentence):
    (tmp_path / "README.md").touch()
    monkeypatch.chdir(tmp_path)
    code, errors = call("train", *words.split())
    assert (code, len(errors.strip().splitlines())) == (2, 1), errors
    assert sentence in errors
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]


def test_two_mistakes_in_a_real_process_are_two_sentences(tmp_path):
    done = script("train", "beta=-1", "lr=0", f"hydra.run.dir={tmp_path / 'run'}")
    assert done.returncode == 2
    first, second = done.stderr.strip().splitlines()
    assert first.startswith("error: beta=-1 must be a number from 0")
    assert second.startswith("error: lr=0 must be a number from 1e-08")
    assert not (tmp_path / "run").exists()


def test_a_mistake_in_the_data_ends_with_3(call, pictures, tmp_path):
    (pictures / "train" / "smile" / "T_0001.jpg").write_bytes(b"hello")
    run = tmp_path / "run"
    code, errors = call("train", f"hydra.run.dir={run}", "data=folder", f"data.root={pictures}")
    assert (code, len(errors.strip().splitlines())) == (3, 1)
    assert "T_0001.jpg: not an image" in errors
    assert not run.exists()


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


def test_a_mistake_never_removes_what_was_there_before(call, tmp_path, tiny_run):
    """A thesis in the folder of a careless command, and a finished run without checkpoints."""
    precious = tmp_path / "precious"
    precious.mkdir()
    names = {"thesis.txt", "data_card.json", ".notes.2024.tmp"}
    for name in names:
        (precious / name).write_text("{}")
    code, errors = call("train", f"hydra.run.dir={precious}", "data=folder", "data.root=/nowhere")
    assert (code, "is not empty and holds no run" in errors) == (2, True)
    assert names == {path.name for path in precious.iterdir()}
    run = shutil.copytree(tiny_run, tmp_path / "run")
    shutil.rmtree(run / "checkpoints")
    before = {path.name for path in run.iterdir()}
    code, errors = call("train", f"resume={run}", "epochs=9")
    assert (code, "cannot go on" in errors) == (4, True)
    assert before <= {path.name for path in run.iterdir()}


def test_paths_are_those_of_a_shell(call, tmp_path, monkeypatch):
    """A tilde is the home, and a checkpoint may be named from inside its folder."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
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
    smiling = pictures / "train" / "smile"
    os.mkfifo(smiling / "pipe_0001.jpg")
    image = next((pictures / "train" / "non_smile").iterdir())
    shutil.copy(image, smiling / os.fsdecode(b"\xff\xfe_0001.png"))
    tiny = [knob for knob in TINY if not knob.startswith("data.")]
    run = tmp_path / "run"
    words = [f"hydra.run.dir={run}", "data=folder", f"data.root={pictures}", "epochs=1"]
    code, errors = call("train", *tiny, *words)
    assert code == 0, errors
    assert json.loads((run / "data_card.json").read_text())["images"] == 53


HELP = """
import sys
from smilevae import cli
sys.argv = ["x"]
for words in sys.stdin.read().splitlines():
    try:
        cli.main(words.split())
    except SystemExit as stop:
        assert not stop.code
    print("after", words, "torch" in sys.modules)
"""


def test_help_of_every_command_and_cfg_answer_without_torch():
    """The commands, train last: Hydra is started once a process."""
    lines = ["--help", *(f"{name} --help" for name in cli.COMMANDS), "train --cfg job"]
    options = {"capture_output": True, "text": True, "input": "\n".join(lines)}
    done = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, **options)
    assert (done.returncode, done.stderr) == (0, "")
    answers = re.split(r"after .* False\n", done.stdout)
    assert len(answers) == len(lines) + 1
    assert "smilevae train" in answers[0]
    assert all(len(answer.splitlines()) > 3 for answer in answers[:-1])
    assert "latent_dim: 120" in answers[-2]


def test_a_misspelt_command_is_one_sentence(call):
    known = "train, evaluate, photo, app, page, export, analyse"
    sentence = f"error: evalute is not a command; there are {known}\n"
    assert call("evalute") == (2, sentence)


def test_the_whole_command_line_runs_as_documented(tmp_path):
    """train.py, then evaluate.py with the very line that train.py printed."""
    trained = script("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY)
    assert trained.returncode == 0, trained.stderr
    line = next(text for text in trained.stdout.splitlines() if "python evaluate.py" in text)
    done = script("evaluate", line.split("evaluate.py ")[1])
    assert done.returncode == 0, done.stderr
    assert "PCA, 8 dimensions" in done.stdout
    assert (tmp_path / "run" / "evaluation" / "best" / "edit_strip.png").exists()


@pytest.mark.parametrize("command", ["train --help", "evaluate --help", "--help"])
def test_a_reader_that_ends_early_gets_no_traceback(command):
    program = f"{sys.executable} -c 'from smilevae import cli; cli.main()'"
    line = f"{program} {command} | true; exit ${{PIPESTATUS[0]}}"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    options = {"capture_output": True, "text": True, "env": buffered}
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, **options)
    assert (done.stderr, done.returncode in (0, 141)) == ("", True)
