"""The numbers of each face, and the difference of two models on the faces that both hold out."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import stdtrit

from smilevae import runs
from smilevae.data.dataset import Faces

NAME = "faces.json"
METRICS = {"psnr": ("PSNR", " dB", 1), "nelbo": ("nELBO", " nats", -1)}  # name, unit, the sign of better


def to_json(faces: Faces, numbers: dict[str, list[float]]) -> str:
    """The content of faces.json: the person and the numbers of each face of the val part."""
    rows = [dict(zip(numbers, values)) for values in zip(*numbers.values())]
    content = {faces.names[i]: {"person": faces.people[i]} | row for i, row in zip(faces.rows("val"), rows)}
    return json.dumps(content, indent=1) + "\n"


def compare(evaluations: dict[str, tuple[dict[str, Any], Path]]) -> str:
    """One sentence of two evaluations: the mean difference on the same faces, with 95% intervals over people."""
    (a, b), ((one, folder), (two, other)) = evaluations, evaluations.values()
    left, right = (runs.read_json(path / NAME) for path in (folder, other))
    people = defaultdict(list)
    for name, face in left.items():
        if name in right:
            people[face["person"]].append([face[metric] - right[name][metric] for metric in METRICS])
    if any(one[key] != two[key] for key in ("data_fingerprint", "image_size")) or not people:
        return f"{a} and {b} hold out different faces, so they are not compared face by face"
    if len(people) < 2:
        return f"{a} and {b} hold out faces of one person, so they are not compared face by face"
    d = np.array([np.mean(rows, 0) for rows in people.values()])
    means, halves = d.mean(0), stdtrit(len(d) - 1, 0.975) * d.std(0, ddof=1) / len(d) ** 0.5
    sentence = f"{a} minus {b}, {sum(map(len, people.values()))} faces of {len(d)} people"
    for (title, unit, sign), mean, half in zip(METRICS.values(), means, halves):
        verdict = f"{a if sign * mean > 0 else b} is better" if abs(mean) > half else "cannot tell"
        sentence += f"; {title} {mean:+.3g}{unit} (95% {mean - half:+.3g} to {mean + half:+.3g}): {verdict}"
    return sentence
