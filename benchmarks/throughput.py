"""python benchmarks/throughput.py [FOLDER]: images/s in training, beside a notebook's loop, pythae and a bare loop.

All have the same encoder, decoder, loss, optimizer and batches of 64 at 128 px. They run in one process, one round
of each after each of our epochs, so that drift affects all alike. FOLDER holds train/{smile,non_smile}; without it
the faces are synthetic. pythae is left out where it is not installed.

ours      python train.py: Lightning, metrics, checkpoints, TensorBoard; the time of training epochs, and the time of
          whole epochs with validation and checkpoints
notebook  ImageFolder, Resize, flip and ToTensor for every image, layers in PyTorch's default memory format
pythae    its VAE with these layers and its BaseTrainer on tensors in memory (pip install pythae)
bare      a loop of a few lines on float tensors in memory, channels_last, flipped like ours
GEMM      the speed of matrix products of side 2048, against the FLOPs that PyTorch counts in a training step
"""

import contextlib
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
import yaml
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import datasets as folders
from torchvision import transforms

from smilevae import console, runs
from smilevae.config import Data, Model, Settings
from smilevae.data import batches, load_faces
from smilevae.models.losses import beta_vae_terms
from smilevae.models.networks import NETWORKS
from smilevae.models.vae import build_vae
from smilevae.training.fit import fit

ROUNDS, BATCH, SIZE = 7, 64, 128
CONF = Path(__file__).parents[1] / "conf" / "model"


class Notebook(nn.Module):
    """The network as a notebook writes it."""

    def __init__(self, settings: Settings):
        super().__init__()
        model, sizes = settings.model, (settings.image_size, settings.latent_dim)
        self.encoder, self.decoder = (part(*sizes, model.widths, model.dropout) for part in NETWORKS[model.network])

    def loss(self, x: Tensor) -> Tensor:
        mu, logvar = self.encoder(x).chunk(2, 1)
        z = mu + (0.5 * logvar).exp() * torch.randn_like(mu)
        return beta_vae_terms(self.decoder(z), x, mu, logvar, 1.0).loss.mean()


def step(loss: Tensor, optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter]) -> float:
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(parameters, 500.0)
    optimizer.step()
    return loss.item()


def notebook(settings: Settings, folder: Path) -> Callable[[], int]:
    preparing = [transforms.Resize((SIZE, SIZE)), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    pictures = folders.ImageFolder(folder, transforms.Compose(preparing))
    loader = DataLoader(pictures, BATCH, shuffle=True, drop_last=True)
    model = Notebook(settings).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-4)

    def epoch() -> int:
        for x, _ in loader:
            step(model.loss(x), optimizer, list(model.parameters()))
        return len(loader) * BATCH

    return epoch


def bare(settings: Settings, x: Tensor) -> Callable[[], int]:
    vae = build_vae(settings).train()
    optimizer = torch.optim.Adam(vae.parameters(), lr=5e-4)

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


def pythae(settings: Settings, x: Tensor, home: Path) -> Callable[[], int]:
    from pythae.data.datasets import DatasetOutput
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig

    layers = Notebook(settings)

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

    config = VAEConfig(input_dim=(3, SIZE, SIZE), latent_dim=settings.latent_dim, reconstruction_loss="mse")
    options = BaseTrainerConfig(str(home), per_device_train_batch_size=BATCH, learning_rate=5e-4, no_cuda=True)
    trainer = BaseTrainer(VAE(config, Encoder(), Decoder()), InMemory(), training_config=options)
    trainer.prepare_training()
    number = iter(range(10**9))

    def epoch() -> int:
        trainer.train_step(next(number))
        return len(trainer.train_loader) * BATCH

    return epoch


def gemm_rate() -> float:
    """FLOPs per second of float32 products of 2048 x 2048 matrices."""
    a, b = torch.rand(2, 2048, 2048)
    a @ b
    begin = time.perf_counter()
    for _ in range(5):
        a @ b
    return 5 * 2 * 2048**3 / (time.perf_counter() - begin)


class Interleave(pl.Callback):
    """After each of our epochs, a round of every other; the first round warms up."""

    def __init__(self, others: dict[str, Callable[[], int]]):
        self.others, self.rates = others, {name: [] for name in ("ours", "ours, whole", *others, "GEMM")}
        self.whole = None

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        now = time.perf_counter()
        if self.whole is not None:  # checkpoints and pictures are written after the others' rounds
            self.rates["ours, whole"].append(self.num / (self.whole + now - self.resumed))
        self.begin = now

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        self.end = time.perf_counter()

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.num = trainer.num_training_batches * BATCH
        self.whole = time.perf_counter() - self.begin
        self.rates["ours"].append(self.num / (self.end - self.begin))
        for name, epoch in self.others.items():
            begin = time.perf_counter()
            self.rates[name].append(epoch() / (time.perf_counter() - begin))
        self.rates["GEMM"].append(gemm_rate())
        self.resumed = time.perf_counter()


def flops_per_image(settings: Settings) -> float:
    vae, x = build_vae(settings), torch.rand(BATCH, 3, SIZE, SIZE)
    with FlopCounterMode(display=False) as counter:
        out = vae(x)
        beta_vae_terms(out.x_hat, x, out.mu, out.logvar, 1.0).loss.mean().backward()
    return counter.get_total_flops() / BATCH


def compare(name: str, root: Path) -> None:
    data = Data(source="folder", root=str(root))
    model = Model(**yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    settings = Settings(model=model, data=data, image_size=SIZE, batch_size=BATCH, epochs=ROUNDS + 1)
    faces = load_faces(data, SIZE)
    x = batches.to_unit(torch.from_numpy(faces.images[faces.rows("train")]))
    with tempfile.TemporaryDirectory() as home:
        others = {"notebook": notebook(settings, root / "train"), "bare": bare(settings, x)}
        with contextlib.suppress(ImportError):
            others["pythae"] = pythae(settings, x.contiguous(), Path(home) / "pythae")
        interleave, trainer = Interleave(others), pl.Trainer
        pl.Trainer = lambda callbacks, **kw: trainer(callbacks=[*callbacks, interleave], **kw)  # type: ignore[misc]
        try:
            with runs.Run(Path(home) / "run").recording() as run:
                fit(settings, run, runs.Stop())
        finally:
            pl.Trainer = trainer  # type: ignore[misc]
    rates = {kind: values[1:] for kind, values in interleave.rates.items()}
    flops = flops_per_image(settings)
    print(f"model={name}, {sum(p.numel() for p in build_vae(settings).parameters()) / 1e6:.1f} M parameters")
    ours = rates["ours"]
    for kind in ("ours", "ours, whole", *others):
        ratio = [a / b for a, b in zip(ours, rates[kind])]
        print(
            f"  {kind:12} {statistics.median(rates[kind]):7.1f} images/s"
            f" ({min(rates[kind]):.1f} to {max(rates[kind]):.1f})"
            f"   ours / it: {statistics.median(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})"
        )
    share = [flops * a / b for a, b in zip(ours, rates["GEMM"])]
    print(
        f"  {flops / 1e9:.2f} GFLOP an image; GEMM {statistics.median(rates['GEMM']) / 1e9:.0f} GFLOP/s; ours runs at"
        f" {statistics.median(share):.0%} of it ({min(share):.0%} to {max(share):.0%})"
    )


def main() -> None:
    console.quiet_lightning()
    print(
        f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" Lightning {pl.__version__}; n = {ROUNDS} rounds, median (range)"
    )
    with tempfile.TemporaryDirectory() as home:
        root = Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else Path(home)
        if len(sys.argv) == 1:
            synthetic = load_faces(Data(), 64)
            for row, smile in enumerate(synthetic.smile):
                folder = root / "train" / ("smile" if smile == 1 else "non_smile")
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(synthetic.images[row]).save(folder / f"p_{row:04d}.jpg", quality=95)
        for name in ("conv", "patch"):
            compare(name, root)


if __name__ == "__main__":
    main()
