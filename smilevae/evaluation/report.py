"""The report of a checkpoint: measures on held-out people, figures, and the edit scorecard where there are labels."""

import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont

from smilevae import runs
from smilevae.data.batches import gather
from smilevae.data.dataset import Faces, load_faces
from smilevae.data.encode import encode
from smilevae.editing import dials, scorecard, scorecard_figure
from smilevae.editing.alignment import LAYOUT
from smilevae.editing.classifier import AttributeClassifier, MakeClassifier, import_classifier
from smilevae.editing.detector import typical_points
from smilevae.editing.dial import plain_dial
from smilevae.editing.directions import mean_difference
from smilevae.errors import CheckpointError, ConfigError
from smilevae.evaluation import realism, samplers
from smilevae.evaluation.figures import draw
from smilevae.evaluation.measure import NUM_IMPORTANCE, measure
from smilevae.evaluation.options import EvaluateOptions
from smilevae.models.vae import VAE
from smilevae.runs import checkpoint

SMILES = ("smile_scorecard.png", "smile_strip.png", "smile.gif")
MAX_PLACED = 100  # training faces in which eyes and mouth are located


def evaluate(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Path]:
    """Measure and draw a checkpoint: its metrics and evaluation folder.

    Raises CheckpointError, DataError or ConfigError.
    """
    make_classifier = import_classifier(options.classifier) if options.classifier else AttributeClassifier
    vae, settings, fingerprint, epoch = checkpoint.load(path)
    places = {name: getattr(options, name) for name in ("root", "unlabelled", "attributes")}
    settings = settings.with_values({f"data.{name}": value for name, value in places.items() if value})
    if settings.data.source == "folder" and not settings.data.root:
        raise ConfigError(f"{path} does not name the folder of its images; pass root=PATH")
    faces = load_faces(settings.data, settings.image_size)
    if faces.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} was trained on other images than {settings.data.root or settings.data.source} holds, so its"
            " held-out people are unknown; pass root=PATH of the original ones"
        )
    faces, part = faces.reporting()
    out = runs.evaluation_folder(path)
    metrics: dict[str, Any] = {
        "checkpoint": str(path.relative_to(runs.run_of(path))),
        "epoch": epoch,
        "part": part,
        "num_images": len(faces.rows("val")),
        "image_size": settings.image_size,
        "native_size": faces.native_size,
        "weights": checkpoint.digest(vae),
        "refine": options.refine,
    }
    smiles = scores = None
    with ThreadPoolExecutor() as pool:
        measures = pool.submit(measure, vae, faces, options.seed, options.refine)
        if options.smile and faces.labelled("train"):
            smiles, scores = _dials(vae, faces, make_classifier)
    metrics |= measures.result()
    if options.smile or runs.read_json(out / dials.NAME).get("weights") != metrics["weights"]:
        for name in (dials.NAME, *SMILES):  # of an earlier evaluation
            (out / name).unlink(missing_ok=True)
    sampler = samplers.sampler_of(vae, faces, options.sampler)
    if options.realism and realism.possible(faces):
        metrics["realism"] = realism.of_model(
            vae, faces, options.seed, sampler, options.temperature, settings.data.cache
        )
    samplers.keep(sampler, out, metrics["weights"])
    if smiles:
        dials.write(out, vae, smiles)
    if scores:
        metrics["smile"] = scores.card
        scorecard_figure.draw(scores, vae, faces, out / SMILES[0])
    runs.write_text(out / "metrics.json", json.dumps(metrics, indent=2) + "\n")
    draw(vae, faces, out, options.seed, sampler, options.temperature, smiles)
    runs.point_to_best(path)
    return metrics, out


def _dials(
    vae: VAE, faces: Faces, make_classifier: MakeClassifier
) -> tuple[dials.Dials | None, scorecard.Scorecard | None]:
    """The dials, with their scorecard where there are faces enough; None where smiles do not change the codes."""
    train = faces.rows("train")
    mu, label = encode(vae, faces, train)[0], torch.from_numpy(faces.smile[train])
    if mean_difference(mu, label).norm() < 1e-3:
        return None, None
    points = typical_points(gather(faces.images, train[:MAX_PLACED])) or LAYOUT
    if scorecard.possible(faces):
        scores = scorecard.scorecard(vae, faces, make_classifier)
        return dials.Dials(scores.best.name, scores.dials, scores.meter, points), scores
    dial = plain_dial(mu, label)
    return dials.Dials(dial.name, {dial.name: dial}, None, points), None


def report(options: EvaluateOptions) -> str:
    """Evaluate a checkpoint file or a run folder's best: the table and the folder of the figures."""
    metrics, out = evaluate(runs.find(options.ckpt), options)
    more = [realism.format_realism(metrics["realism"])] if "realism" in metrics else []
    more += [scorecard.format_card(metrics["smile"])] if "smile" in metrics else []
    return "\n".join([format_table(metrics), *more, f"pictures: {runs.short(out)}/"])


def compare(named: dict[str, Path], out: Path, options: EvaluateOptions) -> str:
    """Evaluate several checkpoints: one table, and their figures under one another in `out`."""
    evaluations = {name: evaluate(path, options) for name, path in named.items()}
    width = max(map(len, [*evaluations, "mean face"])) + 2
    titles = ("PSNR dB", "SSIM", "KL nats", "nELBO", "active", "beta")
    lines = [" " * width + "".join(f"{title:>12}" for title in titles)]
    for name, (m, _) in evaluations.items():
        cells = f"{m['model']['psnr']:12.2f}{m['model']['ssim']:12.3f}{m['kl']:12.1f}{m['nelbo']:12.0f}"
        lines.append(f"{name:{width}}{cells}{m['active_units']:12}{m['beta']:12.4g}")
    first = next(iter(evaluations.values()))[0]
    for key, title in {"mean_face": "mean face", "pca": f"PCA-{first['pca_dim']}"}.items():
        lines.append(f"{title:{width}}{first[key]['psnr']:12.2f}{first[key]['ssim']:12.3f}")
    if len({m["num_images"] for m, _ in evaluations.values()}) > 1:
        lines.append("these hold out different people; the references are those of the first")
    tables = {name: m.get("realism", {}) for name, (m, _) in evaluations.items()}
    if real := {f"{name}: {kind}": row for name, table in tables.items() for kind, row in table.items()}:
        lines.append(realism.format_realism(real))
    font = ImageFont.load_default(size=14)
    for figure in ("reconstructions.png", "samples.png", "smile_strip.png"):
        paths = {name: folder / figure for name, (_, folder) in evaluations.items()}
        images = {name: Image.open(path) for name, path in paths.items() if path.exists()}
        if not images:
            continue
        size = max(i.width for i in images.values()), sum(i.height + 20 for i in images.values())
        sheet, top = Image.new("RGB", size, "white"), 0
        for name, image in images.items():
            ImageDraw.Draw(sheet).text((2, top + 10), name, fill="black", font=font, anchor="lm")
            sheet.paste(image, (0, top + 20))
            top += image.height + 20
        runs.replace_file(out / figure, partial(sheet.save, format="PNG"))
    return "\n".join([*lines, f"side by side: {runs.short(out)}/"])


def format_table(metrics: dict[str, Any]) -> str:
    size, native = metrics["image_size"], metrics["native_size"]
    columns = [("mse", f"MSE {size}px"), ("psnr", "PSNR dB"), ("ssim", "SSIM")]
    if native < size:
        columns += [("native_mse", f"MSE {native}px"), ("native_psnr", "PSNR dB"), ("native_ssim", "SSIM")]
    names = {"model": "this model", "mean_face": "mean face", "pca": f"PCA-{metrics['pca_dim']}"}
    lines = [f"{metrics['num_images']} faces of the {metrics['part']} part, epoch {metrics['epoch']}"]
    lines[0] += f", beta {metrics['beta']:.4g}, mu decoded"
    lines[0] += f", codes refined by {metrics['refine']} steps" * bool(metrics["refine"])
    lines.append(f"{'':12}" + "".join(f"{title:>12}" for _, title in columns))
    for name, title in names.items():
        cells = [f"{metrics[name][key]:12.{2 if 'psnr' in key else 5}f}" for key, _ in columns]
        lines.append(f"{title:12}" + "".join(cells))
    lines.append(
        f"loss {metrics['loss']:.1f} = SSE {metrics['recon']:.1f} + {metrics['beta']:.4g} x KL {metrics['kl']:.1f} nats"
        f" (sampled codes); in the study's units {metrics['loss_study_units']:.0f}"
    )
    lines.append(
        f"nELBO {metrics['nelbo']:.0f} nats; with {NUM_IMPORTANCE} codes a face (IWAE) {metrics['iwae']:.0f}"
        f" ± {metrics['iwae_error']:.0f}"
    )
    lines.append(f"active units {metrics['active_units']} of {metrics['latent_dim']}")
    return "\n".join(lines)
