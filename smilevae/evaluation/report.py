"""The evaluation of a checkpoint: numbers on held-out people, edits, new faces, figures, one page."""

import contextlib
import json
from pathlib import Path
from typing import Any

from smilevae import runs
from smilevae.config import PLACES, Settings
from smilevae.data.dataset import Faces, load_faces
from smilevae.editing import attributes, fitting
from smilevae.errors import CheckpointError, ConfigError, DataError
from smilevae.evaluation import compare, figures, page, realism, samplers, scoring, summary
from smilevae.evaluation.measure import measure
from smilevae.evaluation.options import EvaluateOptions
from smilevae.runs import checkpoint

MAIN_FACES = 8  # of the strip of the main attribute
OTHER_FACES = 2


def report(options: EvaluateOptions) -> str:
    """Evaluate a checkpoint file or a run folder's best; gives what is printed."""
    metrics, out = evaluate(runs.find(options.ckpt), options)
    text = summary.summary(metrics, out)
    if options.verbose:
        return "\n\n".join([*(table.text() for table in summary.tables(metrics)), text])
    return text


def after_training(run: Path, faces: Faces) -> str:
    """The same for a run that has just been trained, on its faces in memory."""
    path = runs.find(str(run))
    options = EvaluateOptions(ckpt=str(path))
    metrics, out = evaluate_model(checkpoint.load(path), faces, path, options)
    return summary.summary(metrics, out)


def compare_checkpoints(named: dict[str, Path], out: Path, options: EvaluateOptions) -> str:
    """Evaluate several checkpoints; gives their table. Figures side by side go into `out`."""
    evaluations = {name: evaluate(path, options) for name, path in named.items()}
    return compare.compare(evaluations, out)


def evaluate(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Path]:
    """Measure and draw a checkpoint file: its metrics and evaluation folder.

    Raises CheckpointError, DataError or ConfigError.
    """
    loaded = checkpoint.load(path)
    faces = faces_of(path, loaded.settings, options)
    if faces.fingerprint != loaded.fingerprint:
        raise CheckpointError(
            f"{path} was trained on other images than {loaded.settings.data.place} holds, so its"
            " held-out people are unknown; pass root=PATH of the original ones"
        )
    return evaluate_model(loaded, faces, path, options)


def faces_of(path: Path, settings: Settings, options: EvaluateOptions) -> Faces:
    """The faces that a checkpoint was trained on, from where they are now."""
    places = {name: getattr(options, name) for name in PLACES}
    settings = settings.with_values(
        {f"data.{name}": value for name, value in places.items() if value}
    )
    data = settings.data
    if data.source == "folder" and not (data.root or data.positive):
        raise ConfigError(
            f"{path} does not name the folder of its images; pass root=PATH, or positive= and negative="
        )
    return load_faces(data, settings.image_size)


def evaluate_model(
    loaded: checkpoint.Loaded, faces: Faces, path: Path, options: EvaluateOptions
) -> tuple[dict[str, Any], Path]:
    """Measure and draw a model on its faces; gives its metrics and evaluation folder."""
    vae = loaded.vae
    faces, part = faces.reporting()
    out = runs.evaluation_folder(path)
    left_out = []

    # Numbers on held-out people.
    metrics: dict[str, Any] = {
        "checkpoint": str(path.relative_to(runs.run_of(path))),
        "epoch": loaded.epoch,
        "part": part,
        "num_images": len(faces.rows("val")),
        "image_size": loaded.settings.image_size,
        "native_size": faces.native_size,
        "data_fingerprint": loaded.fingerprint,
        "weights": checkpoint.digest(vae),
    }
    metrics |= measure(vae, faces, options.seed)
    per_face = metrics.pop("faces")

    # New faces, and what compares them and edited ones with real faces.
    sampler = samplers.sampler_of(vae, faces, options.sampler)
    space = None
    if options.realism or options.edits:
        try:
            space = realism.feature_space(faces)
        except DataError as error:
            left_out.append(f"No comparison with real faces: {error}.")
    if space and options.realism:
        temperature = options.temperature
        metrics["realism"] = realism.of_model(vae, faces, space, options.seed, sampler, temperature)

    # Edits of attributes; their ranges end where edited faces stop to look real.
    fitted = fitting.fit_edits(vae, faces, options.attribute) if options.edits else None
    if options.edits and fitted is None:
        left_out.append(
            "No edits: the codes of training faces differ in no attribute that is known."
        )
    metrics["not_editable"] = fitted.left_out if fitted else {}
    if fitted:
        main = fitted.edits.main.name
        why = scoring.obstacle(faces, fitted, main)
        if why:
            left_out.append(f"No scores of edits of {main}: {why}.")
        else:
            scores = scoring.score_edits(vae, faces, fitted, space)
            fitted = scoring.with_ranges(fitted, scores)
            metrics["edits"] = scores
    metrics["left_out"] = left_out

    # Figures and the page.
    drawn = figures.draw(vae, faces, options.seed, sampler, options.temperature)
    strips = {}
    for number, attribute in enumerate(fitted.edits.attributes if fitted else []):
        strip = figures.draw_edits(vae, faces, attribute, OTHER_FACES if number else MAIN_FACES)
        if strip:
            strips[attribute.name] = strip
    if strips:
        drawn[figures.STRIP] = next(iter(strips.values()))
    epochs = runs.read_metrics(runs.run_of(path))
    files = {page.NAME: page.page(metrics, drawn, strips, epochs).encode()}
    files |= {name: figures.png(image) for name, image in drawn.items()}

    # What photo, app, export and Python use.
    files[compare.NAME] = compare.to_json(faces, per_face).encode()
    files[samplers.NAME] = samplers.to_bytes(sampler, metrics["weights"])
    files["metrics.json"] = (json.dumps(metrics, indent=2) + "\n").encode()
    if fitted:
        files[attributes.NAME] = attributes.to_bytes(vae, fitted.edits)
    replace_together(out, files)
    earlier = runs.read_tensors(out / attributes.NAME)
    if not fitted and (options.edits or earlier.get("weights") != metrics["weights"]):
        for name in (attributes.NAME, figures.STRIP):
            (out / name).unlink(missing_ok=True)
    runs.point_to_best(path)
    return metrics, out


def replace_together(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, and replace the earlier ones only when all are written."""
    with contextlib.ExitStack() as stack:
        for name, content in files.items():
            work = stack.enter_context(runs.replacing(folder / name))
            runs.write_bytes(work, content)
