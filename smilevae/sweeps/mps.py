"""Jobs that share a GPU, by NVIDIA's Multi-Process Service (MPS)."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU of this machine
CONTROL = "nvidia-cuda-mps-control"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
SHARE = "SMILEVAE_GPU_SHARE"  # environment variable of a job: how many share its GPU


@contextlib.contextmanager
def shared_gpus(num_jobs: int) -> Iterator[None]:
    """Run MPS for workers that start meanwhile, if more jobs run at a time than there are GPUS.

    Without it a GPU runs kernels of one process at a time. Prints a sentence where it cannot start.
    """
    num_gpus = len(list(GPUS.glob("*")))
    if not 0 < num_gpus < num_jobs:
        yield
        return
    os.environ[SHARE] = str(num_jobs / num_gpus)
    with tempfile.TemporaryDirectory(prefix="mps-") as home, contextlib.ExitStack() as stack:
        if PIPE not in os.environ and not _start(home, stack):
            text = "NVIDIA MPS cannot be started here, so jobs take turns on a GPU"
            print(f"{text}; more than two at a time gain nothing", flush=True)
        try:
            yield
        finally:
            del os.environ[SHARE]


def _start(home: str, stack: contextlib.ExitStack) -> bool:
    """Start the daemon, which ends with `stack`. Whether that worked."""
    control = shutil.which(CONTROL)
    places = {PIPE: home, LOGS: home}
    if (
        not control
        or subprocess.run([control, "-d"], input="", text=True, env=os.environ | places).returncode
    ):
        return False
    os.environ |= places
    stack.callback(lambda: [os.environ.pop(name) for name in places])
    end: Any = {"input": "quit\n", "text": True, "timeout": 30, "env": os.environ | places}
    stack.callback(lambda: subprocess.run([control], **end))
    return True
