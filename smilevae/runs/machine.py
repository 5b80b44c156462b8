"""Versions, machine and cost of a result; the allocator."""

import ctypes
import functools
import hashlib
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from smilevae.runs.reading import read_json

COST = ("cpu_seconds", "gpu_seconds")
SECONDS = ("wall_seconds", *COST)
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


def _version(package: str) -> str:
    """The version of a package. A checkout may not be installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def environment() -> dict[str, Any]:
    """Code, versions, machine and this process's peak memory in MB."""
    import resource  # Windows has none; it uses models, and does not train

    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "git": git(),
        "versions": {name: _version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit,
    }


class CostMeter:
    """The cost of a run in seconds. It starts with the numbers that earlier parts of the run left in `file`.

    `cpu_seconds` are user and system time of this process and its ended children. `gpu_seconds` are the time that it
    holds GPUs, times their number; they are missing without GPUs.
    """

    def __init__(self, file: Path):
        earlier = read_json(file)
        self.file, self.num_gpus = file, 0
        self.total = {k: float(earlier[k]) for k in SECONDS if isinstance(earlier.get(k), (int, float))}
        self._before = self._counters()

    def use_gpus(self, num: int) -> None:
        """Count the time of so many GPUs from now on."""
        self.read()
        self.num_gpus = num

    def read(self) -> dict[str, float]:
        """The cost up to now."""
        now = self._counters()
        steps = {name: now[name] - self._before[name] for name in now}
        if self.num_gpus:
            steps["gpu_seconds"] = self.num_gpus * steps["wall_seconds"]
        for name, seconds in steps.items():
            self.total[name] = self.total.get(name, 0.0) + seconds
        self._before = now
        return {name: round(seconds, 2) for name, seconds in self.total.items()}

    def _counters(self) -> dict[str, float]:
        import resource

        usage = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return {"wall_seconds": time.perf_counter(), "cpu_seconds": sum(u.ru_utime + u.ru_stime for u in usage)}


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
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library; Windows, which has none for None
        return False
    trim, top_pad, threshold = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD
    kept = mallopt(threshold, 2**30) or mallopt(threshold, 2**25)  # older glibc allows 32 MiB
    return bool(kept and mallopt(trim, 2**30) and mallopt(top_pad, 2**28))
