"""Every knob with its type and range: checked before a run starts and before a checkpoint's settings are believed."""

import math
import re
import reprlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from smilevae import ConfigError


class Knob(NamedTuple):
    """A type (bool, int, float, str, or list for a list of int) and an inclusive range of its value or entries."""

    kind: type
    low: float = -math.inf
    high: float = math.inf
    choices: tuple[str, ...] = ()
    optional: bool = False


KNOBS: dict[str, Knob] = {
    # what is learnt
    "beta": Knob(float, 0, 1e6),
    "latent_dim": Knob(int, 1, 4096),
    "batch_size": Knob(int, 2, 65536),
    "epochs": Knob(int, 1, 1_000_000),
    "lr": Knob(float, 1e-8, 1),
    "normalize": Knob(bool),
    "image_size": Knob(int, 64, 256),
    "seed": Knob(int, 0, 2**32 - 1),
    "augment": Knob(bool),
    "warm_start": Knob(str, choices=("none", "ppca")),
    "schedule": Knob(str, choices=("plateau", "cosine")),
    "weight_decay": Knob(float, 0, 1),
    "ema": Knob(float, 0, 0.99999),
    "jitter.shift": Knob(float, 0, 32),
    "jitter.rotate": Knob(float, 0, 45),
    "jitter.zoom": Knob(float, 0, 0.5),
    "jitter.light": Knob(float, 0, 1),
    "plateau.factor": Knob(float, 0.01, 0.99),
    "plateau.patience": Knob(int, 0, 1_000_000),
    "model.network": Knob(str, choices=("conv", "patch")),
    "model.widths": Knob(list, 1, 4096),
    "model.dropout": Knob(float, 0, 0.95),
    # from what
    "data.source": Knob(str, choices=("synthetic", "folder", "smiling_or_not", "celeba")),
    "data.root": Knob(str, optional=True),
    "data.person_pattern": Knob(str),
    "data.val_fraction": Knob(float, 0.01, 0.9),
    "data.split_seed": Knob(int, 0, 2**32 - 1),
    "data.max_skipped": Knob(float, 0, 1),
    "data.cache": Knob(bool),
    "data.unlabelled": Knob(str, optional=True),
    "data.attributes": Knob(str, optional=True),
    "data.draw_seed": Knob(int, 0, 2**32 - 1),
    "data.num_smiling": Knob(int, 1, 10_000_000),
    "data.num_not_smiling": Knob(int, 1, 10_000_000),
    "data.num_test": Knob(int, 0, 10_000_000),
    "data.confound": Knob(float, -0.99, 0.99),
    # how it runs
    "num_workers": Knob(int, 0, 256),
    "threads": Knob(int, 1, 1024, optional=True),
    "log_images_every": Knob(int, 1, 1_000_000),
    "evaluate": Knob(bool),
    "resume": Knob(str, optional=True),
}
FREE = ("trainer",)  # passed on: Lightning checks these itself
SAME_RESULT = (
    *("evaluate", "resume", "log_images_every", "num_workers"),
    *("data.root", "data.unlabelled", "data.attributes", "data.cache"),
)
MAX_WIDTHS = 6
SINCE = {  # knobs that the first run folders do not name, and how those were trained
    **{"warm_start": "none", "schedule": "plateau", "weight_decay": 0, "ema": 0},
    **dict.fromkeys(("jitter.shift", "jitter.rotate", "jitter.zoom", "jitter.light"), 0),
}


def flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as {"group.name": value}; FREE groups are left out."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        if not isinstance(value, Mapping) or prefix:  # no knob lies deeper than in a group
            flat[f"{prefix}{name}"] = value
        elif name not in FREE:
            flat |= flatten(value, f"{name}.")
    return flat


def completed(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an older run folder or checkpoint, with the knobs that came since at what they were before."""
    found = dict(settings)
    for name, value in SINCE.items():
        group, _, leaf = name.rpartition(".")
        if group and isinstance(found.setdefault(group, {}), Mapping):
            found[group] = {leaf: value, **found[group]}
        elif not group:
            found.setdefault(name, value)
    return found


def check(settings: Mapping[str, Any]) -> None:
    """Raise ConfigError with every unknown, ill-typed or out-of-range knob, one sentence each."""
    flat = flatten(settings)
    found = [f"{_shown(name)} is not a knob; see python train.py --help" for name in flat if name not in KNOBS]
    found += [problem for name, knob in KNOBS.items() if (problem := _problem(name, knob, flat))]
    if not isinstance(settings.get("trainer"), Mapping):
        found.append("trainer is missing")
    if not found:
        found = _problems_together(flat)
    if found:
        raise ConfigError("\n".join(found))


def _problem(name: str, knob: Knob, flat: Mapping[str, Any]) -> str | None:
    if name not in flat:
        # data sources differ in their knobs; everything else is needed
        return None if name.startswith("data.") and name != "data.source" else f"{name} is missing"
    value = flat[name]
    given = f"{name}={_shown(value)}"
    if value is None or value == "":
        return None if knob.optional and value is None else f"{name} is empty; give it a value"
    if knob.choices:
        return None if value in knob.choices else f"{given} is unknown; choose one of {', '.join(knob.choices)}"
    if knob.kind is list:
        fine = isinstance(value, list) and 1 <= len(value) <= MAX_WIDTHS and all(_whole(v) for v in value)
        fine = fine and all(knob.low <= v <= knob.high for v in value)
        return None if fine else f"{given} must be 1 to {MAX_WIDTHS} whole numbers from {knob.low} to {knob.high}"
    if knob.kind is bool:
        return None if isinstance(value, bool) else f"{given} must be true or false"
    if knob.kind is str:
        return None if isinstance(value, str) else f"{given} must be a text"
    numeric = _whole(value) or (knob.kind is float and isinstance(value, float) and math.isfinite(value))
    if not numeric or not knob.low <= value <= knob.high:
        what = "a whole number" if knob.kind is int else "a number"
        return f"{given} must be {what} from {knob.low:g} to {knob.high:g}"
    return None


def _problems_together(flat: Mapping[str, Any]) -> list[str]:
    """What single knobs cannot tell: a folder without a root, an image_size the network cannot halve exactly."""
    found = []
    if flat["warm_start"] == "ppca" and flat["beta"] == 0:
        found.append("warm_start=ppca has no optimum at beta=0; give beta a value above 0")
    try:
        groups = re.compile(flat.get("data.person_pattern") or "()").groups
    except re.error:
        groups = 0
    if not groups:
        given = _shown(flat["data.person_pattern"])
        found.append(f"data.person_pattern={given} must be a regular expression with a group in brackets")
    if flat["data.source"] == "synthetic" and flat.get("data.root"):
        found.append("data.root does not apply to drawn faces; add data=folder")
    if flat["data.source"] == "synthetic" and flat.get("data.unlabelled"):
        found.append("data.unlabelled does not apply to drawn faces; add data=folder")
    multiple, size = size_multiple(flat["model.network"], len(flat["model.widths"])), flat["image_size"]
    if size % multiple:
        low, high = int(KNOBS["image_size"].low), int(KNOBS["image_size"].high)
        fitting = sorted(range(-(-low // multiple) * multiple, high + 1, multiple), key=lambda n: abs(n - size))[:2]
        near = " and ".join(map(str, sorted(fitting)))
        found.append(f"image_size={size} does not fit this network; the nearest are {near or 'none: fewer widths'}")
    return found


def size_multiple(network: str, num_blocks: int) -> int:
    """What image_size must be a multiple of: conv halves it in each block, patch by 4 and in all blocks but one."""
    return 2**num_blocks if network == "conv" else 4 * 2 ** (num_blocks - 1)


def _shown(value: Any) -> str:
    """A value as a sentence can hold it, whoever wrote it."""
    return (value if isinstance(value, str) else reprlib.repr(value))[:100]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
