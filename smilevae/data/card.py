"""The data card: counts, people, leaks, duplicates, skipped files."""

from typing import Any


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
    if card["noted"]:
        name, note = next(iter(card["noted"].items()))
        lines.append(f"noted of {len(card['noted'])} images; the first is {name}: {note}")
    return "\n".join(lines)
