"""Synthetic faces with known factors. Shapes: N faces, S image side."""

import colorsys
import functools
import hashlib
import io
from collections.abc import Iterable, Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import resvg_py
from PIL import Image

# Every factor is in [0, 1] except smile (-0.3 pout .. 1 laugh) and the signed ones, in [-1, 1].
UNIFORM = ["skin", "hair", "brow_weight", "brow_height", "eye_colour", "eye_size", "face_width"]
UNIFORM += ["jaw", "nose_width", "lip_fullness", "background", "fringe"]
SIGNED = ["yaw", "roll", "light"]
CONFOUNDED = "hair_length"  # `confound` correlates it with the smile
FACTORS = ("smile", CONFOUNDED, "glasses", "beard", *UNIFORM, *SIGNED)
SIDE = 64  # pixels, before a drawing is resized
TEETH_FROM = 0.5  # a larger smile parts the lips

SKINS = ("#4a2a1c", "#7d4a30", "#b57a52", "#dba67e", "#f2cdb0", "#f8dcc8")
HAIRS = ("#17120f", "#2e1e15", "#553322", "#86552c", "#b98a48", "#dcc07c", "#a5492a", "#9b9894")
EYES = ("#2f1c10", "#6b4423", "#5c6b34", "#3f7a6e", "#3d6fa8")
WHITE, BLACK = "#ffffff", "#000000"


class SyntheticFaces:
    """Factors (N,) each, int8 labels smile (N,) and flags test (N,): a function of the seed."""

    def __init__(
        self, num_smiling: int, num_calm: int, num_test: int, seed: int = 0, confound: float = 0.0
    ):
        rng = np.random.default_rng(seed)
        counts = num_smiling, num_calm, num_test // 2, (num_test + 1) // 2
        self.smile = np.repeat(np.array([1, 0, 1, 0], np.int8), counts)
        num = len(self.smile)
        self.test = np.arange(num) >= num_smiling + num_calm
        smiling = rng.uniform(0.45, 1, num)
        calm = rng.uniform(-0.3, 0.35, num)
        factors = {"smile": np.where(self.smile == 1, smiling, calm)}
        own = (1 - confound**2) ** 0.5 * rng.standard_normal(num)
        hair_length = confound * (2 * self.smile - 1) + own
        factors[CONFOUNDED] = np.clip(0.5 + 0.22 * hair_length, 0, 1)
        factors["glasses"] = np.where(rng.random(num) < 0.2, rng.uniform(0.5, 1, num), 0)
        factors["beard"] = np.where(rng.random(num) < 0.3, rng.uniform(0.3, 1, num), 0)
        factors |= {name: rng.random(num) for name in UNIFORM}
        factors |= {name: rng.uniform(-1, 1, num) for name in SIGNED}
        self.factors = {name: factors[name].astype(np.float32) for name in FACTORS}
        arrays: list[np.ndarray] = [*self.factors.values(), self.smile, self.test]
        content = [values.tobytes() for values in arrays]
        content += [face_svg(self._face(row)).encode() for row in range(0, num, 100)]
        self.fingerprint = hashlib.blake2b(b"".join(content), digest_size=16).hexdigest()

    def __len__(self) -> int:
        return len(self.smile)

    def _face(self, row: int) -> dict[str, float]:
        return {name: float(values[row]) for name, values in self.factors.items()}

    def draw(self, row: int) -> Image.Image:
        return draw_face(self._face(row))


@functools.lru_cache(2)
def synthetic_faces(
    num_smiling: int, num_calm: int, num_test: int, seed: int, confound: float
) -> SyntheticFaces:
    """The same, kept: a training asks for them twice."""
    return SyntheticFaces(num_smiling, num_calm, num_test, seed, confound)


def draw_face(face: Mapping[str, float]) -> Image.Image:
    """One face of given FACTORS, SIDE x SIDE."""
    png = resvg_py.svg_to_bytes(face_svg(face), width=SIDE, height=SIDE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png))).convert("RGB")


def face_svg(face: Mapping[str, float]) -> str:
    """The drawing as SVG text, back to front, in percent of the side."""
    f = SimpleNamespace(**face)
    smile = f.smile
    up = max(0.0, smile)
    big = max(0.0, (smile - TEETH_FROM) / (1 - TEETH_FROM))
    skin = _pick(SKINS, f.skin)
    shade = _mix(skin, "#3a1408", 0.38)
    glow = _mix(skin, "#fff2e0", 0.35)
    hair = _pick(HAIRS, f.hair)
    dark_hair = _mix(hair, BLACK, 0.45)
    iris = _pick(EYES, f.eye_colour)
    lip = _mix(skin, "#a8283c", 0.45)
    dark_lip = _mix(lip, BLACK, 0.55)
    back = _hex(255 * c for c in colorsys.hsv_to_rgb(0.7 * f.background, 0.35, 0.72))
    sides = (-1, 1)

    wide, jaw = 27 + 4 * f.face_width, 15 + 8 * f.jaw  # half widths of the head and of the chin
    west, east = 50 - wide, 50 + wide
    turn = 5 * f.yaw  # the features slide over the head as it turns
    cx, eye_y, mouth_y = 50 + turn, 47.0, 74.0 - 1.5 * up

    # background, hair behind, neck, shirt
    hang = 42 + 58 * f.hair_length  # the lower end of the hair
    flare = wide + 3 + 6 * f.hair_length
    behind = f"M{50 - flare} {hang} C{44 - flare} 30 {west} 3 50 3"
    behind += f" C{east} 3 {56 + flare} 30 {50 + flare} {hang} Q50 {hang + 6} {50 - flare} {hang}Z"
    shirt = "M5 104 C20 92 36 91 40 91 Q50 99 60 91 C64 91 80 92 95 104Z"
    parts = [
        f'<rect width="100" height="100" fill="url(#back)"/><g transform="rotate({6 * f.roll:.2f} 50 90)">',
        _path(behind, dark_hair),
        _path("M38 78 L38 100 L62 100 L62 78Z", shade),
        _path(shirt, _mix(back, "#202840", 0.6)),
    ]
    add = parts.append

    # ears and head
    parts += [_ellipse(50 + side * (wide + 0.5), 53, 4, 7, shade) for side in sides]
    head = f"M50 14 C{east} 14 {east + 3} 38 {east} 55 C{east - 2} 74 {50 + jaw} 94 50 94"
    head += f" C{50 - jaw} 94 {west + 2} 74 {west} 55 C{west - 3} 38 {west} 14 50 14Z"
    add(_path(head, "url(#skin)"))

    if f.beard:
        line = mouth_y - 9
        beard = f"M{west} 56 C{west + 1} 74 {50 - jaw} 96 50 96"
        beard += f" C{50 + jaw} 96 {east - 1} 74 {east} 56 C{east - 5} 68 {cx + 18} {line}"
        beard += f" {cx + 8} {line} Q{cx} {line - 3} {cx - 8} {line}"
        beard += f" C{cx - 18} {line} {west + 5} 68 {west} 56Z"
        add(_path(beard, dark_hair, f'opacity="{0.25 + 0.6 * f.beard:.2f}"'))

    # cheeks, with a fold from the nose
    for side in sides:
        x = cx + side * (16 - 0.3 * side * turn)
        faint = f'opacity="{0.25 + 0.65 * up:.2f}"'
        add(_ellipse(x, 63 - 3.5 * up, 8 + 2 * up, 6 + 1.5 * up, "url(#cheek)", faint))
        if up > 0.1:
            end_x = cx + side * (14 + 3 * up)
            fold = f"M{cx + side * 7} 60 Q{cx + side * 14} {63 - up} {end_x} {mouth_y - 1}"
            add(_line(fold, shade, 1.3, f'opacity="{0.75 * up:.2f}"'))

    # eyes
    for side in sides:
        x = cx + side * 13.5 * (1 - 0.06 * side * f.yaw)
        half = (5.6 + 1.4 * f.eye_size) * (1 + 0.10 * side * f.yaw)
        open_ = (3.0 + 1.5 * f.eye_size) * (1 - 0.5 * up)
        lid = f"M{x - half} {eye_y + 0.6} Q{x} {eye_y - 2 * open_} {x + half} {eye_y}"
        almond = f"{lid} Q{x} {eye_y + 1.6 * open_ - 2.4 * up} {x - half} {eye_y + 0.6}Z"
        clip = f"eye{side + 1}"
        look = x + 1.2 * f.yaw
        parts += [
            _ellipse(x, eye_y - 1, half + 3, open_ + 4, shade, 'opacity="0.28"'),
            f'<clipPath id="{clip}"><path d="{almond}"/></clipPath>{_path(almond, "#f4f1ec")}',
            f'<g clip-path="url(#{clip})">{_ellipse(look, eye_y - 0.4, 3.3, 3.3, iris)}',
            _ellipse(look, eye_y - 0.4, 1.6, 1.6, "#0c0808"),
            f"{_ellipse(look + 1.1, eye_y - 1.6, 0.8, 0.8, WHITE)}</g>",
            _line(lid, _mix(dark_hair, BLACK, 0.4), 1.3),
        ]
        if up > 0.2:  # crow's feet
            edge = x + side * (half + 1)
            feet = f"M{edge} {eye_y} l{side * 3} -1.6 M{edge} {eye_y + 1.4} l{side * 3} 1"
            add(_line(feet, shade, 0.8, f'opacity="{up - 0.2:.2f}"'))
        lift = eye_y - 9.5 - 3.5 * f.brow_height - 0.8 * up
        brow = f"M{x - side * half} {lift + 1.6} Q{x + side * 2} {lift - 2.2}"
        brow += f" {x + side * (half + 2.2)} {lift + 2}"
        add(_line(brow, dark_hair, 1.6 + 1.9 * f.brow_weight))

    nose = 4 + 2.4 * f.nose_width + 0.6 * up
    tip = cx + 1.3 * turn / 5 * 2
    bridge = f"M{cx} 44 Q{tip - 3} 58 {tip - nose} 62"
    bridge += f" Q{tip} 66 {tip + nose} 62 Q{tip + 3} 58 {cx} 44Z"
    nostrils = f"M{tip - nose} 61.5 Q{tip - nose + 1} 64 {tip - 1.5} 63.6"
    nostrils += f" M{tip + nose} 61.5 Q{tip + nose - 1} 64 {tip + 1.5} 63.6"
    parts += [_path(bridge, "url(#nose)"), _line(nostrils, shade, 1.2)]
    add(_ellipse(tip + 0.8 * f.light, 59, 1.6, 1.8, glow, 'opacity="0.6"'))

    half = 9.5 + 5.5 * up - 1.5 * max(0.0, -smile)
    corner, dip = mouth_y - 6.2 * smile + 1.5 * up, mouth_y + 3.2 * smile
    gap, full = 9.5 * big, 1.4 + 1.3 * f.lip_fullness
    left, right = cx - half, cx + half
    start, end = f"{left} {corner}", f"{right} {corner}"
    between = f"M{start} Q{cx} {dip} {end}"  # the line along which the lips meet
    arch = dip - 2.2 * full
    upper = f"M{left - 0.6} {corner} Q{cx - 4} {arch} {cx} {dip - 1.2 * full}"
    upper += f" Q{cx + 4} {arch} {right + 0.6} {corner} Q{cx} {dip} {left - 0.6} {corner}Z"
    lower = f"M{start} Q{cx} {dip + 2 * gap} {end} Q{cx} {dip + 2 * gap + 3.4 * full} {start}Z"
    if big:
        inside = f"{between} Q{cx} {dip + 2 * gap + 0.4} {start}Z"
        teeth = f"{between} Q{cx} {dip + 1.35 * gap + 1.5} {start}Z"
        add(f'<clipPath id="mouth"><path d="{inside}"/></clipPath>{_path(inside, "#3c0e12")}')
        add(f'<g clip-path="url(#mouth)">{_path(teeth, "#f7f4ea")}</g>')
    add(_path(upper, _mix(lip, BLACK, 0.12)) + _path(lower, lip))
    if not big:
        add(_line(between, dark_lip, 1.1))
    for tick in (f"M{start} l-1.2", f"M{end} l1.2"):
        add(_line(f"{tick} {-1.6 * smile:.2f}", dark_lip, 1.2))

    # hair in front, light over the head, glasses
    low = 20 + 13 * f.fringe
    front = f"M{west - 2} 50 C{west - 5} 14 {50 - wide / 2} 4 50 4"
    front += f" C{50 + wide / 2} 4 {east + 5} 14 {east + 2} 50"
    front += f" C{east - 1} 40 {east - 4} {low + 4} {cx + 8} {low} Q{cx - 6} {low - 6}"
    front += f" {cx - 14} {low + 2} C{west + 3} {low + 6} {west + 1} 40 {west - 2} 50Z"
    parts += [_path(front, "url(#hair)"), _path(head, "url(#light)")]
    if f.glasses:
        ring = 'fill="#dfe8f0" fill-opacity="0.13" stroke="#1c1a1a"'
        ring += f' stroke-width="{0.8 + 1.4 * f.glasses:.2f}"'
        for side in sides:
            x = cx + side * 13.5 - 9.5
            add(f'<rect x="{x:.2f}" y="39" width="19" height="15" rx="6" {ring}/>')
        arms = f"M{cx - 4} 45 Q{cx} 43 {cx + 4} 45"
        arms += f" M{cx - 23} 45 L{west} 47 M{cx + 23} 45 L{east} 47"
        add(_line(arms, "#1c1a1a", 0.8 + f.glasses))

    red = _mix(skin, "#e0554a", 0.5)
    rose = _mix(skin, "#e0554a", 0.4)
    bright = _mix(hair, WHITE, 0.25)
    dark = "#180808"
    down = [(0, _mix(back, BLACK, 0.35)), (1, _mix(back, WHITE, 0.25))]
    across = 'x1="0" x2="1"' if f.light > 0 else 'x1="1" x2="0"'  # the shadow falls on the far side
    lit = f'cx="{50 + 30 * f.light}%" cy="38%" r="75%"'
    shadow = (0, dark, 0.5 * abs(f.light))
    defs = [
        _gradient("back", "linear", f'{across} y2="1"', *down),
        _gradient("skin", "radial", lit, (0, glow), (0.45, skin), (1, shade)),
        _gradient("hair", "linear", across, (0, dark_hair), (0.75, hair), (1, bright)),
        _gradient("nose", "linear", across, (0, shade, 0.75), (0.6, skin, 0.5), (1, glow, 0.55)),
        _gradient("cheek", "radial", "", (0, red, 0.9), (0.6, rose, 0.4), (1, skin, 0)),
        _gradient("light", "linear", across, shadow, (0.6, dark, 0), (1, WHITE, 0.12)),
    ]
    content = f"<defs>{''.join(defs)}</defs>{''.join(parts)}</g>"
    return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{content}</svg>'


def _path(d: str, fill: str, more: str = "") -> str:
    return f'<path d="{d}" fill="{fill}" {more}/>'


def _line(d: str, stroke: str, width: float, more: str = "") -> str:
    brush = f'stroke="{stroke}" stroke-width="{width:.2f}" stroke-linecap="round"'
    return _path(d, "none", f"{brush} {more}")


def _ellipse(cx: float, cy: float, rx: float, ry: float, fill: str, more: str = "") -> str:
    shape = f'cx="{cx:.2f}" cy="{cy:.2f}" rx="{rx:.2f}" ry="{ry:.2f}"'
    return f'<ellipse {shape} fill="{fill}" {more}/>'


def _gradient(name: str, kind: str, attributes: str, *stops: tuple) -> str:
    stop = '<stop offset="{}" stop-color="{}" stop-opacity="{:.2f}"/>'
    inner = "".join(stop.format(*values, 1) for values in stops)
    return f'<{kind}Gradient id="{name}" {attributes}>{inner}</{kind}Gradient>'


def _mix(a: str, b: str, t: float) -> str:
    return _hex(x + (y - x) * t for x, y in zip(bytes.fromhex(a[1:]), bytes.fromhex(b[1:])))


def _hex(rgb: Iterable[float]) -> str:
    return "#" + "".join(f"{round(value):02x}" for value in rgb)


def _pick(palette: Sequence[str], at: float) -> str:
    spot = min(max(at, 0), 1) * (len(palette) - 1)
    index = min(int(spot), len(palette) - 2)
    return _mix(palette[index], palette[index + 1], spot - index)
