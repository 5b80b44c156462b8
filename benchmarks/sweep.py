"""What a sweep costs beside its training, and what two jobs at a time gain.

    python benchmarks/sweep.py [epochs]

Eight jobs on drawn faces (64 px, patch network), one thread each: one after the other, then two at
a time. Prints overhead = (wall time - time from each job's first line to its result) / wall time,
the start-up per job against a fresh import of torch and pytorch_lightning, the ratio of the two
walls, and whether all weights are equal to the bit.
"""

import hashlib
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]


def sweep(folder: Path, *overrides: str) -> float:
    begin = time.perf_counter()
    command = [
        sys.executable,
        "train.py",
        "-m",
        f"hydra.sweep.dir={folder}",
        "experiment=patch",
        "image_size=64",
    ]
    subprocess.run(
        [*command, "seed=range(8)", "threads=1", *overrides],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return time.perf_counter() - begin


def weights(folder: Path) -> dict[str, str]:
    found = {}
    for path in sorted(folder.glob("*/checkpoints/last.ckpt")):
        state = torch.load(path, weights_only=True)["state_dict"]
        data = b"".join(
            tensor.contiguous().numpy().tobytes() for _, tensor in sorted(state.items())
        )
        found[path.parts[-3]] = hashlib.sha256(data).hexdigest()
    return found


def main() -> None:
    epochs = sys.argv[1] if len(sys.argv) > 1 else "50"
    imports = []
    for _ in range(3):
        begin = time.perf_counter()
        subprocess.run([sys.executable, "-c", "import torch, pytorch_lightning"], check=True)
        imports.append(time.perf_counter() - begin)
    with tempfile.TemporaryDirectory() as home:
        one, two = Path(home) / "one", Path(home) / "two"
        sweep(Path(home) / "warm", "epochs=1")  # fills the image caches
        wall = sweep(one, f"epochs={epochs}")
        parallel = sweep(two, f"epochs={epochs}", "hydra/launcher=local")
        training = [
            json.loads(path.read_text())["wall_seconds"]
            for path in sorted(one.glob("*/result.json"))
        ]
        starts = json.loads((one / "analysis" / "top.json").read_text())["counts"]
        equal = weights(one) == weights(two)
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs"
    print(f"{machine}, torch {torch.__version__}, {starts}")
    print(f"import torch, pytorch_lightning: {min(imports):.2f} to {max(imports):.2f} s (n = 3)")
    print(
        f"8 jobs of {min(training):.1f} to {max(training):.1f} s, one after the other: {wall:.1f} s"
    )
    outside = wall - sum(training)
    print(
        f"outside the jobs' own clocks: {outside:.1f} s, {outside / sum(training):.1%} of training"
    )
    print(f"per job, the one import and the report included: {outside / 8:.2f} s")
    print(f"two at a time: {parallel:.1f} s, ratio {parallel / wall:.2f}; same bits: {equal}")


if __name__ == "__main__":
    main()
