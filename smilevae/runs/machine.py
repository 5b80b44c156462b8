"""Versions and machine of a result; the allocator."""

import ctypes
import functools
import hashlib
import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
