"""The figures of an evaluation: reconstructions, new faces, interpolation, traversal, edits.

Shapes: B batch, N examples, S image side, D latent dimensions, R rows, C columns.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smilevae import runs
from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of, encode
from smilevae.editing.dial import WHOLE_INTENSITIES
from smilevae.editing.dials import Dials
from smilevae.editing.directions import mean_difference, some_of_both
from smilevae.evaluation import grids
from smilevae.evaluation.measure import resized
from smilevae.evaluation.samplers import MAX_REFERENCE, Mixture, nearest, sampler_of
from smilevae.models import latents
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

STRIPS = ("edit_strip.png", "edit.gif")
MAX_PARENTS = 200  # training faces that plain_samples blends


@torch.no_grad()
def preview(run: Path, faces: Faces, side: int = 64) -> None:
    """preview.png of a run's best checkpoint: six held-out faces and their reconstructions, twelve samples, and two
    faces moved along the smile direction. Every run on a split uses the same faces.
    """
    vae = checkpoint.load(runs.find(str(run))).vae
    rows = np.random.default_rng(0).permutation(faces.rows("val"))
    x = next(batches_of(vae, faces, np.resize(rows, 6)))
    blocks = [torch.stack([x, vae.decode(vae.encode(x)[0])]), plain_samples(vae, faces, 12).unflatten(0, (2, 6))]
    calm = rows[faces.smile[rows] == 0]
    if faces.labelled("train") and len(calm):
        x = next(batches_of(vae, faces, np.resize(calm, 2)))
        blocks.append(torch.cat([x[:, None], plain_strip(vae, faces, vae.encode(x)[0])], dim=1))
    tiles = torch.cat(blocks, dim=1)
    small = resized(tiles.flatten(0, 1), side)
    save(grids.tile(small.unflatten(0, tiles.shape[:2])), run / "preview.png")


def plain_samples(vae: VAE, faces: Faces, num: int) -> Tensor:
    """New faces (num, 3, S, S) from the codes of a few training faces; the same ones at every call."""
    codes = sampler_of(vae, faces, "auto", most=MAX_PARENTS).draw(num, torch.Generator().manual_seed(0))
    return vae.decode(codes.to(next(vae.parameters()).device))


def plain_strip(vae: VAE, faces: Faces, mu: Tensor) -> Tensor:
    """Faces moved along the mean difference of (MAX_REFERENCE) training codes: (B, D) -> (B, I, 3, S, S)."""
    train = np.random.default_rng(0).permutation(faces.rows("train"))
    train = some_of_both(train, faces.smile, MAX_REFERENCE)
    direction = mean_difference(encode(vae, faces, train)[0], torch.from_numpy(faces.smile[train])).to(mu.device)
    return decode_rows(vae, latents.shift(mu, direction, torch.tensor(WHOLE_INTENSITIES, device=mu.device)))


@torch.no_grad()
def draw(
    vae: VAE, faces: Faces, out: Path, seed: int, sampler: Mixture, temperature: float, dials: Dials | None = None
) -> tuple[str, ...]:
    """Write every figure of an evaluation into `out`; the edits need dials. Gives those of STRIPS that it wrote."""
    rows = np.random.default_rng(seed).permutation(faces.rows("val"))
    x = next(batches_of(vae, faces, rows[:16]))
    mu = vae.encode(x)[0]
    save(grids.pairs(x, vae.decode(mu)), out / "reconstructions.png")

    generator = torch.Generator().manual_seed(hash64("samples", seed))
    train = np.random.default_rng(0).permutation(faces.rows("train"))[:MAX_REFERENCE]
    samples = vae.decode(sampler.draw(64, generator, temperature).to(x.device)).cpu()
    save(grids.square(samples), out / "samples.png")
    seen = torch.cat([batch.cpu() for batch in batches_of(vae, faces, train)])
    save(grids.pairs(samples[:8], seen[nearest(samples[:8], seen)]), out / "nearest.png", rows=["new", "seen"])

    if half := min(len(mu) // 2, 6):
        between = latents.interpolate(mu[:half], mu[half : 2 * half], 8)
        save(grids.tile(decode_rows(vae, between)), out / "interpolation.png")

    val_mu = encode(vae, faces, np.sort(rows))[0]
    active = val_mu.var(0, correction=0).argsort(descending=True)[:8].tolist()
    values = torch.linspace(-3, 3, 7, device=x.device)
    walks = torch.cat([latents.traverse(mu[:1], dim, values) for dim in active])
    titles = [f"{v:+.0f} sd" for v in values.tolist()]
    save(grids.tile(decode_rows(vae, walks)), out / "traversal.png", titles, [f"z{dim}" for dim in active])

    calm = rows[faces.labels(dials.attribute)[rows] == 0] if dials else rows[:0]
    if dials and len(calm):
        draw_edits(vae, faces, calm[:8], dials, out)
    return STRIPS if len(calm) else ()


def draw_edits(vae: VAE, faces: Faces, rows: np.ndarray, dials: Dials, out: Path) -> None:
    """edit_strip.png and edit.gif: held-out faces that lack the attribute at intensities of the best dial."""
    x = next(batches_of(vae, faces, rows))
    mu = vae.encode(x)[0].cpu()
    strip = decode_rows(vae, dials.turn(vae, mu, torch.tensor(WHOLE_INTENSITIES)).to(x.device))
    titles = ["original", *(f"{i:+.0f}" if i else "0" for i in WHOLE_INTENSITIES)]
    save(grids.tile(torch.cat([x[:, None], strip], dim=1)), out / STRIPS[0], titles)

    there = torch.linspace(WHOLE_INTENSITIES[0], WHOLE_INTENSITIES[-1], 25)
    codes = dials.turn(vae, mu[:4], there)
    frames = [grids.tile(frame[None]) for frame in decode_rows(vae, codes.to(x.device)).unbind(1)]
    with ThreadPoolExecutor() as pool:  # a palette each: one for all leaves spots
        images = list(pool.map(lambda frame: _image(frame).quantize(256), frames))
    images += images[-2:0:-1]  # and back
    save_gif = partial(images[0].save, format="GIF", save_all=True, append_images=images[1:], duration=80, loop=0)
    runs.replace_file(out / STRIPS[1], save_gif)


def decode_rows(vae: VAE, codes: Tensor) -> Tensor:
    """Decode rows of codes: (R, C, D) -> (R, C, 3, S, S)."""
    return vae.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


def save(picture: Tensor, path: Path, columns: Sequence[str] = (), rows: Sequence[str] = ()) -> None:
    """Write an image (3, H, W) in [0, 1] as PNG, with titles of its columns and rows."""
    image = _image(picture)
    font = ImageFont.load_default(size=14)
    top, left = 20 if columns else 0, 36 if rows else 0
    canvas = Image.new("RGB", (image.width + left, image.height + top), "white")
    canvas.paste(image, (left, top))
    pen = ImageDraw.Draw(canvas)
    for index, text in enumerate(columns):
        centre = left + image.width * (index + 0.5) / len(columns)
        pen.text((centre, top / 2), text, "black", font, anchor="mm")
    for index, text in enumerate(rows):
        centre = top + image.height * (index + 0.5) / len(rows)
        pen.text((left / 2, centre), text, "black", font, anchor="mm")
    runs.replace_file(path, lambda file: canvas.save(file, format="PNG", compress_level=3))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
