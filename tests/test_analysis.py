"""The analysis against independent computations, damaged folders, and five thousand runs."""

import html
import itertools
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from conftest import ROOT, slow
from matplotlib.figure import Figure
from scipy import stats

from multirun_analysis import __main__ as analysis
from multirun_analysis import collect, configurations, effects, plots, rungs
from smilevae.config import Settings
from smilevae.errors import ConfigError
from smilevae.models.linear import Spectrum, linear_vae, pca_psnr

HOSTILE = "<script>alert(1)</script>"


def write_run(
    folder, *, nelbo=-1.0, psnr=20.0, loss=10.0, epochs=3, faces="f", best=None, more=None, **knobs
):
    """A completed run folder of given numbers; `more` goes into result.json."""
    folder.mkdir(parents=True)
    settings = {"beta": 1, "latent_dim": 120, "batch_size": 32, "normalize": False, "seed": 0}
    settings |= {"image_size": 64, **knobs}
    kl = 5.0 if settings["beta"] == "auto" else 100 / (1 + settings["beta"])
    best = (best or {}) | {"epoch": epochs, "val/loss": loss, "val/recon": 9.0, "val/kl": kl}
    best |= {"val/nelbo": nelbo, "val/psnr": psnr, "val/active_units": 7}
    result = {
        "data_fingerprint": faces,
        "settings": settings,
        "checkpoints": [f"checkpoints/epoch-{epochs:04d}.ckpt"],
        "best": best,
        "final": best | {"images_per_second": 100.0},
        "wall_seconds": 60.0,
        "threads": 2,
        "peak_memory_mb": 900,
    }
    (folder / "result.json").write_text(json.dumps(result | (more or {})))
    write_status(folder, "COMPLETED")
    every = range(1, epochs + 1)
    curve = {e: {"val/psnr": psnr - 3 / e, "val/loss": loss + 100 / e**4} for e in every}
    write_metrics(folder, curve)
    return folder


def write_status(folder: Path, status: str, **more) -> Path:
    """A run folder without a result."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "status.json").write_text(json.dumps({"status": status} | more))
    return folder


def write_metrics(folder, epochs):
    lines = [json.dumps({"epoch": epoch} | metrics) for epoch, metrics in epochs.items()]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")


def grid(root, **levels):
    """A full grid of runs whose metrics are sums of their knobs' effects and noise."""
    rng = np.random.default_rng(0)
    for values in itertools.product(*levels.values()):
        knobs = dict(zip(levels, values))
        beta = knobs.get("beta", 1)
        psnr = 25 - 2 * math.log10(beta) + 0.5 * (knobs.get("batch_size", 32) == 64)
        psnr += 0.1 * rng.standard_normal()
        name = "_".join(f"{k}-{v}" for k, v in knobs.items())
        loss = 500 - 10 * psnr + 7 * beta
        write_run(root / name, psnr=psnr, nelbo=-1000 * psnr, loss=loss, **knobs)
    return root


def run_analysis(*arguments) -> int:
    """The analysis in this process; gives the exit code."""
    try:
        analysis.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


@pytest.fixture
def analyse(capsys):
    """Analyse a sweep: analyse(root) -> (what is printed, in one line; top.json; runs.csv)."""

    def run(root, *arguments):
        assert run_analysis(root, *arguments) == 0
        printed = " ".join(capsys.readouterr().out.split())
        top = json.loads((root / "analysis" / "top.json").read_text())
        return printed, top, pd.read_csv(root / "analysis" / "runs.csv")

    return run


def page_of(root) -> str:
    return (root / "analysis" / "index.html").read_text()


def half(interval) -> float:
    return (interval.high - interval.low) / 2


# effects and ranks


def test_paired_effects_agree_with_scipy_from_the_csv(tmp_path, analyse):
    """The independent oracle reads runs.csv and knows nothing of our code."""
    root = grid(tmp_path / "s", beta=[1, 10, 50], batch_size=[32, 64], seed=[0, 1, 2])
    _, found, table = analyse(root)
    assert len(found["effects"]) == 3 * (2 + 1)
    others = {"beta": ["batch_size", "seed"], "batch_size": ["beta", "seed"]}
    for effect in found["effects"]:
        knob = effect["knob"]
        ordered = table.sort_values(others[knob])
        sides = [ordered[ordered[knob] == effect[side]] for side in ("value", "instead_of")]
        one, two = (side[effect["metric"]].to_numpy() for side in sides)
        assert effect["n"] == f"{len(one)} pairs"
        if np.ptp(one - two) == 0:  # KL depends on beta alone here
            assert effect["half_width"] == 0
            assert effect["change"] == pytest.approx((one - two)[0])
            continue
        expected = stats.ttest_rel(one, two)
        assert effect["change"] == pytest.approx((one - two).mean())
        assert effect["half_width"] == pytest.approx(half(expected.confidence_interval(0.95)))
        assert (effect["verdict"] == "cannot tell") == (expected.pvalue >= 0.05)
    verdicts = [effect["verdict"] for effect in found["effects"]]
    assert verdicts[:3] == ["worse", "worse", "lower"]  # beta=10: nELBO, PSNR and KL
    assert verdicts[6:] == ["better", "better", "cannot tell"]  # batch_size=64
    means = table.groupby(["beta", "batch_size"])["val/nelbo"].mean().sort_values()
    names = [f"beta={beta}, batch_size={size}" for beta, size in means.index]
    assert [each["configuration"] for each in found["configurations"]] == names


def test_a_sweep_may_hold_beta_auto_beside_numbers(tmp_path, analyse):
    root = grid(tmp_path / "s", beta=[1, 0.1], seed=[0, 1])
    for seed in (0, 1):
        more = {"best": {"beta": 0.006 + seed / 1e4}, "beta": "auto", "seed": seed}
        write_run(root / f"beta-auto_seed-{seed}", nelbo=-30_000, psnr=27.0 + seed, **more)
    _, found, table = analyse(root)
    assert found["configurations"][0]["configuration"] == "beta=auto"
    psnr = [e for e in found["effects"] if e["metric"] == "val/psnr"]
    assert [(e["value"], e["instead_of"]) for e in psnr] == [(1, 0.1), ("auto", 0.1)]
    assert set(table["beta"]) == {"1", "0.1", "auto"}
    write_run(root / "bad", beta="auto")  # no number
    assert collect.read(root / "bad")[1]["status"] == "corrupt"


def test_without_a_full_grid_effects_are_welch_s(tmp_path):
    root = grid(tmp_path / "s", beta=[1, 10], batch_size=[32, 64], seed=[0, 1])
    shutil.rmtree(root / "beta-1_batch_size-64_seed-1")
    sweep = collect.collect([root])
    effect = effects.effects(sweep, ["val/psnr"]).iloc[0]
    done = sweep.completed
    a, b = (done[done["beta"] == value]["val/psnr"] for value in (10, 1))
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert (effect["knob"], effect["n"]) == ("beta", "4 and 3 runs")
    assert effect["change"] == pytest.approx(a.mean() - b.mean())
    assert effect["half_width"] == pytest.approx(half(interval))


def test_noise_alone_is_called_an_effect_about_one_time_in_twenty():
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        knob, seed = (axis.ravel() for axis in np.indices((2, 6)))
        frame = pd.DataFrame({"knob": knob, "seed": seed, "val/psnr": rng.standard_normal(12)})
        frame = frame.assign(status="completed", data_fingerprint="f")
        found = effects.effects(collect.Sweep(frame, ["knob", "seed"]), ["val/psnr"])
        told += found["verdict"].item() != "cannot tell"
    assert 4 <= told <= 30  # 15 expected


def test_val_loss_ranks_runs_of_one_beta_on_the_same_faces_only(tmp_path, analyse):
    root = tmp_path / "s"
    for lr, loss in {1: 30, 2: 20, 3: 40}.items():
        write_run(root / f"{lr}", lr=lr, loss=loss)
    _, found, _ = analyse(root, "rank_by=val/loss")
    assert [each["configuration"] for each in found["configurations"]] == ["lr=2", "lr=1", "lr=3"]
    with pytest.raises(ConfigError, match="choose one of"):
        configurations.check_rank_by(collect.collect([root]), "val/fid")
    differing = [{"beta": 2}, {"faces": "g"}, {"image_size": 32}, {"data.split_seed": 1}]
    for index, knobs in enumerate([*differing, {"beta": "auto", "best": {"beta": 1.01}}]):
        other = write_run(tmp_path / f"{index}", **knobs)
        with pytest.raises(ConfigError, match="does not compare"):
            configurations.check_rank_by(collect.collect([root, other]), "val/loss")


@pytest.mark.parametrize("rank_by", ["val/nelbo", "val/recon"])
def test_sums_over_pixels_do_not_rank_different_sizes(tmp_path, rank_by, analyse):
    for size in (64, 128):
        write_run(tmp_path / f"{size}", image_size=size)
    printed, found, _ = analyse(tmp_path, f"rank_by={rank_by}")
    assert found["rank_by"] == "val/psnr"
    assert "different image sizes, on which val/psnr depends: compare runs of one size." in printed


def test_the_pareto_front_is_what_nothing_beats():
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"run": range(60), "val/kl": rng.random(60), "val/psnr": rng.random(60)})
    kl, psnr = (frame[name].to_numpy() for name in ("val/kl", "val/psnr"))
    beaten = (kl[:, None] >= kl) & (psnr[:, None] <= psnr) & ~np.eye(60, dtype=bool)
    assert set(plots.pareto(frame)["run"]) == set(np.flatnonzero(~beaten.any(1)))


@pytest.mark.parametrize(
    ("values", "improving"),
    [
        ([10 + epoch for epoch in range(5)], False),  # a warm start that stays the best
        *[([4, 3, 4, 5], False), ([5, 4, 3.01, 3], False), ([9, 5, 3], True)],
        *[([3], False), ([], False)],
    ],
)
def test_a_run_that_still_improves_is_counted(tmp_path, values, improving, analyse):
    folder = write_run(tmp_path / "a")
    write_metrics(folder, {e: {"val/loss": value} for e, value in enumerate(values, start=1)})
    assert ("1 of 1 runs were still improving" in analyse(tmp_path)[0]) == improving


# what is read


def test_every_kind_of_run_is_counted_and_named_and_none_is_ranked(tmp_path, analyse):
    root = grid(tmp_path / "s", beta=[1, 10])
    whole = (root / "beta-1" / "result.json").read_text()
    broken = {
        "torn": '{"best": {',
        "list": "[]",
        "nan": whole.replace("9.0", "NaN"),
        "bytes": "\udcff",
    }
    for name, content in broken.items():
        (root / name).mkdir()
        (root / name / "result.json").write_bytes(content.encode(errors="surrogateescape"))
    write_status(root / "lost", "COMPLETED")
    write_status(root / "sick", "FAILED", reason="the loss became nan", error="Diverged")
    write_status(root / "bad", "FAILED", reason="ValueError: no")
    write_status(root / "cut", "INTERRUPTED", reason="stopped by signal 15")
    write_status(root / "gone", "RUNNING")
    (root / "sweep.json").write_text(json.dumps({"jobs": {"beta-1": {}, "later": {}}}))
    (root / "notes").mkdir()  # no run
    printed, found, table = analyse(root)
    ones = dict.fromkeys(("diverged", "failed", "interrupted", "stale", "planned"), 1)
    assert found["counts"] == {"runs": 12, "completed": 2, "corrupt": 5} | ones
    assert table["status"].value_counts().to_dict() | {"runs": 12} == found["counts"]
    assert printed.startswith("12 runs, 2 completed, 5 corrupt, 1 ")
    reasons = {run["run"]: run["reason"] for run in found["unfinished"]}
    assert "cannot be read (JSONDecodeError" in reasons["torn"]
    assert "says COMPLETED, and there is no result.json" in reasons["lost"]
    assert f"sick: diverged, {reasons['sick']}" in page_of(root)
    assert [each["best_run"] for each in found["configurations"]] == ["beta-1", "beta-10"]


def test_the_page_of_a_model_is_linked_if_it_is_there(tmp_path, analyse):
    root = grid(tmp_path / "s", beta=[1, 10])
    for name in ("beta-1", "beta-10"):
        (root / name / "preview.png").write_bytes(b"")
    (root / "beta-1" / "face.html").write_text("")
    analyse(root)
    assert page_of(root).count("face.html") == 1
    assert 'href="../beta-1/face.html"' in page_of(root)


def test_a_sweep_without_a_completed_run_has_a_page_too(tmp_path, analyse):
    write_status(tmp_path / "s" / "a", "FAILED", reason="no")
    assert configurations.candidates(collect.collect([tmp_path / "s"]), "val/nelbo").empty
    printed, _, _ = analyse(tmp_path / "s")
    assert "a: failed, no" in printed
    assert "No run completed" in printed
    assert "No run completed" in page_of(tmp_path / "s")


def test_settings_of_the_trainer_are_knobs(tmp_path):
    jobs = {}
    for clip in (1, 500):
        jobs[f"{clip}"] = {"settings": {"trainer.gradient_clip_val": clip, "trainer.devices": clip}}
        write_run(tmp_path / f"{clip}")
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert collect.collect([tmp_path]).swept == ["trainer.gradient_clip_val"]


def test_long_values_that_differ_at_their_end_are_two(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, **{"data.unlabelled": f"/{'x' * 120}/{name}"})
    assert collect.collect([tmp_path]).swept == ["data.unlabelled"]


def test_several_sweeps_are_read_together_and_each_once(tmp_path, monkeypatch):
    one = grid(tmp_path / "one", beta=[1, 10])
    two = grid(tmp_path / "two", beta=[50])
    assert run_analysis(one, two, f"out={tmp_path / 'both'}") == 0
    found = pd.read_csv(tmp_path / "both" / "runs.csv")
    assert set(found["run"]) == {"one/beta-1", "one/beta-10", "two/beta-50"}
    assert not (one / "analysis").exists()
    monkeypatch.chdir(tmp_path)
    assert len(collect.collect([Path("one"), one]).runs) == 2


def test_the_cost_of_a_sweep_is_that_of_its_runs_and_says_of_how_many(tmp_path, analyse):
    write_run(tmp_path / "a", more={"cpu_seconds": 5400})
    write_run(tmp_path / "b", more={"cpu_seconds": 1800, "gpu_seconds": 7200})
    write_run(tmp_path / "c")
    cut = write_status(tmp_path / "cut", "INTERRUPTED")
    (cut / "cost.json").write_text(json.dumps({"cpu_seconds": 3600}))
    printed, _, table = analyse(tmp_path)
    assert "Cost of 3 runs: 3 CPU hours, 2 GPU hours." in printed
    assert table.set_index("run").loc["cut", "cpu_seconds"] == 3600


# references and warnings


def with_spectrum(folder, held_out=(3.0, 2.0), total=9.0):
    """A run folder with the spectrum of its faces, 100 pixels each."""
    spectrum = Spectrum([*held_out], [*held_out], total, 100)
    (folder / "spectrum.json").write_text(json.dumps(spectrum._asdict()))
    return folder


def labels_of_rate_distortion(root) -> set[str]:
    figure = Figure()
    plots.rate_distortion(figure, collect.collect([root]).completed, [])
    (plot,) = figure.axes
    return {*plot.get_legend_handles_labels()[1], *(note.get_text() for note in plot.texts)}


@pytest.mark.parametrize("betas", [[0], [0, 0], [0, 1]])
def test_a_sweep_with_beta_0_has_all_figures(tmp_path, analyse, betas):
    for index, beta in enumerate(betas):
        run = {"beta": beta, "seed": index, "psnr": 20 - index, "nelbo": -index}
        with_spectrum(write_run(tmp_path / "s" / f"beta-{beta}_seed-{index}", **run))
    printed, _, _ = analyse(tmp_path / "s")
    assert "A linear VAE with its beta and latent_dim can reach 13.98 dB" in printed
    labels = labels_of_rate_distortion(tmp_path / "s")
    assert {"beta 0", "mean face", "PCA-120"} <= labels
    assert ("linear VAE, latent 120" in labels) == (max(betas) > 0)
    names = {path.stem for path in (tmp_path / "s" / "analysis").glob("*.png")}
    several = {"metric_against_beta"} if len({*betas}) > 1 else set()
    assert names == {"rate_distortion", "learning_curves"} | several


def test_the_linear_reference_is_that_of_the_run_and_has_its_axes(tmp_path, analyse):
    """The spectrum of the first run has no fourth axis, which the sharpest run uses."""
    root = tmp_path / "s"
    axes = (3.0, 2.0, 1.5, 1.0)
    with_spectrum(write_run(root / "a", latent_dim=2, beta=0.1, psnr=19, nelbo=-1), axes[:2])
    with_spectrum(write_run(root / "b", latent_dim=4, beta=0.1, psnr=21, nelbo=-2), axes)
    expected = linear_vae(Spectrum([*axes], [*axes], 9.0, 100), 0.1, 4)["psnr"]
    sentence = "The best PSNR is 21.00 dB, of b. A linear VAE with its beta and latent_dim can"
    assert f"{sentence} reach {expected:.2f} dB" in analyse(root)[0]
    assert len(plots.reference(collect.collect([root]).completed).eigenvalues) == 4

    # other faces, of which no setting tells
    with_spectrum(write_run(root / "c", latent_dim=4, beta=0.1, psnr=22, nelbo=-3), axes, total=9.1)
    own = linear_vae(Spectrum([*axes], [*axes], 9.1, 100), 0.1, 4)["psnr"]
    assert f"latent_dim can reach {own:.2f} dB" in analyse(root)[0]
    assert "mean face" not in labels_of_rate_distortion(root)
    assert "No linear references" in page_of(root)
    for damage in ("{", "[]", '{"eigenvalues": 3}'):
        (root / "c" / "spectrum.json").write_text(damage)
        assert plots.reference(collect.collect([root]).completed) is None


PEOPLE = {
    "data.split_seed": (0, 1),
    "data.val_fraction": (0.2, 0.4),
    "data.test_fraction": (0, 0.5),
    "data.person_pattern": ("^(.+)_\\d+$", "^(.+)$"),
    "faces": ("f", "g"),
}


@pytest.mark.parametrize("knob", PEOPLE)
def test_runs_that_hold_out_different_people_are_named(tmp_path, knob, analyse):
    for name, value in zip("ab", PEOPLE[knob]):
        with_spectrum(write_run(tmp_path / name, **{knob: value}))
    reason = "other images" if knob == "faces" else knob
    sentence = f"Runs hold out different people ({reason})"
    assert sentence in analyse(tmp_path)[0]
    page = page_of(tmp_path)
    assert page.index(sentence) < page.index("<h2>Configurations")
    assert plots.reference(collect.collect([tmp_path]).completed) is None


def test_a_leader_behind_the_mean_face_is_said_to_be(tmp_path, analyse):
    """The mean face has 10.46 dB here. With repeats the means count."""
    root = tmp_path / "s"
    for beta, psnr in {30: 9.5, 20: 10.4, 1: 12}.items():
        with_spectrum(write_run(root / f"beta-{beta}", beta=beta, psnr=psnr, nelbo=-beta))
    printed, _, table = analyse(root)
    behind = "beta=30 (9.50 dB, the mean face 10.46 dB); beta=20 (10.40 dB, the mean face 10.46 dB)"
    assert f"Behind the mean face by PSNR: {behind}. They have learnt less" in printed
    assert "beta=30: val/nelbo -30 nats, PSNR 9.50 dB, KL 3.2 nats, 1 run, behind the" in printed
    assert "beta=20, behind the mean face" in page_of(root)
    assert table["mean_face_psnr"].tolist() == pytest.approx([10.4576] * 3, abs=1e-3)
    by_psnr = analyse(root, "rank_by=val/psnr")[0]
    assert "Behind the mean face by PSNR: beta=20 (" in by_psnr

    for beta, psnr in {30: 11.5, 20: 10, 1: 12}.items():
        run = {"beta": beta, "psnr": psnr, "nelbo": -beta, "seed": 1}
        with_spectrum(write_run(root / f"beta-{beta}_seed-1", **run))
    printed, _, _ = analyse(root)
    assert "Behind the mean face by PSNR: beta=20 (10.20 dB, the mean face 10.46 dB)." in printed
    assert "beta=30: val/nelbo -30 ± 0 nats, PSNR 10.50 dB, KL 3.2 nats, 2 runs " in printed


def test_runs_of_two_programs_are_named(tmp_path, analyse):
    for seed, code in enumerate(("1111", "2222", "1111 2222")):
        write_run(tmp_path / "s" / f"{seed}", seed=seed, more={"code": code})
    printed, _, table = analyse(tmp_path / "s")
    assert "trained by different programs (column code)" in printed
    assert table["code"].tolist() == ["1111", "2222", "1111 2222"]
    write_run(tmp_path / "one" / "x")
    assert "different programs" not in analyse(tmp_path / "one")[0]


# what is written


def test_the_result_is_short_and_names_the_best_two_configurations(tmp_path, capsys):
    root = grid(tmp_path / "s", beta=[1, 10, 50], batch_size=[32, 64, 128], seed=[0, 1, 2])
    write_status(root / "cut", "INTERRUPTED", reason="signal 15")
    assert run_analysis(root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 22
    assert max(len(line) for line in lines if "evaluate.py" not in line) <= 100
    found = json.loads((root / "analysis" / "top.json").read_text())
    table = pd.read_csv(root / "analysis" / "runs.csv")
    written = pd.read_csv(root / "analysis" / "configurations.csv")
    assert written["mean"].tolist() == [each["mean"] for each in found["configurations"]]
    for place, own in enumerate(found["configurations"][:2], start=1):
        beta, size = (float(part.partition("=")[2]) for part in own["configuration"].split(", "))
        part = table[(table["beta"] == beta) & (table["batch_size"] == size)]
        assert own["best_run"] == part.loc[part["val/nelbo"].idxmin(), "run"]
        assert own["mean"] == pytest.approx(part["val/nelbo"].mean())
        interval = stats.t.interval(0.95, 2, own["mean"], stats.sem(part["val/nelbo"]))
        assert own["half_width"] == pytest.approx(interval[1] - own["mean"])
        assert any(f"{place}. {own['configuration']}: val/nelbo -" in line for line in lines)
        assert any(line.strip() == own["evaluate"] for line in lines)
    assert found["verdict"] in lines
    assert any(line.startswith("  beta=10 instead of 1: val/nelbo +") for line in lines)


def test_a_command_evaluates_a_run_wherever_the_sweep_is(tmp_path, analyse):
    root = grid(tmp_path / "s", beta=[1, 10]).rename(tmp_path / "a b=c")
    best = analyse(root)[1]["configurations"][0]
    program, script, argument = shlex.split(best["evaluate"])
    assert (program, script) == ("python", "evaluate.py")
    path = argument.removeprefix("ckpt='").removesuffix("'")
    assert Path(path).resolve() == root / best["best_run"] / best["checkpoint"]


def test_a_closed_pipe_ends_the_analysis_quietly(tmp_path):
    """`python -m multirun_analysis SWEEP | true`; the shell's code for SIGPIPE is 141."""
    root = grid(tmp_path / "s", beta=[1, 10])
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "multirun_analysis", str(root)]
    done = subprocess.run(command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")
    assert (root / "analysis" / "index.html").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        *[("", "folders is not set"), ("/nowhere", "is not a folder"), ("--what", "--what is not")],
        *[("README.md", "is not a folder"), ("x=1", "folders is not set"), ("tests", "no runs")],
        *[("diff", "diff RUN RUN"), ("diff a", "diff RUN RUN"), ("diff a b c", "diff RUN RUN")],
        ("diff docs tests", "not a run folder"),
    ],
)
def test_mistakes_are_one_sentence(capsys, words, sentence):
    assert run_analysis(*words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert sentence in line


def test_nothing_from_a_run_folder_is_markup(tmp_path, analyse):
    root = tmp_path / "s"
    script = HOSTILE.replace("/", "∕")
    names = [script, "a'b\"c", "$x^", os.fsdecode(b"\xff\xfe"), "line\nbreak", "{{7*7}}"]
    for index, name in enumerate(names):
        knobs = {"model.network": HOSTILE, "data.source": f"{index}{HOSTILE}"}
        folder = write_run(root / name, psnr=20 + index, nelbo=-index, **knobs)
        (folder / "preview.png").write_bytes(b"\x89PNG damaged")
    write_status(root / "bad", "FAILED", reason=HOSTILE)
    analyse(root)
    page = page_of(root)
    assert page.count("<script") == 1
    assert f"failed, {html.escape(HOSTILE)}" in page
    assert f"5{html.escape(HOSTILE)}</td>" in page
    assert ">{{7*7}}<" in page


@slow
def test_five_thousand_runs_take_seconds(tmp_path):
    """20% unfinished, 5% corrupt; the time limit is generous, for machines differ."""
    root = tmp_path / "s"
    for index in range(5000):
        knobs = {"beta": index % 3, "seed": index}
        folder = write_run(root / f"{index}", psnr=20 + index % 13, nelbo=-index, **knobs)
        if index % 5 == 0:
            (folder / "result.json").unlink()
            write_status(folder, "INTERRUPTED")
        elif index % 20 == 1:
            (folder / "result.json").write_text('{"best"')
    begin = time.monotonic()
    code = f"from multirun_analysis.__main__ import main; main([{str(root)!r}])"
    # ru_maxrss would also count the parent before exec
    code += "; print(next(x for x in open('/proc/self/status') if x[:5] == 'VmHWM').split()[1])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 30
    assert int(done.stdout.split()[-1]) < 500_000  # kB
    counts = json.loads((root / "analysis" / "top.json").read_text())["counts"]
    assert counts == {"runs": 5000, "completed": 3750, "interrupted": 1000, "corrupt": 250}


def test_the_linear_references_are_pca_and_monte_carlo():
    """The closed form's KL and sampled SSE against drawing from the linear VAE itself."""
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 2.0, 1.5, 0.3, 0.1])
    train = rng.standard_normal((4000, 5)) * scales
    held = rng.standard_normal((500, 5)) * scales
    variances = train.var(0)
    total = float((held**2).sum(1).mean())
    spectrum = Spectrum(list(variances), list((held**2).mean(0)), total, 5)
    beta = 2.0
    s = beta / 2
    found = linear_vae(spectrum, beta, 4)
    live = variances > s
    assert found["active_units"] == live.sum() == 3
    v = variances[live]
    mu = held[:, live] * np.sqrt(v - s) / v
    z = mu + np.sqrt(s / v) * rng.standard_normal((200, *mu.shape))
    error = ((held[:, live] - z * np.sqrt(v - s)) ** 2).sum(-1).mean()
    error += (held[:, ~live] ** 2).sum(1).mean()
    assert found["recon"] == pytest.approx(error, rel=0.01)
    kl = 0.5 * (mu**2 + s / v - 1 - np.log(s / v)).sum(1).mean()
    assert found["kl"] == pytest.approx(kl)
    assert found["loss"] == pytest.approx(found["recon"] + beta * found["kl"])
    left = (held[:, 2:] ** 2).sum(1).mean() / 5
    assert pca_psnr(spectrum, 2) == pytest.approx(-10 * np.log10(left))


# sweeps with rungs


def metrics(nelbo: float) -> dict:
    ones = dict.fromkeys(collect.METRICS, 1.0)
    return ones | {"val/loss": nelbo, "val/nelbo": nelbo, "val/psnr": -nelbo}


def write_paused(folder, nelbo: list[float], **knobs) -> None:
    """A run that is paused after epoch 2."""
    write_status(folder, "PAUSED", reason="after epoch 2 of 6")
    settings = Settings().with_values({"image_size": 64} | knobs).plain()
    (folder / "config.yaml").write_text(yaml.safe_dump(settings))
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


def test_a_paused_run_has_its_place_and_effects_are_those_of_the_first_rung(halved, analyse):
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
    found = effects.effects(first, ["val/nelbo"])
    assert dict(zip(found["value"], found["change"])) == {2: -1, 3: 1, 4: 0.5}
    assert [own["best_run"] for own in top["configurations"]] == ["a", "b"]


def test_a_rung_takes_the_best_epoch_by_val_loss_as_a_run_does(halved):
    values = {1: (5, 3), 2: (9, 1), 3: (7, 2)}
    lines = {e: metrics(nelbo) | {"val/loss": loss} for e, (nelbo, loss) in values.items()}
    write_metrics(halved / "a", lines)
    for epochs, expected in {1: 5, 2: 9, 3: 9}.items():
        reached = rungs.after(collect.collect([halved]), epochs).runs.set_index("run")
        assert reached.loc["a", "val/nelbo"] == expected


def test_the_place_of_a_paused_run_is_that_of_its_configuration(halved, analyse):
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


# the differences between two runs


def test_a_diff_names_what_differs_and_nothing_else(tmp_path, capsys):
    more = {"machine": "Linux", "versions": {"torch": "2.1"}, "code": "abc"}
    one = write_run(tmp_path / "one", beta=1, more=more)
    more = {"machine": "Linux", "versions": {"torch": "2.2"}}
    two = write_run(tmp_path / "two", beta=10, psnr=21.5, faces=HOSTILE, more=more)
    for folder, clip in {one: 1.0, two: 500.0}.items():  # result.json lacks it
        settings = Settings.model_validate({"trainer": {"gradient_clip_val": clip}})
        (folder / "config.yaml").write_text(yaml.safe_dump(settings.plain()))
    assert run_analysis("diff", one, two) == 0
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.split() == ["one", "two"]
    start = title.index("one")
    rows = [(line[:start].strip(), *line[start:].split()) for line in lines]
    assert rows == [
        ("settings beta", "1", "10"),
        ("settings trainer.gradient_clip_val", "1.0", "500.0"),
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
        path = write_status(write_run(tmp_path / name, epochs=epochs), "INTERRUPTED")
        (path / "result.json").unlink()
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
