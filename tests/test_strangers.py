"""What comes from outside: checkpoints, damaged files, dirty image folders, any command line."""

import functools
import json
import os
import pickle
import random
import re
import resource
import string
import subprocess
import sys
import time
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY
from PIL import Image
from test_images import PHOTO, SIXTEEN, encoded, flat, huge_png

from smilevae import config, runs
from smilevae.data.card import data_card, format_card
from smilevae.data.dataset import load_faces
from smilevae.data.sources import Folder
from smilevae.errors import CheckpointError
from smilevae.runs import checkpoint


@pytest.fixture(scope="module")
def best(tiny_run):
    return runs.find(str(tiny_run))


@pytest.fixture(scope="module")
def content(best):
    return checkpoint.read(best)


def weights(vae):
    return b"".join(t.contiguous().numpy().tobytes() for _, t in sorted(vae.state_dict().items()))


@pytest.mark.scorecard(
    10, "a checkpoint truncated at 200 places, 200 flipped bytes: exit 4 or identical weights"
)
def test_a_damaged_checkpoint_is_refused_or_loads_the_same_weights(best, tmp_path, record_property):
    whole, rng = best.read_bytes(), random.Random(0)
    expected = weights(checkpoint.load(best).vae)
    spoilt = [whole[: rng.randrange(len(whole))] for _ in range(200)]
    for _ in range(200):
        flipped = bytearray(whole)
        flipped[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        spoilt.append(flipped)
    refused = same = 0
    for data in spoilt:
        (tmp_path / "a.ckpt").write_bytes(data)
        try:
            found = weights(checkpoint.load(tmp_path / "a.ckpt").vae)
        except CheckpointError as error:
            refused += len(str(error).splitlines()) == 1
        else:
            assert found == expected
            same += 1
    assert refused + same == 400
    assert refused >= 300
    record_property("figure", f"{refused} refused, {same} identical, of 400")


class Reduce(tuple):
    def __reduce__(self):
        return tuple(self)


def attacks(home, best, content, canary):
    """Files that would do something if they were believed: name -> path."""
    found = {}

    def new(name, file=None):
        found[name] = home / (file or f"{name}.ckpt")
        found[name].parent.mkdir(exist_ok=True)
        return found[name]

    calls = {
        "pickle open": (open, (str(canary), "w")),
        "pickle system": (os.system, (f"touch {canary}",)),
        "pickle eval": (eval, (f"open({str(canary)!r}, 'w')",)),
        "pickle exec": (exec, (f"open({str(canary)!r}, 'w')",)),
        "pickle popen": (subprocess.Popen, (["touch", str(canary)],)),
        "pickle import": (__import__, ("antigravity",)),
        "partial": (functools.partial, (os.system, f"touch {canary}")),
        "memory": (bytearray, (10**11,)),
        "load": (torch.load, (str(best),)),
    }
    for name, call in calls.items():
        torch.save(content | {"x": Reduce(call)}, new(name))
        new(f"bare {name}").write_bytes(pickle.dumps(Reduce(call)))
    settings = content["hyper_parameters"]

    def changed(**more):
        return content | {"hyper_parameters": settings | more}

    def network(**more):
        return settings["model"] | more

    weights = content["state_dict"]
    doubled = {k: v.double() for k, v in weights.items()}
    largest = {"latent_dim": 4096, "image_size": 256}
    target = {"_target_": "os.system", "_args_": [f"touch {canary}"]}
    many = functools.reduce(lambda inner, _: {"a": inner, "b": inner}, range(60), {"beta": 1})
    spoilt = {
        "target": changed(model=network(_target_="os.system")),
        "target as a knob": changed(beta=target),
        "instantiator": content | {"_instantiator": "os.system", "hparams_name": "kwargs"},
        "interpolation": changed(beta="${oc.env:HOME}"),
        "huge latent": changed(latent_dim=10**9),
        "huge picture": changed(image_size=10**9),
        "huge widths": changed(model=network(widths=[10**9])),
        "largest allowed": changed(model=network(widths=[4096] * 5), **largest),
        "not a number": changed(beta=float("nan")),
        "billion laughs": changed(model=many),
        "billion laughs as a knob": changed(beta=[many]),
        "wrong network": changed(model=network(network="conv")),
        "no epochs": content | {"callbacks": {}},
        "weights that are none": content | {"state_dict": dict.fromkeys(weights, 1)},
        "weights of another kind": content | {"state_dict": doubled},
        "keys that are none": content | {"state_dict": {1: torch.zeros(1)}},
    }
    for name, data in spoilt.items():
        torch.save(data, new(name))
    torch.save(content, new("legacy"), _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(best) as source:
        records = {record: source.read(record) for record in source.namelist()}
    last_records = {"zip bomb": "archive/data/bomb", "two of one name": next(iter(records))}
    for name, last_record in last_records.items():
        mode = zipfile.ZIP_DEFLATED if name == "zip bomb" else zipfile.ZIP_STORED
        with (
            warnings.catch_warnings(action="ignore"),
            zipfile.ZipFile(new(name), "w", mode) as file,
        ):
            for record, data in [*records.items(), (last_record, bytes(10**8))]:
                file.writestr(record, data)
    with zipfile.ZipFile(new("long pickle"), "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps("x" * (checkpoint.MAX_PLAIN + 1)))
    model = {key: content[key] for key in ("smilevae", "hyper_parameters", "fingerprint", "epoch")}
    exported = {
        "1 GB header": ((10**9).to_bytes(8, "little") + b"{", json.dumps(model)),
        "long settings": (b"", "[" * (checkpoint.MAX_PLAIN + 1)),
        "deep settings": (b"", "[" * 100_000),
    }
    for name, (tensors, plain) in exported.items():
        path = new(name, f"{name}/{runs.EXPORTED}")
        path.write_bytes(tensors)
        path.with_suffix(".json").write_text(plain)
    with warnings.catch_warnings(action="ignore"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), new("script", "script.pt"))
    new("link to nowhere").symlink_to(home / "not there")
    new("link to a device").symlink_to("/dev/zero")
    new("link to itself").symlink_to(home / "link to itself.ckpt")
    return found


ATTACK = """
import json, re, sys, time
sys.path.insert(0, sys.argv[1])
import torch
from smilevae import runs
from smilevae.errors import CheckpointError
from smilevae.runs import checkpoint
torch.set_num_threads(1)

def peak():  # KB; ru_maxrss would begin at the parent's peak
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])

for name, path in json.load(open(sys.argv[2])).items():
    open("/proc/self/clear_refs", "w").write("5")  # the peak becomes what is resident now
    before, start = peak(), time.monotonic()
    try:
        checkpoint.load(runs.find(path))
        said = "loaded"
    except CheckpointError as error:
        said = f"{error.exit_code}: {error}"
    grown = (peak() - before) // 1024
    print(json.dumps([name, said, grown, time.monotonic() - start]), flush=True)
"""


@pytest.mark.scorecard(9, "attack folder: no canary, memory bounded, exit 4, one sentence")
def test_nothing_in_a_strangers_checkpoint_runs_or_fills_the_memory(
    best, content, tmp_path, record_property
):
    canary, home = tmp_path / "canary", tmp_path / "attacks"
    home.mkdir()
    found = attacks(home, best, content, canary)
    found |= {"URL": "https://example.org/a.ckpt", "file URL": f"file://{best}", "folder": home}
    (tmp_path / "list.json").write_text(json.dumps(found, default=str))
    limit = 8 * 2**30  # torch alone reserves some GB of addresses

    def bounded():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    command = [sys.executable, "-c", ATTACK, str(ROOT), str(tmp_path / "list.json")]
    options = {"capture_output": True, "text": True, "timeout": 300, "cwd": tmp_path}
    done = subprocess.run(command, preexec_fn=bounded, **options)
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert not canary.exists()
    assert [name for name, *_ in answers] == list(found), done.stderr[-2000:]
    for name, said, grown, seconds in answers:
        assert said.startswith("4: "), (name, said)
        assert len(said.splitlines()) == 1, name
        assert len(said) < 500, name
        assert grown < 300, (name, grown)  # MB
        assert seconds < 10, (name, seconds)
    most = max(grown for _, _, grown, _ in answers)
    record_property("figure", f"{len(answers)} files refused, most memory {most} MB")


def test_a_checkpoint_of_ours_names_nothing_else(best, content):
    """Every kind of value that training puts into a checkpoint may be named by one."""
    last = checkpoint.read(best.with_name("last.ckpt"))
    assert {"state_dict", "optimizer_states", "callbacks", "loops", "plateau", "sums"} <= set(last)
    assert isinstance(last["state_dict"], OrderedDict)


def zoo(root):
    """Files of every kind: name -> the colour of its middle, or a word of why there is none."""
    rgb = flat("RGB", (50, 60, 70))
    blue = flat("RGB", (9, 90, 190)).quantize(4)
    clear = flat("RGBA", (200, 0, 0, 0))
    red = flat("CMYK", (0, 255, 255, 0))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.new("RGB", (96, 64), (50, 60, 70))
    several = {"save_all": True, "append_images": [flat("RGB", (200, 0, 0))]}
    of_rgb = {
        "rgb.bmp": encoded(rgb, "BMP"),
        "rgb.ppm": encoded(rgb, "PPM"),
        "rgb.tiff": encoded(rgb, "TIFF"),
        "lzw.tif": encoded(rgb, "TIFF", compression="tiff_lzw"),
        "lossless.webp": encoded(rgb, "WEBP", lossless=True),
        "high.jpg": encoded(rgb, "JPEG", quality=100, subsampling=0),
        "progressive.jpeg": encoded(rgb, "JPEG", quality=100, progressive=True),
        "UPPER.PNG": encoded(rgb),
        "wrong_name.jpg": encoded(rgb),  # a PNG by content
        "still.gif": encoded(rgb, "GIF"),
        "moving.gif": encoded(rgb, "GIF", **several),
        "moving.webp": encoded(rgb, "WEBP", lossless=True, **several),
        "pages.tiff": encoded(rgb, "TIFF", **several),
        "turned.jpg": encoded(turned, "JPEG", quality=100, exif=exif),
        "tiny.png": encoded(Image.new("RGB", (1, 1), (50, 60, 70))),
        "narrow.png": encoded(Image.new("RGB", (3, 500), (50, 60, 70))),
        "odd name with ünïcode 🙂.png": encoded(turned),
    }
    good = {name: (data, (50, 60, 70)) for name, data in of_rgb.items()} | {
        "rgb.png": (encoded(flat("RGB", (10, 20, 30))), (10, 20, 30)),
        "grey.png": (encoded(flat("L", 77)), (77, 77, 77)),
        "grey.jpg": (encoded(flat("L", 77), "JPEG", quality=100), (77, 77, 77)),
        "grey.pgm": (encoded(flat("L", 77), "PPM"), (77, 77, 77)),
        "bits.png": (encoded(flat("1", 1)), (255, 255, 255)),
        "deep.png": (encoded(SIXTEEN), (156, 156, 156)),
        "deep.tiff": (encoded(SIXTEEN, "TIFF"), (156, 156, 156)),
        "hidden.png": (encoded(clear), (255, 255, 255)),
        "half.png": (encoded(flat("RGBA", (200, 0, 0, 128))), (227, 127, 127)),
        "grey_alpha.png": (encoded(flat("LA", (0, 128))), (127, 127, 127)),
        "alpha.webp": (encoded(clear, "WEBP", lossless=True, exact=True), (255, 255, 255)),
        "palette.png": (encoded(blue), (9, 90, 190)),
        "clear_palette.png": (encoded(blue, transparency=0), (255, 255, 255)),
        "cmyk.jpg": (encoded(red, "JPEG", quality=100), (254, 0, 0)),
        "cmyk.tiff": (encoded(red, "TIFF"), (255, 0, 0)),
    }
    noise = b"\x89PNG\r\n\x1a\n" + random.Random(0).randbytes(400)
    wide = Image.fromarray(np.full((8, 8), 10**6, np.int32))
    bad = {
        "empty.png": (b"", "empty file"),
        "text.jpg": (b"just a text", "not an image"),
        "page.png": (b"<html><script>alert(1)</script></html>", "not an image"),
        "half.jpg": (PHOTO[: len(PHOTO) // 2], "damaged"),
        "cut.png": (encoded(flat("RGB", 0))[:-30], "damaged"),
        "noise.png": (noise, "not an image|damaged"),
        "huge.png": (huge_png(7_200), "over the limit"),
        "bomb.png": (huge_png(30_000), "over the limit"),
        "float.tiff": (encoded(Image.new("F", (64, 64)), "TIFF"), "floating-point"),
        "wide.tiff": (encoded(wide, "TIFF"), "without an agreed range"),
        "archive.png": (b"PK\x03\x04" + bytes(100), "not an image"),
        "vector.png": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image"),
    }
    for name, (data, _) in (good | bad).items():
        (root / name).write_bytes(data)
    (root / "again.png").symlink_to(root / "rgb.png")
    (root / "loop").symlink_to(root)
    (root / "gone.png").symlink_to(root / "not there.png")
    os.mkfifo(root / "pipe.png")
    for clutter in (".hidden.png", ".DS_Store", "Thumbs.db", "notes.txt"):
        (root / clutter).write_bytes(b"x")
    (root / "__MACOSX").mkdir()
    (root / "__MACOSX" / "._rgb.png").write_bytes(b"x")
    colours, reasons = ({name: said for name, (_, said) in some.items()} for some in (good, bad))
    return colours, reasons | {"gone.png": "No such file"}


@pytest.mark.scorecard(
    6, "image zoo: right pixels or listed with a reason, each file once, no crash"
)
@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_every_file_of_the_zoo_gives_its_pixels_or_a_reason(tmp_path, record_property):
    root = tmp_path / "zoo"
    root.mkdir()
    good, bad = zoo(root)
    good["again.png"] = good.pop("rgb.png")  # one file, listed by the first of its two names
    data = Folder(root=str(root), max_skipped=0.5, val_fraction=0.3)
    faces = load_faces(data, 64)
    assert sorted(faces.names) == sorted(good)
    for name, image in zip(faces.names, faces.images):
        assert np.abs(image.astype(float) - good[name]).max() <= 1.01, name
    assert sorted(faces.skipped) == sorted(bad)
    for name, reason in bad.items():
        assert re.search(reason, faces.skipped[name]), (name, faces.skipped[name])
    assert set(faces.noted) == {"moving.gif", "moving.webp", "pages.tiff"}
    assert "3 files had remarks" in format_card(data_card(faces))
    record_property("figure", f"{len(good)} right to 1/255, {len(bad)} listed with a reason")


BATCH = 8


@pytest.mark.parametrize("smiling", [0, 1, 2, BATCH - 1, BATCH, BATCH + 1])
@pytest.mark.parametrize("calm", ["as many", "none"])
@pytest.mark.scorecard(
    8, "sizes 0, 1, 2, batch-1 to batch+1, a class empty: a step is made, or exit 3 with counts"
)
def test_any_number_of_pictures_trains_or_says_how_many_there_are(call, tmp_path, smiling, calm):
    root, run = tmp_path / "pictures", tmp_path / "run"
    for name, count in (("smile", smiling), ("non_smile", smiling if calm == "as many" else 0)):
        (root / "train" / name).mkdir(parents=True)
        for number in range(count):
            noise = np.random.default_rng(number).integers(0, 256, (64, 64, 3), dtype=np.uint8)
            Image.fromarray(noise).save(root / "train" / name / f"{name}{number}.png")
    tiny = [word for word in TINY if not word.startswith("data.")] + ["epochs=1"]
    where = (f"hydra.run.dir={run}", "data=folder", f"data.root={root}")
    code, errors = call("train", *where, *tiny, f"batch_size={BATCH}")
    if code == 0:
        assert checkpoint.read(run / "checkpoints" / "last.ckpt")["global_step"] >= 1
    else:
        assert (code, run.exists()) == (3, False)
        assert re.search(f": {smiling} images|usable training images|holds no images", errors)
        assert smiling < 2 or calm == "none"


WORDS = [
    *config.FIELDS,
    *("data", "model", "trainer", "experiment", "hydra.run.dir", "hydra/launcher", "hydra.mode"),
]
TEXTS = """0 -1 1e400 nan inf true null [] [1,2] {} {a:1} ../.. 1,2 range(3) choice(1,2)
 ${oc.env:HOME} ${nothing} ${beta}
 ${ a=b ' '' " \\ ??? 0x10 1_000 1e-320 folder synthetic conv patch warm no_such"""
VALUES = [*TEXTS.split(), "", "\t", "x" * 5000, "1" * 400, "é🙂"]
FLAGS = ("--help", "--version", "--cfg", "--cfg=job", "--info", "--resolve", "--no-such", "-x")


def fuzzed(rng: random.Random) -> list[str]:
    """One to three words for a command line, most of them nearly right."""
    words = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        name = rng.choice(WORDS)
        value = rng.choice(VALUES)
        sign = rng.choice(("+", "++", "~", "@", "-", "--", "%"))
        cut = name[: rng.randrange(len(name))] + rng.choice(string.ascii_lowercase)
        noise = "".join(rng.choices(string.printable[:95], k=rng.randrange(1, 30)))
        form = rng.choice((name, f"={value}", "=", "==", f"{name}.{name}=1", f"{name}==1"))
        number = rng.choice((-1, 1)) * rng.random() * 10 ** rng.randrange(-5, 12)
        kinds = {f"{name}={value}": 10, f"{sign}{name}={value}": 2, f"{cut}={value}": 2}
        kinds |= {noise: 2, rng.choice(FLAGS): 1, form: 1, f"{name}={number}": 2}
        words += rng.choices([*kinds], [*kinds.values()])
    return [word.replace("\0", "") for word in words]


FUZZ = pytest.mark.scorecard(
    7, "fuzzed command lines: exit 0 or 2, no traceback, under 5 s each, nothing left behind"
)


@pytest.mark.parametrize("num", [30, pytest.param(500, marks=[pytest.mark.slow, FUZZ])])
def test_any_text_on_the_command_line_ends_with_0_or_2(
    call, tmp_path, monkeypatch, num, record_property
):
    """The last words name a folder that is not there: a line that is right ends with 3."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
    codes, slowest, rng = [], 0.0, random.Random(num)
    for _ in range(num):
        words = fuzzed(rng)
        start = time.monotonic()
        code, errors = call("train", *words, "data=folder", "data.root=/no/such/folder")
        slowest = max(slowest, time.monotonic() - start)
        assert "Traceback" not in errors, words
        right = code == 3 and "/no/such/folder is not a folder" in errors
        assert code in (0, 2) or right, (words, code, errors)
        assert code == 0 or errors.strip(), words
        assert not list(tmp_path.iterdir()), (words, list(tmp_path.iterdir()))
        codes.append(code)
    assert slowest < 5 + 7 * (num < 500)  # the first alone imports torch
    counts = {code: codes.count(code) for code in sorted(set(codes))}
    figure = f"{num} lines, exit codes {counts} (3: right, but no pictures)"
    record_property("figure", f"{figure}, slowest {slowest:.1f} s")
