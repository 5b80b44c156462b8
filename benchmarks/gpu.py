"""python benchmarks/gpu.py: the speed of one GPU; under eight minutes. Needs the repository and its packages.

Drawn faces, model=conv, batches of 64. Every peer runs in its own process, and the peers take turns.

ours      train.py trainer=gpu trainer.precision=bf16-mixed compile=true: whole epochs, validation and checkpoints too
steps     the same without compile=true
graphs    a bare loop: faces on the GPU, bf16, fused Adam, torch.compile with CUDA graphs
eager     the same without torch.compile
notebook  ImageFolder, DataLoader with 4 workers, Resize, flip and ToTensor; float32, plain layers

Then: train.py (150 epochs) from command to end, a sweep of 8 jobs, and pytest -m gpu. Without a GPU it tries itself out
on the CPU, with short rounds that measure nothing.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import throughput
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets as folders
from torchvision import transforms

from smilevae import console, runs
from smilevae.config import Settings, Trainer
from smilevae.data import batches
from smilevae.data.dataset import load_faces
from smilevae.data.sources import Synthetic
from smilevae.models.losses import beta_vae_terms
from smilevae.models.vae import build_vae
from smilevae.training.fit import fit

ROOT, BATCH = Path(__file__).resolve().parents[1], 64
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROUNDS, EPOCHS, SIZES = (7, 20, (64, 128)) if GPU else (1, 1, (64,))  # EPOCHS a round
PEERS = ["ours", "steps", "graphs", "eager", "notebook"]
WORDS = [f"trainer={'gpu' if GPU else 'cpu'}", "trainer.precision=bf16-mixed"]
SHORT = [] if GPU else ["image_size=64", "epochs=1", "model=patch"]


def wait() -> None:
    if GPU:
        torch.cuda.synchronize()


class Rounds(pl.Callback):
    """Waits for a line every EPOCHS epochs, and prints images/s since the line before."""

    begin = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch % EPOCHS:
            return
        wait()
        if self.begin:
            images = EPOCHS * trainer.num_training_batches * BATCH
            throughput.tell(images / (time.perf_counter() - self.begin))
        if not sys.stdin.readline():
            sys.exit()
        self.begin = time.perf_counter()


def ours(size: int, compile: bool) -> None:
    trainer = pl.Trainer
    pl.Trainer = lambda callbacks, **kw: trainer(callbacks=[*callbacks, Rounds()], **kw)  # type: ignore[misc]
    settings = Settings(
        image_size=size,
        batch_size=BATCH,
        epochs=(ROUNDS + 3) * EPOCHS,
        compile=compile,
        trainer=Trainer(accelerator="gpu" if GPU else "cpu", precision="bf16-mixed"),
    )
    with runs.Run("run").recording() as run:
        fit(settings, run, runs.Stop())


def bare(size: int, compile: bool) -> Callable[[], int]:
    faces = load_faces(Synthetic(), size)
    rows = torch.from_numpy(faces.rows("train")).to(DEVICE)
    images = torch.from_numpy(faces.images[:]).to(DEVICE)
    vae = build_vae(Settings(image_size=size)).to(DEVICE).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4, fused=True)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        out = vae(x)
        return beta_vae_terms(out.x_hat, x, out.mu, out.logvar, 1.0).loss.mean()

    fast = torch.compile(loss_of, mode="reduce-overhead" if GPU else None) if compile else loss_of

    def epoch() -> int:
        chunks = rows[torch.randperm(len(rows), device=DEVICE)][: len(rows) // BATCH * BATCH].split(
            BATCH
        )
        for chunk in chunks:
            x = images[chunk]
            x[: BATCH // 2] = x[: BATCH // 2].flip(2)
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = fast(batches.to_unit(x))
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(vae.parameters(), 500.0)
            optimizer.step()
        return len(chunks) * BATCH

    return epoch


def notebook(size: int, root: Path) -> Callable[[], int]:
    preparing = [
        transforms.Resize((size, size)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    pictures = folders.ImageFolder(root / "train", transforms.Compose(preparing))
    loader = DataLoader(
        pictures, BATCH, shuffle=True, drop_last=True, num_workers=4, persistent_workers=True
    )
    model = throughput.Notebook(Settings(image_size=size)).to(DEVICE).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def epoch() -> int:
        for x, _ in loader:
            throughput.step(model.loss(x.to(DEVICE)), optimizer, list(model.parameters()))
        return len(loader) * BATCH

    return epoch


def peer(name: str, size: int, root: Path) -> None:
    """A round for each line of standard input."""
    console.quiet_lightning()
    if name in ("ours", "steps"):
        return ours(size, name == "ours")
    epoch = notebook(size, root) if name == "notebook" else bare(size, name == "graphs")
    while sys.stdin.readline():
        begin = time.perf_counter()
        images = sum(epoch() for _ in range(EPOCHS))
        wait()
        throughput.tell(images / (time.perf_counter() - begin))


def timed(title: str, command: list[str]) -> None:
    begin = time.perf_counter()
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
    last = (done.stdout + done.stderr).strip().splitlines()[-1:]
    print(
        f"{title}: {time.perf_counter() - begin:.1f} s, exit {done.returncode} ({' '.join(last)})",
        flush=True,
    )


def main() -> None:
    if sys.argv[1:2] == ["--peer"]:
        return peer(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    device = (
        torch.cuda.get_device_name()
        if GPU
        else f"no GPU: a trial on {platform.machine()} that measures nothing"
    )
    print(
        f"{device}; torch {torch.__version__}, Lightning {pl.__version__}; n = {ROUNDS} rounds of {EPOCHS} epochs"
    )
    with tempfile.TemporaryDirectory() as home:
        drawn = load_faces(Synthetic(), 64)
        for row, smile in enumerate(drawn.smile):
            folder = Path(home, "train", "smile" if smile == 1 else "non_smile")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(drawn.images[row]).save(folder / f"p_{row:04d}.jpg", quality=95)
        for size in SIZES:
            answers = throughput.interleave(__file__, PEERS, [str(size), home], ROUNDS)
            rates = {name: [rate for (rate,) in rounds] for name, rounds in answers.items()}
            for name, values in rates.items():
                ratio = statistics.median(a / b for a, b in zip(rates["ours"], values))
                spread = f"{min(values):.0f} to {max(values):.0f}"
                speed = f"{statistics.median(values):8.0f} images/s ({spread})"
                print(f"{size:4} px  {name:9}{speed}   ours / it: {ratio:.2f}")
            sys.stdout.flush()
        for more in ([], ["compile=true"]):
            run = f"hydra.run.dir={home}/run{len(more)}"
            timed(
                " ".join(["train.py, 150 epochs", *more]), ["train.py", run, *WORDS, *SHORT, *more]
            )
        seeds = ",".join(map(str, range(8 if GPU else 2)))
        sweep = [
            f"hydra.sweep.dir={home}/sweep",
            f"seed={seeds}",
            *WORDS,
            *(SHORT or ["epochs=20"]),
        ]
        timed("a sweep of 8 jobs of 20 epochs", ["train.py", "-m", *sweep])
    timed("pytest -m gpu", ["-m", "pytest", "-q", "-m", "gpu"])


if __name__ == "__main__":
    main()
