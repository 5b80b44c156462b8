"""Versions, machine and cost of a result; the allocator."""

import contextlib
import ctypes
import functools
import hashlib
import importlib
import math
import os
import platform
import resource
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from smilevae.runs.reading import read_json

COST = ("cpu_seconds", "gpu_seconds", "joules")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "pillow", "smilevae")


def code_now() -> str:
    """A hash of this package's source files as they are on the disk. Any change counts, one of a comment too."""
    whole, package = hashlib.blake2b(digest_size=4), Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        whole.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    return whole.hexdigest()


code = functools.cache(code_now)  # the program of this process, if it is called at the start


@functools.cache
def git() -> str | None:
    """The commit that holds this package, with a + if files differ from it; None outside a repository."""
    here = ["git", "-C", str(Path(__file__).parents[1])]

    def ask(*words: str) -> str:
        return subprocess.run([*here, *words], capture_output=True, text=True, check=True, timeout=10).stdout.strip()

    try:
        ask("ls-files", "--error-unmatch", "__init__.py")
        return ask("rev-parse", "--short=10", "HEAD") + "+" * bool(ask("status", "--porcelain", "-uno", ".."))
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Code, versions, machine and this process's peak memory in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "git": git(),
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit,
    }


class Meter:
    """The cost of a run. It starts with the numbers that earlier parts of the run left in `file`.

    `cpu_seconds` are user and system time of this process and its ended children. `gpu_seconds` are the time that it
    holds GPUs. `joules` are those of the CPU packages (RAPL) and of these GPUs (NVML), as far as they can be read.
    They include other programs on the machine. `joules` is missing if a part of the run has none.
    """

    def __init__(self, file: Path, powercap: Path = Path("/sys/class/powercap")):
        earlier = read_json(file)
        self.file, self.total = file, {k: float(earlier[k]) for k in COST if isinstance(earlier.get(k), (int, float))}
        self._energy = not self.total or "joules" in self.total
        self._range: dict[Path, int] = {}  # of each package's counter, in microjoules
        self._nvml: Any = None
        self._gpus: list[Any] = []
        with contextlib.suppress(OSError, ValueError):
            zones = [p for p in powercap.glob("intel-rapl:*") if (p / "name").read_text().startswith("package")]
            self._range = {zone: int((zone / "max_energy_range_uj").read_text()) for zone in zones}
        self._before = self._counters()

    def use_gpus(self, uuids: list[str]) -> None:
        """Count the time and the energy of these GPUs from now on."""
        if not self._gpus:
            self._gpus = list(uuids)
            with contextlib.suppress(Exception):  # pynvml is missing, or its library raises one of many errors
                self._nvml = importlib.import_module("pynvml")
                self._nvml.nvmlInit()
                self._gpus = [self._nvml.nvmlDeviceGetHandleByUUID(f"GPU-{uuid}") for uuid in uuids]
            self._before = self._counters() | self._before

    def read(self) -> dict[str, float]:
        """The cost up to now. A RAPL counter starts again at zero after some minutes to hours: call it more often."""
        now, steps = self._counters(), dict.fromkeys(COST, 0.0)
        for (name, key), value in now.items():
            steps[name] += (value - self._before.get((name, key), value)) % (self._range.get(key, 0) / 1e6 or math.inf)
        self._before, self._energy = now, self._energy and any(name == "joules" for name, _ in now)
        known = {*self.total, *(name for name, _ in now)} - {"joules" if not self._energy else ""}
        self.total = {name: self.total.get(name, 0.0) + steps[name] for name in COST if name in known}
        return {name: round(value, 2) for name, value in self.total.items()}

    def _counters(self) -> dict[tuple[str, Any], float]:
        """(name of the cost, counter) -> its value in seconds or joules."""
        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        values: dict[tuple[str, Any], float] = {("cpu_seconds", ""): sum(u.ru_utime + u.ru_stime for u in usage)}
        values |= {("gpu_seconds", i): time.perf_counter() for i in range(len(self._gpus))}
        with contextlib.suppress(OSError, ValueError):  # often only root may read them
            values |= {("joules", zone): int((zone / "energy_uj").read_text()) / 1e6 for zone in self._range}
        with contextlib.suppress(Exception):
            total = self._nvml.nvmlDeviceGetTotalEnergyConsumption  # in millijoules
            values |= {("joules", i): total(gpu) / 1e3 for i, gpu in enumerate(self._gpus)}
        return values


def fast_precision() -> str:
    """Lightning's name of the precision that is fastest here: bf16-mixed on a CPU with bfloat16 arithmetic."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def keep_memory() -> bool:
    """Let the allocator keep freed memory; says whether it does. Only glibc can.

    By default glibc returns each large tensor's pages to the kernel and faults them in again for the next one, see
    mallopt(3): 3 million page faults in two epochs of the source study's network instead of 0.4 million.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    trim, top_pad, threshold = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    kept = mallopt(threshold, 2**30) or mallopt(threshold, 2**25)  # older glibc allows 32 MiB
    return bool(kept and mallopt(trim, 2**30) and mallopt(top_pad, 2**28))
