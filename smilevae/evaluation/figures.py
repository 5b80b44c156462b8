"""The figures of an evaluation, and the preview of a run.

Shapes: B batch, N examples, S image side, D latent dimensions, R rows, C columns.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from smilevae import runs
from smilevae.data.batches import hash64
from smilevae.data.dataset import Faces
from smilevae.data.encode import batches_of, encode
from smilevae.editing.attributes import Edits, mean_difference
from smilevae.editing.directions import some_of_both
from smilevae.evaluation import grids
from smilevae.evaluation.measure import resized
from smilevae.evaluation.options import EvaluateOptions
from smilevae.evaluation.samplers import MAX_REFERENCE, Mixture, nearest, sampler_of
from smilevae.evaluation.scoring import lacking
from smilevae.models import latents
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

STRIP = "edit_strip.png"
INTENSITIES = (-1.0, 0.0, 1.0, 2.0, 3.0)  # of the mean difference, in previews
MAX_PARENTS = 200  # training faces that plain_samples blends
MAX_COLUMNS = 8  # intensities of a strip
MAIN_FACES = 8  # of the strip of the main attribute
OTHER_FACES = 2


@torch.no_grad()
def preview(run: Path, faces: Faces, device: torch.device, side: int = 64) -> None:
    """preview.png of a run's best checkpoint: six held-out faces and their reconstructions, twelve new
    faces, two faces moved along the mean difference. Every run on a split uses the same faces.
    """
    vae = checkpoint.load(runs.find(str(run))).vae.to(device)
    rows = faces.sample("val")
    x = next(batches_of(vae, faces, np.resize(rows, 6)))
    blocks = [torch.stack([x, vae.decode(vae.encode(x)[0])])]
    blocks.append(plain_samples(vae, faces, 12).unflatten(0, (2, 6)))
    calm = rows[faces.smile[rows] == 0]
    if faces.labelled("train") and len(calm):
        x = next(batches_of(vae, faces, np.resize(calm, 2)))
        strip = plain_strip(vae, faces, vae.encode(x)[0])
        blocks.append(torch.cat([x[:, None], strip], dim=1))
    tiles = torch.cat(blocks, dim=1).cpu()
    small = resized(tiles.flatten(0, 1), side).unflatten(0, tiles.shape[:2])
    runs.write_bytes(run / "preview.png", png(picture(grids.tile(small))))


def plain_samples(vae: VAE, faces: Faces, num: int) -> Tensor:
    """New faces (num, 3, S, S) from the codes of a few training faces; the same ones at every call."""
    sampler = sampler_of(vae, faces, "auto", most=MAX_PARENTS)
    codes = sampler.draw(num, torch.Generator().manual_seed(0))
    return vae.decode(codes.to(next(vae.parameters()).device))


def plain_strip(vae: VAE, faces: Faces, mu: Tensor) -> Tensor:
    """Faces moved along the mean difference of training codes: (B, D) -> (B, I, 3, S, S)."""
    train = some_of_both(faces.sample("train"), faces.smile, MAX_REFERENCE)
    codes, _ = encode(vae, faces, train)
    direction = mean_difference(codes, torch.from_numpy(faces.smile[train])).to(mu.device)
    intensities = torch.tensor(INTENSITIES, device=mu.device)
    return decode_rows(vae, latents.shift(mu, direction, intensities))


@torch.no_grad()
def draw(
    vae: VAE, faces: Faces, edits: Edits | None, sampler: Mixture, options: EvaluateOptions
) -> tuple[dict[str, Image.Image], dict[str, Image.Image]]:
    """The figures of a model by file name, and a strip of each attribute's edits."""
    figures = {}
    rows = np.random.default_rng(options.seed).permutation(faces.rows("val"))
    x = next(batches_of(vae, faces, rows[:16]))
    mu, _ = vae.encode(x)
    figures["reconstructions.png"] = picture(grids.pairs(x, vae.decode(mu)))

    # New faces, and the training faces that are nearest to them.
    generator = torch.Generator().manual_seed(hash64("samples", options.seed))
    new = vae.decode(sampler.draw(64, generator, options.temperature).to(x.device)).cpu()
    train = faces.sample("train", MAX_REFERENCE)
    seen = torch.cat([batch.cpu() for batch in batches_of(vae, faces, train)])
    figures["samples.png"] = picture(grids.square(new))
    both = grids.pairs(new[:8], seen[nearest(new[:8], seen)])
    figures["nearest.png"] = titled(picture(both), rows=["new", "train"])

    # Between pairs of held-out faces.
    half = min(len(mu) // 2, 6)
    if half:
        between = latents.interpolate(mu[:half], mu[half : 2 * half], 8)
        figures["interpolation.png"] = picture(grids.tile(decode_rows(vae, between)))

    # Along the dimensions that vary most.
    val_mu, _ = encode(vae, faces, np.sort(rows))
    active = val_mu.var(0, correction=0).argsort(descending=True)[:8].tolist()
    values = torch.linspace(-3, 3, 7, device=x.device)
    walks = torch.cat([latents.traverse(mu[:1], dim, values) for dim in active])
    columns = [f"{value:+.0f} sd" for value in values.tolist()]
    names = [f"z{dim}" for dim in active]
    figures["traversal.png"] = titled(picture(grids.tile(decode_rows(vae, walks))), columns, names)

    # Edits within their ranges, of held-out faces that lack the attribute.
    strips = {}
    for number, attribute in enumerate(edits.attributes if edits else []):
        rows = lacking(faces, attribute.name)[: OTHER_FACES if number else MAIN_FACES]
        if len(rows):
            x = next(batches_of(vae, faces, rows))
            levels = shown_intensities(attribute.low, attribute.high)
            codes = attribute.edit(vae.encode(x)[0].cpu(), torch.tensor(levels))
            strip = decode_rows(vae, codes.to(x.device))
            columns = ["image", *(f"{level:+g}" if level else "0" for level in levels)]
            image = picture(grids.tile(torch.cat([x[:, None], strip], dim=1)))
            strips[attribute.name] = titled(image, columns)
    if strips:
        figures[STRIP] = next(iter(strips.values()))
    return figures, strips


def shown_intensities(low: float, high: float) -> list[float]:
    """Steps of 0.5 from `low` to `high`, or of 1 where those are too many."""
    steps = np.arange(2 * low, 2 * high + 1) / 2
    if len(steps) > MAX_COLUMNS:
        steps = np.array([step for step in steps if step == round(step)])
    return steps.tolist()


def decode_rows(vae: VAE, codes: Tensor) -> Tensor:
    """Decode rows of codes: (R, C, D) -> (R, C, 3, S, S)."""
    return vae.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


def picture(image: Tensor) -> Image.Image:
    """An image (3, H, W) in [0, 1] for Pillow."""
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())


def titled(
    image: Image.Image, columns: Sequence[str] = (), rows: Sequence[str] = ()
) -> Image.Image:
    """An image with titles of its columns and rows."""
    font = ImageFont.load_default(size=14)
    top = 20 if columns else 0
    left = 36 if rows else 0
    canvas = Image.new("RGB", (image.width + left, image.height + top), "white")
    canvas.paste(image, (left, top))
    pen = ImageDraw.Draw(canvas)
    for index, text in enumerate(columns):
        centre = left + image.width * (index + 0.5) / len(columns)
        pen.text((centre, top / 2), text, "black", font, anchor="mm")
    for index, text in enumerate(rows):
        centre = top + image.height * (index + 0.5) / len(rows)
        pen.text((left / 2, centre), text, "black", font, anchor="mm")
    return canvas


def stacked(named: Mapping[str, Image.Image]) -> Image.Image:
    """Images below one another, each under its name."""
    blocks = [titled(image, [name]) for name, image in named.items()]
    height = sum(block.height for block in blocks)
    sheet = Image.new("RGB", (max(block.width for block in blocks), height), "white")
    for block in reversed(blocks):
        height -= block.height
        sheet.paste(block, (0, height))
    return sheet


def png(image: Image.Image) -> bytes:
    """An image as a PNG file."""
    file = io.BytesIO()
    image.save(file, format="PNG", compress_level=3)
    return file.getvalue()
