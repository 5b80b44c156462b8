"""The evaluation of a checkpoint: numbers on held-out people, edits, new faces, figures, one page."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from smilevae import runs
from smilevae.config import PLACES, Settings
from smilevae.data.dataset import Faces, load_faces
from smilevae.editing import attributes, fitting
from smilevae.errors import CheckpointError, ConfigError, DataError
from smilevae.evaluation import compare, figures, page, realism, samplers, scoring, summary
from smilevae.evaluation.measure import measure
from smilevae.evaluation.options import EvaluateOptions
from smilevae.plugins import Score, loading
from smilevae.runs import checkpoint


def report(options: EvaluateOptions) -> str:
    """Evaluate a checkpoint file or a run folder's best; gives what is printed."""
    metrics, out = evaluate(runs.find(options.ckpt), options)
    text = summary.summary(metrics, out)
    if options.verbose:
        return "\n\n".join([*(table.text() for table in summary.tables(metrics)), text])
    return text


def after_training(run: Path, faces: Faces, settings: Settings) -> str:
    """The same for a run that has just been trained, on its faces in memory.

    With `settings.measures` alone, edits and new faces are not scored.
    """
    path = runs.find(str(run))
    whole = settings.evaluate
    device = "cpu" if settings.trainer.accelerator == "cpu" else "auto"
    options = EvaluateOptions(
        ckpt=str(path), edits=whole, realism=whole, measures=settings.measures, device=device
    )
    return summary.summary(*evaluate_model(checkpoint.load(path), faces, path, options))


def compare_checkpoints(named: dict[str, Path], out: Path, options: EvaluateOptions) -> str:
    """Evaluate several checkpoints; gives their table. Figures side by side go into `out`."""
    return compare.compare({name: evaluate(path, options) for name, path in named.items()}, out)


def evaluate(path: Path, options: EvaluateOptions) -> tuple[dict[str, Any], Path]:
    """Measure and draw a checkpoint file: its metrics and evaluation folder.

    Raises CheckpointError, DataError or ConfigError.
    """
    loaded = checkpoint.load(path)

    # The faces that it was trained on, from where they are now.
    places = {name: getattr(options, name) for name in PLACES}
    moved = {f"data.{name}": place for name, place in places.items() if place}
    data = loaded.settings.with_values(moved).data
    if data.needs_root and not data.root:
        raise ConfigError(f"{path} does not name the folder of its images; pass root=PATH")
    faces = load_faces(data, loaded.settings.image_size, loaded.settings.channels)
    if faces.fingerprint != loaded.fingerprint:
        raise CheckpointError(
            f"{path} was trained on other images than {data.place} holds, so its held-out people"
            " are unknown; pass root=PATH of the original ones"
        )
    return evaluate_model(loaded, faces, path, options)


@contextlib.contextmanager
def whole_float32() -> Iterator[None]:
    """Without TF32, whose rounding changes printed digits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


@whole_float32()
def evaluate_model(
    loaded: checkpoint.Loaded, faces: Faces, path: Path, options: EvaluateOptions
) -> tuple[dict[str, Any], Path]:
    """Measure and draw a model on its faces; gives its metrics and evaluation folder."""
    on_gpu = options.device == "auto" and torch.cuda.is_available()
    vae = loaded.vae.to("cuda" if on_gpu else "cpu")
    faces, part = faces.reporting()
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
        metrics["realism"] = realism.of_model(vae, faces, space, sampler, options)

    # Edits of attributes, and their scores.
    fitted = fitting.fit_edits(vae, faces, options.attribute) if options.edits else None
    metrics["not_editable"] = fitted.left_out if fitted else {}
    if fitted:
        fitted, scores, why = scoring.scored(vae, faces, fitted, space)
        if scores:
            metrics["edits"] = scores
        else:
            left_out.append(f"No scores of edits of {fitted.edits.main.name}: {why}.")
    elif options.edits:
        left_out.append(
            "No edits: the codes of training faces differ in no attribute that is known."
        )
    metrics["left_out"] = left_out

    # What the user wants measured, which need not know of devices.
    vae = vae.cpu()
    metrics["measures"] = {}
    for name in options.measures:
        try:
            scores = loading.measure(name).scores(vae.eval(), faces)
            if not all(isinstance(score, Score) for score in scores.values()):
                raise ConfigError(f"measures={name} gives other values than Score; see extend.md")
            metrics["measures"][name] = {key: score._asdict() for key, score in scores.items()}
        except DataError as error:
            left_out.append(f"No {name}: {error}.")

    # Figures and the page.
    edits = fitted.edits if fitted else None
    drawn, strips = figures.draw(vae, faces, edits, sampler, options)
    files = {name: figures.png(image) for name, image in drawn.items()}
    epochs = runs.read_metrics(runs.run_of(path))
    files[page.NAME] = page.page(metrics, drawn, strips, epochs).encode()

    # What photo, app, export and Python use.
    files[compare.NAME] = compare.to_json(faces, per_face).encode()
    files[samplers.NAME] = samplers.to_bytes(sampler, metrics["weights"])
    files["metrics.json"] = (json.dumps(metrics, indent=2) + "\n").encode()
    if edits:
        files[attributes.NAME] = attributes.to_bytes(vae, edits)

    # Earlier files are replaced only when all are written.
    out = runs.evaluation_folder(path)
    with contextlib.ExitStack() as stack:
        for name, content in files.items():
            work = stack.enter_context(runs.replacing(out / name))
            runs.write_bytes(work, content)
    earlier = runs.read_tensors(out / attributes.NAME)
    if not edits and (options.edits or earlier.get("weights") != metrics["weights"]):
        for name in (attributes.NAME, figures.STRIP):
            (out / name).unlink(missing_ok=True)
    runs.point_to_best(path)
    return metrics, out
