"""The data card: counts, people, leaks, duplicates, skipped files."""

from collections import Counter
from typing import Any

from smilevae.data.dataset import UNKNOWN, Faces
from smilevae.plugins.source import UNLABELLED

MANY = 50  # images of one person; more are often a camera's name, IMG_0001.jpg
LABELS = {"smiling": 1, "not_smiling": 0, "unlabelled": UNKNOWN}


def data_card(faces: Faces) -> dict[str, Any]:
    """The content of data_card.json."""
    people = {}
    parts = {}
    for part in ("train", "val", "test"):
        rows = faces.rows(part)
        people[part] = {faces.people[row] for row in rows}
        labels = Counter(faces.smile[rows].tolist())
        nums = {name: labels[label] for name, label in LABELS.items()}
        parts[part] = {"images": len(rows), "people": len(people[part])} | nums
    return {
        "fingerprint": faces.fingerprint,
        "images": len(faces.smile),
        "people": len(set(faces.people)),
        "people_in_train_and_val": len(people["train"] & people["val"]),
        "largest_person": Counter(faces.people).most_common(1)[0],
        "label": faces.classes[1],
        "native_size": faces.native_size,
        "left_out": len(faces.rows(UNLABELLED)),
        "parts": parts,
        "duplicates": faces.duplicates,
        "skipped": faces.skipped,
        "noted": faces.noted,
    }


def format_card(card: dict[str, Any]) -> str:
    """The data card for a person: a line a part, then what needs attention."""
    lines = []
    for part, num in card["parts"].items():
        if num["images"]:
            labels = f"{num['smiling']} {card['label']}, {num['not_smiling']} not"
            labels += f", {num['unlabelled']} without a label"
            lines.append(f"{part:5} {num['images']:6} images of {num['people']:6} people: {labels}")
    lines.append(f"people in both train and val: {card['people_in_train_and_val']}")
    name, num = card["largest_person"]
    if num > MANY:
        problem = f"{num} images are of one person by data.person_pattern: {name}"
        lines.append(f"{problem}; pass another if that is wrong")
    if left_out := card["left_out"]:
        lines.append(f"left out of data.unlabelled: {left_out} images of people who are held out")
    if groups := card["duplicates"]:
        lines.append(f"identical images: {len(groups)} groups, first {' = '.join(groups[0])}")
    skipped = [f"skipped {name}: {reason}" for name, reason in card["skipped"].items()]
    lines += skipped[:10]
    if skipped[10:]:
        lines.append(f"skipped {len(skipped) - 10} more; see data_card.json")
    noted = [f"{name}: {remark}" for name, remark in card["noted"].items()]
    if noted:
        lines.append(f"{len(noted)} files had remarks, for example {noted[0]}")
    return "\n".join(lines)
