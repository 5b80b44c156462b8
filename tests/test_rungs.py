"""The analysis of sweeps with rungs, and of runs of several programs."""

import json

import pandas as pd
import pytest
import yaml
from test_analysis import run_analysis, write_run

from multirun_analysis import collect, rank, rungs
from smilevae.config import Settings


def line(epoch: int, nelbo: float) -> dict:
    metrics = dict.fromkeys(collect.METRICS, 1.0) | {"val/loss": nelbo, "val/nelbo": nelbo, "val/psnr": -nelbo}
    return {"epoch": epoch} | metrics


@pytest.fixture
def halved(tmp_path):
    """Four runs to epoch 2, the best two to epoch 6. `late` becomes the best only after the first rung."""
    values = {"a": (1, [9, 8, 3, 3, 3, 3]), "b": (2, [9, 7, 6, 5, 5, 5]), "late": (3, [9, 9.5]), "d": (4, [8.5, 8.6])}
    for name, (beta, nelbo) in values.items():
        folder = tmp_path / name
        if len(nelbo) == 6:
            write_run(folder, nelbo=nelbo[-1], epochs=6, beta=beta)
        else:
            folder.mkdir()
            (folder / "config.yaml").write_text(
                yaml.safe_dump(Settings().with_values({"beta": beta, "image_size": 64}).plain())
            )
            (folder / "status.json").write_text('{"status": "PAUSED", "reason": "after epoch 2 of 6"}')
            (folder / "data_card.json").write_text('{"fingerprint": "f"}')
        lines = [json.dumps(line(epoch, value)) for epoch, value in enumerate(nelbo, 1)]
        (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    jobs = {name: {"overrides": [], "settings": {}} for name in values}
    (tmp_path / "sweep.json").write_text(json.dumps({"rungs": [[2, 4], [6, 2]], "jobs": jobs}))
    return tmp_path


def test_a_paused_run_is_named_with_its_place_and_effects_are_those_of_the_first_rung(halved, capsys):
    assert run_analysis(halved) == 0
    printed = capsys.readouterr().out
    assert "4 runs: 2 completed, 2 paused" in printed
    assert "Rungs: 4 settings to epoch 2, 2 settings to epoch 6; 2 runs are paused." in printed
    page = (halved / "analysis" / "index.html").read_text()
    assert "after epoch 2: place 4 of 4 settings by val/nelbo; the best 2, now or by their trend, go on" in page
    assert "after epoch 2: place 3 of 4 settings" in page
    first = rungs.after(collect.collect([halved]), 2)
    assert dict(zip(first.runs["run"], first.runs["val/nelbo"])) == {"a": 8, "b": 7, "late": 9, "d": 8.5}
    assert first.swept == ["beta"]
    effects = {e.level: e.difference for e in rank.effects(first, ("val/nelbo",))}
    assert effects == {2: -1, 3: 1, 4: 0.5}
    top = json.loads((halved / "analysis" / "top.json").read_text())["top"]
    assert [entry["run"] for entry in top] == ["a", "b"]


def test_a_rung_takes_the_best_epoch_by_val_loss_as_a_run_does(halved):
    losses = [3, 1, 2]
    lines = [line(epoch, nelbo) | {"val/loss": loss} for epoch, (nelbo, loss) in enumerate(zip([5, 9, 7], losses), 1)]
    (halved / "a" / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    for epochs, expected in {1: 5, 2: 9, 3: 9}.items():
        reached = rungs.after(collect.collect([halved]), epochs).runs.set_index("run")
        assert reached.loc["a", "val/nelbo"] == expected


def test_the_place_of_a_paused_run_is_that_of_its_setting(halved, capsys):
    """The best run of a setting of two seeds is paused with its setting, whose mean is last."""
    for seed, nelbo in {0: 1.0, 1: 99.0}.items():
        folder = halved / f"e{seed}"
        folder.mkdir()
        own = Settings().with_values({"beta": 5, "image_size": 64, "seed": seed}).plain()
        (folder / "config.yaml").write_text(yaml.safe_dump(own))
        (folder / "status.json").write_text('{"status": "PAUSED", "reason": "after epoch 2 of 6"}')
        (folder / "data_card.json").write_text('{"fingerprint": "f"}')
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line(epoch, nelbo)) + "\n" for epoch in (1, 2)))
    assert run_analysis(halved) == 0
    reasons = pd.read_csv(halved / "analysis" / "runs.csv").set_index("run")["reason"]
    assert {reasons["e0"], reasons["e1"]} == {
        "after epoch 2: place 5 of 5 settings by val/nelbo; the best 2, now or by their trend, go on"
    }


def test_a_damaged_plan_has_no_rungs(halved):
    for content in ("{", '{"rungs": 3}', '{"rungs": [[1], "x"]}'):
        (halved / "sweep.json").write_text(content)
        assert rungs.of(halved) == []
    assert run_analysis(halved) == 0


def test_runs_of_two_programs_are_named(tmp_path, capsys):
    for name, code in {"a": "1111", "b": "2222", "c": "1111 2222"}.items():
        result = write_run(tmp_path / name, beta=1) / "result.json"
        result.write_text(json.dumps(json.loads(result.read_text()) | {"code": code}))
    assert run_analysis(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "trained by different programs" in printed
    assert "1111: a; 2222: b; 1111 then 2222: c." in printed
    write_run(tmp_path / "one" / "x")
    assert run_analysis(tmp_path / "one") == 0
    assert "different programs" not in capsys.readouterr().out
