"""Versions and machine of a result; the allocator."""

import ctypes
import os
import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "pillow", "smilevae")


def environment() -> dict[str, Any]:
    """Versions, machine and this process's peak memory in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return {
        "versions": {name: version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // unit,
    }


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
