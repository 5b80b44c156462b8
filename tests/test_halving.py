"""Sweeps that spend less: rungs, shared epochs, a budget; a program that changes in between."""

import itertools
import json
from pathlib import Path

import pytest
from conftest import slow
from test_sweeps import (
    KILLED,
    SETTINGS,
    assert_equal,
    complete,
    crash_until_done,
    epochs_trained,
    plan,
    results_in,
    statuses,
    sweep,
    table,
    weights,
)

from smilevae import runs
from smilevae.errors import ConfigError
from smilevae.sweeps import claim, halving, next_task, open_queue
from smilevae.sweeps.halving import Halving
from smilevae.sweeps.plan import Plan
from smilevae.sweeps.watch import SPENT

BETAS = "beta=1,2,5,10,20,50"


def epochs(folder: Path, name: str, *nelbo: float) -> None:
    """The metrics of a job that has trained so many epochs."""
    (folder / name).mkdir(parents=True, exist_ok=True)
    lines = [{"epoch": k, "val/loss": v, "val/nelbo": v} for k, v in enumerate(nelbo, start=1)]
    text = "\n".join(map(json.dumps, lines))
    (folder / name / "metrics.jsonl").write_text(text + "\n")


def jobs(num: int, seeds: int = 1, **more: int) -> dict:
    pairs = itertools.product(range(num), range(seeds))
    knobs = {f"{beta}-{seed}": {"beta": beta + 1, "seed": seed} | more for beta, seed in pairs}
    return {name: SETTINGS.with_values(values) for name, values in knobs.items()}


def halve(folder: Path, of: dict, *rungs: tuple[int, int]) -> Halving:
    return Halving(folder, of, rungs=[list(rung) for rung in rungs])


@pytest.mark.parametrize(
    ("num", "length", "factor", "first", "rungs"),
    [
        (36, 40, 3, None, [(5, 36), (15, 12), (40, 4)]),
        (9, 150, 3, None, [(17, 9), (51, 3), (150, 2)]),
        (9, 150, 2, 10, [(10, 9), (20, 5), (40, 3), (150, 2)]),
        (2, 40, 3, None, [(40, 2)]),
        (6, 9, 3, None, [(4, 6), (9, 2)]),
        (5, 4, 3, None, [(4, 5)]),
    ],
)
def test_rungs_grow_by_the_factor_to_the_full_length(num, length, factor, first, rungs):
    planned = halving.plan_rungs(jobs(num, epochs=length), factor, first)
    assert planned == [list(rung) for rung in rungs]


def test_a_rung_is_full_before_the_next_and_takes_the_best(tmp_path):
    rungs = halve(tmp_path, jobs(5), (2, 5), (4, 2))
    assert rungs.left() == [(f"{k}-0", 2) for k in range(5)]
    for k in range(4):
        epochs(tmp_path, f"{k}-0", 11.0 - k, 10.0 - k)
    assert rungs.left() == [("4-0", 2)]
    epochs(tmp_path, "4-0", 9.5, 9.4)
    assert rungs.left() == [("3-0", 4), ("2-0", 4)]  # 7 and 8
    epochs(tmp_path, "3-0", 8.0, 7.0, 50.0, 60.0)  # the best counts, not the last
    (tmp_path / "3-0" / "result.json").write_text("{}")
    assert rungs.left() == [("2-0", 4)]
    held = runs.Run(tmp_path / "2-0")
    assert rungs.left() == []
    held.status("FAILED", "as planned")
    held.close()
    assert rungs.left() == []


@pytest.mark.parametrize("status", ["RUNNING", "INTERRUPTED"])
def test_a_job_that_was_killed_at_the_end_of_a_rung_is_claimed_until_it_pauses(tmp_path, status):
    rungs = halve(tmp_path, jobs(3), (2, 3), (4, 1))
    for k in range(3):
        epochs(tmp_path, f"{k}-0", 11.0 - k, 10.0 - k)
    assert rungs.left() == [("2-0", 4)]
    (tmp_path / "0-0" / "status.json").write_text(json.dumps({"status": status}))
    assert rungs.left() == [("0-0", 2)]
    (tmp_path / "0-0" / "status.json").write_text('{"status": "PAUSED"}')
    assert rungs.left() == [("2-0", 4)]


def test_of_several_jobs_at_a_time_none_waits_and_a_late_better_one_goes_on_too(tmp_path):
    rungs = halve(tmp_path, jobs(4), (2, 4), (4, 1))
    for k in range(3):
        epochs(tmp_path, f"{k}-0", 11.0 - k, 10.0 - k)
    late = runs.Run(tmp_path / "3-0")
    assert rungs.left() == [("2-0", 4)]
    epochs(tmp_path, "3-0", 2.0, 1.0)
    late.close()
    assert rungs.left() == [("3-0", 4)]


def test_a_setting_that_learns_slowly_goes_on_by_its_trend(tmp_path):
    rungs = halve(tmp_path, jobs(4), (4, 4), (9, 1))
    for k, values in enumerate([(9, 9, 9, 8.9), (30, 20, 16, 12), (40, 39, 38, 37), (9, 9, 9, 9)]):
        epochs(tmp_path, f"{k}-0", *values)
    assert rungs.left() == [("0-0", 9), ("1-0", 9)]  # 12 - 8 log(9/4) / log(2) is below 9


@pytest.mark.parametrize(
    ("scores", "first", "second"),
    [
        ((1.0, 1.1, 1.2, 1.7), "0-0 1-0 3-0", "0-0"),  # what is behind is spared once
        ((1.0, 1.5, 1.6, 1.7), "0-0 1-0 2-0 3-0", "0-0"),
        ((1.5, 1.6, 1.7, 1.8), "0-0 1-0 2-0 3-0", "0-0 1-0 2-0 3-0"),  # nobody is ahead
    ],
)
def test_a_rung_drops_only_what_has_learnt_something(tmp_path, scores, first, second):
    """With one pixel and total = 1 the mean face has 0.5 (log(2 pi) + 1) = 1.42 nats."""
    rungs = halve(tmp_path, jobs(4), (2, 4), (4, 2), (8, 1))
    for num, allowed in ((2, first), (4, second)):
        for k, score in enumerate(scores):
            epochs(tmp_path, f"{k}-0", *[score] * num)
            spectrum = tmp_path / f"{k}-0" / "spectrum.json"
            spectrum.write_text('{"total": 1.0, "num_pixels": 1}')
        assert [name for name, _ in rungs.left()] == allowed.split()
    assert rungs.mean_face("0-0") == pytest.approx(1.4189385)
    behind = sum(score > 1.42 for score in scores)
    said = (
        "settings were behind the mean face by val/nelbo; they had learnt nothing yet and went on"
    )
    assert rungs.spared()[0] == f"after epoch 2 {behind} of 4 {said}"
    assert len(rungs.spared()) == 1 + (second == first)


def test_a_rung_ranks_by_the_best_epoch_as_the_table_does(tmp_path):
    """The best epoch has the lowest val/loss; its checkpoint is the one that is kept."""
    rungs = halve(tmp_path, jobs(1), (2, 1))
    (tmp_path / "0-0").mkdir()
    one = '{"epoch": 1, "val/loss": 5, "val/nelbo": 1}'
    two = '{"epoch": 2, "val/loss": 4, "val/nelbo": 3}'
    (tmp_path / "0-0" / "metrics.jsonl").write_text(f"{one}\n{two}\n")
    assert [rungs.score("0-0", epoch) for epoch in (1, 2, 3)] == [1, 3, float("inf")]


def test_a_setting_is_compared_by_its_mean_over_seeds(tmp_path):
    rungs = halve(tmp_path, jobs(3, seeds=2), (2, 3), (4, 1))
    for name, value in {"0-0": 1, "0-1": 9, "1-0": 4, "1-1": 4, "2-0": 5, "2-1": 6}.items():
        epochs(tmp_path, name, value, value)
    assert rungs.left() == [("1-0", 4), ("1-1", 4)]  # 4; the luckiest single run has 1


def test_jobs_that_rungs_cannot_compare_are_refused(tmp_path):
    for knob, value in {"epochs": 5, "image_size": 128}.items():
        other = {"x": SETTINGS.with_values({"epochs": 9, "image_size": 64, knob: value})}
        with pytest.raises(ConfigError, match=rf"give {knob} one value"):
            halving.plan_rungs(jobs(2, epochs=9, image_size=64) | other, 3, None)


# Ahead of the mean face from the start.
WARM = ("warm_start=ppca", "sweep.halving=3", "sweep.first=2")


def test_a_sweep_with_rungs_is_its_best_runs_to_the_bit(tmp_path, train):
    folder = tmp_path / "s"
    done = sweep(folder, BETAS, "epochs=4", *WARM)
    assert "rungs: 6 settings to epoch 2, 2 settings to epoch 4" in done.stdout
    shown = statuses(folder)
    completed = {name for name in shown if shown[name] == "COMPLETED"}
    assert set(shown.values()) == {"COMPLETED", "PAUSED"}
    assert {runs.epochs_done(folder / name) for name in set(shown) - completed} == {2}
    first = {name: open_queue(folder).score(name, 2) for name in shown}
    assert set(sorted(first, key=first.get)[:2]) <= completed
    assert len(completed) <= 4  # two by their scores, two by their trends
    alone = train("beta=1", "epochs=4", "warm_start=ppca")
    (best, *_) = runs.read_result(alone)["checkpoints"]
    assert weights(tmp_path)[f"{alone.name}/{best}"] == weights(folder)[f"beta-1/{best}"]


@slow
def test_rungs_that_decide_nothing_train_everything_and_say_so(tmp_path):
    done = sweep(tmp_path / "s", "beta=1,20,50", "epochs=3", "sweep.halving=3", "sweep.first=2")
    assert set(statuses(tmp_path / "s").values()) == {"COMPLETED"}
    assert "after epoch 2 3 of 3 settings were behind the mean face by val/nelbo" in done.stdout


@slow
def test_new_points_join_the_rungs(tmp_path):
    folder = tmp_path / "s"
    sweep(folder, BETAS, "epochs=4", *WARM)
    more = sweep(folder, "beta=0.5,3", "epochs=4", *WARM)
    assert "8 settings to epoch 2, 3 settings to epoch 4" in more.stdout
    assert len(statuses(folder)) == 8
    assert "NEW" not in statuses(folder).values()
    assert open_queue(folder).left() == []
    again = sweep(folder, BETAS, "epochs=4", *WARM)
    assert "0 to run" in again.stdout


@slow
def test_a_changed_program_is_said_in_every_job_and_once_by_the_sweep(tmp_path):
    folder = tmp_path / "s"
    Plan(folder, code="older").begin()
    warning = f"warning: the program changed during this sweep (older, now {runs.code()})"
    for seeds, times in (("seed=0,1", 1), ("seed=2", 0)):
        done = sweep(folder, seeds, "epochs=1")
        assert done.stdout.count(warning) == times
    assert (folder / "sweep.log").read_text().count(warning) == 1
    for name in statuses(folder):
        assert warning in (folder / name / "train.log").read_text()
        assert runs.read_result(folder / name)["code"] == runs.code()


def test_code_is_a_hash_of_every_source_file(tmp_path, monkeypatch):
    from smilevae.runs import machine

    (tmp_path / "p" / "runs").mkdir(parents=True)
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "p" / "runs" / "machine.py"))
    (tmp_path / "p" / "loss.py").write_text("def loss(): return 1")
    first = machine.code_now()
    (tmp_path / "p" / "notes.txt").write_text("not a program")
    assert machine.code_now() == first
    (tmp_path / "p" / "loss.py").write_text("def loss(): return 2")
    assert machine.code_now() != first


def test_a_run_names_every_program_that_trained_it(tmp_path):
    run = runs.Run(tmp_path)
    run.write_json("status.json", {"status": "INTERRUPTED", "code": "older"})
    run.status("RUNNING")
    run.complete({})
    run.close()
    assert runs.read_result(tmp_path)["code"] == f"older {runs.code()}"


@slow
def test_a_longer_run_begins_with_the_epochs_of_a_shorter_one(tmp_path, train):
    """Three complete folders, each epoch trained once, the same bits as three separate runs."""
    folder = tmp_path / "s"
    sweep(folder, "epochs=3,1,2", "schedule=plateau")
    alone = [train(f"epochs={number}", to=f"alone/epochs-{number}") for number in (1, 2, 3)]
    assert weights(folder) == weights(tmp_path / "alone")
    assert table(folder) == table(tmp_path / "alone")
    trained = 0
    for path in alone:
        trained += len(epochs_trained(folder / path.name))
        ours, theirs = (runs.read_metrics(run) for run in (folder / path.name, path))
        for line in (*ours, *theirs):
            del line["images_per_second"]
        assert ours == theirs
    assert trained == 3


def test_a_job_waits_for_the_job_that_it_begins_with(tmp_path):
    grid = [{"epochs": n, "beta": b, "schedule": "plateau"} for b in (1, 2) for n in (3, 9)]
    grid += [{"epochs": n, "schedule": "cosine"} for n in (3, 9)]  # none is a part of another
    made = plan(tmp_path / "s", *grid)
    short, long, other, _, *cosine = made.jobs
    folder = tmp_path / "s"
    assert [name for name, _ in open_queue(folder).left()] == [*made.jobs]
    held = [claim(folder, "x")[1] for _ in range(4)]
    assert [run.dir.name for run in held] == [short, other, *cosine]
    assert next_task(folder, "x") is None
    for run in held:
        run.write_config(made.jobs[run.dir.name])
        run.complete({})
        run.close()
    assert next_task(folder, "x") == (long, 9)
    assert open_queue(folder).beginning(long) == held[0].dir
    assert open_queue(folder).beginning(cosine[1]) is None


def test_a_job_that_was_resumed_by_hand_is_the_beginning_of_longer_ones_only(tmp_path):
    """Resumed to 4 epochs, it may not give a job of 3 epochs a result of epoch 4."""
    made = plan(tmp_path / "s", *({"epochs": n, "schedule": "plateau"} for n in (1, 3, 4, 5)))
    short, *longer = made.jobs
    resumed = complete(made, short, epochs=4)
    assert [open_queue(tmp_path / "s").beginning(name) for name in longer] == [None, None, resumed]


@slow
def test_a_budget_ends_a_sweep_with_a_page_and_pauses_do_not_count(tmp_path):
    folder = tmp_path / "s"
    words = ("seed=0,1,2", "epochs=4000")
    done = sweep(folder, *words, "sweep.budget=6s")
    assert "sweep.budget=6s is spent" in done.stdout
    seconds = runs.read_json(folder / SPENT)["seconds"]
    assert 6 <= seconds < 6 + 10
    assert (folder / "seed-0" / "checkpoints" / "last.ckpt").exists()
    assert (folder / "analysis" / "index.html").exists()
    assert "pass a larger one" in sweep(folder, *words, "sweep.budget=6s", code=2).stderr
    assert runs.read_json(folder / SPENT)["seconds"] == seconds


@slow
@pytest.mark.parametrize(("kills", "length"), [(2, 60), pytest.param(20, 200, marks=KILLED)])
def test_rungs_survive_kills(tmp_path, kills, length, record_property):
    """One job at a time: the same promotions, weights and table as without a kill."""
    words = (BETAS, *WARM[:2], "seed=0,1", f"epochs={length}", "checkpoint_every=1")
    sweep(tmp_path / "whole", *words, timeout=1500)
    assert set(statuses(tmp_path / "whole").values()) == {"COMPLETED", "PAUSED"}
    crash_until_done(tmp_path / "cut", words, kills, 3, 9)
    assert_equal(tmp_path / "cut", tmp_path / "whole")
    record_property("figure", f"{kills} kills of a sweep with rungs")


@slow
def test_rungs_of_two_jobs_at_a_time_survive_kills(tmp_path):
    """No job is lost, none runs twice, and the files explain every decision."""
    words = (BETAS, *WARM[:2], "epochs=200", "checkpoint_every=1", "hydra/launcher=local")
    crash_until_done(tmp_path / "cut", words, 6, 3, 9)
    shown = statuses(tmp_path / "cut")
    rungs = open_queue(tmp_path / "cut")
    assert set(shown.values()) == {"COMPLETED", "PAUSED"}
    completed = {name for name in shown if shown[name] == "COMPLETED"}
    assert set(rungs.allowed(len(rungs.rungs) - 1)) <= completed
    assert len(completed) <= 2 * rungs.rungs[-1][1] + 1  # by scores and by trends
    for name in completed:
        assert epochs_trained(tmp_path / "cut" / name).count("200") == 1


SPACE = (
    *("beta=tag(log,interval(1,2000))", "latent_dim=interval(4,16)"),
    *("normalize=true,false", "epochs=1"),
)


@slow
def test_a_search_goes_on_with_the_points_that_it_would_have_proposed(tmp_path):
    """Stopped after 4 of 6 points, one of them open: the same six points, none trained twice."""
    pytest.importorskip("optuna")
    cut = tmp_path / "cut"
    sweep(tmp_path / "whole", *SPACE, "sweep.trials=6")
    sweep(cut, *SPACE, "sweep.trials=4")
    last = sorted(cut.glob("trial-*"))[-1]
    log = (cut / "search.log").read_text().splitlines(keepends=True)
    (cut / "search.log").write_text("".join(log[:-1]))  # killed before it was reported
    before = results_in(cut)
    sweep(cut, *SPACE, "sweep.trials=6")
    assert before.items() <= results_in(cut).items()
    assert last / "result.json" in before
    assert table(cut) == table(tmp_path / "whole")
    assert 1 < len(table(cut)) <= 6
    other = sweep(cut, "beta=interval(1,2)", *SPACE[1:], "sweep.trials=6", code=2)
    assert "searched other intervals" in other.stderr
