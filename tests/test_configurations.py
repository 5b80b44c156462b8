"""The ranking of settings against independent computations and simulated sweeps; the differences of two runs."""

import itertools
import json
import math
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, slow
from scipy import stats
from test_analysis import HOSTILE, Page, grid, run_analysis, write_run

from multirun_analysis import collect, rank, settings
from smilevae.config import Settings


def simulated(y, unshared=False) -> collect.Sweep:
    """A sweep of val/psnr values, (settings, splits, seeds); `unshared`: no seed is used twice."""
    knob, split, seed = (axis.ravel() for axis in np.indices(y.shape))
    frame = pd.DataFrame({"knob": knob, "data.split_seed": split, "seed": seed, "val/psnr": y.ravel()})
    frame["seed"] = np.arange(len(frame)) if unshared else seed
    frame = frame.assign(run=[f"r{i}" for i in range(len(frame))], status="completed", data_fingerprint="f")
    return collect.Sweep(frame, ["knob", "data.split_seed", "seed"])


def noisy(rng, num, splits, seeds, split_sd, seed_sd, effects=0.0, shared=True):
    """Values of `num` settings: effects, an effect of each split, and noise of each seed."""
    of_split = rng.normal(0, split_sd, (1 if shared else num, splits, 1))
    return of_split + rng.normal(0, seed_sd, (num, splits, seeds)) + np.reshape(effects, (-1, 1, 1))


def ranked(y, **options):
    return settings.rank_settings(simulated(y, **options), "val/psnr")


@pytest.mark.parametrize("split_sd", [0, 0.3])
@pytest.mark.parametrize(("splits", "seeds"), [(3, 3), (1, 3), pytest.param(5, 2, marks=slow), (4, 1)])
def test_the_interval_of_a_mean_covers_it_in_95_percent_of_simulated_sweeps(splits, seeds, split_sd):
    """2,000 settings of one sweep, each on other splits. One split: the interval is about its own mean."""
    y = noisy(np.random.default_rng(1), 2000, splits, seeds, split_sd if splits > 1 else 0, 0.1, shared=False)
    assert 0.93 < np.mean([s.low <= 0 <= s.high for s in ranked(y)]) < 0.97


def test_runs_of_one_split_are_not_independent():
    """The interval over nine runs covers the mean far too rarely: the reason for the interval over splits."""
    y = noisy(np.random.default_rng(1), 2000, 3, 3, 0.3, 0.1, shared=False).reshape(2000, 9)
    half = stats.t.ppf(0.975, 8) * y.std(1, ddof=1) / 3
    assert np.mean(abs(y.mean(1)) < half) < 0.85


def test_the_effect_of_a_knob_counts_splits_and_not_pairs():
    rng = np.random.default_rng(6)
    y = noisy(rng, 2, 4, 3, 0.3, 0.1) + rng.normal(0, 0.2, (2, 4, 1))  # the knob acts otherwise on each split
    (effect,) = rank.effects(simulated(y), ("val/psnr",))
    means = y.mean(2)
    expected = stats.ttest_rel(means[1], means[0]).confidence_interval(0.95)
    assert (effect.low, effect.high) == pytest.approx((expected.low, expected.high))
    assert (effect.n, effect.unit) == (4, "splits")


@pytest.mark.parametrize(("splits", "unshared"), [(3, False), (1, False), (1, True)])
def test_ten_names_of_one_setting_are_nearly_always_the_same(splits, unshared):
    rng, apart = np.random.default_rng(2), 0
    for _ in range(100):
        apart += any(s.apart for s in ranked(noisy(rng, 10, splits, 3, 0.3, 0.1), unshared=unshared))
    assert apart <= 10  # 5 at most expected


def test_half_a_decibel_is_seen_with_three_seeds_and_three_splits():
    rng = np.random.default_rng(3)
    results = [ranked(noisy(rng, 2, 3, 3, 0.3, 0.1, [0, 0.5])) for _ in range(100)]
    assert sum(second.apart and best.name == "knob=1" for best, second in results) >= 95
    one_seed = [ranked(noisy(rng, 2, 1, 1, 0.3, 0.1, [0, 0.5]))[1].apart for _ in range(20)]
    assert not any(one_seed)


def test_two_settings_are_compared_as_scipy_does():
    rng = np.random.default_rng(4)
    y = noisy(rng, 2, 3, 3, 0.3, 0.1, [0, 0.1])
    best, other = ranked(y)
    a, b = (y[int(s.name.removeprefix("knob="))].mean(1) for s in (best, other))
    expected = stats.ttest_rel(a, b)
    interval = expected.confidence_interval(0.95)
    assert (other.ahead, other.ahead_low) == pytest.approx(((a - b).mean(), interval.low))
    assert best.probability == pytest.approx(stats.t.cdf(expected.statistic, 2), abs=0.03)
    mean = stats.t.interval(0.95, 2, a.mean(), stats.sem(a))
    assert (best.mean, best.low, best.high, best.num_splits) == pytest.approx((a.mean(), *mean, 3))

    y = noisy(rng, 2, 1, 4, 0, 0.1, [0, 0.1])
    best, other = ranked(y, unshared=True)
    a, b = (y[int(s.name.removeprefix("knob="))].ravel() for s in (best, other))
    own, pooled = (stats.ttest_ind(a, b, equal_var=equal).confidence_interval(0.95).low for equal in (False, True))
    assert other.ahead_low == pytest.approx(min(own, pooled))


def test_many_settings_without_common_seeds_are_compared_as_tukey_does():
    y = noisy(np.random.default_rng(5), 4, 1, 5, 0, 0.1, [0, 0.1, 0.2, 0.3])
    result = ranked(y, unshared=True)
    expected = stats.tukey_hsd(*y[:, 0])
    best, *others = (int(s.name.removeprefix("knob=")) for s in result)
    for setting, index in zip(result[1:], others):
        low = expected.confidence_interval(0.95).low[best, index]
        assert setting.ahead_low <= low + 1e-6  # Welch's, where it is wider
        assert setting.ahead_low == pytest.approx(low, abs=0.05)


def test_a_lucky_setting_of_one_run_and_a_setting_without_noise():
    table = simulated(np.array([[[1.0, 1.1, 1.2]], [[0.5, 0.6, 0.7]]])).runs
    lucky = table.tail(1).assign(knob=9, run="lucky", **{"val/psnr": 3.0})
    result = settings.rank_settings(
        collect.Sweep(pd.concat([table, lucky], ignore_index=True), ["knob", "seed"]), "val/psnr"
    )
    assert [s.name for s in result] == ["knob=9", "knob=0", "knob=1"]
    assert not any(s.apart for s in result)
    assert np.isinf(result[0].low)
    assert np.isnan([s.probability for s in result]).all()  # the lucky one has no interval: it could be the best
    last = table.tail(1).assign(knob=9, run="unlucky", **{"val/psnr": 0.0})
    behind = settings.rank_settings(collect.Sweep(pd.concat([table, last], ignore_index=True), ["knob"]), "val/psnr")
    assert np.isnan([s.probability for s in behind]).all()
    exact = ranked(np.array([[[1.0, 1.1]], [[0.5, 0.6]], [[1.0, 1.1]]]))
    assert [s.apart for s in exact] == [False, False, True]


def test_numbers_of_runs_are_those_of_each_level(tmp_path, capsys):
    for seed in (0, 1, 2):
        write_run(tmp_path / "s" / f"a{seed}", lr=0.001, seed=seed, nelbo=-seed)
    write_run(tmp_path / "s" / "b", lr=0.01, seed=0, nelbo=-9)
    assert run_analysis(tmp_path / "s") == 0
    printed = capsys.readouterr().out
    assert "lr 0.01 against 0.001: cannot tell what it does to nelbo (1 against 3 runs, not paired)" in printed
    assert "the best with probability" not in printed
    assert "lr=0.01: mean -9, 1 run " in printed
    assert "-inf" not in (tmp_path / "s" / "analysis" / "index.html").read_text()


def test_settings_on_different_people_are_not_called_better(tmp_path):
    """Each has three seeds on one split: their difference may be that of the people."""
    for fraction, seed in itertools.product((0.1, 0.4), (0, 1, 2)):
        knobs = {"data.val_fraction": fraction, "data.split_seed": 0, "seed": seed}
        write_run(tmp_path / f"{fraction}-{seed}", psnr=20 + 10 * fraction + seed / 100, **knobs)
    sweep = collect.collect([tmp_path])
    best, other = settings.rank_settings(sweep, "val/psnr")
    assert (best.name, other.apart) == ("data.val_fraction=0.4", False)
    assert np.isnan(best.probability)
    (effect,) = rank.effects(sweep, ("val/psnr",))
    assert not effect.tells
    assert effect.numbers == "one split each"


def test_two_folders_of_images_make_two_settings(tmp_path):
    for faces, beta, seed in itertools.product("fg", (1, 10), (0, 1)):
        write_run(tmp_path / faces / f"{beta}-{seed}", faces=faces, beta=beta, seed=seed)
    sweep = collect.collect([tmp_path / "f", tmp_path / "g"])
    assert sweep.swept == ["beta", "data_fingerprint", "seed"]
    assert len(settings.rank_settings(sweep, "val/psnr")) == 4
    for faces, num in {"h": 60, "i": 90}.items():  # here a knob says it
        write_run(tmp_path / "drawn" / faces, faces=faces, **{"data.num_smiling": num})
    assert collect.collect([tmp_path / "drawn"]).swept == ["data.num_smiling"]


def test_one_run_twice_is_one_run(tmp_path):
    for copy in "ab":
        for seed in (0, 1):
            write_run(tmp_path / "s" / f"{copy}{seed}", seed=seed, nelbo=-seed)
    (only,) = settings.rank_settings(collect.collect([tmp_path / "s"]), "val/nelbo")
    assert (only.name, len(only.runs)) == ("all runs", 4)
    assert (only.low, only.high) == pytest.approx(stats.t.interval(0.95, 1, -0.5, 0.5))


def test_knobs_that_vary_with_the_seed_are_knobs(tmp_path):
    for index in range(3):
        write_run(tmp_path / "s" / str(index), seed=index, lr=index)
    sweep = collect.collect([tmp_path / "s"])
    assert sweep.swept == ["lr"]
    assert [s.name for s in settings.rank_settings(sweep, "val/nelbo")] == ["lr=0", "lr=1", "lr=2"]


def test_the_files_the_page_and_the_terminal_name_the_best_two_settings(tmp_path, capsys):
    root = grid(tmp_path / "s", beta=[1, 10, 50], seed=[0, 1, 2], **{"data.split_seed": [0, 1]})
    assert run_analysis(root) == 0
    printed = capsys.readouterr().out
    top = json.loads((root / "analysis" / "top.json").read_text())
    table = pd.read_csv(root / "analysis" / "runs.csv")
    means = table.groupby("beta")["val/nelbo"].mean().sort_values()
    assert [s["setting"] for s in top["settings"]] == [f"beta={int(beta)}" for beta in means.index]
    assert [s["mean"] for s in top["settings"]] == pytest.approx(means.tolist())
    assert sum(s["probability"] for s in top["settings"]) == pytest.approx(1)
    for setting in top["settings"][:2]:
        beta = int(setting["setting"].removeprefix("beta="))
        assert setting["best"]["run"] == table.loc[table[table["beta"] == beta]["val/nelbo"].idxmin(), "run"]
        assert f"  {setting['setting']}: mean" in printed
        assert setting["best"]["evaluate"] in printed
    assert "The best setting of 3 by val/nelbo is beta=1" in printed
    assert "6 runs on 2 splits" in printed
    assert printed.index("top two settings") < printed.index("top two by val/nelbo")
    written = pd.read_csv(root / "analysis" / "settings.csv")
    assert written["mean"].tolist() == pytest.approx(means.tolist())
    words = " ".join(Page((root / "analysis" / "index.html").read_text()).words)
    assert all(f"beta={beta}" in words for beta in (1, 10, 50))


def test_one_run_a_setting_is_ranked_as_before(tmp_path, capsys):
    assert run_analysis(grid(tmp_path / "s", beta=[1, 10])) == 0
    printed = capsys.readouterr().out
    assert printed.count("Each setting has one run, so a difference may be luck; add seed=0,1,2.") == 1
    assert "top two settings" not in printed
    assert "Ahead" not in (tmp_path / "s" / "analysis" / "index.html").read_text()


def test_the_two_checkpoints_to_evaluate_are_of_two_settings_on_one_split(tmp_path):
    y = np.array([[[3.0, 5.0], [1.0, 1.0]], [[2.0, 2.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert settings.candidates(simulated(y), "val/psnr")["run"].tolist() == ["r1", "r4"]
    assert settings.candidates(simulated(y[:, :1, :1]), "val/psnr")["run"].tolist() == ["r0", "r1"]
    assert settings.candidates(simulated(y[:1]), "val/psnr")["run"].tolist() == ["r1", "r0"]  # one setting


def test_the_cost_of_a_sweep_is_that_of_its_runs_and_says_of_how_many(tmp_path, capsys):
    root = grid(tmp_path / "s", beta=[1, 10, 50])
    for name, cost in {"beta-1": {"cpu_seconds": 5400}, "beta-10": {"cpu_seconds": 1800, "gpu_seconds": 7200}}.items():
        result = json.loads((root / name / "result.json").read_text())
        (root / name / "result.json").write_text(json.dumps(result | cost))
    (root / "cut").mkdir()
    (root / "cut" / "status.json").write_text('{"status": "INTERRUPTED"}')
    (root / "cut" / "cost.json").write_text(json.dumps({"cpu_seconds": 3600, "gpu_seconds": HOSTILE, "more": 1}))
    assert run_analysis(root) == 0
    assert "cost of 3 of 4 runs: 3 CPU hours, 2 GPU hours\n" in capsys.readouterr().out
    table = pd.read_csv(root / "analysis" / "runs.csv").set_index("run")
    assert table.loc["cut", "cpu_seconds"] == 3600
    cost = json.loads((root / "analysis" / "top.json").read_text())["cost"]
    assert cost == {"cpu_seconds": 10800, "gpu_seconds": 7200}


# the differences of two runs


def test_a_diff_names_what_differs_and_nothing_else(tmp_path, capsys):
    one, two = write_run(tmp_path / "one", beta=1), write_run(tmp_path / "two", beta=10, psnr=21.5, faces=HOSTILE)
    for path, more in {one: {"code": "abc", "versions": {"torch": "2.1"}}, two: {"versions": {"torch": "2.2"}}}.items():
        result = json.loads((path / "result.json").read_text())
        (path / "result.json").write_text(json.dumps(result | more | {"machine": "Linux"}))
    assert run_analysis("diff", one, two) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["one", "two"]
    rows = [(line[: title.index("one")].strip(), *line[title.index("one") :].split()) for line in lines]
    assert rows == [
        ("settings beta", "1", "10"),
        ("code code", "abc", "-"),
        ("data data_fingerprint", "f", HOSTILE),
        ("versions torch", "2.1", "2.2"),
        ("metrics val/kl", "50", "9.09091"),
        ("metrics val/psnr", "20", "21.5"),
    ]
    assert run_analysis("diff", one, f"{one}/") == 0
    assert "equal in all of settings, status, code, data, versions, machine, metrics, cost" in capsys.readouterr().out


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
ALIKE = [(1, 1.0), (math.nan, math.nan), ([1, {"a": math.nan}], [1.0, {"a": math.nan}]), ("", "")]
DIFFERENT = {
    "a float": (0.002, 0.0020000001, "0.002", "0.0020000001"),
    "a text": (f"{LONG}/set-one", f"{LONG}/set-two", "set-one", "set-two"),
    "a list": ([1, 2, [0.1]], [1, 2, [0.1 + 1e-12]], "0.1]", "0.100000000001"),
    "a long list": ([*range(50)], [*range(49), 0], "48, 49]", "48, 0]"),
    "a number and a text": (1, "1", "1", "'1'"),
    "a number and true": (1, True, "1", "True"),
    "nothing and no entry": (None, ..., "none", "-"),
    "a text and nothing": ("none", None, "'none'", "None"),
    "control characters": ("a\x01", "a\x02", "x01", "x02"),
}


@pytest.mark.parametrize("place", ["settings", "versions", "best"])
@pytest.mark.parametrize("pair", [*ALIKE, *DIFFERENT.values()], ids=[*map(str, ALIKE), *DIFFERENT])
def test_a_diff_compares_values_and_shows_where_they_differ(tmp_path, pair, place, capsys):
    folders = [write_run(tmp_path / name) for name in ("one", "two")]
    for folder, value in zip(folders, pair):
        result = json.loads((folder / "result.json").read_text())
        entries = result.setdefault(place, {})
        if value is not ...:
            entries["entry"] = value
        (folder / "result.json").write_text(json.dumps(result))
    assert run_analysis("diff", *folders) == 0
    printed = capsys.readouterr().out
    if len(pair) == 2:
        assert "the two runs are equal in all of" in printed
        return
    title, row = printed.splitlines()
    one, two = row[title.index("one") : title.index("two")].strip(), row[title.index("two") :].strip()
    assert one != two
    assert pair[2] in one
    assert pair[3] in two
    assert max(len(one), len(two)) <= 63


def test_a_diff_knows_the_trainer_s_settings(tmp_path, capsys):
    for name, clip in {"one": 1.0, "two": 500.0}.items():
        write_run(tmp_path / name)
        settings_ = Settings.model_validate({"trainer": {"gradient_clip_val": clip}})
        (tmp_path / name / "config.yaml").write_text(yaml.safe_dump(settings_.plain()))
    assert run_analysis("diff", tmp_path / "one", tmp_path / "two") == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["settings", "trainer.gradient_clip_val", "1", "500"]


@pytest.mark.parametrize("words", [["diff"], ["diff", "a"], ["diff", "a", "b", "c"], ["diff", "docs", "tests"]])
def test_a_diff_of_anything_but_two_runs_is_one_sentence(words):
    command = [sys.executable, "-c", "import sys; from smilevae.cli import main; main(sys.argv[1:])", "analyse", *words]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "diff RUN RUN" in done.stderr or "not a run folder" in done.stderr
