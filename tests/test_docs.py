"""README and docs: the table of knobs, links, command lines, and the files of the tree.

`python tests/test_docs.py` writes the table of knobs into docs/knobs.md.
"""

import inspect
import json
import pkgutil
import re
import shlex
from pathlib import Path

import pytest
import yaml

from smilevae import config, console
from smilevae.cli import COMMANDS
from smilevae.errors import UserError, allowed
from smilevae.sweeps.options import SweepOptions, parse

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
]
KNOBS = ROOT / "docs" / "knobs.md"
BEGIN, END = "<!-- knobs: begin -->\n", "<!-- knobs: end -->"
SCRIPTS = {
    "python train.py": "train",
    "python evaluate.py": "evaluate",
    "python -m multirun_analysis": "analyse",
}
START = re.compile(r"(?:uv run )?((?:python|smilevae|tensorboard|pip)\b.*)")
SWEEPERS = ("resumable", "optuna")
FLAGS, WITH_VALUE = {"-m", "--help", "--hydra-help", "..."}, {"--config-dir", "-sc"}


def table() -> str:
    """The settings as a Markdown table."""
    lines = ["| knob | default | values | |", "|---|---|---|---|"]
    for name, field in config.FIELDS.items():
        default = field.default if isinstance(field.default, str) else json.dumps(field.default)
        default = "" if field.default is None else f"`{default}`"
        lines.append(f"| `{name}` | {default} | {allowed(field)} | {field.description} |")
    return "\n".join(lines)


def fresh(text: str) -> str:
    """The page of the knobs with the table that the settings give now."""
    before, _, rest = text.partition(BEGIN)
    return f"{before}{BEGIN}{table()}\n{END}{rest.partition(END)[2]}"


def commands(text: str) -> list[str]:
    """The command lines of a page, of code blocks and within sentences, without $ and comments."""
    blocks = [
        line.strip().removeprefix("$ ") for line in text.splitlines() if line.startswith("    ")
    ]
    inline = re.findall(r"`([^`\n]+)`", re.sub(r"^    .*$", "", text, flags=re.M))
    lines = [match[1] for line in blocks + inline if (match := START.match(line))]
    return [part.strip() for line in lines for part in line.split("&&")]


def problem(command: str) -> str | None:
    """Why a command of the docs cannot work; None if it can, or if it is another program's."""
    for script, name in SCRIPTS.items():
        command = re.sub(rf"^{re.escape(script)}\b", f"smilevae {name}", command)
    program, *words = shlex.split(command, comments=True)
    if program != "smilevae" or words in ([], ["--help"]):
        return None
    name, *words = words
    if name == "train":
        return train_problem(words)
    if name not in COMMANDS:
        return f"{name} is not a command"
    options = pkgutil.resolve_name(COMMANDS[name][0])
    rest = "folders" if name == "analyse" else None
    given = {word.partition("=")[0] for word in words}
    required = [
        key
        for key, field in options.model_fields.items()
        if field.is_required() and key not in given
    ]
    if words == ["--help"]:
        return None
    try:  # a sentence may show one option alone
        console.parse_words(
            [*words, *("X" if key == rest else f"{key}=X" for key in required)], options, rest
        )
    except UserError as error:
        return str(error)
    return None


def train_problem(words: list[str]) -> str | None:
    """Why these words are wrong: an unknown knob, group or flag, or a value out of range."""
    remaining = iter(words)
    for word in remaining:
        if word in WITH_VALUE:
            next(remaining)
        elif word not in FLAGS:
            name, equals, value = word.lstrip("+").partition("=")
            reason = knob_problem(name, value) if equals else "not key=value"
            if reason:
                return f"{word}: {reason}"
    return None


def knob_problem(name: str, value: str) -> str | None:
    """Why a knob or its value is wrong; words in capitals stand for a value of the user."""
    group = ROOT / "conf" / name
    if group.is_dir():
        values = value.split(",")
        known = {path.stem for path in group.glob("*.yaml")}
        return None if value.isupper() or set(values) <= known else f"{name} has {sorted(known)}"
    if name == "hydra/sweeper":
        return None if value in SWEEPERS else f"the docs name {SWEEPERS}"
    if name.startswith(("hydra.", "trainer.")) or name == "retry_failed":
        return None
    if name.startswith("sweep."):
        try:
            parse(False, {"halving": 3, name.removeprefix("sweep."): yaml.safe_load(value)})
            return None
        except UserError as error:
            return str(error)
    if name not in config.FIELDS:
        return "not a knob"
    if name.startswith("data.") or value.isupper() or "(" in value:
        return None
    try:
        for part in value.split(","):
            config.Settings().with_values({name: yaml.safe_load(part)})
    except UserError as error:
        return str(error)
    return None


def named_files(text: str) -> list[str]:
    """The files and folders that the tree of README's "Where things live" names."""
    tree = re.search(r"^## Where things live\n((?:    .*\n)+)", text, re.M)
    assert tree
    paths, outer = [], ""
    for line in tree[1].splitlines():
        inside = line.startswith("      ")
        first, *rest = line.split()
        if not inside:
            outer = first
        start = outer if inside else ""
        paths.append(start + first)
        folder = start + first if first.endswith("/") else start
        for word in (word.strip("(),;:") for word in rest):
            if re.fullmatch(r"[\w/.-]+\.(py|ya?ml|md|ipynb|html)", word) or re.fullmatch(
                r"\w+/", word
            ):
                paths.append(word if "/" in word.rstrip("/") else folder + word)
    return paths


def test_table_of_knobs_is_fresh():
    text = KNOBS.read_text()
    assert text == fresh(text), "docs/knobs.md is old: run python tests/test_docs.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_resolve(page: Path):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if "://" not in link and not (
            target.exists() and (not anchor or anchor in anchors(target.read_text()))
        ):
            broken.append(link)
    assert broken == []


def anchors(text: str) -> set[str]:
    """The anchors that a forge gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_use_options_that_exist(page: Path):
    assert [
        (line, reason) for line in commands(page.read_text()) if (reason := problem(line))
    ] == []


def test_a_wrong_command_line_is_noticed():
    text = "    $ python train.py batch=3   # no\n    smilevae train beta=-1\n"
    text += "`smilevae photo shine=2` and `smilevae train data=cats`"
    assert [bool(problem(command)) for command in commands(text)] == [True] * 4


def test_recipes_begin_with_a_command_that_works():
    for path in (ROOT / "conf").rglob("*.yaml"):
        lines = [
            line.lstrip("# ")
            for line in path.read_text().splitlines()
            if line.startswith("# python train.py")
        ]
        for line in lines:
            assert problem(re.split(r"  +", line)[0]) is None, path


def test_every_option_of_every_command_is_in_the_docs():
    text = "".join(page.read_text() for page in PAGES)
    for target, _ in COMMANDS.values():
        options = pkgutil.resolve_name(target)
        assert inspect.getdoc(options)
        assert [
            name for name in options.model_fields if name != "folders" and f"{name}=" not in text
        ] == []
    assert [name for name in SweepOptions.model_fields if f"sweep.{name}=" not in text] == []


def test_files_in_the_tree_of_the_readme_exist():
    paths = named_files((ROOT / "README.md").read_text())
    assert len(paths) > 40
    assert [path for path in paths if not (ROOT / path).exists()] == []


if __name__ == "__main__":
    KNOBS.write_text(fresh(KNOBS.read_text()))
