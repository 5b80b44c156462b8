import json
import shutil

import numpy as np
import pytest
from conftest import SMILES
from PIL import Image, ImageCms

import smilevae
from smilevae import console, runs
from smilevae.apps import photo
from smilevae.apps.options import PhotoOptions
from smilevae.editing import alignment, dials
from smilevae.errors import CheckpointError, ConfigError, DataError
from smilevae.runs import checkpoint

cv2 = pytest.importorskip("cv2")


@pytest.fixture
def model(evaluated_run):
    return evaluated_run


def picture(height=300, width=400, seed=0):
    """A photograph of noise and edges: any smoothing would show."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def edit(model, source, out, **options):
    words = {"ckpt": model, "image": source, "out": out} | options
    photo.main(console.parse_words([f"{key}={value}" for key, value in words.items()], PhotoOptions))


def test_outside_the_mask_every_pixel_stays_and_inside_the_detail_does(model, tmp_path):
    before = picture()
    Image.fromarray(before).save(tmp_path / "in.png")
    edit(model, tmp_path / "in.png", tmp_path / "out.png", smile=2, box="100,50,200")
    after = np.asarray(Image.open(tmp_path / "out.png"))
    outside = np.ones(before.shape[:2], bool)
    outside[50:250, 100:300] = False
    assert np.array_equal(before[outside], after[outside])
    change = after[50:250, 100:300].astype(float) - before[50:250, 100:300]
    assert np.abs(change).max() > 2

    def detail(x):
        return np.abs(np.diff(x.astype(float), axis=1)).mean()

    assert detail(after[50:250, 100:300]) == pytest.approx(detail(before[50:250, 100:300]), rel=0.1)
    edit(model, tmp_path / "in.png", tmp_path / "still.png", smile=0, box="100,50,200")
    assert np.array_equal(np.asarray(Image.open(tmp_path / "still.png")), before)


def test_cutting_and_pasting_are_inverse_wherever_the_face_is_and_however_it_is_turned():
    """A smooth change pasted into a grey photograph and cut out again is that change, within the mask's plateau."""
    y, x = np.mgrid[0:64, 0:64] / 64
    change = np.stack([0.3 * np.sin(6 * x), 0.2 * np.cos(5 * y), 0.2 * x * y], 2)
    grey = np.full((500, 600, 3), 128, np.uint8)
    for eyes in ((200, 200), (330, 200)), ((220, 180), (300, 240)), ((250, 250), (282, 250)):
        matrix = alignment.crop_matrix((180, 150, 160, 160), eyes, 64, alignment.EYES)
        pasted = alignment.paste(grey, change, matrix)
        back = alignment.cut(pasted, matrix, 64).astype(float) / 255 - 128 / 255
        inner = slice(16, 48)
        assert np.abs(back[inner, inner] - change[inner, inner]).max() < 0.03
    off = alignment.crop_matrix((-500, -500, 90, 90), None, 64, alignment.EYES)
    assert np.array_equal(alignment.paste(grey, change, off), grey)


def place(matrix):
    """Middle, side and tilt in degrees of a crop of 64 pixels in its photograph."""
    corners = np.linalg.solve(matrix[:, :2], np.array([[32, 32], [0, 32], [64, 32]]).T - matrix[:, 2:])
    along = corners[:, 2] - corners[:, 1]
    return corners[:, 0], np.hypot(*along), np.degrees(np.arctan2(along[1], along[0]))


def test_a_crop_lies_between_what_the_box_and_what_the_eyes_say():
    box, typical = (100, 200, 100, 100), ((0.25, 0.25), (0.75, 0.25))
    middle, side, tilt = place(alignment.crop_matrix(box, None, 64, typical))
    left, top, share = alignment.INSET
    assert (side, tilt) == (pytest.approx(100 * share), 0)
    assert middle == pytest.approx([100 + 100 * (left + share / 2), 200 + 100 * (top + share / 2)])
    # eyes that alone would mean a square of 80 pixels around (160, 240), and the same turned by 15 degrees
    for angle, undone in ((0, 0), (3, 0), (-3, 0), (15, 10), (-15, -10)):
        c, s = np.cos(np.radians(angle)), np.sin(np.radians(angle))
        eyes = tuple((160 + c * x - s * y, 240 + s * x + c * y) for x, y in ((-20, -20), (20, -20)))
        both = place(alignment.crop_matrix(box, eyes, 64, typical))
        assert both[0] == pytest.approx((middle + np.array([160, 240])) / 2)
        assert both[1:] == (pytest.approx(np.sqrt(80 * 100 * share)), pytest.approx(undone, abs=1e-6))


def test_a_large_face_is_cut_without_aliasing():
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    found = alignment.cut(stripes, np.array([[0.09, 0, -2], [0, 0.09, -2]]), 64)
    assert np.abs(found.astype(int) - 127).max() < 12


def test_orientation_is_applied_the_profile_kept_and_the_place_left_out(model, tmp_path):
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "at home"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(picture()).save(tmp_path / "in.jpg", exif=exif, icc_profile=profile, quality=95)
    edit(model, tmp_path / "in.jpg", tmp_path / "out.jpg", box="frame")
    with Image.open(tmp_path / "out.jpg") as after:
        assert after.size == (300, 400)
        assert after.info["icc_profile"] == profile
        assert not after.getexif()
    assert b"at home" not in (tmp_path / "out.jpg").read_bytes()


def test_a_film_of_a_large_photograph_shows_the_face(model, tmp_path):
    """The square of the face, at twice the model's size: its colour, and none of what lies around it."""
    scene = np.full((1200, 1400, 3), 255, np.uint8)
    scene[300:700, 500:900] = (40, 120, 60)
    Image.fromarray(scene).save(tmp_path / "in.png")
    edit(model, tmp_path / "in.png", tmp_path / "out.gif", smile="0:0.01:2", box="500,300,400")
    with Image.open(tmp_path / "out.gif") as film:
        shown = np.asarray(film.convert("RGB")).astype(int)
    assert shown.shape == (128, 128, 3)
    assert np.abs(shown[8:-8, 8:-8] - (40, 120, 60)).max() < 30


@pytest.mark.parametrize("suffix", [".png", ".gif", ".mp4"])
def test_several_intensities_make_a_strip_or_an_animation(model, tmp_path, suffix):
    Image.fromarray(picture()).save(tmp_path / "in.png")
    out = tmp_path / f"out{suffix}"
    edit(model, tmp_path / "in.png", out, smile="-1:3:5", box="frame")
    if suffix == ".mp4":
        assert cv2.VideoCapture(str(out)).read()[0]
        return
    with Image.open(out) as after:
        assert after.size == (5 * 128, 128) if suffix == ".png" else after.n_frames > 4


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"smile": "much"}, "smile=much must be a number"),
        ({"smile": "1:2"}, "must be a number"),
        ({"smile": "1:nan:3"}, "must be a number"),
        ({"smile": "0:1:101"}, "must be a number"),
        ({"box": "1,2"}, "box=1,2 must be LEFT,TOP,SIDE"),
        ({"box": "nan,1,50"}, "box=nan,1,50 must be LEFT,TOP,SIDE"),
        ({"face": 0}, "face=0 must be a number from 1, or all"),
        ({"direction": "up"}, "direction=up is unknown; choose one of mean_difference"),
        ({"colour": 1}, "colour is not an option"),
        ({"out": "x.txt"}, "is of no known kind"),
        ({"out": ""}, "out is not set"),
    ],
)
def test_a_wrong_option_is_one_sentence(model, tmp_path, options, problem):
    Image.fromarray(picture()).save(tmp_path / "in.png")
    words = {"out": tmp_path / "out.png"} | ({"box": "frame"} if "box" not in options else {}) | options
    with pytest.raises(ConfigError, match=problem):
        edit(model, tmp_path / "in.png", **words)
    assert not (tmp_path / "out.png").exists()


def test_pictures_that_cannot_be_edited_are_one_sentence_each(model, tmp_path):
    Image.fromarray(np.full((200, 200, 3), 90, np.uint8)).save(tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    cases = {"empty.png": "no face of 24 pixels", "text.jpg": "not an image", "nowhere.png": "No such file"}
    for name, problem in cases.items():
        with pytest.raises(DataError, match=problem):
            edit(model, tmp_path / name, tmp_path / "out.png")
    with pytest.raises(DataError, match="does not lie in its 200x200 pixels"):
        edit(model, tmp_path / "empty.png", tmp_path / "out.png", box="150,0,100")
    with pytest.raises(DataError) as all_of_them:
        edit(model, tmp_path, tmp_path / "folder")
    assert len(str(all_of_them.value).splitlines()) == 2


def test_dials_of_strangers_are_read_as_numbers_only(model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run)
    best = runs.find(str(run))
    path = run / "evaluation" / best.stem / "dials.json"
    vae, good = checkpoint.load(best).vae, json.loads(path.read_text())
    assert dials.read(best, vae).attribute == good["attribute"] == "smile"
    for spoil in (
        lambda c: c["attributes"].pop("smile"),
        lambda c: c["attributes"]["smile"].update(best="nobody"),
        lambda c: c["attributes"]["smile"]["dials"]["mean_difference"].update(direction=[1.0]),
        lambda c: c["attributes"]["smile"]["dials"]["mean_difference"].update(weights=["x"]),
        lambda c: c["attributes"]["smile"]["dials"]["mean_difference"].update(gain=float("nan")),
        lambda c: c.update(eyes=[[1e9, 0], [0, 0]]),
        lambda c: c.update(attributes=[1]),
        lambda c: c.update(meters={"smile": {"mean": [1.0], "sd": [1.0], "weights": [1.0], "bias": 0}}),
    ):
        content = json.loads(json.dumps(good))
        spoil(content)
        path.write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match="is damaged"):
            dials.read(best, vae)
    older = {"weights": good["weights"], "eyes": good["eyes"], "reader": None, **good["attributes"]["smile"]}
    for dial in older["dials"].values():
        dial["smiling"] = dial.pop("target")
    path.write_text(json.dumps(older))
    assert dials.read(best, vae).choose("smile", "mean_difference")[1].target == 1
    path.write_text(json.dumps(good))
    other = next(p for p in (run / "checkpoints").glob("epoch-*.ckpt") if p != best)
    with pytest.raises(CheckpointError, match=r"run python evaluate\.py"):
        assert smilevae.load(other).dials
    path.unlink()
    with pytest.raises(CheckpointError, match=r"is missing; run python evaluate\.py"):
        dials.read(best, vae)


def test_a_folder_of_pictures_keeps_every_name_and_its_originals(model, tmp_path):
    for name in ("a.png", "a.jpg", "deep/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture(60, 80)).save(tmp_path / "in" / name)
    edit(model, tmp_path / "in", tmp_path / "out", box="frame")
    found = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*.png")}
    assert found == {"a.png.png", "a.jpg.png", "deep/a.png"}
    for source in (tmp_path / "in", tmp_path / "in" / "a.png"):
        with pytest.raises(ConfigError, match="is the place of the photo itself"):
            edit(model, source, source, box="frame")
    with pytest.raises(ConfigError, match="smile=1:2:3:4 must be"):
        edit(model, tmp_path / "in", tmp_path / "out", box="frame", smile="1:2:3:4")


@pytest.mark.skipif(not SMILES.exists(), reason="real faces are not here")
def test_real_faces_are_found_in_larger_pictures_with_their_eyes():
    files = sorted((SMILES / "train" / "smile").glob("*.jpg"))[:20]
    right = 0
    for file in files:
        face = np.asarray(Image.open(file).convert("RGB").resize((240, 240), Image.Resampling.BICUBIC))
        scene = np.full((500, 700, 3), 110, np.uint8)
        scene[130:370, 250:490] = face
        if boxes := alignment.find_faces(scene):
            eyes = alignment.find_eyes(scene, boxes[0])
            matrix = alignment.crop_matrix(boxes[0], eyes, 64, alignment.EYES)
            corner = np.linalg.solve(matrix[:, :2], -matrix[:, 2])
            right += np.abs(corner - [250, 130]).max() < 40
    assert right >= 14


def test_the_command_ends_with_a_sentence_and_its_code(call, model):
    code, errors = call("photo", f"ckpt={model}", "image=nowhere.png", "out=x.png")
    assert (code, errors.count("\n")) == (3, 1)
    assert "nowhere.png: No such file" in errors


def test_help_shows_every_option(call, capfd, monkeypatch):
    printed = []
    monkeypatch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
    assert call("photo", "--help") == (0, "")
    text = "\n".join(printed)
    for name in ("smilevae photo ckpt=RUN", *PhotoOptions.model_fields):
        assert name in text
