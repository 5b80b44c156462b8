"""python benchmarks/throughput.py [FOLDER]: images/s in training, beside a notebook's loop, pythae and a bare loop.

All have the same layers, loss, optimizer and batches of 64 at 128 px. Every peer runs in its own process, and the peers
take turns, so that drift affects all alike. FOLDER holds
train/{smile,non_smile}; without it the faces are synthetic. pythae is left out where it is not installed.

ours       train.py: Lightning, metrics, checkpoints, TensorBoard; the time of training steps, and of whole epochs with
           validation, metrics, checkpoints and pictures
compiled   the same with compile=true
bare       a loop of a few lines on float tensors in memory with our network, our allocator setting and fused Adam
notebook   ImageFolder, Resize, flip and ToTensor for every image, plain layers in PyTorch's default memory format
pythae     its VAE with these layers and its BaseTrainer on tensors in memory (pip install pythae)
GEMM       matrix products of side 2048, against the FLOPs that PyTorch counts in a training step
"""

import importlib.util
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets as folders
from torchvision import transforms

from smilevae import console, runs
from smilevae.config import Settings
from smilevae.data import batches
from smilevae.data.dataset import load_faces
from smilevae.data.sources import Folder, Synthetic
from smilevae.models import layers
from smilevae.models.losses import beta_vae_terms
from smilevae.models.vae import build_vae
from smilevae.plugins import loading
from smilevae.training.fit import fit
from smilevae.training.record import Checkpoints

ROUNDS, BATCH, SIZE = 7, 64, 128
PEERS = ("ours", "compiled", "bare", "notebook", "pythae", "GEMM")


def settings_of(network: str, root: Path, **more: object) -> Settings:
    model = loading.ours("model", network)
    data = Folder(root=str(root), person_pattern="(.+)")
    return Settings(
        model=model, data=data, image_size=SIZE, batch_size=BATCH, epochs=ROUNDS + 3, **more
    )


class Notebook(nn.Module):
    """The network as a notebook writes it: PyTorch's own layers one after the other."""

    def __init__(self, settings: Settings):
        super().__init__()
        shape = (3, settings.image_size, settings.image_size)
        self.encoder = plain(settings.model.encoder(shape, settings.latent_dim))
        self.decoder = plain(settings.model.decoder(shape, settings.latent_dim))

    def loss(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x).chunk(2, 1)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        return beta_vae_terms(self.decoder(z), x, mu, logvar, 1.0).loss.mean()


def plain(module: nn.Module) -> nn.Module:
    """The same layers as PyTorch has them."""
    if type(module).__module__ == layers.__name__ and type(module) is not layers.Layers:
        module.__class__ = type(module).__base__
    return nn.Sequential(*map(plain, module)) if isinstance(module, nn.Sequential) else module


def step(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 500.0)
    optimizer.step()
    return loss.item()


def notebook(network: str, root: Path) -> Callable[[], int]:
    preparing = [
        transforms.Resize((SIZE, SIZE)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
    ]
    pictures = folders.ImageFolder(root / "train", transforms.Compose(preparing))
    loader = DataLoader(pictures, BATCH, shuffle=True, drop_last=True)
    model = Notebook(settings_of(network, root)).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def epoch() -> int:
        for x, _ in loader:
            step(model.loss(x), optimizer, list(model.parameters()))
        return len(loader) * BATCH

    return epoch


def bare(network: str, root: Path) -> Callable[[], int]:
    runs.keep_memory()
    settings = settings_of(network, root)
    x = pictures_of(settings)
    vae = build_vae(settings).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4, fused=True)

    def epoch() -> int:
        chunks = torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH)
        for rows in chunks:
            picked = x[rows]
            picked[: BATCH // 2] = picked[: BATCH // 2].flip(3)
            out = vae(picked)
            loss = beta_vae_terms(out.x_hat, picked, out.mu, out.logvar, 1.0).loss.mean()
            step(loss, optimizer, list(vae.parameters()))
        return len(chunks) * BATCH

    return epoch


def pythae(network: str, root: Path) -> Callable[[], int]:
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    settings = settings_of(network, root)
    x, layers = pictures_of(settings).contiguous(), Notebook(settings)

    class Encoder(BaseEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers.encoder

        def forward(self, x: Tensor) -> ModelOutput:
            mu, logvar = self.layers(x).chunk(2, 1)
            return ModelOutput(embedding=mu, log_covariance=logvar)

    class Decoder(BaseDecoder):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers.decoder

        def forward(self, z: Tensor) -> ModelOutput:
            return ModelOutput(reconstruction=self.layers(z))

    class InMemory(Dataset):
        def __len__(self) -> int:
            return len(x) // BATCH * BATCH

        def __getitem__(self, row: int) -> DatasetOutput:
            return DatasetOutput(data=x[row])

    config = VAEConfig(
        input_dim=(3, SIZE, SIZE), latent_dim=settings.latent_dim, reconstruction_loss="mse"
    )
    options = BaseTrainerConfig(
        "pythae", per_device_train_batch_size=BATCH, learning_rate=5e-4, no_cuda=True
    )
    trainer = BaseTrainer(VAE(config, Encoder(), Decoder()), InMemory(), training_config=options)
    trainer.prepare_training()
    number = iter(range(10**9))

    def epoch() -> int:
        trainer.train_step(next(number))
        return len(trainer.train_loader) * BATCH

    return epoch


def pictures_of(settings: Settings) -> Tensor:
    """The training faces, (N, 3, S, S) in [0, 1]."""
    faces = load_faces(settings.data, settings.image_size)
    return batches.to_unit(torch.from_numpy(faces.images[faces.rows("train")]))


def gemm(network: str, root: Path) -> Callable[[], int]:
    a, b = torch.rand(2, 2048, 2048)

    def products() -> int:
        """FLOPs."""
        for _ in range(20):
            a @ b
        return 20 * 2 * 2048**3

    return products


class Rounds(pl.Callback):
    """Waits for a line before each epoch and prints images/s of the steps and of the whole epoch before."""

    begin = 0.0

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if self.begin:  # checkpoints and pictures of the epoch before are written
            tell(
                self.num / (self.steps - self.begin), self.num / (time.perf_counter() - self.begin)
            )
        waited = time.perf_counter()
        if not sys.stdin.readline():
            sys.exit()
        self.begin = time.perf_counter()
        (checkpoints,) = [c for c in trainer.callbacks if isinstance(c, Checkpoints)]
        checkpoints.due += self.begin - waited  # others trained meanwhile
        self.num = trainer.num_training_batches * BATCH

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.steps = time.perf_counter()


def tell(*rates: float) -> None:
    print(json.dumps(rates), file=sys.__stdout__, flush=True)


def no_report(*_: object) -> str:
    return ""


def train(network: str, root: Path, compile: bool) -> None:
    trainer = pl.Trainer
    pl.Trainer = lambda callbacks, **kw: trainer(callbacks=[*callbacks, Rounds()], **kw)  # type: ignore[misc]
    with runs.Run("run").recording() as run:
        fit(settings_of(network, root, compile=compile), run, runs.Stop(), no_report)


def peer(name: str, network: str, root: Path) -> None:
    """A round for each line of standard input."""
    console.quiet_lightning()
    if name in ("ours", "compiled"):
        return train(network, root, name == "compiled")
    epoch = {"notebook": notebook, "bare": bare, "pythae": pythae, "GEMM": gemm}[name](
        network, root
    )
    while sys.stdin.readline():
        begin = time.perf_counter()
        tell(epoch() / (time.perf_counter() - begin))


def flops_per_image(settings: Settings) -> float:
    vae, x = build_vae(settings), torch.rand(BATCH, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter:
        out = vae(x)
        beta_vae_terms(out.x_hat, x, out.mu, out.logvar, 1.0).loss.mean().backward()
    return counter.get_total_flops() / BATCH


def interleave(
    script: str,
    names: list[str],
    words: list[str],
    rounds: int,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, list[list[float]]]:
    """The rates that each peer prints, a list a round. Leaves out the first round, which warms up.

    `say` gets each rate when it is known.
    """
    answers: dict[str, list[list[float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as home:
        started = {}
        for name in names:
            place = Path(home) / name
            place.mkdir()
            with open(place / "err", "w") as errors:
                pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": errors}
                command = [sys.executable, str(Path(script).resolve()), "--peer", name, *words]
                started[name] = subprocess.Popen(command, cwd=place, text=True, **pipes)
        for _ in range(rounds + 1):
            for name, process in started.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                line = process.stdout.readline()
                if not line:
                    sys.exit(f"{name}: {(Path(home) / name / 'err').read_text()[-2000:]}")
                answers[name].append(json.loads(line))
                say(f"{' '.join(words[:1])} {name}: {answers[name][-1][0]:.0f}")
        for process in started.values():
            process.kill()
            process.wait()
    return {name: rates[1:] for name, rates in answers.items()}


def compare(network: str, root: Path, names: list[str]) -> None:
    rates: dict[str, list[float]] = {}
    for name, answers in interleave(__file__, names, [network, str(root)], ROUNDS).items():
        rates[name] = [answer[0] for answer in answers]
        if len(answers[0]) > 1:
            rates[f"{name}, whole"] = [answer[1] for answer in answers]
    settings = settings_of(network, root)
    flops = flops_per_image(settings)
    print(
        f"model={network}, {sum(p.numel() for p in build_vae(settings).parameters()) / 1e6:.1f} M parameters"
    )
    speed = rates.pop("GEMM")
    for kind, values in rates.items():
        ratio = [a / b for a, b in zip(rates["ours"], values)]
        print(
            f"  {kind:16} {statistics.median(values):6.1f} images/s ({min(values):.1f} to {max(values):.1f})"
            f"   ours / it: {statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        )
    for name in ("ours", "compiled"):
        ratio = [a / b for a, b in zip(rates[name], rates["notebook"])]
        share = [a / b for a, b in zip(rates[f"{name}, whole"], rates[name])]
        whole = f"whole {statistics.median(share):.3f} of its steps"
        print(f"  {name}: {statistics.median(ratio):.2f} of the notebook; {whole}")
    share = [flops * a / b for a, b in zip(rates["ours"], speed)]
    print(
        f"  {flops / 1e9:.2f} GFLOP an image; GEMM {statistics.median(speed) / 1e9:.0f} GFLOP/s; ours runs at"
        f" {statistics.median(share):.0%} of it ({min(share):.0%} to {max(share):.0%})",
        flush=True,
    )


def main() -> None:
    console.quiet_lightning()
    if sys.argv[1:2] == ["--peer"]:
        return peer(*sys.argv[2:4], Path(sys.argv[4]))
    print(
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" Lightning {pl.__version__}; n = {ROUNDS} rounds, median (range)"
    )
    names = [name for name in PEERS if name != "pythae" or importlib.util.find_spec("pythae")]
    with tempfile.TemporaryDirectory() as home:
        root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(home)
        if len(sys.argv) == 1:
            synthetic = load_faces(Synthetic(), 64)
            for row, smile in enumerate(synthetic.smile):
                folder = root / "train" / ("smile" if smile == 1 else "non_smile")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(synthetic.images[row]).save(folder / f"p_{row:04d}.jpg", quality=95)
        for network in ("conv", "patch"):
            compare(network, root, names)


if __name__ == "__main__":
    main()
