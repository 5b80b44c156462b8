"""The lessons: a guess before each run, outputs of today's program, answers that the notebook checks."""

import os
import re
import resource

import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
LESSONS = sorted((ROOT / "notebooks").glob("[1-6]_*.ipynb"))
SECONDS = 180  # of CPU: another program's load does not count
IN_EVERY_SUITE = "1_collapse"


def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_asks_before_it_runs_and_is_kept_with_its_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    text = "\n".join(cell.source for cell in notebook.cells)
    places = [
        text.index(words) for words in ("## Predict", "guess =", "## Was it right?", "## Read")
    ]
    assert places == sorted(places)
    assert "assert " in text[text.index("## Was it right?") :]
    assert all(cell.execution_count for cell in cells(notebook))
    outputs = [output for cell in cells(notebook) for output in cell.outputs]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    assert not re.search(r"/(home|root|work|Users)/", str(outputs))


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(
            path, id=path.stem, marks=[] if path.stem == IN_EVERY_SUITE else pytest.mark.slow
        )
        for path in LESSONS
    ],
)
def test_a_lesson_runs_in_three_minutes_and_its_answers_are_right(path, monkeypatch, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    place = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=place).execute()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < SECONDS
    assert not [o for cell in cells(notebook) for o in cell.outputs if o.get("name") == "stderr"]


def test_there_are_six():
    assert [path.stem[0] for path in LESSONS] == list("123456")
