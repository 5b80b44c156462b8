"""Who may import whom; the plan is in the README. The same check is shown to fail on a violation."""

import ast
import contextlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT

BASE = {"knobs"}  # and the package itself: errors; no torch
ARITHMETIC = {"losses", "latents", "metrics", "linear", "ppca", "grids", "smile", "sampling", "judge"}
MACHINERY = {"networks", "vae", "images", "faces", "sources", "batches", "datasets", "crops", "measure"}
RECORD = {"runs", "checkpoints"}
USE = {"evaluation", "pictures", "dials", "audit", "photo", "export", "app"}
GLUE = {"datamodule", "module", "callbacks", "training"}
EDGE = {"console", "hydra_hooks", "sweeps"}
ALLOWED = {
    "knobs": set(),
    **{room: {"losses", "latents", "metrics", "linear"} for room in ARITHMETIC},
    **dict.fromkeys(MACHINERY, BASE | ARITHMETIC | MACHINERY),
    "runs": BASE,
    "checkpoints": BASE | {"vae", "runs", "console", "export"},  # the last two as a command
    "audit": {"smile", "latents", "judge", "vae", "batches", "datasets", "runs"},
    "evaluation": BASE | ARITHMETIC | MACHINERY | RECORD | {"audit", "dials", "pictures"},
    "export": {"audit", "checkpoints", "runs", "vae"},
    "app": {"crops", "photo", "images", "grids", "sampling", "console"},
    "dials": {"checkpoints", "crops", "judge", "runs", "smile", "vae"},
    "pictures": {"dials"} | BASE | ARITHMETIC | MACHINERY | RECORD,
    "photo": BASE | ARITHMETIC | MACHINERY | RECORD | {"dials", "console"},
    **dict.fromkeys(GLUE, BASE | ARITHMETIC | MACHINERY | RECORD | USE | GLUE),
    **dict.fromkeys(EDGE, BASE | {"runs"} | EDGE),
    # the last four in other processes
    "sweeps": {"knobs", "runs", "console", "training", "evaluation", "datasets", "linear"},
}
TORCHLESS = {"linear", "images", "faces", "sources", "crops"}
LIBRARIES = {  # where a heavy or framework library may be named
    "torch": (ARITHMETIC | MACHINERY | USE | GLUE | {"checkpoints", "sweeps"}) - TORCHLESS,
    "pytorch_lightning": GLUE,
    "lightning_fabric": GLUE,
    "hydra": EDGE,
    "omegaconf": EDGE | {"runs"},
}


def imports(source: str) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def violations(room: str, source: str) -> list[str]:
    found = []
    for name in imports(source):
        top, _, rest = name.partition(".")
        inner = rest.partition(".")[0]
        if top == "smilevae" and (ROOT / "smilevae" / f"{inner}.py").exists() and inner not in ALLOWED[room]:
            found.append(f"{room} imports {inner}")
        if top in LIBRARIES and room not in LIBRARIES[top]:
            found.append(f"{room} imports {top}")
    return found


@pytest.mark.parametrize("path", sorted((ROOT / "smilevae").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_every_room_keeps_to_its_imports(path: Path):
    assert violations(path.stem, path.read_text()) == []


ANALYSIS = {"smilevae", "smilevae.runs", "smilevae.models.linear", "multirun_analysis"}
ANALYSIS_LIBRARIES = {"pandas", "matplotlib", "numpy", "scipy", "jinja2", "PIL"}


@pytest.mark.parametrize("path", sorted((ROOT / "multirun_analysis").glob("*.py")), ids=lambda p: p.stem)
def test_the_analysis_knows_run_folders_only(path: Path):
    for name in imports(path.read_text()):
        top = name.partition(".")[0]
        if top in ("smilevae", "multirun_analysis"):
            assert ".".join(name.split(".")[:2]) in ANALYSIS | {"smilevae.ConfigError", "smilevae.UserError"} or (
                top == "multirun_analysis"
            ), name
        else:
            assert top in ANALYSIS_LIBRARIES or top in sys.stdlib_module_names, name


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("losses", "import pytorch_lightning as pl"),
        ("losses", "from smilevae.models.vae import VAE"),
        ("vae", "from smilevae import latents, runs"),
        ("runs", "def f():\n    import torch"),
        ("datasets", "from omegaconf import DictConfig"),
        ("knobs", "from smilevae import runs"),
    ],
)
def test_the_check_can_fail(room, source):
    assert violations(room, source)


def test_the_record_and_the_help_wait_for_no_torch():
    code = "import sys, smilevae.runs, smilevae.console, train, evaluate; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


HOSTS = {"127.0.0.1", "keepachangelog.com", "semver.org", "www.w3.org", "example.org"}


def test_every_address_in_the_project_is_meant_to_be_there():
    """No registry, no machine of somebody's, no address that a run would fetch from."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = set()
    for name in filter(None, tracked.stdout.split("\0")):
        with contextlib.suppress(UnicodeDecodeError, FileNotFoundError):  # pictures; files being renamed
            found |= set(re.findall(r"https?://([\w.-]+)", (ROOT / name).read_text()))
    assert found - HOSTS == set()
    assert "semver.org" in found


def test_the_scripts_are_short():
    for name in ("train.py", "evaluate.py"):
        assert len((ROOT / name).read_text().splitlines()) < 90
