"""The report of a checkpoint: measures on held-out people, figures, and the edit scorecard where there are labels."""

import contextlib
import json
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from smilevae import runs
from smilevae.config import PLACES
from smilevae.data.dataset import load_faces
from smilevae.editing import dials, fitting
from smilevae.editing.classifier import AttributeClassifier, import_classifier
from smilevae.errors import CheckpointError, ConfigError
from smilevae.evaluation import edits, edits_page, edits_text, paired, realism, samplers
from smilevae.evaluation.figures import STRIPS, draw
from smilevae.evaluation.measure import measure
from smilevae.evaluation.options import EvaluateOptions
from smilevae.runs import checkpoint


def evaluate(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Path]:
    """Measure and draw a checkpoint: its metrics and evaluation folder.

    Raises CheckpointError, DataError or ConfigError.
    """
    make_classifier = import_classifier(options.classifier) if options.classifier else AttributeClassifier
    vae, settings, fingerprint, epoch = checkpoint.load(path)
    places = {name: getattr(options, name) for name in PLACES}
    settings = settings.with_values({f"data.{name}": value for name, value in places.items() if value})
    if settings.data.source == "folder" and not (settings.data.root or settings.data.positive):
        raise ConfigError(f"{path} does not name the folder of its images; pass root=PATH, or positive= and negative=")
    faces = load_faces(settings.data, settings.image_size)
    if faces.fingerprint != fingerprint:
        raise CheckpointError(
            f"{path} was trained on other images than {settings.data.place} holds, so its"
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
        "data_fingerprint": fingerprint,
        "weights": checkpoint.digest(vae),
        "left_out": [],
    }
    fitted = None
    with ThreadPoolExecutor() as pool:
        measures = pool.submit(measure, vae, faces, options.seed)
        if options.edits:
            fitted = fitting.fit_dials(vae, faces, options.attribute, make_classifier)
    metrics |= measures.result()
    sampler = samplers.sampler_of(vae, faces, options.sampler)
    few = "" if realism.possible(faces) else f"each part needs {realism.MIN_FACES} faces"
    spaces = [] if few else realism.spaces(faces, settings.data.cache)
    if len(spaces) == 1:
        metrics["left_out"].append(f"no landmarks: {realism.why_no_landmarks()}")
    if options.realism and few:
        metrics["left_out"].append(f"no comparison with real faces: {few}")
    elif options.realism:
        metrics["realism"] = realism.of_model(vae, faces, spaces, options.seed, sampler, options.temperature)
    if fitted and (why := few or edits.obstacle(faces, fitted, fitted.dials.attribute)):
        metrics["left_out"].append(f"no scores of edits of {fitted.dials.attribute}: {why}")
    elif fitted:
        metrics["edits"] = edits.score_edits(vae, faces, fitted, spaces, settings.data.cache)
    elif options.edits:
        metrics["left_out"].append("no edits: the training faces' codes differ by no attribute that is known of them")
    written = draw(vae, faces, out, options.seed, sampler, options.temperature, fitted.dials if fitted else None)
    files = {dials.NAME: dials.to_json(vae, fitted.dials)} if fitted else {}
    files[paired.NAME] = paired.to_json(faces, metrics.pop("faces"))
    files[samplers.NAME] = samplers.to_json(sampler, metrics["weights"])
    if fitted and "edits" in metrics:
        files[edits_page.NAME] = edits_page.page(vae, faces, fitted.dials, metrics)
    files["metrics.json"] = json.dumps(metrics, indent=2) + "\n"
    with contextlib.ExitStack() as stack:  # an earlier evaluation serves until all are written; the dials come last
        for name, text in files.items():
            runs.write_text(stack.enter_context(runs.replacing(out / name)), text)
    if options.edits or runs.read_json(out / dials.NAME).get("weights") != metrics["weights"]:
        for name in {dials.NAME, edits_page.NAME, *STRIPS} - {*files, *written}:  # of an earlier evaluation
            (out / name).unlink(missing_ok=True)
    runs.point_to_best(path)
    return metrics, out


def report(options: EvaluateOptions) -> str:
    """Evaluate a checkpoint file or a run folder's best: the table and the folder of the figures."""
    metrics, out = evaluate(runs.find(options.ckpt), options)
    more = [realism.format_realism(metrics["realism"])] if "realism" in metrics else []
    more += [edits_text.format_card(metrics["edits"])] if "edits" in metrics else []
    return "\n".join([format_table(metrics), *more, *metrics["left_out"], f"pictures: {runs.shell_path(out)}/"])


def compare(named: dict[str, Path], out: Path, options: EvaluateOptions) -> str:
    """Evaluate several checkpoints: one table, and their figures under one another in `out`."""
    evaluations = {name: evaluate(path, options) for name, path in named.items()}
    width = max(map(len, [*evaluations, "mean face"])) + 2
    titles = ("PSNR dB", "SSIM", "KL nats", "nELBO", "active", "beta")
    lines = [" " * width + "".join(f"{title:>12}" for title in titles)]
    for name, (m, _) in evaluations.items():
        cells = f"{m['model']['psnr']:12.2f}{m['model']['ssim']:12.3f}{m['kl']:12.1f}{m['nelbo']:12.0f}"
        units = "" if m["active_units"] is None else m["active_units"]
        lines.append(f"{name:{width}}{cells}{units:12}{m['beta']:12.4g}")
    first = next(iter(evaluations.values()))[0]
    for key, title in {"mean_face": "mean face", "pca": f"PCA-{first['pca_dim']}"}.items():
        lines.append(f"{title:{width}}{first[key]['psnr']:12.2f}{first[key]['ssim']:12.3f}")
    if len({m["num_images"] for m, _ in evaluations.values()}) > 1:
        lines.append("these hold out different people; the references are those of the first")
    if len(evaluations) == 2:
        lines.append(paired.compare(evaluations))
    tables = {name: m.get("realism", {}) for name, (m, _) in evaluations.items()}
    if real := {f"{name}: {kind}": row for name, table in tables.items() for kind, row in table.items()}:
        lines.append(realism.format_realism(real))
    font = ImageFont.load_default(size=14)
    for figure in ("reconstructions.png", "samples.png", STRIPS[0]):
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
    return "\n".join([*lines, f"side by side: {runs.shell_path(out)}/"])


def format_table(metrics: dict[str, Any]) -> str:
    size, native = metrics["image_size"], metrics["native_size"]
    columns = [("mse", f"MSE {size}px"), ("psnr", "PSNR dB"), ("ssim", "SSIM")]
    if native < size:
        columns += [("native_mse", f"MSE {native}px"), ("native_psnr", "PSNR dB"), ("native_ssim", "SSIM")]
    names = {"model": "this model", "mean_face": "mean face", "pca": f"PCA-{metrics['pca_dim']}"}
    lines = [f"{metrics['num_images']} faces of the {metrics['part']} part, epoch {metrics['epoch']}"]
    lines[0] += f", beta {metrics['beta']:.4g}, mu decoded"
    lines.append(f"{'':12}" + "".join(f"{title:>12}" for _, title in columns))
    for name, title in names.items():
        cells = [f"{metrics[name][key]:12.{2 if 'psnr' in key else 5}f}" for key, _ in columns]
        lines.append(f"{title:12}" + "".join(cells))
    lines.append(
        f"loss {metrics['loss']:.1f} = SSE {metrics['recon']:.1f} + {metrics['beta']:.4g} x KL {metrics['kl']:.1f} nats"
        f" (sampled codes); in the study's units {metrics['loss_study_units']:.0f}"
    )
    lines.append(f"nELBO {metrics['nelbo']:.0f} nats")
    if metrics["active_units"] is None:
        lines.append("one face does not show which units are active")
    else:
        lines.append(f"active units {metrics['active_units']} of {metrics['latent_dim']}")
    return "\n".join(lines)
