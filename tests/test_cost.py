"""What a run costs: CPU seconds, GPU seconds and joules, also over a resume."""

import json
import subprocess
import sys
import time
import types

import pytest

from smilevae import runs
from smilevae.runs.machine import Meter


def powercap(root, micro, name="package-0", most=1_000_000, zone="intel-rapl:0"):
    folder = root / zone
    folder.mkdir(parents=True, exist_ok=True)
    for file, value in {"name": name, "max_energy_range_uj": most, "energy_uj": micro}.items():
        (folder / file).write_text(f"{value}\n")


def test_cpu_seconds_are_those_of_this_process_and_its_children(tmp_path):
    meter = Meter(tmp_path / "cost.json", tmp_path)
    begin = time.process_time()
    while time.process_time() < begin + 0.3:
        pass
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    time.sleep(0.2)
    cost = meter.read()
    assert list(cost) == ["cpu_seconds"]
    assert 0.8 <= cost["cpu_seconds"] < 1.6


def test_joules_are_those_of_packages_also_when_the_counter_starts_again(tmp_path):
    powercap(tmp_path, 900_000)
    powercap(tmp_path, 0, zone="intel-rapl:1", name="psys")
    powercap(tmp_path, 0, zone="intel-rapl:0:0", name="core")
    meter = Meter(tmp_path / "cost.json", tmp_path)
    powercap(tmp_path, 100_000)
    powercap(tmp_path, 500, zone="intel-rapl:1", name="psys")
    assert meter.read()["joules"] == pytest.approx(0.2)
    powercap(tmp_path, 400_000)
    assert meter.read()["joules"] == pytest.approx(0.5)


def test_a_part_without_joules_leaves_the_whole_without(tmp_path):
    file = tmp_path / "cost.json"
    file.write_text('{"cpu_seconds": 5.0, "joules": 7.0}')
    powercap(tmp_path / "known", 0)
    meter = Meter(file, tmp_path / "known")
    powercap(tmp_path / "known", 1_000)
    assert meter.read()["joules"] == pytest.approx(7, abs=0.01)
    cost = Meter(file, tmp_path / "nothing").read()
    assert "joules" not in cost
    assert cost["cpu_seconds"] >= 5
    file.write_text(json.dumps(cost))
    assert "joules" not in Meter(file, tmp_path / "known").read()
    file.write_text('{"cpu_seconds": "x", "joules": [')
    assert list(Meter(file, tmp_path / "nothing").read()) == ["cpu_seconds"]


@pytest.mark.parametrize("nvml", [True, False])
def test_gpus_count_from_the_moment_they_are_held(tmp_path, monkeypatch, nvml):
    energy = {"GPU-a": 1000, "GPU-b": 5000}
    library = types.SimpleNamespace(
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=lambda uuid: uuid,
        nvmlDeviceGetTotalEnergyConsumption=energy.get,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library if nvml else None)
    meter = Meter(tmp_path / "cost.json", tmp_path)
    time.sleep(0.1)
    begin = time.perf_counter()
    meter.use_gpus(["a", "b"])
    meter.use_gpus(["a", "b"])  # a second phase
    energy["GPU-b"] += 2000
    time.sleep(0.1)
    cost = meter.read()
    assert cost["gpu_seconds"] == pytest.approx(2 * (time.perf_counter() - begin), abs=0.05)
    assert cost.get("joules") == (2 if nvml else None)


def test_a_resumed_run_adds_up_its_parts(train, call):
    run = train("epochs=1")
    first = runs.read_result(run)
    assert first["cpu_seconds"] > 0
    assert json.loads((run / "cost.json").read_text())["cpu_seconds"] == first["cpu_seconds"]
    (run / "cost.json").write_text(json.dumps({"cpu_seconds": 1000.0}))
    code, errors = call("train", f"resume={run}", "epochs=2")
    assert code == 0, errors
    assert 1000 < runs.read_result(run)["cpu_seconds"] < 1000 + 100
    assert not any("seconds" in key and "cpu" in key for line in runs.read_metrics(run) for key in line)
