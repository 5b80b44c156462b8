"""Jobs that share a GPU, by NVIDIA's Multi-Process Service (MPS)."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

GPUS = Path("/proc/driver/nvidia/gpus")  # a folder for each GPU of this machine
VISIBLE = "CUDA_VISIBLE_DEVICES"
# Whether a process gets a GPU: exit code 0. MPS starts its server at the first one
PROBE = """
import ctypes
cuda = ctypes.CDLL("libcuda.so.1")
raise SystemExit(bool(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctypes.c_void_p()), 0)))
"""
CONTROL = "nvidia-cuda-mps-control"
PIPE = "CUDA_MPS_PIPE_DIRECTORY"
LOGS = "CUDA_MPS_LOG_DIRECTORY"
SHARE = "SMILEVAE_GPU_SHARE"  # environment variable of a job: how many share its GPU


@contextlib.contextmanager
def shared_gpus(num_jobs: int) -> Iterator[None]:
    """Run MPS if more jobs run at a time than there are GPUs; print a sentence where it cannot start."""
    num_gpus = len(list(GPUS.glob("*")))
    if VISIBLE in os.environ:
        num_gpus = min(num_gpus, len([name for name in os.environ[VISIBLE].split(",") if name]))
    if not 0 < num_gpus < num_jobs:
        yield
        return
    with contextlib.ExitStack() as stack:
        os.environ[SHARE] = str(num_jobs / num_gpus)
        stack.callback(os.environ.pop, SHARE)
        if PIPE not in os.environ and not _start(stack):
            print("NVIDIA MPS cannot be started here, so jobs take turns on a GPU", flush=True)
        yield


def _start(outer: contextlib.ExitStack) -> bool:
    """Start the daemon, which ends with `outer`. Whether a process gets a GPU through it."""
    control = shutil.which(CONTROL)
    with contextlib.ExitStack() as stack:
        # Logs may still be written at its end
        home = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        places = {PIPE: home, LOGS: home}
        # Jobs choose among the visible GPUs; the daemon must see all
        own = {name: value for name, value in os.environ.items() if name != VISIBLE} | places
        if not control or subprocess.run([control, "-d"], input="", text=True, env=own).returncode:
            return False
        stack.callback(_stop, control, own)
        os.environ |= places
        for name in places:
            stack.callback(os.environ.pop, name)
        if subprocess.run([sys.executable, "-c", PROBE], stderr=subprocess.DEVNULL).returncode:
            return False
        outer.push(stack.pop_all())
    return True


def _stop(control: str, environment: dict[str, str]) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run([control], input="quit\n", text=True, env=environment, timeout=30)
