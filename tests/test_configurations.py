"""The ranking of configurations against independent computations and simulated sweeps."""

import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import slow
from scipy import stats
from test_analysis import analyse, grid, half, write_run  # noqa: F401

from multirun_analysis import collect, configurations, effects, equal_psnr


def simulated(y, unshared=False) -> collect.Sweep:
    """A sweep of val/psnr values, (configurations, splits, seeds).

    `unshared`: no seed is used twice.
    """
    knob, split, seed = (axis.ravel() for axis in np.indices(y.shape))
    frame = pd.DataFrame({"knob": knob, "data.split_seed": split, "seed": seed})
    if unshared:
        frame["seed"] = np.arange(len(frame))
    frame = frame.assign(run=[f"r{i}" for i in range(len(frame))], **{"val/psnr": y.ravel()})
    frame = frame.assign(status="completed", data_fingerprint="f", mean_face_psnr=0.0)
    frame = frame.assign(path=Path("s"), checkpoint="c", **{"val/kl": 1.0})
    return collect.Sweep(frame, ["knob", "data.split_seed", "seed"])


def noisy(rng, num, splits, seeds, split_sd, seed_sd, effects=0.0, shared=True):
    """Values of `num` configurations: effects, an effect of each split, and noise of each seed."""
    of_split = rng.normal(0, split_sd, (1 if shared else num, splits, 1))
    noise = rng.normal(0, seed_sd, (num, splits, seeds))
    return of_split + noise + np.reshape(effects, (-1, 1, 1))


def ranked(y, **options) -> pd.DataFrame:
    return configurations.rank(simulated(y, **options), "val/psnr")


def indices(result) -> list[int]:
    """The place in the simulated values of each configuration."""
    return [int(name.removeprefix("knob=")) for name in result["configuration"]]


@pytest.mark.parametrize("split_sd", [0, 0.3])
@pytest.mark.parametrize(
    ("splits", "seeds"), [(3, 3), (1, 3), pytest.param(5, 2, marks=slow), (4, 1)]
)
def test_the_interval_of_a_mean_covers_it_in_95_percent_of_sweeps(splits, seeds, split_sd):
    """2,000 configurations, each on other splits. One split: the interval is about its own mean."""
    spread = split_sd if splits > 1 else 0
    y = noisy(np.random.default_rng(1), 2000, splits, seeds, spread, 0.1, shared=False)
    result = ranked(y)
    assert 0.93 < (result["mean"].abs() <= result["half_width"]).mean() < 0.97


def test_the_effect_of_a_knob_counts_splits_and_not_pairs():
    rng = np.random.default_rng(6)
    y = noisy(rng, 2, 4, 3, 0.3, 0.1)
    y += rng.normal(0, 0.2, (2, 4, 1))  # the knob acts otherwise on each split
    effect = effects.effects(simulated(y), ["val/psnr"]).iloc[0]
    means = y.mean(2)
    expected = stats.ttest_rel(means[1], means[0]).confidence_interval(0.95)
    assert effect["half_width"] == pytest.approx(half(expected))
    assert effect["n"] == "4 splits"


@pytest.mark.parametrize(("splits", "unshared"), [(3, False), (1, False), (1, True)])
def test_ten_names_of_one_configuration_are_nearly_always_the_same(splits, unshared):
    rng = np.random.default_rng(2)
    apart = 0
    for _ in range(100):
        y = noisy(rng, 10, splits, 3, 0.3, 0.1)
        apart += ranked(y, unshared=unshared)["apart"].any()
    assert apart <= 10  # 5 at most expected


def test_half_a_decibel_is_seen_with_three_seeds_and_three_splits():
    rng = np.random.default_rng(3)
    right = 0
    for _ in range(100):
        result = ranked(noisy(rng, 2, 3, 3, 0.3, 0.1, [0, 0.5]))
        right += indices(result) == [1, 0] and result["apart"].tolist() == [False, True]
    assert right >= 95
    one_seed = [ranked(noisy(rng, 2, 1, 1, 0.3, 0.1, [0, 0.5])) for _ in range(20)]
    assert not any(result["apart"].any() for result in one_seed)


def test_two_configurations_are_compared_as_scipy_does():
    rng = np.random.default_rng(4)
    y = noisy(rng, 2, 3, 3, 0.3, 0.1, [0, 0.1])
    result = ranked(y)
    a, b = (y[index].mean(1) for index in indices(result))
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    other = result.iloc[1]
    assert other["ahead"] == pytest.approx((a - b).mean())
    assert other["ahead_half_width"] == pytest.approx(half(expected))
    best = result.iloc[0]
    mean = stats.t.interval(0.95, 2, a.mean(), stats.sem(a))
    assert (best["mean"], best["half_width"]) == pytest.approx((a.mean(), mean[1] - a.mean()))
    assert best["splits"] == 3

    y = noisy(rng, 2, 1, 4, 0, 0.1, [0, 0.1])
    result = ranked(y, unshared=True)
    a, b = (y[index].ravel() for index in indices(result))
    tests = [stats.ttest_ind(a, b, equal_var=equal) for equal in (False, True)]
    wider = max(half(test.confidence_interval(0.95)) for test in tests)
    assert result.loc[1, "ahead_half_width"] == pytest.approx(wider)


def test_many_configurations_without_common_seeds_are_compared_as_tukey_does():
    y = noisy(np.random.default_rng(5), 4, 1, 5, 0, 0.1, [0, 0.1, 0.2, 0.3])
    result = ranked(y, unshared=True)
    low = stats.tukey_hsd(*y[:, 0]).confidence_interval(0.95).low
    best, *others = indices(result)
    for place, index in enumerate(others, start=1):
        own = result.loc[place, "ahead"] - result.loc[place, "ahead_half_width"]
        assert own <= low[best, index] + 1e-6  # Welch's, where it is wider
        assert own == pytest.approx(low[best, index], abs=0.05)


def test_a_lucky_configuration_of_one_run_and_one_without_noise():
    table = simulated(np.array([[[1.0, 1.1, 1.2]], [[0.5, 0.6, 0.7]]])).runs
    lucky = table.tail(1).assign(knob=9, run="lucky", **{"val/psnr": 3.0})
    sweep = collect.Sweep(pd.concat([table, lucky], ignore_index=True), ["knob", "seed"])
    result = configurations.rank(sweep, "val/psnr")
    assert indices(result) == [9, 0, 1]
    assert not result["apart"].any()
    assert np.isnan(result.loc[0, "half_width"])
    assert "cannot tell it apart from knob=0; knob=1." in configurations.verdict(result)
    exact = ranked(np.array([[[1.0, 1.1]], [[0.5, 0.6]], [[1.0, 1.1]]]))
    assert exact["apart"].tolist() == [False, False, True]


def test_numbers_of_runs_are_those_of_each_value(tmp_path, analyse):  # noqa: F811
    for seed in (0, 1, 2):
        write_run(tmp_path / "s" / f"a{seed}", lr=0.001, seed=seed, nelbo=-seed)
    write_run(tmp_path / "s" / "b", lr=0.01, seed=0, nelbo=-9)
    printed, _, _ = analyse(tmp_path / "s")
    assert "lr=0.01 instead of 0.001: val/nelbo -8 nats (cannot tell)" in printed
    assert "1 and 3 runs" in printed
    assert "lr=0.01: val/nelbo -9 nats, PSNR 20.00 dB, KL 50.0 nats, 1 run " in printed
    assert "nan" not in (tmp_path / "s" / "analysis" / "index.html").read_text().lower().split()


def test_configurations_on_different_people_are_not_called_better(tmp_path):
    """Each has three seeds on one split: their difference may be that of the people."""
    for fraction, seed in itertools.product((0.1, 0.4), (0, 1, 2)):
        knobs = {"data.val_fraction": fraction, "data.split_seed": 0, "seed": seed}
        write_run(tmp_path / f"{fraction}-{seed}", psnr=20 + 10 * fraction + seed / 100, **knobs)
    sweep = collect.collect([tmp_path])
    result = configurations.rank(sweep, "val/psnr")
    assert result["configuration"].tolist() == ["data.val_fraction=0.4", "data.val_fraction=0.1"]
    assert not result["apart"].any()
    effect = effects.effects(sweep, ["val/psnr"]).iloc[0]
    assert (effect["verdict"], effect["n"]) == ("cannot tell", "1 and 1 splits")


def test_two_folders_of_images_make_two_configurations(tmp_path):
    for faces, beta, seed in itertools.product("fg", (1, 10), (0, 1)):
        write_run(tmp_path / faces / f"{beta}-{seed}", faces=faces, beta=beta, seed=seed)
    sweep = collect.collect([tmp_path / "f", tmp_path / "g"])
    assert sweep.swept == ["beta", "data_fingerprint", "seed"]
    assert len(configurations.rank(sweep, "val/psnr")) == 4
    for faces, num in {"h": 60, "i": 90}.items():  # here a knob says it
        write_run(tmp_path / "drawn" / faces, faces=faces, **{"data.num_smiling": num})
    assert collect.collect([tmp_path / "drawn"]).swept == ["data.num_smiling"]


def test_one_run_twice_is_one_run(tmp_path):
    for copy in "ab":
        for seed in (0, 1):
            write_run(tmp_path / "s" / f"{copy}{seed}", seed=seed, nelbo=-seed)
    result = configurations.rank(collect.collect([tmp_path / "s"]), "val/nelbo")
    assert result["configuration"].tolist() == ["all runs"]
    assert result.loc[0, "runs"] == 4
    interval = stats.t.interval(0.95, 1, -0.5, 0.5)
    assert result.loc[0, "half_width"] == pytest.approx(interval[1] + 0.5)


def test_knobs_of_different_objectives_are_not_compared(tmp_path):
    for name, nats in (("free_bits", 0.25), ("capacity", 25), ("capacity", 50), ("beta_vae", None)):
        knobs = {"objective.name": name} | ({"objective.nats": nats} if nats else {})
        write_run(tmp_path / "all" / f"{name}{nats}", **knobs)
        if nats != 50:
            write_run(tmp_path / "one" / name, **knobs)
    assert collect.collect([tmp_path / "one"]).swept == ["objective.name"]
    sweep = collect.collect([tmp_path / "all"])
    assert sorted(sweep.swept) == ["objective.name", "objective.nats"]
    names = configurations.rank(sweep, "val/nelbo")["configuration"].tolist()
    assert "objective.name=beta_vae" in names
    assert "objective.name=capacity, objective.nats=50" in names


def test_knobs_that_vary_with_the_seed_are_knobs(tmp_path):
    for index in range(3):
        write_run(tmp_path / "s" / str(index), seed=index, lr=index)
    sweep = collect.collect([tmp_path / "s"])
    assert sweep.swept == ["lr"]
    result = configurations.rank(sweep, "val/nelbo")
    assert result["configuration"].tolist() == ["lr=0", "lr=1", "lr=2"]


def test_one_run_a_configuration_says_so(tmp_path, analyse):  # noqa: F811
    printed, found, _ = analyse(grid(tmp_path / "s", beta=[1, 10]))
    assert found["verdict"].startswith("Each configuration has one run, so a difference may be")
    assert printed.count(found["verdict"]) == 1
    assert "±" not in printed.replace("± is a 95% interval", "")
    assert "(cannot tell)" in printed


def test_the_two_checkpoints_to_evaluate_are_of_two_configurations_on_one_split():
    y = np.array([[[3.0, 5.0], [1.0, 1.0]], [[2.0, 2.0], [1.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])

    def best_of(values):
        return configurations.candidates(simulated(values), "val/psnr")["run"].tolist()

    assert best_of(y) == ["r1", "r4"]
    assert best_of(y[:, :1, :1]) == ["r0", "r1"]  # one run each
    assert best_of(y[:1]) == ["r1", "r0"]  # one configuration


def two_objectives(rng, shift: float) -> collect.Sweep:
    """On each of 5 splits a score that rises with PSNR; beta_tc has `shift` more, and less PSNR."""
    rows = []
    for split, (name, lower), beta in itertools.product(
        range(5), (("beta_vae", 0), ("beta_tc", 1)), (0, 1, 2, 3)
    ):
        psnr = 25 - beta - lower + rng.normal(0, 0.02)
        score = 0.05 * (psnr - 20) + shift * lower + rng.normal(0, 0.01)
        row = {"objective.name": name, "beta": beta, "data.split_seed": split, "seed": split}
        rows.append(row | {"val/psnr": psnr, "m/score": score})
    frame = pd.DataFrame(rows).assign(status="completed", data_fingerprint="f")
    frame["run"] = frame.index.map(str)
    swept = ["objective.name", "beta", "data.split_seed"]
    return collect.Sweep(frame, swept, collect.BETTER | {"m/score": 1}, ["m/score"])


@pytest.mark.parametrize(("shift", "verdict"), [(0.1, "better"), (-0.1, "worse")])
def test_a_difference_at_equal_psnr_is_found(shift, verdict):
    (row,) = equal_psnr.equal_psnr(two_objectives(np.random.default_rng(0), shift)).to_dict(
        "records"
    )
    assert (row["value"], row["instead_of"]) == ("beta_tc", "beta_vae")
    assert row["change"] == pytest.approx(shift, abs=0.01)
    assert (row["low"], row["high"]) == pytest.approx((22, 24), abs=0.1)
    assert row["verdict"] == verdict


def test_equal_curves_are_told_apart_one_time_in_twenty_though_equal_beta_tells_them_apart():
    rng = np.random.default_rng(0)
    sweeps = [two_objectives(rng, 0) for _ in range(300)]
    found = [equal_psnr.equal_psnr(sweep)["verdict"].iloc[0] for sweep in sweeps]
    assert 0.01 < 1 - found.count("cannot tell") / len(found) < 0.1
    table = effects.effects(sweeps[0], ["m/score"])
    assert set(table[table["knob"] == "objective.name"]["verdict"]) <= {"better", "worse"}


def test_curves_without_a_common_psnr_are_not_compared():
    sweep = two_objectives(np.random.default_rng(0), 0)
    sweep.runs.loc[sweep.runs["objective.name"] == "beta_tc", "val/psnr"] -= 10
    assert equal_psnr.equal_psnr(sweep).empty
