"""The analysis of sweeps with rungs."""

import json

import pytest
import yaml
from test_analysis import analyse, page_of, run_analysis, write_metrics, write_run  # noqa: F401

from multirun_analysis import collect, rungs
from multirun_analysis.effects import effects
from smilevae.config import Settings


def metrics(nelbo: float) -> dict:
    ones = dict.fromkeys(collect.METRICS, 1.0)
    return ones | {"val/loss": nelbo, "val/nelbo": nelbo, "val/psnr": -nelbo}


def write_paused(folder, nelbo: list[float], **knobs) -> None:
    """A run that is paused after epoch 2."""
    folder.mkdir()
    settings = Settings().with_values({"image_size": 64} | knobs).plain()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
    (folder / "status.json").write_text('{"status": "PAUSED", "reason": "after epoch 2 of 6"}')
    (folder / "data_card.json").write_text('{"fingerprint": "f"}')
    write_metrics(folder, {epoch: metrics(value) for epoch, value in enumerate(nelbo, 1)})


@pytest.fixture
def halved(tmp_path):
    """Four runs to epoch 2, the best two to epoch 6. `late` is the best only after epoch 2."""
    for name, beta, nelbo in [("a", 1, [9, 8, 3, 3, 3, 3]), ("b", 2, [9, 7, 6, 5, 5, 5])]:
        folder = write_run(tmp_path / name, nelbo=nelbo[-1], epochs=6, beta=beta)
        write_metrics(folder, {epoch: metrics(value) for epoch, value in enumerate(nelbo, 1)})
    write_paused(tmp_path / "late", [9, 9.5], beta=3)
    write_paused(tmp_path / "d", [8.5, 8.6], beta=4)
    jobs = {name: {"overrides": [], "settings": {}} for name in ("a", "b", "late", "d")}
    (tmp_path / "sweep.json").write_text(json.dumps({"rungs": [[2, 4], [6, 2]], "jobs": jobs}))
    return tmp_path


def test_a_paused_run_has_its_place_and_effects_are_those_of_the_first_rung(
    halved,
    analyse,  # noqa: F811
):
    printed, top, _ = analyse(halved)
    assert "4 runs, 2 completed, 2 paused" in printed
    assert "Successive halving trained 4 configurations: 4 to epoch 2, 2 to epoch 6." in printed
    reasons = {run["run"]: run["reason"] for run in top["unfinished"]}
    assert reasons["late"] == (
        "after epoch 2: place 4 of 4 configurations by val/nelbo; the best 2, now or by their"
        " trend, go on"
    )
    assert "after epoch 2: place 3 of 4 configurations" in reasons["d"]
    assert reasons["late"] in page_of(halved)
    first = rungs.after(collect.collect([halved]), 2)
    expected = {"a": 8, "b": 7, "late": 9, "d": 8.5}
    assert dict(zip(first.runs["run"], first.runs["val/nelbo"])) == expected
    found = effects(first, ["val/nelbo"])
    assert dict(zip(found["value"], found["change"])) == {2: -1, 3: 1, 4: 0.5}
    assert [own["best_run"] for own in top["configurations"]] == ["a", "b"]


def test_a_rung_takes_the_best_epoch_by_val_loss_as_a_run_does(halved):
    values = {1: (5, 3), 2: (9, 1), 3: (7, 2)}
    write_metrics(
        halved / "a",
        {epoch: metrics(nelbo) | {"val/loss": loss} for epoch, (nelbo, loss) in values.items()},
    )
    for epochs, expected in {1: 5, 2: 9, 3: 9}.items():
        reached = rungs.after(collect.collect([halved]), epochs).runs.set_index("run")
        assert reached.loc["a", "val/nelbo"] == expected


def test_the_place_of_a_paused_run_is_that_of_its_configuration(halved, analyse):  # noqa: F811
    """The best run of a configuration of two seeds is paused with it: its mean is last."""
    for seed, nelbo in {0: 1.0, 1: 99.0}.items():
        write_paused(halved / f"e{seed}", [nelbo, nelbo], beta=5, seed=seed)
    reasons = analyse(halved)[2].set_index("run")["reason"]
    for run in ("e0", "e1"):
        assert reasons[run].startswith("after epoch 2: place 5 of 5 configurations by val/nelbo")


def test_a_damaged_plan_has_no_rungs(halved):
    (halved / "sweep.json").write_text("{")
    assert rungs.of(halved) == []
    assert run_analysis(halved) == 0
