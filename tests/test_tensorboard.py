"""What TensorBoard shows: from the event file, and (slow) over HTTP."""

import contextlib
import errno
import itertools
import json
import shutil
import signal
import socket
import threading
import time
import urllib.request

import pytest
from faults import Process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch.utils.tensorboard import SummaryWriter

from smilevae import runs
from smilevae.config import STUDY
from smilevae.training import tensorboard

TERMS = ("loss", "recon", "kl", "nelbo", "psnr", "lr", "images_per_second")
SCALARS = {f"train/{term}" for term in TERMS} | {f"val/{term}" for term in TERMS[:5]}
SCALARS |= {"val/active_units"}
PICTURES = {"pictures/reconstructions", "pictures/samples", "pictures/smile_strip"}


@pytest.fixture(scope="module")
def events(tiny_run):
    all_of = {"scalars": 0, "images": 0, "histograms": 0}
    return EventAccumulator(str(tiny_run), size_guidance=all_of).Reload()


def test_scalars_are_the_metrics_of_the_record_by_epoch(events, tiny_run):
    assert set(events.Tags()["scalars"]) == SCALARS
    for tag in ("val/loss", "train/kl"):
        shown = {event.step: event.value for event in events.Scalars(tag)}
        lines = runs.read_metrics(tiny_run)
        assert shown == pytest.approx({line["epoch"]: line[tag] for line in lines})


def test_pictures_and_the_histogram_are_there(events):
    assert set(events.Tags()["images"]) == PICTURES
    assert [e.step for e in events.Images("pictures/samples")] == [1, 4]
    assert events.Tags()["histograms"] == ["val/kl_per_dim"]
    assert len(events.Histograms("val/kl_per_dim")) == 4


def test_hparams_are_the_swept_knobs_and_the_last_values_of_metrics(events, tmp_path):
    content = events.PluginTagToContent("hparams")["_hparams_/experiment"]
    experiment = HParamsPluginData.FromString(content).experiment
    assert [info.name for info in experiment.hparam_infos] == [*STUDY]
    assert {info.name.tag for info in experiment.metric_infos} <= SCALARS
    jobs = {}
    for beta, seed in itertools.product((1, 10), (0, 1)):
        row = {"beta": beta, "ema": 0, "lr": 0.1, "seed": seed}
        jobs[f"{beta}-{seed}"] = {"settings": row}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert tensorboard.columns(tmp_path / "0") == ["beta", "seed"]


def test_the_projector_has_codes_labels_and_thumbnails(tiny_run):
    folder = tiny_run / "00004" / "held_out"
    labels = (folder / "metadata.tsv").read_text().splitlines()
    assert len((folder / "tensors.tsv").read_text().splitlines()) == len(labels)
    assert set(labels) <= {"smiling", "not smiling"}
    assert (folder / "sprite.png").exists()


def test_a_resumed_run_shows_each_epoch_once(train, call):
    run = train("epochs=2")
    second = next(run.glob("events.out.tfevents.*")).name.split(".")[3]
    # Files of one second and one process sort by a counter: 10 before 9.
    while str(int(time.time())) == second:
        time.sleep(0.02)
    assert call("train", f"resume={run}", "epochs=4")[0] == 0
    events = EventAccumulator(str(run), size_guidance={"scalars": 0}).Reload()
    assert [e.step for e in events.Scalars("val/loss")] == [1, 2, 3, 4]


@pytest.mark.slow
def test_a_real_tensorboard_serves_every_tab_under_the_folders_names(tiny_run, tmp_path):
    logdir = tmp_path / "board"
    for name in ("beta-1", "beta-10"):
        shutil.copytree(tiny_run, logdir / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = f"-m tensorboard.main --host 127.0.0.1 --port {port} --logdir".split()
    process = Process(tmp_path, *words, logdir)

    def fetch(page: str, body: dict | None = None):
        url = f"http://127.0.0.1:{port}/data/{page}"
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
        return json.load(urllib.request.urlopen(request))

    def serves():
        with contextlib.suppress(OSError):
            return len(fetch("runs")) >= 2

    process.wait_for(serves)
    assert sorted(fetch("runs")) == ["beta-1", "beta-10"]
    assert set(fetch("plugin/scalars/tags")["beta-10"]) == SCALARS
    assert set(fetch("plugin/images/tags")["beta-1"]) == PICTURES
    experiment = fetch("plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} < SCALARS
    names = {info["name"] for info in experiment["hparamInfos"]}
    assert {"beta", "latent_dim", "batch_size"} <= names
    assert len(fetch("plugin/projector/runs")) == 2
    process.end(signal.SIGTERM)


def test_a_full_disk_is_an_error_of_the_training_and_no_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(threading, "excepthook", tensorboard._of_a_thread)
    seen = []
    monkeypatch.setattr(threading, "__excepthook__", seen.append)
    board = SummaryWriter(str(tmp_path))
    board.add_scalar("a", 1)
    board.flush()

    def fails(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = board.file_writer.event_writer._async_writer
    monkeypatch.setattr(writer._writer, "write", fails)
    with contextlib.suppress(OSError):  # if the writer is quick
        board.add_scalar("a", 2)
    writer._worker.join()
    with pytest.raises(OSError, match="No space left"):
        board.flush()
    assert seen == []
    other = threading.Thread(target=fails, args=(0,))
    other.start()
    other.join()
    assert len(seen) == 1
