"""python benchmarks/scale.py [NUM ...]: does a training on 100,000 faces cost per face what one on 10,000 costs?

Writes drawn faces, each moved and relit, as 64 px JPEGs, once per NUM (1,000, 10,000 and 100,000 unless given), trains
on them with train.py as it ships (patch network, 64 px, 300 steps an epoch), and prints the images per second, the
resident memory while training (median of VmRSS, and its private part), and the time before the first step, decoding
included and from the cache.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from smilevae import runs
from smilevae.data.dataset import load_faces
from smilevae.data.sources import Synthetic

ROOT = Path(__file__).parents[1]
STEPS = 300


def write_faces(folder: Path, num: int) -> None:
    drawn = load_faces(Synthetic(), 64)
    rng = np.random.default_rng(0)
    for name in ("smile", "non_smile"):
        (folder / name).mkdir(parents=True)
    for number in range(num):
        row = number % len(drawn.smile)
        moved = np.roll(drawn.images[row], rng.integers(-3, 4, 2), (0, 1)) * rng.uniform(0.8, 1.1)
        label = "smile" if drawn.smile[row] == 1 else "non_smile"
        Image.fromarray(moved.clip(0, 255).astype(np.uint8)).save(
            folder / label / f"p{number}_0001.jpg", quality=90
        )


def train(folder: Path, run: Path, steps: int) -> tuple[float, list[dict[str, int]], float]:
    """Seconds until the first step, memory samples while training, images per second."""
    knobs = [
        "experiment=patch",
        "image_size=64",
        "batch_size=64",
        "epochs=2",
        f"hydra.run.dir={run}",
    ]
    knobs += [
        f"+trainer.limit_train_batches={steps}",
        "+trainer.limit_val_batches=10",
        "data=folder",
    ]
    begin, samples, started = time.perf_counter(), [], 0.0
    environment = os.environ | {"XDG_CACHE_HOME": str(folder / "cache")}
    process = subprocess.Popen(
        [sys.executable, "train.py", *knobs, f"data.root={folder}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while process.poll() is None:
        if not started and list(run.glob("events.out*")):
            started = time.perf_counter() - begin
        if runs.read_metrics(run):  # the second epoch
            samples.append(memory(process.pid))
        time.sleep(0.05)
    return started, samples, runs.read_metrics(run)[-1]["images_per_second"]


def memory(pid: int) -> dict[str, int]:
    """Resident MB: all, and what is not a mapped file."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:  # it has just ended
        return {}
    found = dict(line.split(":") for line in lines if line.startswith(("VmRSS", "RssAnon")))
    return {name: int(value.split()[0]) // 1024 for name, value in found.items()}


def main() -> None:
    for num in map(int, sys.argv[1:] or (1_000, 10_000, 100_000)):
        with tempfile.TemporaryDirectory() as home:
            folder = Path(home) / "faces"
            write_faces(folder, num)
            steps = min(STEPS, int(num * 0.75) // 64)
            first = train(folder, Path(home) / "one", steps)[0]
            again, samples, rate = train(folder, Path(home) / "two", steps)
        every, private = (
            statistics.median(s[name] for s in samples if s.get(name))
            for name in ("VmRSS", "RssAnon")
        )
        print(
            f"{num:7} faces: {rate:6.1f} images/s, {every:.0f} MB resident ({private:.0f} private); first step after"
            f" {first:.1f} s with decoding, {again:.1f} s from the cache",
            flush=True,
        )


if __name__ == "__main__":
    main()
