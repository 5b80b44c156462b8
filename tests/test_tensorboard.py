"""What TensorBoard shows: from the event file, and (slow) over HTTP and in a real browser."""

import contextlib
import errno
import json
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.request
from functools import partial

import pytest
from faults import Process
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from smilevae.training import tensorboard

SCALARS = {
    *(
        f"{stage}/{term}"
        for stage in ("train", "val")
        for term in ("loss", "recon", "kl", "nelbo", "psnr")
    ),
    *("val/active_units", "train/lr", "train/images_per_second"),
}
PICTURES = {"pictures/reconstructions", "pictures/samples", "pictures/smile_strip"}


@pytest.fixture(scope="module")
def events(tiny_run):
    return EventAccumulator(
        str(tiny_run), size_guidance={"scalars": 0, "images": 0, "histograms": 0}
    ).Reload()


def test_scalars_are_the_metrics_of_the_record_by_epoch(events, tiny_run):
    from smilevae import runs

    assert set(events.Tags()["scalars"]) == SCALARS
    for tag in ("val/loss", "train/kl"):
        recorded = [(line["epoch"], line[tag]) for line in runs.read_metrics(tiny_run)]
        assert [(e.step, e.value) for e in events.Scalars(tag)] == [
            (s, pytest.approx(v)) for s, v in recorded
        ]


def test_pictures_and_the_histogram_are_there(events):
    assert set(events.Tags()["images"]) == PICTURES
    assert [e.step for e in events.Images("pictures/samples")] == [1, 4]
    assert events.Tags()["histograms"] == ["val/kl_per_dim"]
    assert len(events.Histograms("val/kl_per_dim")) == 4


def test_hparams_are_the_swept_knobs_and_the_last_values_of_metrics(tmp_path, tiny_run):
    from tensorboard.plugins.hparams import plugin_data_pb2

    from smilevae.training.tensorboard import USUAL, columns

    events = EventAccumulator(str(tiny_run)).Reload()
    parts = {
        tag: plugin_data_pb2.HParamsPluginData.FromString(events.PluginTagToContent("hparams")[tag])
        for tag in events.PluginTagToContent("hparams")
    }
    experiment = parts["_hparams_/experiment"].experiment
    assert [info.name for info in experiment.hparam_infos] == [*USUAL]
    assert {info.name.tag for info in experiment.metric_infos} <= SCALARS
    rows = [
        {"beta": beta, "ema": 0, "lr": 0.1, "seed": seed} for beta in (1, 10) for seed in (0, 1)
    ]
    jobs = {str(k): {"settings": row} for k, row in enumerate(rows)}
    (tmp_path / "sweep.json").write_text(json.dumps({"jobs": jobs}))
    assert columns(tmp_path / "0") == ["beta", "seed"]


def test_the_projector_has_codes_labels_and_thumbnails(tiny_run):
    folder = tiny_run / "00004" / "held_out"
    num = len((folder / "metadata.tsv").read_text().splitlines())
    assert len((folder / "tensors.tsv").read_text().splitlines()) == num
    assert set((folder / "metadata.tsv").read_text().splitlines()) <= {"smiling", "not smiling"}
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


@pytest.fixture(scope="module")
def board(tiny_run, tmp_path_factory):
    """A real TensorBoard on 127.0.0.1 over a folder of two runs."""
    logdir = tmp_path_factory.mktemp("board")
    for name in ("beta-1", "beta-10"):
        shutil.copytree(tiny_run, logdir / name)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = f"-m tensorboard.main --host 127.0.0.1 --port {port} --logdir".split()
    process = Process(tmp_path_factory.mktemp("log"), *words, logdir)
    url = f"http://127.0.0.1:{port}"

    def serves():
        with contextlib.suppress(OSError):
            return len(fetch(f"{url}/data/runs")) >= 2

    process.wait_for(serves)
    yield url
    process.end(signal.SIGTERM)


def fetch(url: str, body: dict | None = None):
    data = json.dumps(body).encode() if body else None
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    return json.load(urllib.request.urlopen(request))


@pytest.mark.slow
def test_a_real_tensorboard_serves_every_tab_under_the_folders_names(board):
    assert sorted(fetch(f"{board}/data/runs")) == ["beta-1", "beta-10"]
    tags = fetch(f"{board}/data/plugin/scalars/tags")
    assert set(tags["beta-10"]) == SCALARS
    assert set(fetch(f"{board}/data/plugin/images/tags")["beta-1"]) == PICTURES
    experiment = fetch(f"{board}/data/plugin/hparams/experiment", {"experimentName": ""})
    assert {info["name"]["tag"] for info in experiment["metricInfos"]} < SCALARS
    assert {"beta", "latent_dim", "batch_size"} <= {
        info["name"] for info in experiment["hparamInfos"]
    }
    assert len(fetch(f"{board}/data/plugin/projector/runs")) == 2


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("chromium"), reason="needs Debian's chromium")
def test_a_real_browser_draws_the_scalars(board, tmp_path):
    picture = tmp_path / "scalars.png"
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1280,2400"]
    command = ["chromium", *options, "--virtual-time-budget=20000"]
    browse = partial(subprocess.run, check=True, capture_output=True, text=True, timeout=120)
    browse([*command, f"--screenshot={picture}", f"{board}/#timeseries"])
    dom = browse([*command, "--dump-dom", f"{board}/#timeseries"]).stdout
    assert "beta-10" in dom
    assert "train/images_per_second" in dom  # pictures come first
    assert picture.stat().st_size > 20_000


def test_a_disk_that_is_full_when_the_writer_writes_is_an_error_of_the_training_and_no_traceback(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(threading, "excepthook", tensorboard._of_a_thread)
    seen = []
    monkeypatch.setattr(threading, "__excepthook__", seen.append)
    board = SummaryWriter(str(tmp_path))
    board.add_scalar("a", 1)
    board.flush()

    def fails(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(board.file_writer.event_writer._async_writer._writer, "write", fails)
    with contextlib.suppress(OSError):  # if the writer is quick
        board.add_scalar("a", 2)
    board.file_writer.event_writer._async_writer._worker.join()
    with pytest.raises(OSError, match="No space left"):
        board.flush()
    assert seen == []
    other = threading.Thread(target=fails, args=(0,))
    other.start()
    other.join()
    assert len(seen) == 1
