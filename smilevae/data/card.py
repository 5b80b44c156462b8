"""The data card: counts, people, leaks, duplicates, skipped files."""

from typing import Any

from smilevae.data.dataset import Faces
from smilevae.data.sources import UNKNOWN, UNLABELLED


def data_card(faces: Faces) -> dict[str, Any]:
    """The facts about a data set that data_card.json records."""
    people = {part: {faces.people[row] for row in faces.rows(part)} for part in ("train", "val", "test")}
    smile = {part: faces.smile[faces.rows(part)] for part in people}
    return {
        "fingerprint": faces.fingerprint,
        "images": len(faces.smile),
        "people": len(set(faces.people)),
        "people_in_train_and_val": len(people["train"] & people["val"]),
        "native_size": faces.native_size,
        "left_out": len(faces.rows(UNLABELLED)),
        "parts": {
            part: {
                "images": len(smile[part]),
                "people": len(people[part]),
                "smiling": int((smile[part] == 1).sum()),
                "not_smiling": int((smile[part] == 0).sum()),
                "unlabelled": int((smile[part] == UNKNOWN).sum()),
            }
            for part in people
        },
        "duplicates": faces.duplicates,
        "skipped": faces.skipped,
        "noted": faces.noted,
    }


def format_card(card: dict[str, Any]) -> str:
    """The data card as a few lines for a terminal."""
    lines = [
        f"{part:5} {n['images']:6} images of {n['people']:6} people: {n['smiling']} smiling, {n['not_smiling']} not,"
        f" {n['unlabelled']} without a label"
        for part, n in card["parts"].items()
        if n["images"]
    ]
    lines.append(f"people in both train and val: {card['people_in_train_and_val']}")
    if card["left_out"]:
        lines.append(f"left out of data.unlabelled: {card['left_out']} images of people who are held out")
    if card["duplicates"]:
        lines.append(f"identical images: {len(card['duplicates'])} groups, first {' = '.join(card['duplicates'][0])}")
    lines += [f"skipped {name}: {reason}" for name, reason in list(card["skipped"].items())[:10]]
    if len(card["skipped"]) > 10:
        lines.append(f"skipped {len(card['skipped']) - 10} more; see data_card.json")
    for name, note in list(card["noted"].items())[:1]:
        lines.append(f"{len(card['noted'])} files had remarks, for example {name}: {note}")
    return "\n".join(lines)
