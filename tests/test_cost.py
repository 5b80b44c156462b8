"""What a run costs: wall, CPU and GPU seconds, also over a resume."""

import importlib.metadata
import json
import subprocess
import sys
import time

import pytest
from test_training import resume

import smilevae
from smilevae import runs
from smilevae.runs.machine import CostMeter, environment


def test_cpu_seconds_are_those_of_this_process_and_its_children(tmp_path):
    meter = CostMeter(tmp_path / "cost.json")
    begin = time.process_time()
    while time.process_time() < begin + 0.3:
        pass
    child = "import time\nwhile time.process_time() < 0.5: pass"
    subprocess.run([sys.executable, "-c", child], check=True)
    time.sleep(0.2)
    cost = meter.read()
    assert list(cost) == ["wall_seconds", "cpu_seconds"]
    assert 0.75 <= cost["cpu_seconds"] < 1.6  # os.times counts 10 ms at a time


def test_gpus_count_from_the_moment_they_are_held(tmp_path):
    (tmp_path / "cost.json").write_text('{"gpu_seconds": [')  # damaged: counts from zero
    meter = CostMeter(tmp_path / "cost.json")
    time.sleep(0.1)
    begin = time.perf_counter()
    meter.use_gpus(2)
    time.sleep(0.1)
    assert meter.read()["gpu_seconds"] == pytest.approx(2 * (time.perf_counter() - begin), abs=0.05)
    meter.share = 4  # jobs at a time
    assert meter.read()["gpu_seconds"] == pytest.approx((time.perf_counter() - begin) / 2, abs=0.05)


def test_a_checkout_that_is_not_installed_has_versions(monkeypatch):
    assert environment()["versions"]["smilevae"] == smilevae.__version__
    find = importlib.metadata.Distribution.from_name

    def hide(name):
        if name == "smilevae":
            raise importlib.metadata.PackageNotFoundError(name)
        return find(name)

    monkeypatch.setattr(importlib.metadata.Distribution, "from_name", hide)
    assert {"torch", "python"} <= environment()["versions"].keys()


def test_a_resumed_run_adds_up_its_parts(train, call):
    run = train("epochs=1")
    first = runs.read_result(run)
    earlier = {"cpu_seconds": 1000.0, "wall_seconds": 2000.0, "gpu_seconds": 3000.0}
    kept = json.loads((run / "cost.json").read_text())
    assert kept == {name: first[name] for name in kept}
    assert all(kept[name] > 0 for name in ("cpu_seconds", "wall_seconds"))
    (run / "cost.json").write_text(json.dumps(earlier))
    resume(call, run, "epochs=2")
    last = runs.read_result(run)
    assert all(earlier[name] <= last[name] < earlier[name] + 100 for name in earlier)
    assert last["cpu_seconds"] > 1000
