"""Who may import whom: the order of the rooms, and where a heavy library may be named."""

import ast
import contextlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import ROOT

# a file imports its own room and the rooms before it, lazy imports included
ROOMS = (
    *("errors", "plugins", "config", "console", "models", "data", "runs"),
    *("editing", "evaluation", "training", "apps", "sweeps", "cli", "testing", "__main__"),
)
FILES = sorted((ROOT / "smilevae").rglob("*.py"))
HYDRA = ("console", "cli")  # console names its errors
LIGHTNING = ("training",)
NO_TORCH = (  # as modules, with all that they import
    *(
        "smilevae",
        "smilevae.cli",
        "smilevae.runs",
        "smilevae.models.linear",
        "smilevae.models.objectives",
        "smilevae.models.architectures",
        "smilevae.data.sources",
        "smilevae.evaluation.measures",
        "smilevae.sweeps.plan",
    ),
    *(
        "smilevae.sweeps.jobs",
        "smilevae.sweeps.watch",
        "smilevae.evaluation.options",
        "smilevae.apps.options",
    ),
    "multirun_analysis.report",
)


def imports(source: str) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(room: str, source: str) -> list[str]:
    problems = []
    for name in imports(source):
        top, *rest = name.split(".")
        if top == "smilevae" and rest[0] in ROOMS and ROOMS.index(rest[0]) > ROOMS.index(room):
            problems.append(f"{room} imports {rest[0]}, which comes after it")
        if top in ("hydra", "omegaconf") and room not in HYDRA:
            problems.append(f"{room} imports {top}")
        if top in ("pytorch_lightning", "lightning_fabric") and room not in LIGHTNING:
            problems.append(f"{room} imports {top}")
        if top in ("multirun_analysis", "hydra_plugins") and room != "cli":
            problems.append(f"{room} imports {top}")
    return problems


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "smilevae").parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_file_imports_downwards_only(path: Path):
    room = room_of(path)
    if room != "__init__":
        assert room in ROOMS
        assert violations(room, path.read_text()) == []


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("models", "import pytorch_lightning as pl"),
        ("models", "from smilevae.data.batches import gather"),
        ("runs", "def f():\n    from smilevae import training"),
        ("data", "from omegaconf import DictConfig"),
        ("console", "from smilevae.runs import Run"),
        ("evaluation", "from multirun_analysis import rank"),
    ],
)
def test_the_check_can_fail(room, source):
    assert violations(room, source)


def test_no_file_imports_itself_through_others():
    """No circle among files, lazy imports included."""
    modules = {
        ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
        for p in FILES
    }
    graph = {}
    for name, path in modules.items():
        targets = {n if n in modules else n.rpartition(".")[0] for n in imports(path.read_text())}
        graph[name] = {target for target in targets if target in modules and target != name}

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(graph[start])
        while todo:
            if (name := todo.pop()) not in seen:
                seen.add(name)
                todo += graph[name]
        return seen

    assert [name for name in graph if name != "smilevae" and name in reach(name)] == []


# Lines of code a room has at most. A new capability pays for its lines.
BUDGETS = {
    **{"errors": 120, "plugins": 479, "config": 256, "console": 154, "cli": 213, "__init__": 30},
    **{"models": 878, "data": 1289, "runs": 1117, "editing": 1195, "evaluation": 1952},
    **{"training": 1530, "apps": 863, "sweeps": 1183, "testing": 177, "__main__": 6},
    **{"hydra_plugins": 344, "multirun_analysis": 1248},
}


def test_every_room_keeps_its_line_budget():
    lines = dict.fromkeys(BUDGETS, 0)
    folders = [ROOT / "hydra_plugins", ROOT / "multirun_analysis"]
    others = [path for folder in folders for path in folder.glob("*.py")]
    for path in [*FILES, *others]:
        room = room_of(path) if path in FILES else path.parent.name
        lines[room] += len(path.read_text().splitlines())
    assert {room: num for room, num in lines.items() if num > BUDGETS[room]} == {}


def test_rooms_are_few_and_files_are_short():
    entries = {p.name for p in (ROOT / "smilevae").iterdir()} - {"__init__.py", "__pycache__"}
    assert len(entries) <= 15
    long = {p.name for p in FILES if len(p.read_text().splitlines()) > 300}
    assert long <= {"synthetic.py"}


def test_settings_are_never_an_untyped_dict():
    for path in FILES:
        assert not re.search(r"settings: (dict|Mapping)\[str, Any\]", path.read_text()), path


ANALYSIS = tuple(
    f"smilevae.{name}" for name in ("errors", "config", "runs", "models", "console", "__version__")
)
ANALYSIS_LIBRARIES = {"pandas", "matplotlib", "numpy", "scipy", "jinja2", "PIL", "pydantic"}


@pytest.mark.parametrize(
    "path", sorted((ROOT / "multirun_analysis").glob("*.py")), ids=lambda p: p.stem
)
def test_the_analysis_knows_run_folders_only(path: Path):
    for name in imports(path.read_text()):
        top = name.partition(".")[0]
        if top == "smilevae":
            assert name.startswith(ANALYSIS), name
        else:
            assert (
                top in ANALYSIS_LIBRARIES | {"multirun_analysis"} or top in sys.stdlib_module_names
            ), name


def test_these_wait_for_no_torch():
    code = f"import sys, importlib\nfor name in {NO_TORCH}:\n    importlib.import_module(name)\n"
    code += "    assert 'torch' not in sys.modules, name"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


HOSTS = {"127.0.0.1", "arxiv.org", "keepachangelog.com", "semver.org", "www.w3.org", "example.org"}


def test_every_address_in_the_project_is_meant_to_be_there():
    """No registry, no machine of somebody's, no address that a run would fetch from."""
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    found = set()
    for name in filter(None, tracked.stdout.split("\0")):
        # Pictures, and files that are being renamed, are left out.
        with contextlib.suppress(UnicodeDecodeError, FileNotFoundError):
            found |= set(re.findall(r"https?://([\w.-]+)", (ROOT / name).read_text()))
    assert found - HOSTS == set()
    assert "semver.org" in found


def test_the_doors_are_short():
    for name in ("train.py", "evaluate.py"):
        assert len((ROOT / name).read_text().splitlines()) < 20


def test_the_wheel_holds_every_folder_of_the_program():
    listed = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    )
    folders = {path.parent for path in FILES} | {p.parent for p in (ROOT / "conf").rglob("*.yaml")}
    wanted = {".".join(folder.relative_to(ROOT).parts) for folder in folders}
    wanted = {f"smilevae.{name}" if name.startswith("conf") else name for name in wanted}
    assert wanted - listed == set()
    paths = [
        Path(*name.removeprefix("smilevae.conf.").split(".")) for name in listed if ".conf." in name
    ]
    assert all((ROOT / "conf" / path).is_dir() for path in paths)
