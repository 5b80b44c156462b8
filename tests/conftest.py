"""Shared fixtures: tiny runs, a cache of their own, a folder of synthetic faces."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SMILES = ROOT.parent / "shared" / "data" / "smiles"
slow = pytest.mark.slow
TINY = (
    *("image_size=64", "model.widths=[8,16]", "model=patch", "model.dropout=0.1"),
    *("latent_dim=8", "batch_size=8", "epochs=2", "lr=0.002", "threads=1"),
    *("data.num_smiling=24", "data.num_not_smiling=26", "data.num_test=4"),
)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture
def forget_plugins(monkeypatch):
    """Forget the plug-ins that a test loads or defines."""
    from smilevae import runs
    from smilevae.plugins import kinds, loading

    monkeypatch.delenv(loading.REQUESTED, raising=False)
    before = {group: dict(choices) for group, choices in kinds.CHOICES.items()}
    yield
    kinds.CHOICES.clear()
    kinds.CHOICES.update(before)
    loading.load_file.cache_clear()
    loading._load_installed.cache_clear()
    runs.code.cache_clear()
    os.environ.pop(loading.REQUESTED, None)


@pytest.fixture
def call(monkeypatch, capfd):
    """Run a command in this process: call("train", ...) -> (exit code, stderr)."""

    def run(command: str, *arguments: object) -> tuple[int, str]:
        from hydra.core.global_hydra import GlobalHydra

        from smilevae import cli

        GlobalHydra.instance().clear()
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", sys.argv)  # cli.main gives Hydra its own
        code = 0
        try:
            cli.main([command, *map(str, arguments)])
        except SystemExit as stop:
            code = stop.code
        return code, capfd.readouterr().err

    return run


@pytest.fixture
def train(call, tmp_path):
    """Train a tiny run in its own folder: train(*overrides, to="a") -> its path."""

    def run(*overrides: object, to: str = "run") -> Path:
        code, errors = call("train", f"hydra.run.dir={tmp_path / to}", *TINY, *overrides)
        assert code == 0, errors
        return tmp_path / to

    return run


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory):
    """One finished tiny run for everything that only looks; do not write into it."""
    path = tmp_path_factory.mktemp("runs") / "tiny"
    done = script("train", f"hydra.run.dir={path}", *TINY, "epochs=4")
    assert done.returncode == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def evaluated_run(tiny_run, tmp_path_factory):
    """A moved copy of the tiny run, evaluated on one thread; do not write into it."""
    import torch

    from smilevae.evaluation.options import EvaluateOptions
    from smilevae.evaluation.report import report

    torch.set_num_threads(1)  # their number changes the last bits
    run = tmp_path_factory.mktemp("moved") / "run"
    shutil.copytree(tiny_run, run)
    report(EvaluateOptions(ckpt=str(run)))
    return run


def script(name: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """A script as a real process from the project's root."""
    command = [sys.executable, f"{name}.py", *map(str, arguments)]
    options = {"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300} | options
    return subprocess.run(command, **options)


@pytest.fixture
def pictures(tmp_path):
    """A folder in the public layout: 12 people smiling, 12 not, two images each, 4 test images."""

    from smilevae.data.synthetic import SyntheticFaces

    drawn = SyntheticFaces(24, 24, 4, seed=7)
    root = tmp_path / "pictures"
    for row in range(len(drawn)):
        name = "smile" if drawn.smile[row] else "non_smile"
        place = root / "test" / f"Test{row}_0001.png"
        if not drawn.test[row]:
            place = root / "train" / name / f"Person_{name}{row // 2}_{row % 2:04d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        drawn.draw(row).save(place)
    return root


def pytest_collection_modifyitems(items):
    for item in items:
        if mark := item.get_closest_marker("scorecard"):
            item.user_properties.append(("row", mark.args))


def pytest_terminal_summary(terminalreporter, config):
    """`make scorecard`: a line a row, from the tests that carry its number."""
    if "scorecard" not in config.option.markexpr:
        return
    rows: dict[tuple[int, str], list] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            found = dict(report.user_properties)
            if "row" in found and (report.when == "call" or outcome != "passed"):
                case = (outcome, found.get("figure", ""), report.duration)
                rows.setdefault(tuple(found["row"]), []).append(case)
    terminalreporter.section("scorecard")
    for (number, title), cases in sorted(rows.items()):
        good = sum(outcome == "passed" for outcome, *_ in cases)
        figures = "; ".join(dict.fromkeys(figure for _, figure, _ in cases if figure))
        word = "pass" if good == len(cases) else "FAIL"
        seconds = sum(duration for *_, duration in cases)
        line = f"{number:3} {word}  {title}: {good} of {len(cases)} cases"
        if figures:
            line += f" ({figures})"
        terminalreporter.write_line(f"{line}, {seconds:.0f} s")
