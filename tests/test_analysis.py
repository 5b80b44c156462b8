"""The analysis against independent computations, hostile folders, five thousand runs and a browser."""

import html.parser
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT
from scipy import stats

from multirun_analysis import __main__ as analysis
from multirun_analysis import collect, plots, rank
from smilevae.errors import ConfigError
from smilevae.models.linear import Spectrum, linear_vae, pca_psnr

HOSTILE = "<script>alert(1)</script>"


def write_run(folder, *, nelbo=-1.0, psnr=20.0, loss=10.0, epochs=3, faces="f", best=None, **knobs):
    """A completed run folder of given numbers."""
    folder.mkdir(parents=True)
    settings = {
        "beta": 1,
        "latent_dim": 120,
        "batch_size": 32,
        "normalize": False,
        "seed": 0,
        "image_size": 64,
        **knobs,
    }
    kl = 5.0 if settings["beta"] == "auto" else 100 / (1 + settings["beta"])
    best = (best or {}) | {"epoch": epochs, "val/loss": loss, "val/recon": 9.0, "val/kl": kl}
    best |= {"val/nelbo": nelbo, "val/psnr": psnr, "val/active_units": 7}
    result = {
        "identity": "i",
        "data_fingerprint": faces,
        "settings": settings,
        "checkpoints": [f"checkpoints/epoch-{epochs:04d}.ckpt"],
        "best": best,
        "final": best | {"images_per_second": 100.0},
        "wall_seconds": 60.0,
        "threads": 2,
        "peak_memory_mb": 900,
    }
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text('{"status": "COMPLETED"}')
    lines = [{"epoch": e, "val/psnr": psnr - 3 / e, "val/loss": loss + 100 / e**4} for e in range(1, epochs + 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def grid(root, **levels):
    """A full grid of runs whose metrics are sums of their knobs' effects and noise."""
    rng = np.random.default_rng(0)
    for values in itertools.product(*levels.values()):
        knobs = dict(zip(levels, values))
        psnr = 25 - 2 * math.log10(knobs.get("beta", 1)) + 0.5 * (knobs.get("batch_size", 32) == 64)
        psnr += 0.1 * rng.standard_normal()
        name = "_".join(f"{k}-{v}" for k, v in knobs.items())
        write_run(root / name, psnr=psnr, nelbo=-1000 * psnr, loss=500 - 10 * psnr + 7 * knobs.get("beta", 1), **knobs)
    return root


def run_analysis(*arguments) -> int:
    """The analysis in this process; gives the exit code."""
    try:
        analysis.main([str(a) for a in arguments])
    except SystemExit as stop:
        return stop.code
    return 0


def test_paired_effects_agree_with_scipy_from_the_csv(tmp_path, capsys):
    """The independent oracle reads runs.csv and knows nothing of our code."""
    root = grid(tmp_path / "s", beta=[1, 10, 50], batch_size=[32, 64], seed=[0, 1, 2])
    assert run_analysis(root) == 0
    table = pd.read_csv(root / "analysis" / "runs.csv")
    found = json.loads((root / "analysis" / "top.json").read_text())
    assert len(found["effects"]) == 3 * (2 + 1)
    others = {"beta": ["batch_size", "seed"], "batch_size": ["beta", "seed"]}
    for effect in found["effects"]:
        one, two = (
            table[table[effect["knob"]] == effect[side]]
            .sort_values(others[effect["knob"]])[effect["metric"]]
            .to_numpy()
            for side in ("level", "versus")
        )
        assert (effect["unit"], effect["n"]) == ("pairs", len(one))
        if np.ptp(one - two) == 0:  # KL depends on beta alone here
            assert effect["low"] == effect["high"] == pytest.approx((one - two)[0])
            continue
        expected = stats.ttest_rel(one, two)
        interval = expected.confidence_interval(0.95)
        assert effect["difference"] == pytest.approx((one - two).mean())
        assert (effect["low"], effect["high"]) == pytest.approx((interval.low, interval.high))
        assert effect["tells"] == (expected.pvalue < 0.05)
    by_nelbo = table.sort_values("val/nelbo")["run"].tolist()[:2]
    assert [entry["run"] for entry in found["top"]] == by_nelbo
    for group in found["top_by_loss"]:
        part = table[table["beta"] == group["among"]["beta"]]
        assert [e["run"] for e in group["runs"]] == part.sort_values("val/loss")["run"].tolist()[:2]


def test_a_sweep_may_hold_beta_auto_beside_numbers(tmp_path):
    root = grid(tmp_path / "s", beta=[1, 0.1], seed=[0, 1])
    for seed in (0, 1):
        best = {"beta": 0.006 + seed / 1e4}
        write_run(root / f"beta-auto_seed-{seed}", nelbo=-30_000, psnr=27.0 + seed, best=best, beta="auto", seed=seed)
    assert run_analysis(root) == 0
    found = json.loads((root / "analysis" / "top.json").read_text())
    assert {run["run"] for run in found["top"]} == {"beta-auto_seed-0", "beta-auto_seed-1"}
    levels = [(e["level"], e["versus"]) for e in found["effects"] if e["metric"] == "val/psnr"]
    assert levels == [(1, 0.1), ("auto", 0.1)]
    table = pd.read_csv(root / "analysis" / "runs.csv")
    assert set(table["beta"].astype(str)) == {"1.0", "0.1", "auto"} or set(table["beta"]) == {"1", "0.1", "auto"}
    write_run(root / "bad", beta="auto")  # no number
    assert collect.read(root / "bad")["status"] == "corrupt"


def test_an_evaluated_run_shows_its_distances_to_real_faces(tmp_path):
    root = grid(tmp_path / "s", beta=[1, 10], seed=[0, 1])
    names = sorted(path.name for path in root.iterdir())
    rows = {name: {"landmarks": {"distance": 0.25}} for name in ("reconstructions", "new faces")}
    for name, table in zip(names, ({"realism": rows}, {"realism": {"new faces": HOSTILE}}, {"realism": rows})):
        folder = root / name / "evaluation" / "best"
        folder.mkdir(parents=True)
        checkpoint = "checkpoints/epoch-0001.ckpt" if name == names[2] else "checkpoints/epoch-0003.ckpt"
        (folder / "metrics.json").write_text(json.dumps(table | {"checkpoint": checkpoint}))
    assert run_analysis(root) == 0
    table = pd.read_csv(root / "analysis" / "runs.csv").set_index("run")
    assert table.loc[names[0], list(collect.DISTANCES)].tolist() == [250, 250]
    assert table.loc[names[1:], list(collect.DISTANCES)].isna().all(axis=None)  # damaged, of another one, missing
    assert (table["status"] == "completed").all()
    assert "distance of new faces" in (root / "analysis" / "index.html").read_text()


def test_without_a_full_grid_effects_are_welch_s(tmp_path):
    root = grid(tmp_path / "s", beta=[1, 10], batch_size=[32, 64], seed=[0, 1])
    shutil.rmtree(root / "beta-1_batch_size-64_seed-1")
    sweep = collect.collect([root])
    effect = next(e for e in rank.effects(sweep, ("val/psnr",)) if e.knob == "beta")
    done = sweep.completed
    a, b = (done[done["beta"] == value]["val/psnr"] for value in (10, 1))
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    assert effect.unit == "runs"
    assert effect.n == 7
    assert (effect.low, effect.high) == pytest.approx((interval.low, interval.high))


def test_one_run_each_cannot_tell(tmp_path):
    sweep = collect.collect([grid(tmp_path / "s", beta=[1, 10])])
    (effect,) = rank.effects(sweep, ("val/psnr",))
    assert not effect.tells
    assert "cannot tell" in effect.sentence()


def test_noise_alone_is_called_an_effect_about_one_time_in_twenty():
    rng, told = np.random.default_rng(0), 0
    for _ in range(300):
        rows = [
            {"run": f"{k}{s}", "status": "completed", "knob": k, "seed": s, "val/psnr": rng.standard_normal()}
            for k in (0, 1)
            for s in range(6)
        ]
        frame = pd.DataFrame(rows).assign(data_fingerprint="f")
        told += rank.effects(collect.Sweep(frame, ["knob", "seed"]), ("val/psnr",))[0].tells
    assert 4 <= told <= 30  # 15 expected


def test_val_loss_is_compared_within_beta_only(tmp_path):
    root = tmp_path / "s"
    write_run(root / "a", beta=1, loss=30, nelbo=-5)
    write_run(root / "b", beta=10, loss=20, nelbo=-1)
    write_run(root / "c", beta=1, loss=40, nelbo=-6)
    write_run(root / "d", beta=1, loss=1, nelbo=-2, faces="others")
    sweep = collect.collect([root])
    assert list(rank.best(sweep.completed, "val/nelbo")["run"]) == ["c", "a"]
    found = [list(rank.best(part, "val/loss")["run"]) for _, part in rank.groups(sweep)]
    assert sorted(found) == [["a", "c"], ["b"], ["d"]]
    with pytest.raises(ConfigError, match="does not compare"):
        rank.check_rank_by(sweep, "val/loss")


def test_the_pareto_front_is_what_nothing_beats(tmp_path):
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"run": range(60), "val/kl": rng.random(60), "val/psnr": rng.random(60)})
    by_force = {
        a["run"]
        for _, a in frame.iterrows()
        if not (
            (frame["val/kl"] <= a["val/kl"]) & (frame["val/psnr"] >= a["val/psnr"]) & (frame["run"] != a["run"])
        ).any()
    }
    assert set(rank.pareto(frame)["run"]) == by_force


@pytest.mark.parametrize(
    ("values", "epoch"),
    [([5, 4, 3.01, 3, 3.02], 3), ([3, 9, 3, 3], 3), ([4, 3, 4, 5], 2), ([9, 5, 3], None), ([3], None), ([], None)],
)
def test_when_training_settles(values, epoch):
    assert rank.settled(list(enumerate(values, 1))) == epoch


def test_every_kind_of_run_is_counted_and_named_and_none_is_ranked(tmp_path, capsys):
    root = grid(tmp_path / "s", beta=[1, 10])
    broken = {
        "torn": ("result.json", '{"best": {'),
        "list": ("result.json", "[]"),
        "nan": ("result.json", (root / "beta-1" / "result.json").read_text().replace("9.0", "NaN")),
        "escape": ("result.json", (root / "beta-1" / "result.json").read_text().replace("checkpoints/", "../")),
        "lost": ("status.json", '{"status": "COMPLETED"}'),
        "odd": ("status.json", '{"status": ["x"]}'),
    }
    for name, (file, content) in broken.items():
        (root / name).mkdir()
        (root / name / file).write_text(content)
    for name, status in {
        "sick": {"status": "FAILED", "reason": "the loss became nan", "error": "Diverged"},
        "bad": {"status": "FAILED", "reason": "ValueError: no", "error": "ValueError"},
        "cut": {"status": "INTERRUPTED", "reason": "stopped by signal 15"},
        "gone": {"status": "RUNNING"},
    }.items():
        (root / name).mkdir()
        (root / name / "status.json").write_text(json.dumps(status))
    (root / "sweep.json").write_text(json.dumps({"jobs": {"beta-1": {}, "later": {}}}))
    (root / "notes").mkdir()  # no run
    sweep = collect.collect([root])
    expected = {
        "completed": 2,
        "corrupt": 6,
        "diverged": 1,
        "failed": 1,
        "interrupted": 1,
        "stale": 1,
        "not started": 1,
    }
    assert sweep.counts == expected
    assert sum(sweep.counts.values()) == len(sweep.runs) == 13
    assert run_analysis(root) == 0
    printed = capsys.readouterr().out
    assert "13 runs: 2 completed" in printed
    assert "sick: diverged, the loss became nan" in printed
    top = json.loads((root / "analysis" / "top.json").read_text())
    assert {entry["run"] for entry in top["top"]} == {"beta-1", "beta-10"}


def test_a_sweep_without_a_completed_run_has_a_page_too(tmp_path, capsys):
    (tmp_path / "s" / "a").mkdir(parents=True)
    (tmp_path / "s" / "a" / "status.json").write_text('{"status": "FAILED", "reason": "no"}')
    assert run_analysis(tmp_path / "s") == 0
    assert "No run completed" in (tmp_path / "s" / "analysis" / "index.html").read_text()


SPECTRUM = {"eigenvalues": [3.0, 2.0], "held_out": [3.0, 2.0], "total": 9.0, "num_pixels": 100}


@pytest.mark.parametrize("betas", [[0], [0, 0], [0, 1]])
def test_a_sweep_with_beta_0_has_all_figures(tmp_path, capsys, betas):
    root = tmp_path / "s"
    for index, beta in enumerate(betas):
        folder = write_run(root / f"beta-{beta}_seed-{index}", beta=beta, seed=index, psnr=20 - index, nelbo=-index)
        (folder / "spectrum.json").write_text(json.dumps(SPECTRUM))
    assert run_analysis(root) == 0
    printed = capsys.readouterr().out
    assert "the linear VAE's optimum at its beta and latent_dim has 13.98 dB" in printed
    figure = (root / "analysis" / "rate_distortion.svg").read_text()
    assert ("linear VAE, latent 120" in figure) == (max(betas) > 0)
    assert all(name in figure for name in ("beta 0", "mean face", "PCA-120"))
    page = (root / "analysis" / "index.html").read_text()
    assert ("The dashed line" in page) == (max(betas) > 0)


def with_spectrum(folder, held_out=(3.0, 2.0), total=9.0):
    """A run folder with the spectrum of its faces, 100 pixels each."""
    content = {"eigenvalues": list(held_out), "held_out": list(held_out), "total": total, "num_pixels": 100}
    (folder / "spectrum.json").write_text(json.dumps(content))
    return folder


def test_the_linear_reference_is_that_of_the_run_and_has_its_axes(tmp_path, capsys):
    """The spectrum of the first run has no fourth axis, which the sharpest run uses."""
    root, axes = tmp_path / "s", (3.0, 2.0, 1.5, 1.0)
    with_spectrum(write_run(root / "a", latent_dim=2, beta=0.1, psnr=19, nelbo=-1), axes[:2])
    with_spectrum(write_run(root / "b", latent_dim=4, beta=0.1, psnr=21, nelbo=-2), axes)
    expected = linear_vae(Spectrum([*axes], [*axes], 9.0, 100), 0.1, 4)["psnr"]
    assert run_analysis(root) == 0
    sentence = (
        f"The sharpest run, b, has 21.00 dB; the linear VAE's optimum at its beta and latent_dim has {expected:.2f}"
    )
    assert sentence in capsys.readouterr().out
    assert len(plots.reference(collect.collect([root])).eigenvalues) == 4

    # other faces, of which no setting tells
    with_spectrum(write_run(root / "c", latent_dim=4, beta=0.1, psnr=22, nelbo=-3), axes, total=9.1)
    assert run_analysis(root) == 0
    own = linear_vae(Spectrum([*axes], [*axes], 9.1, 100), 0.1, 4)["psnr"]
    assert f"latent_dim has {own:.2f} dB" in capsys.readouterr().out
    assert "mean face" not in (root / "analysis" / "rate_distortion.svg").read_text()
    assert "There are no linear references" in (root / "analysis" / "index.html").read_text()
    (root / "c" / "spectrum.json").unlink()
    assert plots.reference(collect.collect([root])) is None


PEOPLE = {
    "data.split_seed": (0, 1),
    "data.val_fraction": (0.2, 0.4),
    "data.test_fraction": (0, 0.5),
    "data.person_pattern": ("^(.+)_\\d+$", "^(.+)$"),
    "faces": ("f", "g"),
}


@pytest.mark.parametrize("knob", PEOPLE)
def test_runs_that_hold_out_different_people_are_not_compared_without_a_word(tmp_path, knob, capsys):
    for name, value in zip("ab", PEOPLE[knob]):
        with_spectrum(write_run(tmp_path / "s" / name, **{knob: value}))
    assert run_analysis(tmp_path / "s") == 0
    reason = "other images" if knob == "faces" else knob
    sentence = f"Runs hold out different people ({reason})"
    printed = capsys.readouterr().out
    assert printed.index(sentence) < printed.index("top two by")
    page = (tmp_path / "s" / "analysis" / "index.html").read_text()
    assert page.index(sentence) < page.index("The top two runs")
    sweep = collect.collect([tmp_path / "s"])
    assert plots.reference(sweep) is None
    assert len(rank.groups(sweep)) == 2


def test_a_leader_behind_the_mean_face_is_said_to_be(tmp_path, capsys):
    """The mean face has 10.46 dB here."""
    root = tmp_path / "s"
    for beta, psnr in {30: 9.5, 20: 10.4}.items():
        with_spectrum(write_run(root / f"beta-{beta}", beta=beta, psnr=psnr, nelbo=-beta))
    with_spectrum(write_run(root / "beta-1", beta=1, psnr=12, nelbo=-1))
    assert run_analysis(root) == 0
    printed = capsys.readouterr().out
    sentence = (
        "Behind the mean face by PSNR: beta-30 (9.50 against 10.46 dB); beta-20 (10.40 against 10.46 dB)."
        " They have learnt less than an average of all faces. Train longer, or lower beta."
    )
    assert printed.index(sentence) < printed.index("top two by")
    assert "nelbo -30, 9.50 dB, behind the mean face" in printed
    page = (root / "analysis" / "index.html").read_text()
    assert sentence in page
    assert "2 of 3 completed runs, in grey, are behind the mean face" in page
    assert pd.read_csv(root / "analysis" / "runs.csv")["mean_face_psnr"].tolist() == pytest.approx(
        [10.4576] * 3, abs=1e-3
    )
    assert run_analysis(root, "rank_by=val/psnr") == 0
    assert "behind the mean face" not in capsys.readouterr().out.partition("beta-20")[0]

    # with repeats the best setting is named
    for beta, psnr in {30: 10, 20: 10, 1: 12}.items():
        with_spectrum(write_run(root / f"beta-{beta}_seed-1", beta=beta, psnr=psnr, nelbo=-beta, seed=1))
    assert run_analysis(root) == 0
    printed = capsys.readouterr().out
    assert (
        "Behind the mean face by PSNR: beta=30 (9.75 against 10.46 dB); beta=20 (10.20 against 10.46 dB); " in printed
    )
    assert "beta=30: mean -30 (95% -30 to -30), 2 runs, behind the mean face" in printed


def test_settings_of_the_trainer_are_knobs(tmp_path):
    jobs = {f"{clip}": {"settings": {"trainer.gradient_clip_val": clip, "trainer.devices": clip}} for clip in (1, 500)}
    for name in jobs:
        write_run(tmp_path / name)
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert collect.collect([tmp_path]).swept == ["trainer.gradient_clip_val"]


def test_long_values_that_differ_at_their_end_are_two(tmp_path):
    for name in "ab":
        write_run(tmp_path / name, **{"data.unlabelled": f"/{'x' * 120}/{name}"})
    assert collect.collect([tmp_path]).swept == ["data.unlabelled"]


def test_a_sweep_that_is_passed_twice_counts_once(tmp_path, monkeypatch):
    grid(tmp_path / "s", beta=[1, 10])
    monkeypatch.chdir(tmp_path)
    assert collect.collect([Path("s"), tmp_path / "s"]).counts == {"completed": 2}


def test_val_loss_is_not_compared_between_different_betas_of_beta_auto(tmp_path):
    for seed, beta in enumerate((0.006, 0.007)):
        write_run(tmp_path / str(seed), beta="auto", seed=seed, best={"beta": beta})
    assert [len(part) for _, part in rank.groups(collect.collect([tmp_path]))] == [1, 1]


@pytest.mark.parametrize("rank_by", ["val/nelbo", "val/recon"])
def test_sums_over_pixels_do_not_rank_different_sizes(tmp_path, rank_by, capsys):
    for size in (64, 128):
        write_run(tmp_path / f"{size}", image_size=size)
    assert run_analysis(tmp_path, f"rank_by={rank_by}") == 0
    printed = capsys.readouterr().out
    assert "top two by val/psnr" in printed
    assert "Runs have different image sizes, on which val/psnr depends: compare runs of one size." in printed


def test_the_second_phase_is_not_in_the_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(collect, "HIDDEN", collect.HIDDEN - {"sharpen.weight"})
    for weight in (0.1, 0.5):
        write_run(tmp_path / f"{weight}", **{"sharpen.weight": weight})
    assert run_analysis(tmp_path) == 0
    assert "sharpen.weight acts in the second, in RUN/sharp" in capsys.readouterr().out


def test_a_warm_start_that_stays_the_best_has_settled(tmp_path, capsys):
    folder = write_run(tmp_path / "a")
    lines = [{"epoch": epoch, "val/loss": 10 + epoch, "val/psnr": 20} for epoch in range(5)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run_analysis(tmp_path) == 0
    printed = capsys.readouterr().out
    assert "in 1 of 1 runs, in epoch 0" in printed
    assert "still improving" not in printed


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


@pytest.mark.parametrize("way", [["-m", "multirun_analysis"], ["analyse"]])
def test_help_says_how(way):
    code = "import sys; from smilevae.cli import main; main(sys.argv[1:])"
    command = ["-c", code, "analyse"] if "analyse" in way else way
    done = subprocess.run([sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert all(word in done.stdout for word in ("rank_by", "out", "folders", "val/nelbo"))


@pytest.mark.parametrize("arguments", [[], ["/nowhere"], ["README.md"], ["--what"], ["x=1"], ["tests"]])
def test_mistakes_are_one_sentence(capsys, arguments):
    assert run_analysis(*arguments) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_an_unknown_metric_is_one_sentence(tmp_path, capsys):
    assert run_analysis(grid(tmp_path / "s", beta=[1, 10]), "rank_by=val/fid") == 2
    assert "choose one of" in capsys.readouterr().err


class Page(html.parser.HTMLParser):
    """Collects what a browser would run or fetch."""

    def __init__(self, text):
        super().__init__()
        self.scripts, self.handlers, self.links, self.words = 0, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.scripts += tag == "script"
        self.handlers += [k for k, _ in attributes if k.startswith("on")]
        links = [v or "" for k, v in attributes if k in ("href", "src", "xlink:href")]
        self.links += [link for link in links if not link.startswith(("data:image/", "#"))]

    def handle_data(self, data):
        self.words.append(data)


def test_nothing_from_a_run_folder_is_markup_or_a_formula(tmp_path, capsys):
    root = tmp_path / "s"
    names = [
        HOSTILE.replace("/", "∕"),
        "=cmd|calc",
        "a'b\"c",
        "$x^",
        os.fsdecode(b"\xff\xfe"),
        "line\nbreak",
        "{{7*7}}",
    ]
    for index, name in enumerate(names):
        knobs = {"model.network": HOSTILE, "data.source": f"{index}{HOSTILE}"}
        write_run(root / name, psnr=20 + index, nelbo=-index, **knobs)
    (root / "bad").mkdir()
    (root / "bad" / "status.json").write_text(json.dumps({"status": "FAILED", "reason": HOSTILE}))
    secret = tmp_path / "secret"
    secret.write_bytes(b"\x89PNG\r\n\x1a\n secret")
    (root / names[0] / "preview.png").symlink_to(secret)
    (root / names[1] / "preview.png").write_bytes(b"\x89PNG\r\n\x1a\n nonsense")
    assert run_analysis(root) == 0
    text = (root / "analysis" / "index.html").read_text()
    page = Page(text)
    assert page.scripts == 1
    assert page.handlers == []
    assert page.links == []
    assert HOSTILE not in text
    assert any(HOSTILE in word for word in page.words)
    assert "49" not in [word.strip() for word in page.words]
    assert "secret" not in text
    cells = pd.read_csv(root / "analysis" / "runs.csv", dtype=str).fillna("").to_numpy().ravel()
    assert not any(cell.startswith(("=", "@")) for cell in cells)
    for svg in (root / "analysis").glob("*.svg"):
        assert HOSTILE not in svg.read_text()


def test_several_sweeps_are_read_together(tmp_path, capsys):
    one, two = grid(tmp_path / "one", beta=[1, 10]), grid(tmp_path / "two", beta=[50])
    assert run_analysis(one, two, f"out={tmp_path / 'both'}") == 0
    found = pd.read_csv(tmp_path / "both" / "runs.csv")
    assert set(found["run"]) == {"one/beta-1", "one/beta-10", "two/beta-50"}
    assert not (one / "analysis").exists()


def test_a_moved_sweep_still_evaluates(tmp_path, capsys):
    root = grid(tmp_path / "a b=c", beta=[1, 10])
    assert run_analysis(root) == 0
    line = json.loads((root / "analysis" / "top.json").read_text())["top"][0]["evaluate"]
    assert line.startswith("python evaluate.py ")
    moved = root.rename(tmp_path / "moved")
    assert run_analysis(moved) == 0
    entry = json.loads((moved / "analysis" / "top.json").read_text())["top"][0]
    assert "moved/" in entry["evaluate"]


def test_the_linear_references_are_pca_and_monte_carlo():
    """The closed form's KL and sampled SSE against drawing from the linear VAE itself."""
    rng = np.random.default_rng(0)
    scales = np.array([3.0, 2.0, 1.5, 0.3, 0.1])
    train, held = rng.standard_normal((4000, 5)) * scales, rng.standard_normal((500, 5)) * scales
    variances = train.var(0)
    spectrum = Spectrum(list(variances), list((held**2).mean(0)), float((held**2).sum(1).mean()), 5)
    beta, s = 2.0, 1.0
    found = linear_vae(spectrum, beta, 4)
    live = variances > s
    assert found["active_units"] == live.sum() == 3
    v = variances[live]
    mu = held[:, live] * np.sqrt(v - s) / v
    z = mu + np.sqrt(s / v) * rng.standard_normal((200, *mu.shape))
    error = ((held[:, live] - z * np.sqrt(v - s)) ** 2).sum(-1).mean() + (held[:, ~live] ** 2).sum(1).mean()
    assert found["recon"] == pytest.approx(error, rel=0.01)
    kl = 0.5 * (mu**2 + s / v - 1 - np.log(s / v)).sum(1).mean()
    assert found["kl"] == pytest.approx(kl)
    assert found["loss"] == pytest.approx(found["recon"] + beta * found["kl"])
    left = (held[:, 2:] ** 2).sum(1).mean() / 5
    assert pca_psnr(spectrum, 2) == pytest.approx(-10 * np.log10(left))


def test_the_analysis_imports_no_torch_no_lightning_no_hydra():
    heavy = ("torch", "pytorch_lightning", "hydra", "omegaconf")
    imports = "import sys, multirun_analysis.__main__, multirun_analysis.report"
    code = f"{imports}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_five_thousand_runs_take_seconds(tmp_path):
    """20% unfinished, 5% corrupt, 1% with hostile names; the time limit is generous, for machines differ."""
    root = tmp_path / "s"
    for index in range(5000):
        name = f"{HOSTILE.replace('/', '∕')}{index}" if index % 100 == 7 else f"beta-{index % 3}_seed-{index}"
        folder = write_run(root / name, psnr=20 + index % 13, nelbo=-index, beta=index % 3, seed=index)
        if index % 5 == 0:
            (folder / "result.json").unlink()
            (folder / "status.json").write_text(json.dumps({"status": "INTERRUPTED"}))
        elif index % 20 == 1:
            (folder / "result.json").write_text('{"best"')
    begin = time.monotonic()
    code = f"from multirun_analysis.__main__ import main; main([{str(root)!r}])"
    code += "; import re; print(re.findall(r'VmHWM: *(\\d+)', open('/proc/self/status').read().replace('\\t', ''))[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - begin < 30
    assert int(done.stdout.split()[-1]) < 500_000  # kB
    counts = json.loads((root / "analysis" / "top.json").read_text())["counts"]
    assert counts == {"completed": 3750, "interrupted": 1000, "corrupt": 250, "total": 5000}
    assert Page((root / "analysis" / "index.html").read_text()).scripts == 1
