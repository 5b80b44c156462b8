"""Versions, machine and cost of a result; the allocator."""

import contextlib
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

from smilevae.plugins import loading
from smilevae.runs.reading import read_json

COST = ("cpu_seconds", "gpu_seconds")
SECONDS = ("wall_seconds", *COST)
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "pillow")


def code_now() -> str:
    """A hash of the source files of this package and of loaded plug-ins, as on the disk.

    Any change counts, also of a comment.
    """
    whole = hashlib.blake2b(digest_size=4)
    package = Path(__file__).parents[1]
    for file in sorted(package.rglob("*.py")):
        whole.update(f"{file.relative_to(package)}\0".encode() + file.read_bytes())
    for file in loading.files():
        whole.update(f"{file.name}\0".encode() + file.read_bytes())
    return whole.hexdigest()


code = functools.cache(code_now)  # the program of this process, if it is called at the start


@functools.cache
def git() -> str | None:
    """The commit of this package, -dirty if tracked files differ; None outside a repository."""
    command = ["git", "-C", str(Path(__file__).parents[1])]
    ask = functools.partial(subprocess.run, capture_output=True, text=True, check=True, timeout=10)
    try:
        ask([*command, "ls-files", "--error-unmatch", "__init__.py"])
        commit = ask([*command, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*"])
        return commit.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def environment() -> dict[str, Any]:
    """Code, versions, machine and this process's peak memory in MB."""
    import resource  # Windows has none; it uses models, and does not train

    unit = 2**20 if sys.platform == "darwin" else 2**10
    versions = {name: version(name) for name in PACKAGES}
    with contextlib.suppress(PackageNotFoundError):  # a checkout may not be installed
        versions["smilevae"] = version("smilevae")
    return {
        "git": git(),
        "versions": versions | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit,
    }


class CostMeter:
    """The cost of a run in seconds, with that of its earlier parts, which `file` holds.

    cpu_seconds    user and system time of this process and its ended children
    gpu_seconds    the time that the run holds GPUs, times their number, divided by the jobs that
                   share them; missing without GPUs
    """

    def __init__(self, file: Path):
        self.file = file
        self.num_gpus = 0
        self.share = 1.0  # jobs on a GPU
        self._earlier = read_json(file)
        self._start = time.perf_counter()
        self._start_cpu = _cpu_seconds()

    def use_gpus(self, num: int) -> None:
        """Count the time of so many GPUs from now on."""
        self.num_gpus = num
        self._start_gpu = time.perf_counter()

    def read(self) -> dict[str, float]:
        """The cost up to now."""
        cost = {"wall_seconds": time.perf_counter() - self._start}
        cost["cpu_seconds"] = _cpu_seconds() - self._start_cpu
        if self.num_gpus:
            held = time.perf_counter() - self._start_gpu
            cost["gpu_seconds"] = self.num_gpus * held / self.share
        names = [name for name in SECONDS if name in cost or name in self._earlier]
        return {name: round(self._earlier.get(name, 0) + cost.get(name, 0), 2) for name in names}


def _cpu_seconds() -> float:
    return sum(os.times()[:4])  # user and system time, of this process and its ended children


def fast_precision() -> str:
    """Lightning's name of the fastest precision here: bf16-mixed on a CPU with bfloat16 units."""
    cpu = Path("/proc/cpuinfo")
    flags = cpu.read_text().split() if cpu.exists() else []
    return "bf16-mixed" if {"avx512_bf16", "amx_bf16"} & set(flags) else "32-true"


def keep_memory() -> bool:
    """Let the allocator keep freed memory; returns whether it does. Only glibc can, see mallopt(3).

    By default it returns each large tensor's pages to the kernel, which faults them in again:
    3 million page faults in two epochs of the source study's network instead of 0.4 million.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # another C library; Windows, which has none for None
        return False
    trim_threshold, top_pad, mmap_threshold = -1, -2, -3
    kept = mallopt(mmap_threshold, 2**30) or mallopt(mmap_threshold, 2**25)  # older glibc: 32 MiB
    return bool(kept and mallopt(trim_threshold, 2**30) and mallopt(top_pad, 2**28))
