"""The differences between two runs."""

import json
import math

import pytest
import yaml
from test_analysis import HOSTILE, run_analysis, write_run

from smilevae.config import Settings


def test_a_diff_names_what_differs_and_nothing_else(tmp_path, capsys):
    more = {"machine": "Linux", "versions": {"torch": "2.1"}, "code": "abc"}
    one = write_run(tmp_path / "one", beta=1, more=more)
    more = {"machine": "Linux", "versions": {"torch": "2.2"}}
    two = write_run(tmp_path / "two", beta=10, psnr=21.5, faces=HOSTILE, more=more)
    assert run_analysis("diff", one, two) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["one", "two"]
    start = title.index("one")
    rows = [(line[:start].strip(), *line[start:].split()) for line in lines]
    assert rows == [
        ("settings beta", "1", "10"),
        ("code code", '"abc"', "-"),
        ("data data_fingerprint", '"f"', f'"{HOSTILE}"'),
        ("versions torch", '"2.1"', '"2.2"'),
        ("metrics val/kl", "50.0", "9.090909090909092"),
        ("metrics val/psnr", "20.0", "21.5"),
    ]
    assert run_analysis("diff", one, f"{one}/") == 0
    groups = "settings, status, code, data, versions, machine, metrics, cost"
    assert f"equal in all of {groups}" in capsys.readouterr().out


def test_a_run_without_a_result_is_compared_by_its_settings_and_epochs(tmp_path, capsys):
    for name, epochs in {"one": 3, "two": 5}.items():
        path = write_run(tmp_path / name, epochs=epochs)
        (path / "result.json").unlink()
        (path / "status.json").write_text('{"status": "INTERRUPTED"}')
        (path / "config.yaml").write_text(yaml.safe_dump(Settings(epochs=epochs).plain()))
    assert run_analysis("diff", tmp_path / "one", tmp_path / "two") == 0
    printed = capsys.readouterr().out
    assert "settings epochs" in printed
    assert "metrics epoch" in printed
    assert "status" not in printed


LONG = "/data/" + "x" * 57
PAIRS = {  # and whether they are equal
    "whole numbers": (1, 1.0, True),
    "not a number": (math.nan, math.nan, True),
    "lists": ([1, {"a": 2}], [1.0, {"a": 2.0}], True),
    "a float": (0.002, 0.0020000001, False),
    "a text": (f"{LONG}/set-one", f"{LONG}/set-two", False),
    "a list": ([1, 2, [0.1]], [1, 2, [0.1 + 1e-12]], False),
    "a number and a text": (1, "1", False),
    "a number and true": (1, True, False),
    "a text and nothing": ("none", None, False),
    "control characters": ("a\x01", "a\x02", False),
}


@pytest.mark.parametrize("place", ["settings", "versions", "best"])
@pytest.mark.parametrize(("one", "two", "equal"), PAIRS.values(), ids=PAIRS)
def test_a_diff_compares_and_shows_whole_values(tmp_path, one, two, equal, place, capsys):
    folders = []
    for name, value in {"one": one, "two": two}.items():
        folders.append(write_run(tmp_path / name, more={"versions": {}}))
        result = json.loads((folders[-1] / "result.json").read_text())
        result[place]["entry"] = value
        (folders[-1] / "result.json").write_text(json.dumps(result))
    assert run_analysis("diff", *folders) == 0
    printed = capsys.readouterr().out
    if equal:
        assert "the two runs are equal in all of" in printed
        return
    title, row = printed.splitlines()
    shown = [row[title.index("one") : title.index("two")], row[title.index("two") :]]
    assert list(map(json.loads, shown)) == [one, two]


def test_a_diff_knows_the_trainer_s_settings(tmp_path, capsys):
    for name, clip in {"one": 1.0, "two": 500.0}.items():
        write_run(tmp_path / name)
        settings = Settings.model_validate({"trainer": {"gradient_clip_val": clip}})
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings.plain()))
    assert run_analysis("diff", tmp_path / "one", tmp_path / "two") == 0
    row = capsys.readouterr().out.splitlines()[1]
    assert row.split() == ["settings", "trainer.gradient_clip_val", "1.0", "500.0"]


@pytest.mark.parametrize(
    "words", [["diff"], ["diff", "a"], ["diff", "a", "b", "c"], ["diff", "docs", "tests"]]
)
def test_a_diff_of_anything_but_two_runs_is_one_sentence(words, capsys):
    assert run_analysis(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "diff RUN RUN" in line or "not a run folder" in line
