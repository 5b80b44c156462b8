"""What a checkpoint is worth: numbers on held-out people beside linear references, and pictures to look at.

Everything is in eval mode; codes are mu, not samples, unless a line says otherwise. Shapes: B batch, N examples,
S image side, D latent dimensions.
"""

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from smilevae import CheckpointError, audit, checkpoints, grids, latents, runs
from smilevae.batches import gather, hash64, in_order, to_unit
from smilevae.crops import typical_eyes
from smilevae.datasets import Faces, load_faces
from smilevae.judge import Judge, outside
from smilevae.losses import beta_vae_terms, gaussian_kl
from smilevae.metrics import active_units, negative_elbo, psnr
from smilevae.sampling import draw_codes, nearest
from smilevae.smile import Dial, mean_difference, plain_dial
from smilevae.vae import VAE

BATCH = 128
MAX_EYES = 100  # training faces in which eyes are looked for
MAX_REFERENCE = 2000  # training faces that samples are drawn from and compared with
INTENSITIES = (-1.0, 0.0, 1.0, 2.0, 3.0)


def evaluate(
    path: Path,
    *,
    root: str | None = None,
    seed: int = 0,
    sampler: str = "prior",
    temperature: float = 1.0,
    refine: int = 0,
    attributes: str | None = None,
    smile: bool = True,
    judge: str | None = None,
) -> tuple[dict[str, Any], Path]:
    """Measure and draw the checkpoint at `path`; needs nothing but the file and its faces (`root` if they moved).

    `attributes` is a table of what else is known of them; without `smile` its directions are not audited; `judge` is
    the place of a judge.MakeJudge to audit them with. Writes metrics.json and pictures into the run's evaluation
    folder; returns the metrics and that folder. Raises CheckpointError, DataError or ConfigError.
    """
    make_judge = outside(judge) if judge else Judge
    vae, content = checkpoints.load_vae(path)
    settings = content["hyper_parameters"]
    settings["data"] |= {"root": root} if root else {}
    settings["data"] |= {"attributes": attributes} if attributes else {}
    faces = load_faces(**settings["data"], image_size=settings["image_size"])
    if faces.fingerprint != content["fingerprint"]:
        raise CheckpointError(
            f"{path} was trained on other pictures than {settings['data']['root'] or settings['data']['source']} now"
            " holds, so its held-out people are not known; pass root=PATH of the original ones"
        )
    out = runs.evaluation_folder(checkpoints.run_of(path))
    metrics = {
        "checkpoint": str(path.relative_to(checkpoints.run_of(path))),
        "epoch": checkpoints.epochs_trained(content),
        "num_images": len(faces.rows("val")),
        "image_size": settings["image_size"],
        "native_size": faces.native_size,
        "beta": settings["beta"],
        "refine": refine,
        **measure(vae, faces, settings["beta"], seed, refine),
    }
    dial, dials = None, {}
    if smile and audit.possible(faces):
        found = audit.Audit(vae, faces, lambda rows: encode(vae, faces, rows)[0], make_judge)
        metrics["smile"], dial, dials = found.card, found.best, found.dials
        found.draw(out / "smile_scorecard.png")
    elif smile and faces.labelled("train"):
        train = faces.rows("train")
        dial = plain_dial(encode(vae, faces, train)[0], torch.from_numpy(faces.smile[train]))
        dials = {dial.name: dial}
    if dial:  # what photo.py needs of the training faces
        eyes = typical_eyes(gather(faces.images, faces.rows("train")[:MAX_EYES]))
        kept = {"best": dial.name, "eyes": eyes, "dials": {name: d.plain() for name, d in dials.items()}}
        runs.write_text(out / "dials.json", json.dumps(kept) + "\n")
    runs.write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    draw(vae, faces, out, seed, sampler, temperature, dial)
    return metrics, out


def report(ckpt: str, **options: Any) -> str:
    """Evaluate a checkpoint file or a run folder's best; gives the table and where the pictures are."""
    metrics, out = evaluate(checkpoints.find(ckpt), **options)
    smile = f"{audit.format_card(metrics['smile'])}\n" if "smile" in metrics else ""
    return f"{format_table(metrics)}\n{smile}pictures: {runs.short(out)}/"


def compare(named: dict[str, Path], out: Path, **options: Any) -> str:
    """Evaluate several checkpoints and put them side by side: one table, and their pictures under one another in `out`.

    Each also gets its own evaluation folder, as `evaluate` gives it.
    """
    found = {name: evaluate(path, **options) for name, path in named.items()}
    width = max(map(len, [*found, "mean face"])) + 2
    lines = [
        " " * width + "".join(f"{title:>12}" for title in ("PSNR dB", "SSIM", "KL nats", "nELBO", "active", "beta"))
    ]
    for name, (m, _) in found.items():
        cells = f"{m['model']['psnr']:12.2f}{m['model']['ssim']:12.3f}{m['kl']:12.1f}{m['nelbo']:12.0f}"
        lines.append(f"{name:{width}}{cells}{m['active_units']:12}{m['beta']:12g}")
    first = next(iter(found.values()))[0]
    for key, title in {"mean_face": "mean face", "pca": f"PCA-{first['pca_dim']}"}.items():
        lines.append(f"{title:{width}}{first[key]['psnr']:12.2f}{first[key]['ssim']:12.3f}")
    if len({m["num_images"] for m, _ in found.values()}) > 1:
        lines.append("these hold out different people; the references are those of the first")
    font = ImageFont.load_default(size=14)
    for picture in ("reconstructions.png", "samples.png", "smile_strip.png"):
        parts = [(name, Image.open(p)) for name, (_, where) in found.items() if (p := where / picture).exists()]
        if parts:
            sheet = Image.new("RGB", (max(i.width for _, i in parts), sum(i.height + 20 for _, i in parts)), "white")
            top = 0
            for name, image in parts:
                ImageDraw.Draw(sheet).text((2, top + 10), name, fill="black", font=font, anchor="lm")
                sheet.paste(image, (0, top + 20))
                top += image.height + 20
            runs.replace_file(out / picture, partial(sheet.save, format="PNG"))
    return "\n".join([*lines, f"side by side: {runs.short(out)}/"])


@torch.no_grad()
def encode(vae: VAE, faces: Faces, rows: np.ndarray) -> tuple[Tensor, Tensor]:
    """mu and logvar of some faces, on the CPU: (N, D) twice."""
    was_training = vae.training
    vae.eval()
    codes = [[t.cpu() for t in vae.encode(x)] for x in _batches(vae, faces, rows)]
    vae.train(was_training)
    return torch.cat([mu for mu, _ in codes]), torch.cat([logvar for _, logvar in codes])


@torch.no_grad()
def measure(vae: VAE, faces: Faces, beta: float, seed: int, refine: int = 0) -> dict[str, Any]:
    """Rate, distortion and bound of the val part; mean face and PCA of the same dimensions beside them.

    "model", "mean_face" and "pca" each hold mse, psnr and ssim of the image size and, as `native_*`, of both
    pictures shrunk to the faces' native size. `recon`, `kl` and `loss` are of sampled codes, as in training; with
    `refine` the codes are refined by so many steps first.
    """
    rows = faces.rows("val")
    mean, basis = faces.axes.mean, faces.axes.basis[:, : vae.latent_dim]
    sums: dict[str, dict[str, float]] = {name: {} for name in ("model", "mean_face", "pca")}
    terms, codes = torch.zeros(3, dtype=torch.float64), []
    for index, x in enumerate(_batches(vae, faces, rows)):
        generator = torch.Generator(x.device).manual_seed(hash64("evaluate", seed, index))
        mu, logvar = vae.refine(x, beta, refine, generator) if refine else vae.encode(x)
        noise = torch.randn(mu.shape, generator=generator, device=mu.device)
        x_hat = vae.decode(latents.reparameterise(mu, logvar, noise))
        terms += torch.stack(beta_vae_terms(x_hat, x, mu, logvar, beta)).double().sum(1).cpu()
        codes.append(torch.stack([mu, logvar]).cpu())
        flat = x.flatten(1).cpu()
        guesses = {
            "model": vae.decode(mu).cpu(),
            "mean_face": mean.expand_as(flat).view(x.shape),
            "pca": (mean + (flat - mean) @ basis @ basis.T).view(x.shape),
        }
        for name, guess in guesses.items():
            for key, value in _distortion(guess, x.cpu(), faces.native_size).items():
                sums[name][key] = sums[name].get(key, 0.0) + value
    table: dict[str, Any] = {}
    for name, total in sums.items():
        found = {key: value / len(rows) for key, value in total.items()}
        table[name] = found | {key.replace("mse", "psnr"): psnr(v) for key, v in found.items() if key.endswith("mse")}
    loss, recon, kl = (terms / len(rows)).tolist()
    mu, logvar = torch.cat(codes, dim=1)
    return table | {
        "loss": loss,
        "recon": recon,
        "kl": kl,
        "nelbo": negative_elbo(recon, kl, 3 * vae.image_size**2),
        "loss_study_units": 4 * recon + kl,  # SSE on [-1, 1] pixels + KL
        "active_units": active_units(mu.var(0, correction=min(1, len(mu) - 1))),
        "latent_dim": vae.latent_dim,
        "pca_dim": basis.shape[1],
        "kl_per_dim": gaussian_kl(mu, logvar).mean(0).tolist(),
    }


def _distortion(guess: Tensor, x: Tensor, native: int) -> dict[str, float]:
    """Sums over a batch of mse and ssim, at the pictures' size and at the native one where that is smaller."""
    from torchmetrics.functional.image import structural_similarity_index_measure as ssim

    found = {}
    for prefix, side in (("", x.shape[-1]), ("native_", min(native, x.shape[-1]))):
        if side != x.shape[-1]:
            guess, x = (
                F.interpolate(t, (side, side), mode="bicubic", antialias=True, align_corners=False) for t in (guess, x)
            )
        found[f"{prefix}mse"] = (guess - x).square().flatten(1).mean(1).sum().item()
        found[f"{prefix}ssim"] = float(ssim(guess, x, data_range=1.0, reduction="sum"))  # type: ignore[arg-type]
    return found


def format_table(metrics: dict[str, Any]) -> str:
    """The metrics as a table for a terminal."""
    size, native = metrics["image_size"], metrics["native_size"]
    columns = [("mse", f"MSE {size}px"), ("psnr", "PSNR dB"), ("ssim", "SSIM")]
    if native < size:
        columns += [("native_mse", f"MSE {native}px"), ("native_psnr", "PSNR dB"), ("native_ssim", "SSIM")]
    names = {"model": "this model", "mean_face": "mean face", "pca": f"PCA-{metrics['pca_dim']}"}
    lines = [f"{metrics['num_images']} held-out faces, epoch {metrics['epoch']}, beta {metrics['beta']:g}, mu decoded"]
    lines[0] += f", codes refined by {metrics['refine']} steps" * bool(metrics["refine"])
    lines.append(f"{'':12}" + "".join(f"{title:>12}" for _, title in columns))
    for name, title in names.items():
        cells = (
            f"{metrics[name][key]:12.2f}" if "psnr" in key else f"{metrics[name][key]:12.5f}" for key, _ in columns
        )
        lines.append(f"{title:12}" + "".join(cells))
    lines.append(
        f"loss {metrics['loss']:.1f} = SSE {metrics['recon']:.1f} + {metrics['beta']:g} x KL {metrics['kl']:.1f} nats"
        f" (sampled codes); nELBO {metrics['nelbo']:.0f} nats; in the study's units {metrics['loss_study_units']:.0f}"
    )
    lines.append(f"active units {metrics['active_units']} of {metrics['latent_dim']}")
    return "\n".join(lines)


@torch.no_grad()
def preview(run: Path, faces: Faces, side: int = 64) -> None:
    """preview.png of a run's best checkpoint, two rows: six held-out faces above their reconstructions; twelve samples;
    two faces that do not smile, moved along the smile direction. The same faces and noise in every run on a split.
    """
    vae = checkpoints.load_vae(checkpoints.find(str(run)))[0]
    rows = np.random.default_rng(0).permutation(faces.rows("val"))
    x = next(_batches(vae, faces, np.resize(rows, 6)))
    noise = torch.randn(12, vae.latent_dim, generator=torch.Generator().manual_seed(0))
    blocks = [torch.stack([x, vae.decode(vae.encode(x)[0])]), vae.decode(noise).unflatten(0, (2, 6))]
    train = np.random.default_rng(0).permutation(faces.rows("train"))[:MAX_REFERENCE]
    calm = rows[faces.smile[rows] == 0]
    smile = torch.from_numpy(faces.smile[train])
    if (smile == 1).any() and (smile == 0).any() and len(calm):
        x = next(_batches(vae, faces, np.resize(calm, 2)))
        mu = vae.encode(x)[0]
        direction = mean_difference(encode(vae, faces, train)[0], smile)
        strip = decode_rows(vae, latents.shift(mu, direction, torch.tensor(INTENSITIES)))
        blocks.append(torch.cat([x[:, None], strip], dim=1))
    tiles = torch.cat(blocks, dim=1)
    small = F.interpolate(tiles.flatten(0, 1), (side, side), mode="bicubic", antialias=True, align_corners=False)
    save(grids.tile(small.unflatten(0, tiles.shape[:2])), run / "preview.png")


@torch.no_grad()
def draw(
    vae: VAE, faces: Faces, out: Path, seed: int, sampler: str, temperature: float, dial: Dial | None = None
) -> None:
    """Write every picture of an evaluation into `out`; the smile strip needs a dial, the map draws its direction."""
    rows = np.random.default_rng(seed).permutation(faces.rows("val"))
    x = next(_batches(vae, faces, rows[:16]))
    mu = vae.encode(x)[0]
    save(grids.pairs(x, vae.decode(mu)), out / "reconstructions.png")

    generator = torch.Generator().manual_seed(hash64("samples", seed))
    train = faces.rows("train")
    train_mu, logvar = encode(vae, faces, train)
    some = {"mu": train_mu[:MAX_REFERENCE], "logvar": logvar[:MAX_REFERENCE]}
    codes = draw_codes(64, generator, sampler=sampler, temperature=temperature, **some)
    samples = vae.decode(codes.to(x.device)).cpu()
    save(grids.square(samples), out / "samples.png")
    seen = torch.cat([batch.cpu() for batch in _batches(vae, faces, train[:MAX_REFERENCE])])
    close = seen[nearest(samples[:8], seen)]
    save(grids.pairs(samples[:8], close), out / "nearest.png", None, ["new", "seen"])

    if half := min(len(mu) // 2, 6):
        between = latents.interpolate(mu[:half], mu[half : 2 * half], 8)
        save(grids.tile(decode_rows(vae, between)), out / "interpolation.png")

    val_mu = encode(vae, faces, np.sort(rows))[0]
    active = val_mu.var(0, correction=0).argsort(descending=True)[:8].tolist()
    values = torch.linspace(-3, 3, 7, device=x.device)
    walks = torch.cat([latents.traverse(mu[:1], dim, values) for dim in active])
    titles = [f"{v:+.0f} sd" for v in values.tolist()]
    save(grids.tile(decode_rows(vae, walks)), out / "traversal.png", titles, [f"z{dim}" for dim in active])

    if dial and (faces.smile[rows] == 0).any():
        draw_smiles(vae, faces, rows[faces.smile[rows] == 0][:8], dial, out)
    draw_map(val_mu, faces.smile[np.sort(rows)], dial.direction if dial else None, out / "latent_map.png")


def draw_smiles(vae: VAE, faces: Faces, rows: np.ndarray, dial: Dial, out: Path) -> None:
    """smile_strip.png and smile.gif: held-out non-smiling faces at intensities of the dial."""
    x = next(_batches(vae, faces, rows))
    mu = vae.encode(x)[0].cpu()
    strip = decode_rows(vae, dial.turn(mu, torch.tensor(INTENSITIES)).to(x.device))
    titles = ["original", *(f"{i:+.0f}" if i else "0" for i in INTENSITIES)]
    save(grids.tile(torch.cat([x[:, None], strip], dim=1)), out / "smile_strip.png", titles)

    there = torch.linspace(INTENSITIES[0], INTENSITIES[-1], 25)
    frames = decode_rows(vae, dial.turn(mu[:4], torch.cat([there, there.flip(0)[1:-1]])).to(x.device))
    pictures = [_image(grids.tile(frames[None, :, step])) for step in range(frames.shape[1])]

    def write(file: IO[bytes]) -> None:
        pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=80, loop=0)

    runs.replace_file(out / "smile.gif", write)


def draw_map(mu: Tensor, smile: np.ndarray, direction: Tensor | None, path: Path) -> None:
    """Held-out codes in two dimensions: along the smile direction of the training faces (if any) and principal axes."""
    if len(mu) < 3:
        return
    from matplotlib.figure import Figure

    centred = mu - mu.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:2]
    label = "1st principal axis"
    if direction is not None:
        unit = direction / direction.norm()
        rest = centred - (centred @ unit)[:, None] * unit
        axes = torch.stack([unit, torch.linalg.svd(rest, full_matrices=False)[2][0]])
        label = "smile direction of the training faces"
    across, along = (centred @ axes.T).T.numpy()
    figure = Figure(figsize=(6, 5), layout="constrained")
    plot = figure.subplots()
    for value, name, colour in ((1, "smiling", "#d95f02"), (0, "not smiling", "#1b6ca8"), (-1, "no label", "#777777")):
        if (smile == value).any():
            plot.scatter(across[smile == value], along[smile == value], s=14, alpha=0.7, c=colour, label=name)
    plot.set(xlabel=label, ylabel="principal axis across it", title=f"{len(mu)} held-out faces, codes mu")
    plot.legend()
    runs.replace_file(path, lambda file: figure.savefig(file, format="png", dpi=120))


def decode_rows(vae: VAE, codes: Tensor) -> Tensor:
    """Decode rows of codes: (R, C, D) -> (R, C, 3, S, S)."""
    return vae.decode(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


def save(picture: Tensor, path: Path, columns: list[str] | None = None, rows: list[str] | None = None) -> None:
    """Write a (3, H, W) picture in [0, 1] as PNG, with titles above its columns and beside its rows."""
    image = _image(picture)
    font = ImageFont.load_default(size=14)
    top, left = 20 if columns else 0, 36 if rows else 0
    canvas = Image.new("RGB", (image.width + left, image.height + top), "white")
    canvas.paste(image, (left, top))
    pen = ImageDraw.Draw(canvas)
    for index, text in enumerate(columns or ()):
        centre = left + image.width * (index + 0.5) / len(columns or ())
        pen.text((centre, top / 2), text, fill="black", font=font, anchor="mm")
    for index, text in enumerate(rows or ()):
        pen.text((left / 2, top + image.height * (index + 0.5) / len(rows or ())), text, "black", font, anchor="mm")
    runs.replace_file(path, lambda file: canvas.save(file, format="PNG"))


def _image(picture: Tensor) -> Image.Image:
    return Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())


def _batches(vae: VAE, faces: Faces, rows: np.ndarray) -> Iterator[Tensor]:
    """Faces in the given order as [0, 1] batches (B, 3, S, S) on the network's device."""
    device = next(vae.parameters()).device
    for chunk, _ in in_order(rows, BATCH):
        yield to_unit(torch.from_numpy(gather(faces.images, chunk))).to(device)
