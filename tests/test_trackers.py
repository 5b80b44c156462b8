"""Callbacks and loggers of others: Lightning's own are really run; a failing logger costs nothing."""

import csv
import sqlite3

import pytest
import torch
from conftest import TINY
from pytorch_lightning.loggers.logger import Logger
from test_training import assert_same_run, interrupted, resume, signal_at

from smilevae import runs
from smilevae.errors import ConfigError
from smilevae.plugins import targets
from smilevae.runs import checkpoint
from smilevae.training import fit, trackers
from smilevae.training.module import VAEModule

OF = "pytorch_lightning.callbacks"


def chosen(name, **options):
    """The words of a callback."""
    words = {"_target_": f"{OF}.{name}", **options}
    return [f"+callbacks.mine.{key}={value}" for key, value in words.items()]


@pytest.fixture(autouse=True)
def _distrust(monkeypatch):
    monkeypatch.setenv(targets.TRUSTED, "")


@pytest.mark.parametrize(
    "words",
    [
        chosen("LearningRateMonitor"),
        chosen("DeviceStatsMonitor"),
        chosen("RichProgressBar"),
        chosen("ModelSummary"),
        chosen("Timer", interval="epoch"),
        ["+trainer.accumulate_grad_batches=2", "+trainer.limit_train_batches=3"],
        ["+trainer.enable_progress_bar=true", "+trainer.detect_anomaly=true"],
        ["+trainer.profiler=simple", "+trainer.deterministic=true"],
    ],
    ids=lambda words: words[0],
)
def test_callbacks_and_arguments_of_lightning_work(train, words):
    assert runs.state(train(*words, "epochs=1"))["status"] == "COMPLETED"


@pytest.mark.parametrize("name", ["callbacks", "logger", "plugins", "fast_dev_run", "max_epochs"])
def test_arguments_that_a_run_sets_itself_are_refused(call, tmp_path, name):
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, f"+trainer.{name}=1")
    assert (code, len(errors.splitlines())) == (2, 1)
    assert f"trainer.{name}: smilevae sets it; use epochs, callbacks" in errors


def test_early_stopping_ends_a_run_and_a_resume_has_the_same_bits(
    train, call, monkeypatch, tmp_path
):
    """min_delta is never reached: the second epoch without progress is the last one."""
    words = [*chosen("EarlyStopping", monitor="val/loss", patience=2, min_delta=1e6), "epochs=9"]
    whole = train(*words, to="whole")
    assert runs.epochs_done(whole) == 3
    cut = tmp_path / "cut"
    with monkeypatch.context() as patch:
        signal_at(patch, lambda trainer: trainer.global_step == 12)
        interrupted(call, cut, *words)
    assert runs.epochs_done(cut) == 2
    resume(call, cut)
    assert_same_run(whole, cut)


def test_model_checkpoints_best_two_are_ours(train, tmp_path):
    folder = tmp_path / "theirs"
    words = chosen("ModelCheckpoint", monitor="val/loss", save_top_k=2, dirpath=folder)
    run = train(*words, "+callbacks.mine.filename=best", "epochs=4")
    theirs = [checkpoint.read(path) for path in folder.glob("*.ckpt")]
    ours = {path.name: checkpoint.read(path) for path in runs.ranked(run)}
    assert len(theirs) == len(ours) == 2
    by_epoch = {content["epoch"]: content["state_dict"] for content in ours.values()}
    for content in theirs:
        for name, weights in content["state_dict"].items():
            assert torch.equal(weights, by_epoch[content["epoch"]][name])


def test_the_metrics_of_callbacks_are_those_of_the_record(train, monkeypatch):
    from pytorch_lightning.callbacks import LambdaCallback

    seen = []
    read = lambda trainer, module: seen.append(  # noqa: E731
        (dict(trainer.callback_metrics), trainer.checkpoint_callback.best_model_path)
    )
    monkeypatch.setattr(fit, "callback", lambda *_: LambdaCallback(on_train_end=read))
    run = train(*chosen("LambdaCallback"))
    ((metrics, best),) = seen
    line = {k: v for k, v in runs.read_metrics(run)[-1].items() if k != "epoch"}
    assert {name: metrics[name].item() for name in line} == pytest.approx(line, rel=1e-6)
    assert best == str(runs.find(str(run)))


def test_optuna_prunes_a_training(train, monkeypatch):
    optuna = pytest.importorskip("optuna_integration")
    import optuna as base

    trial = base.create_study().ask()
    monkeypatch.setattr(trial, "should_prune", lambda: True)
    pruning = optuna.PyTorchLightningPruningCallback(trial, monitor="val/loss")
    monkeypatch.setattr(fit, "callback", lambda *_: pruning)
    with pytest.raises(base.TrialPruned):
        train(*chosen("Callback"))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("no.such.Thing", "no.such.Thing cannot be imported"),
        (f"{OF}.EarlyStopping", "EarlyStopping.__init__() missing 1 required"),
        ("collections.Counter", "callbacks.mine is not a callback of pytorch_lightning"),
    ],
)
def test_a_wrong_callback_is_one_sentence(call, tmp_path, target, sentence):
    words = [f"+callbacks.mine._target_={target}"]
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, *words)
    assert (code, len(errors.strip().splitlines())) == (2, 1)
    assert sentence in errors
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "target", ["os.system", f"{OF}.timer.os.system", f"{OF}.timer.logging.os.system", "evil.Thing"]
)
def test_a_run_folder_cannot_name_what_is_called(tmp_path, target):
    mark = tmp_path / "mark"
    with pytest.raises(ConfigError, match="is not imported, because no command names it"):
        targets.call({"_target_": target, "command": f"touch {mark}"})
    nested = {
        "_target_": f"{OF}.Timer",
        "duration": {"_target_": target, "command": f"touch {mark}"},
    }
    with pytest.raises(ConfigError, match="is not imported"):
        targets.call(nested)
    assert not mark.exists()


def test_csv_has_the_lines_of_the_record(train):
    run = train("logger=csv")
    with open(run / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    recorded = runs.read_metrics(run)
    assert [int(row["step"]) for row in rows] == [line["epoch"] for line in recorded]
    for row, line in zip(rows, recorded):
        assert float(row["val/loss"]) == pytest.approx(line["val/loss"], rel=1e-6)


class Broken(Logger):
    name = version = "broken"

    def log_hyperparams(self, params):
        pass

    def log_metrics(self, metrics, step=None):
        raise OSError("the server is gone")

    def finalize(self, status):
        raise AssertionError("a logger that failed is not asked again")


def test_a_logger_that_fails_is_logged_once_and_the_training_goes_on(train, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(trackers.loggers, "CSVLogger", Broken)
    monkeypatch.setattr("pytorch_lightning.loggers.CSVLogger", lambda **options: Broken())
    monkeypatch.setattr(trackers.log, "warning", said.append)
    run = train("logger=csv")
    assert runs.state(run)["status"] == "COMPLETED"
    assert said == ["logger=csv stopped: OSError: the server is gone"]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_one_sentence(call, tmp_path, monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    code, errors = call("train", f"hydra.run.dir={tmp_path / 'run'}", *TINY, f"logger={name}")
    assert (code, len(errors.strip().splitlines())) == (2, 1)
    assert f'logger={name} needs a package; install it with pip install -e ".[{name}]"' in errors
    assert not (tmp_path / "run").exists()


def test_jobs_with_long_names_have_wandb_runs_of_their_own_and_keep_them(tmp_path, monkeypatch):
    monkeypatch.setattr(trackers, "_needs", lambda package: None)
    monkeypatch.setattr(trackers.loggers, "WandbLogger", lambda **options: options["id"])
    knobs = "batch_size-32_latent_dim-120_normalize-false_seed-0_data.split_seed-0"
    names = [f"beta-{beta}_{knobs}" for beta in (1, 10)]
    folders = [tmp_path / sweep / name for sweep in ("one", "two") for name in names]
    for folder in folders:
        folder.mkdir(parents=True)
    ids = [trackers.wandb(str(folder)) for folder in folders]
    assert len(set(ids)) == 4
    assert [trackers.wandb(str(folder)) for folder in folders] == ids


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


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ([], torch.optim.Adam),
        (["optimizer=adamw", "optimizer.weight_decay=0.2"], torch.optim.AdamW),
        (["optimizer=sgd", "lr=0.0001"], torch.optim.SGD),
        (
            ["optimizer._target_=torch.optim.RMSprop", "+optimizer.momentum=0.5"],
            torch.optim.RMSprop,
        ),
    ],
)
def test_an_optimizer_by_its_name_is_the_one_that_trains(train, monkeypatch, words, kind):
    seen = []
    configure = VAEModule.configure_optimizers
    monkeypatch.setattr(
        VAEModule, "configure_optimizers", lambda self: seen.append(configure(self)) or seen[-1]
    )
    run = train(*words, "epochs=1")
    (optimizer,) = seen
    assert type(optimizer) is kind
    given = {word.partition("=")[0].rpartition(".")[2]: word.partition("=")[2] for word in words}
    for name in given.keys() & {"weight_decay", "momentum", "lr"}:
        assert optimizer.defaults[name] == float(given[name])
    assert runs.read_settings(run).optimizer["_target_"] == f"torch.optim.{kind.__name__}"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["+optimizer.nope=3"], "optimizer: "),
        (["optimizer._target_=torch.optim.Nothing"], "torch.optim.Nothing cannot be imported"),
        (["+trainer.overfit_batches=1"], "trainer.overfit_batches ignores these batches"),
    ],
)
def test_a_wrong_optimizer_is_one_sentence(call, tmp_path, words, sentence):
    code, problem = call("train", *TINY, *words, f"hydra.run.dir={tmp_path / 'run'}")
    assert code == 2
    assert sentence in problem
    assert len(problem.strip().splitlines()) == 1


def test_a_run_folder_cannot_name_an_optimizer_of_others(train, call, tmp_path):
    run = train("epochs=1")
    mark = tmp_path / "mark"
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass Evil: pass\n")
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("torch.optim.Adam", "evil.Evil"))
    code, _ = call("train", f"resume={run}", "epochs=2")
    assert code in (2, 4)
    assert not mark.exists()


def test_one_batch_runs_everything(train):
    trained = runs.read_settings(train("debug=one_batch", "epochs=1")).trainer.model_dump()
    assert trained["limit_train_batches"] == trained["limit_val_batches"] == 1
