"""How long training takes: a few steps, timed."""

import statistics
import time

import torch

from smilevae.config import Settings
from smilevae.data import Faces
from smilevae.data.augment import augment
from smilevae.models.vae import build_vae
from smilevae.training.module import losses

NUM_STEPS = 3  # timed, after the first one
START = 3.0  # seconds of a job beside its epochs


def seconds_per_epoch(settings: Settings, faces: Faces) -> float:
    """Seconds of an epoch on this CPU: training steps on random pixels, and validation."""
    if settings.threads:
        torch.set_num_threads(settings.threads)
    num, held_out, batch = len(faces.rows("train")), len(faces.rows("val")), settings.batch_size
    vae = build_vae(settings).train()
    optimizer = torch.optim.Adam(vae.parameters(), fused=True)
    x = torch.rand(min(batch, num), 3, settings.image_size, settings.image_size)
    noise, amounts = torch.randn(len(x), settings.latent_dim), settings.jitter.model_dump()
    times = []
    for _ in range(1 + NUM_STEPS):
        start = time.perf_counter()
        moved = augment(x, torch.rand(len(x), 9) * 2 - 1, **amounts) if any(amounts.values()) else x
        with torch.autocast(
            "cpu", torch.bfloat16, enabled="bf16" in str(settings.trainer.precision)
        ):
            losses(vae, moved, noise, vae.beta + 0.0)[1].loss.mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    with torch.no_grad():
        vae.eval().decode(vae.encode(x)[0])
    validation = (
        1.5 * (time.perf_counter() - start) * held_out / len(x)
    )  # encoded once, decoded twice
    return statistics.median(times[1:]) * max(1, num // batch) + validation
