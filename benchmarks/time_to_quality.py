"""python benchmarks/time_to_quality.py OUT.png RUN [RUN ...]: held-out loss against wall time, and who passes whom.

Completed runs on the same split, named by what they are. A run's epochs share its training time evenly; what lies
before (imports, faces, the closed-form solution) is measured here, once, by asking for a run of one epoch.
For every run and its best loss: how much sooner each other passed it.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import yaml

from smilevae import runs

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def curve(run: Path) -> tuple[str, list[float], list[float]]:
    """A run's name, seconds since its command was given, and held-out losses."""
    settings = yaml.safe_load((run / "config.yaml").read_text())
    lines, wall = (
        runs.read_metrics(run),
        json.loads((run / "result.json").read_text())["wall_seconds"],
    )
    before = startup(settings)
    epochs = max(line["epoch"] for line in lines)
    seconds = [before + line["epoch"] / epochs * max(0.0, wall - before) for line in lines]
    start = ", from the linear optimum" if settings.get("warm_start") == "ppca" else ""
    name = f"{settings['model']['network']}, {epochs} epochs{start}"
    return name, seconds, [line["val/loss"] for line in lines]


def startup(settings: dict) -> float:
    """Seconds from the command to the first line of metrics where that is epoch 0, else to the first step."""
    warm = settings.get("warm_start") == "ppca"
    with tempfile.TemporaryDirectory() as home:
        knobs = [
            "data=folder",
            f"data.root={settings['data']['root']}",
            "epochs=1",
            f"image_size={settings['image_size']}",
        ]
        knobs += (
            ["experiment=warm"]
            if warm
            else ["+trainer.limit_train_batches=1", "+trainer.limit_val_batches=1"]
        )
        begin = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, "train.py", f"hydra.run.dir={home}/run", *knobs],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not runs.read_metrics(Path(home) / "run"):
            time.sleep(0.05)
        seconds = time.perf_counter() - begin
        process.terminate()
        process.wait()
    return seconds


def main() -> None:
    out, *folders = map(Path, sys.argv[1:])
    curves = [curve(folder) for folder in folders]
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for name, seconds, losses in curves:
        (line,) = axes.plot(seconds, losses, label=name)
        axes.plot(seconds[:1], losses[:1], "o", color=line.get_color())
    axes.set(xscale="log", yscale="log", xlabel="seconds since the command", ylabel="held-out loss")
    axes.legend()
    figure.savefig(out, dpi=150)
    for name, seconds, losses in curves:
        best = min(losses)
        when = seconds[losses.index(best)]
        print(
            f"{name}: first {losses[0]:.1f} at {seconds[0]:.1f} s, best {best:.1f} at {when:.0f} s"
        )
        for other, times, values in curves:
            passed = next((t for t, value in zip(times, values) if value < best), None)
            if other != name and passed is not None:
                print(f"    passed by {other} at {passed:.1f} s: {when / passed:.0f} times sooner")


if __name__ == "__main__":
    main()
