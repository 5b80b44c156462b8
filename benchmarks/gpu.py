"""python benchmarks/gpu.py: the speed of one GPU; under four minutes. Needs the repository and its packages.

Drawn faces, model=conv, batches of 64. Every peer runs in its own process, and the peers take turns. Each number is
printed when it is known.

ours      train.py trainer=gpu trainer.precision=bf16-mixed, a step as one CUDA graph: whole epochs, validation and
          checkpoints too
compiled  the same with compile=true
eager     the same with graph=false
bare      a loop without Lightning: faces on the GPU, bf16, fused Adam, torch.compile with CUDA graphs
notebook  ImageFolder, DataLoader with 4 workers, Resize, flip and ToTensor; float32, plain layers

Then train.py (150 epochs) from command to end in both precisions, and one job and eight jobs of a sweep on the card.

    python benchmarks/gpu.py host       the time of a step outside the graph, without a GPU: a replay does nothing

Without a GPU it tries itself out on the CPU, with short rounds that measure nothing.
"""

import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
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
from smilevae.training import graphs
from smilevae.training.datamodule import FaceDataModule
from smilevae.training.fit import fit

ROOT, BATCH = Path(__file__).resolve().parents[1], 64
GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
ROUNDS, EPOCHS, SIZES = (5, 10, (64, 128)) if GPU else (1, 1, (64,))  # EPOCHS a round
PEERS = ["ours", "compiled", "eager", "bare", "notebook"]
OURS = {"ours": {}, "compiled": {"compile": GPU}, "eager": {"graph": False}}
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


def ours(size: int, **more: object) -> None:
    trainer = pl.Trainer
    pl.Trainer = lambda callbacks, **kw: trainer(callbacks=[*callbacks, Rounds()], **kw)  # type: ignore[misc]
    settings = Settings(
        image_size=size,
        batch_size=BATCH,
        epochs=(ROUNDS + 3) * EPOCHS,
        trainer=Trainer(accelerator="gpu" if GPU else "cpu", precision="bf16-mixed"),
        **more,
    )
    with runs.Run("run").recording() as run:
        fit(settings, run, runs.Stop(), throughput.no_report)


def host() -> None:
    """Prints the microseconds of a step in which a replay does nothing."""
    timer = Steps()
    graphs.warm_up = lambda step: None
    graphs.capture = lambda step, pool: lambda: None if timer.begun else step()
    graphs.DEVICE = "cpu"
    FaceDataModule.fits = lambda self, device: True
    console.quiet_lightning()
    trainer = pl.Trainer
    pl.Trainer = lambda callbacks, **kw: trainer(callbacks=[*callbacks, timer], **kw)  # type: ignore[misc]
    cpu = Trainer(accelerator="cpu")
    settings = Settings(image_size=64, batch_size=8, epochs=20, trainer=cpu, graph=True)
    with tempfile.TemporaryDirectory() as home, runs.Run(Path(home)).recording() as run:
        fit(settings, run, runs.Stop(), throughput.no_report)
    spread = f"{min(timer.values):.0f} to {max(timer.values):.0f}"
    print(
        f"{statistics.median(timer.values):.0f} us a step ({spread}), n = {len(timer.values)} epochs"
    )


class Steps(pl.Callback):
    """Takes the time of an epoch's steps, from the end of the first to the end of the last."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.begun = False  # the first step of an epoch and its validation are real

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: object, outputs: object, batch: object, batch_idx: int
    ) -> None:
        self.begun = batch_idx + 1 < trainer.num_training_batches
        if batch_idx == 0:
            self.begin = time.perf_counter()
        elif not self.begun:
            self.values.append(1e6 * (time.perf_counter() - self.begin) / batch_idx)


def bare(size: int) -> Callable[[], int]:
    faces = load_faces(Synthetic(), size)
    rows = torch.from_numpy(faces.rows("train")).to(DEVICE)
    images = torch.from_numpy(faces.images[:]).to(DEVICE)
    vae = build_vae(Settings(image_size=size)).to(DEVICE).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4, fused=True)

    def loss_of(x: torch.Tensor) -> torch.Tensor:
        out = vae(x)
        return beta_vae_terms(out.x_hat, x, out.mu, out.logvar, 1.0).loss.mean()

    fast = torch.compile(loss_of, mode="reduce-overhead") if GPU else loss_of

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
    if name in OURS:
        return ours(size, **OURS[name])
    epoch = notebook(size, root) if name == "notebook" else bare(size)
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
    if sys.argv[1:2] == ["host"]:
        return host()
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
            answers = throughput.interleave(
                __file__, PEERS, [str(size), home], ROUNDS, partial(print, flush=True)
            )
            rates = {name: [rate for (rate,) in rounds] for name, rounds in answers.items()}
            for name, values in rates.items():
                ratio = statistics.median(a / b for a, b in zip(rates["ours"], values))
                spread = f"{min(values):.0f} to {max(values):.0f}"
                speed = f"{statistics.median(values):8.0f} images/s ({spread})"
                print(f"{size:4} px  {name:9}{speed}   ours / it: {ratio:.2f}")
            sys.stdout.flush()
        for precision in ("bf16-mixed", "32-true"):
            words = [f"hydra.run.dir={home}/{precision}", *WORDS, *SHORT]
            timed(f"train.py, {precision}", ["train.py", *words, f"trainer.precision={precision}"])
        several = ["hydra/launcher=local", f"hydra.launcher.n_jobs={8 if GPU else 2}"]
        for seeds, launcher in (("0", []), (",".join(map(str, range(8 if GPU else 2))), several)):
            words = [f"hydra.sweep.dir={home}/sweep{len(seeds)}", f"seed={seeds}", *launcher]
            short = SHORT or ["epochs=50"]
            timed(f"a sweep of seed={seeds}", ["train.py", "-m", *words, *WORDS, *short])


if __name__ == "__main__":
    main()
