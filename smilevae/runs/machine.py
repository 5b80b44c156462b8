"""Versions and machine of a result."""

import os
import platform
import resource
import sys
from importlib.metadata import version
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
