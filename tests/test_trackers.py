"""Trackers beside TensorBoard: each is really run; a failure costs no training."""

import sqlite3

import pytest

from smilevae import runs
from smilevae.training import trackers


def test_jobs_with_long_names_have_wandb_runs_of_their_own_and_keep_them(tmp_path, monkeypatch):
    from pytorch_lightning import loggers

    monkeypatch.setattr(loggers, "WandbLogger", lambda **options: options["id"])
    knobs = "batch_size-32_latent_dim-120_normalize-false_seed-0_data.split_seed-0"
    names = [f"beta-{beta}_{knobs}" for beta in (1, 10)]
    folders = [tmp_path / sweep / name for sweep in ("one", "two") for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = [trackers.open_logger("wandb", folder) for folder in folders]
    assert len(set(ids)) == 4
    assert [trackers.open_logger("wandb", folder) for folder in folders] == ids


def test_a_missing_package_is_one_sentence_before_anything_is_made(call, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", "logger=mlflow")
    assert (code, len(errors.strip().splitlines())) == (2, 1)
    assert 'logger=mlflow needs a package; install it with pip install -e ".[mlflow]"' in errors
    assert not (tmp_path / "run").exists()


class Broken:
    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step):
        raise OSError("the server is gone")

    def finalize(self, status):
        raise AssertionError("a tracker that failed is not asked again")


def test_a_tracker_that_fails_is_logged_once_and_the_training_goes_on(train, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(trackers, "open_logger", lambda name, run: Broken())
    monkeypatch.setattr(trackers.log, "warning", said.append)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    run = train("logger=mlflow")
    assert runs.state(run)["status"] == "COMPLETED"
    assert said == ["logger=mlflow stopped: OSError: the server is gone"]


def test_mlflow_keeps_one_run_over_a_resume(train, call, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = train("logger=mlflow")
    assert call("train", f"resume={run}", "epochs=3", "logger=mlflow")[0] == 0
    with sqlite3.connect(run.parent / "mlflow.db") as base:
        names = base.execute("select name from runs").fetchall()
        steps = base.execute(
            "select step from metrics where key = 'val/loss' order by step"
        ).fetchall()
        beta = base.execute("select value from params where key = 'beta'").fetchall()
    assert (names, steps, beta) == ([(run.name,)], [(1,), (2,), (3,)], [("1",)])


def test_wandb_writes_an_offline_run(train, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train("logger=wandb")
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))
