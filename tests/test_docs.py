"""README and docs: the table of knobs, links, command lines, and the files of the tree.

`python tests/test_docs.py` writes the table of knobs into docs/knobs.md.
"""

import inspect
import json
import pkgutil
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from smilevae import config, console
from smilevae.cli import COMMANDS
from smilevae.errors import UserError, allowed
from smilevae.plugins import loading
from smilevae.sweeps.options import SweepOptions, parse

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
SCRIPTS = {
    "python train.py": "smilevae train",
    "python evaluate.py": "smilevae evaluate",
    "python -m multirun_analysis": "smilevae analyse",
}
START = re.compile(r"(?:uv run )?((?:python|smilevae|tensorboard|pip)\b.*)")
OF_THE_EXAMPLE = ("model.hidden", "objective.gamma")  # knobs of docs/extend.md
FLAGS = {"-m", "--hydra-help", "--config-dir", "FOLDER", "..."}
FILE = re.compile(r"[\w/.-]+\.(py|ya?ml|md|ipynb|html)|\w+/")


def knobs() -> str:
    """The settings as a Markdown table."""
    lines = ["| knob | default | values | |", "|---|---|---|---|"]
    for name, field in config.FIELDS.items():
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        default = "" if field.default is None else f"`{default}`"
        values = allowed(field.annotation, field.metadata)
        lines.append(f"| `{name}` | {default} | {values} | {field.description} |")
    return "\n".join(lines)


def objectives() -> str:
    """The objectives as a Markdown table."""
    lines = ["| objective | minimises | knobs |", "|---|---|---|"]
    for name, objective in loading.choices("objective").items():
        first = inspect.getdoc(objective).partition("\n")[0]
        knobs = [f"`{k}={getattr(objective(), k)}`" for k in objective.model_fields if k != "name"]
        first = first.replace("|", "\\|")
        lines.append(f"| `{name}` | {first} | {', '.join(knobs)} |")
    return "\n".join(lines)


def fresh(text: str, name: str, table: Callable[[], str]) -> str:
    """A page with the table that the settings give now."""
    begin = f"<!-- {name}: begin -->\n"
    end = f"<!-- {name}: end -->\n"
    before, _, rest = text.partition(begin)
    return f"{before}{begin}{table()}\n{end}{rest.partition(end)[2]}"


TABLES = {"knobs.md": ("knobs", knobs), "extend.md": ("objectives", objectives)}


def commands(text: str) -> list[str]:
    """The command lines of a page, of code blocks and within sentences, without $ and comments."""
    blocks = re.findall(r"^    +(?:\$ )?(.*)$", text, re.M)
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^    .*$", "", text, flags=re.M))
    lines = [match[1] for line in blocks + inline if (match := START.match(line))]
    return [part.strip() for line in lines for part in line.split("&&")]


def problem(command: str) -> str | None:
    """Why a command of the docs cannot work; None if it can, or if it is another program's."""
    for script, name in SCRIPTS.items():
        command = re.sub(rf"^{re.escape(script)}\b", name, command)
    program, *words = [
        word for word in shlex.split(command, comments=True) if word not in ("--help", "--version")
    ]
    if program != "smilevae" or not words:
        return None
    name, *words = words
    if name == "train":
        return next((reason for word in words if (reason := knob_problem(word))), None)
    if name not in COMMANDS:
        return f"{name} is not a command"

    words = [word for word in words if not word.startswith("plugin=")]  # of every command

    # A sentence may show one option alone: the others that are required are added.
    options = pkgutil.resolve_name(COMMANDS[name][0])
    rest = "folders" if name == "analyse" else None
    given = {word.partition("=")[0] for word in words}
    for key, field in options.model_fields.items():
        if field.is_required() and key not in given:
            words.append("X" if key == rest else f"{key}=X")
    try:
        console.parse_words(words, options, rest)
    except UserError as error:
        return str(error)
    return None


def knob_problem(word: str) -> str | None:
    """Why a word after `train` is wrong; values in capitals stand for those of the user."""
    name, equals, value = word.lstrip("+").partition("=")
    if not equals:
        return None if word in FLAGS else f"{word} is not key=value"
    choices = {path.stem for path in (ROOT / "conf" / name).glob("*.yaml")}
    if name in config.OPEN:
        known = {*loading.choices(name), "dense", "sparse", "pets"}
        return None if value in known else f"{name} has {sorted(known)}"
    if name.startswith(("callbacks.", "logger.", "optimizer.")) or name in OF_THE_EXAMPLE:
        return None
    if name == "hydra/sweeper":
        choices = {"resumable", "optuna"}
    if choices:
        known = value.isupper() or choices.issuperset(value.split(","))
        return None if known else f"{word}: {name} has {sorted(choices)}"
    if name.startswith(("hydra.", "trainer.")) or name == "retry_failed":
        return None
    try:
        if name.startswith("sweep."):
            parse(False, {"halving": 3, name.removeprefix("sweep."): yaml.safe_load(value)})
        elif name not in config.FIELDS | loading.knobs():
            return f"{name} is not a knob"
        elif name in config.FIELDS and not (
            name.startswith("data.") or value.isupper() or "(" in value
        ):
            for part in value.split(","):
                config.Settings().with_values({name: yaml.safe_load(part)})
    except UserError as error:
        return str(error)
    return None


@pytest.mark.parametrize("page", TABLES)
def test_tables_are_fresh(page: str):
    text = (ROOT / "docs" / page).read_text()
    assert text == fresh(text, *TABLES[page]), f"{page} is old: run python tests/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" in link or (target.exists() and not anchor):
            continue
        if not target.exists() or anchor not in anchors(target.read_text()):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_a_page_has_a_picture(page: Path):
    assert re.search(r"^(!\[\S.+\]\(.+\)|```mermaid)$", page.read_text(), re.M)


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_use_options_that_exist(page: Path):
    lines = commands(page.read_text())
    assert [(line, reason) for line in lines if (reason := problem(line))] == []


def test_a_wrong_command_line_is_noticed():
    text = "    $ python train.py batch=3   # no\n    smilevae train beta=-1\n"
    text += "`smilevae photo shine=2` and `smilevae train data=cats`"
    assert [bool(problem(command)) for command in commands(text)] == [True] * 4


def test_recipes_begin_with_a_command_that_works():
    for path in (ROOT / "conf").rglob("*.yaml"):
        for line in re.findall(r"^# (python train\.py.*?)(?:  .*)?$", path.read_text(), re.M):
            assert problem(line) is None, path


def test_every_option_of_every_command_is_in_the_docs():
    text = "".join(page.read_text() for page in PAGES)
    for target, _ in COMMANDS.values():
        options = pkgutil.resolve_name(target)
        assert inspect.getdoc(options)
        names = options.model_fields.keys() - {"folders"}
        assert [name for name in names if f"{name}=" not in text] == []
    assert [name for name in SweepOptions.model_fields if f"sweep.{name}=" not in text] == []


def test_files_in_the_tree_of_the_readme_exist():
    tree = re.search(r"^## Where things live\n((?:    .*\n)+)", PAGES[0].read_text(), re.M)
    paths = []
    for line in tree[1].splitlines():
        first, *rest = line.split()
        if line.startswith("      "):
            first = f"smilevae/{first}"
        paths.append(first)
        folder = first[: first.rfind("/") + 1]
        for word in (word.strip("(),;:") for word in rest):
            if FILE.fullmatch(word):
                paths.append(word if "/" in word.rstrip("/") else folder + word)
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


if __name__ == "__main__":
    for page, (name, table) in TABLES.items():
        path = ROOT / "docs" / page
        path.write_text(fresh(path.read_text(), name, table))
