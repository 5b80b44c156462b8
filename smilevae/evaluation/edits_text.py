"""The edit scorecard as text."""

from collections.abc import Mapping
from typing import Any

from smilevae.editing.directions import CONFOUNDED

SPACES = {"faces": "faces", "landmarks": "landm."}


def format_card(card: Mapping[str, Any]) -> str:
    """Tables of the main attribute's directions and of the other attributes, with what they say."""
    name = card["attribute"]
    main = card["attributes"][name]
    readers = ", ".join(f"{reader} (right for {share:.0%})" for reader, share in main["accuracy"].items())
    titles = ("at 1", "spread", "called", "geometry", "called", *SPACES.values(), "identity", "back", "range", "angle")
    lines = [
        f"{name}: {main['num_faces']} held-out people who lack it, at intensity 1, read by {readers}",
        "0: lacks it, 1: has it; distance x 1000 to real faces that have it; identity 1: as far as two photos of one"
        f" person, {main['persons']['other'] / main['persons']['same']:.2f}: as another person",
        f"{'':30}" + "".join(f"{title:>11}" for title in titles),
    ]
    for kind, scores in main["directions"].items():
        one = scores["intensities"].index(1.0)
        cells = [*_readings(scores, one), f"{scores['identity'][one]:.2f}", f"{scores['reversibility']:.2f}"]
        cells.append("{:+g}..{:+g}".format(*scores["range"]) if "range" in scores else "")
        angle = card["angle_degrees"].get(kind)
        lines.append(_line(kind, [*cells, f"±{angle:.0f}°" if angle else ""]) + f"  {scores['verdict']}")
    for kind, scores in main["references"].items():
        as_lists = {key: [value] for key, value in scores.items()}
        lines.append(_line(kind, _readings(as_lists, 0)))
    lines += [main["disagreement"]] if main["disagreement"] else []
    lines.append(confound_sentence(card["confounds"]))
    others = {key: value for key, value in card["attributes"].items() if key != name}
    if others:
        lines.append(f"{'other attributes, edited to 1':30}" + "".join(f"{t:>11}" for t in (*titles[:5], "identity")))
    for key, value in others.items():
        scores = value["directions"][value["best"]]
        one = scores["intensities"].index(1.0)
        drift = max(scores["drift"][one].items(), key=lambda pair: abs(pair[1]), default=("", 0.0))
        cells = [*_readings(scores, one)[:5], f"{scores['identity'][one]:.2f}"]
        lines.append(_line(key, cells) + (f"  {drift[0]} changes by {drift[1]:+.2f}" if abs(drift[1]) > 0.1 else ""))
    lines += [f"no dial for {key}: {why}" for key, why in card["left_out"].items()]
    first, last = card["composition"].items()
    lines.append(f"encoded and decoded {first[0]} time: {first[1]:.1f} dB, {last[0]} times: {last[1]:.1f} dB")
    return "\n".join(lines)


def _readings(scores: Mapping[str, Any], at: int) -> list[str]:
    cells = [f"{scores['classifier'][at][key]:.2f}" for key in ("mean", "spread")]
    cells.append(f"{scores['classifier'][at]['called']:.0%}")
    geometry = scores["geometry"][at] if "geometry" in scores else None
    cells += [f"{geometry['mean']:.2f}", f"{geometry['called']:.0%}"] if geometry else ["", ""]
    distances = [scores["distance"][at].get(space) for space in SPACES]
    return cells + [f"{1000 * found[0]:.0f}±{1000 * found[1]:.0f}" if found else "" for found in distances]


def _line(name: str, cells: list[str]) -> str:
    return f"{name:30}" + "".join(f"{cell:>11}" for cell in cells)


def confound_sentence(confounds: Mapping[str, Any]) -> str:
    """A sentence on the attribute that correlates most with the main one."""
    strength = {name: abs(c["correlation"]) for name, c in confounds.items()}
    if not strength:
        return "only this attribute is known of these faces; attributes=CSV adds others that its direction may contain"
    confounders = [name for name in strength if strength[name] > CONFOUNDED]
    if not confounders:
        strongest = max(strength, key=lambda name: strength[name])
        correlation = confounds[strongest]["correlation"]
        return (
            f"no confounder among {len(strength)} known attributes: the strongest correlation is"
            f" {strongest} {correlation:+.2f}, and up to {CONFOUNDED:g} counts as none"
        )
    worst = max(confounders, key=lambda name: abs(confounds[name]["cosine"]["mean_difference"]))
    cosines = {d: abs(value) for d, value in confounds[worst]["cosine"].items()}
    return "how much of each direction is " + worst + ": " + ", ".join(f"{d} {v:.2f}" for d, v in cosines.items())
