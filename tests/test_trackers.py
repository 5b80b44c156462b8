"""Trackers beside TensorBoard: each one is really run, without a network; a tracker that fails costs no training."""

import csv
import os
import sqlite3
from pathlib import Path

import pytest

from smilevae import runs
from smilevae.training import trackers


def test_csv_has_every_epoch_and_the_best(train):
    run = train("logger=csv")
    rows = list(csv.DictReader((run / "metrics.csv").read_text().splitlines()))
    recorded = runs.read_metrics(run)
    shown = [(int(row["step"]), float(row["val/loss"])) for row in rows if row["val/loss"]]
    assert shown == [(line["epoch"], pytest.approx(line["val/loss"])) for line in recorded]
    (best,) = [float(row["best/val/loss"]) for row in rows if row["best/val/loss"]]
    assert best == pytest.approx(runs.read_result(run)["best"]["val/loss"])
    assert "latent_dim: 8" in (run / "hparams.yaml").read_text()


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
    run = train("logger=csv")
    assert runs.state(run)["status"] == "COMPLETED"
    assert said == ["logger=csv stopped: OSError: the server is gone"]


def test_mlflow_keeps_one_run_over_a_resume(train, call, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = train("logger=mlflow")
    assert call("train", f"resume={run}", "epochs=3", "logger=mlflow")[0] == 0
    with sqlite3.connect(run.parent / "mlflow.db") as base:
        names = base.execute("select name from runs").fetchall()
        steps = base.execute("select step from metrics where key = 'val/loss' order by step").fetchall()
        beta = base.execute("select value from params where key = 'beta'").fetchall()
    assert (names, steps, beta) == ([(run.name,)], [(1,), (2,), (3,)], [("1",)])


def test_wandb_writes_an_offline_run(train, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = train("logger=wandb")
    assert list(run.glob("wandb/offline-run-*/run-*.wandb"))


def test_trackio_has_every_epoch(train):
    pytest.importorskip("trackio")
    train("logger=trackio")
    (base,) = Path(os.environ["XDG_CACHE_HOME"]).rglob("trackio/smilevae.db")
    with sqlite3.connect(base) as content:
        rows = content.execute("select metrics from metrics order by step").fetchall()
    assert sum(b"val/loss" in row[0] and b"best" not in row[0] for row in rows) == 2
