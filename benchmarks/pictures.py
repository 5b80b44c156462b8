"""The pictures of docs/: python benchmarks/pictures.py [NAME ...], on two cores in ten minutes.

NAME is one of new_faces, model_page, sweep, first_result, plugin, killed_and_resumed. All trainings are on drawn faces.
It needs Debian's chromium-driver.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import smilevae

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
SMALL = "model=patch model.widths=[16,32,64] image_size=64 latent_dim=20 lr=0.002 threads=1"
FACES = "data.num_smiling=300 data.num_not_smiling=300"


def main(names: list[str]) -> None:
    makers = (new_faces, model_page, sweep, first_result, plugin, killed_and_resumed)
    os.chdir(tempfile.mkdtemp())
    for maker in makers:
        if not names or maker.__name__ in names:
            maker()


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "smilevae", *(word for text in words for word in text.split())]


def run(*words: str) -> None:
    subprocess.run(command(*words), check=True)


def sheet(rows, path: Path, enlarged: int = 2) -> None:
    """Rows of (N, 3, S, S) images in [0, 1] as one picture."""
    cells = [np.concatenate(list(np.moveaxis(np.asarray(row), 1, -1)), 1) for row in rows]
    whole = (np.concatenate(cells) * 255).round().astype(np.uint8)
    image = Image.fromarray(whole)
    image.resize([side * enlarged for side in image.size], Image.Resampling.BICUBIC).save(path)


def screenshot(page: Path, path: Path, height: int) -> None:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    for word in (
        "headless=new",
        "no-sandbox",
        "hide-scrollbars",
        f"window-size=1000,{height + 139}",
    ):
        options.add_argument(f"--{word}")
    browser = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    browser.get(page.resolve().as_uri())
    time.sleep(2)
    browser.save_screenshot(str(path.with_suffix(".png")))
    browser.quit()
    Image.open(path.with_suffix(".png")).convert("RGB").save(path, quality=85)
    path.with_suffix(".png").unlink()


def new_faces() -> None:
    model = smilevae.load("drawn")
    codes = model.draw(40)
    calm = codes[(codes @ model.edits.main.weights).argsort()[:8]]
    smiling = model.turn(calm, [1.0])[:, 0]
    sheet([model.decode(calm), model.decode(smiling)], DOCS / "new_faces.jpg")


def model_page() -> None:
    run("page ckpt=drawn out=face.html")
    screenshot(Path("face.html"), DOCS / "page.jpg", 860)


def sweep() -> None:
    """The top of the analysis, and the same faces at each beta."""
    sweep = Path("multirun/drawn")
    words = "beta=0.01,1,10,50 batch_size=16,64 data.split_seed=0,1 epochs=40"
    run("train -m", SMALL, FACES, words, f"hydra.sweep.dir={sweep}")
    screenshot(sweep / "analysis" / "index.html", DOCS / "analysis.jpg", 900)
    rows = []
    for beta in ("0.01", "1", "10", "50"):
        model = smilevae.load(sweep / f"beta-{beta}_batch_size-16_data.split_seed-0")
        if not rows:
            faces = np.stack([drawn(row) for row in range(8)])
            rows.append(faces)
        rows.append(model.decode(model.encode(np.moveaxis((faces * 255).astype(np.uint8), 1, -1))))
    sheet(rows, DOCS / "beta.jpg", 1)


def drawn(row: int) -> np.ndarray:
    """(3, 64, 64) in [0, 1]"""
    from smilevae.data.synthetic import SyntheticFaces

    image = SyntheticFaces(20, 20, 0, seed=5).draw(row).convert("RGB")
    return np.moveaxis(np.asarray(image.resize((64, 64), Image.Resampling.BOX)) / 255, -1, 0)


def first_result() -> None:
    run("train experiment=quickstart threads=2 evaluate=false hydra.run.dir=first")
    preview(Path("first"), DOCS / "preview.jpg")


def preview(run: Path, path: Path) -> None:
    Image.open(run / "preview.png").convert("RGB").save(path, quality=85)


def plugin() -> None:
    text = (DOCS / "extend.md").read_text()
    code = re.search(r"<!-- my_vae.py: begin -->\n```python\n(.*?)```", text, re.S)[1]
    Path("my_vae.py").write_text(code)
    words = SMALL.replace("model=patch model.widths=[16,32,64]", "model=dense model.hidden=512")
    run("train plugin=my_vae.py epochs=60 hydra.run.dir=dense", words, FACES)
    preview(Path("dense"), DOCS / "plugin.jpg")


def killed_and_resumed() -> None:
    """The losses of a run, and of one that was killed three times."""
    whole = Path("whole")
    killed = Path("killed")
    words = [f"epochs=60 checkpoint_every=1 {SMALL} {FACES}"]
    run(f"train hydra.run.dir={whole}", *words)
    stops = [12, 25, 40]
    start = command(f"train hydra.run.dir={killed}", *words)
    for epoch in stops:
        process = subprocess.Popen(start)
        while not (killed / "metrics.jsonl").exists() or losses(killed)[0][-1:] < [epoch]:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        start = command(f"train resume={killed}")
    subprocess.run(start, check=True)
    figure, axes = plt.subplots(figsize=(7, 3), dpi=110)
    axes.plot(*losses(whole), lw=5, color="0.8", label="never stopped")
    axes.plot(*losses(killed), lw=1.2, color="#b8501c", label="killed at the dots, resumed")
    found = dict(zip(*losses(killed)))
    axes.plot(stops, [found[epoch] for epoch in stops], "o", color="#b8501c")
    axes.set(xlabel="epoch", ylabel="val/loss", title="kill -9 three times: equal to the bit")
    axes.legend()
    figure.tight_layout()
    figure.savefig(DOCS / "resumed.jpg")
    assert losses(whole) == losses(killed)


def losses(run: Path) -> tuple[list[int], list[float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["epoch"] for line in lines], [line["val/loss"] for line in lines]


if __name__ == "__main__":
    main(sys.argv[1:])
