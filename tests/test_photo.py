import shutil
import subprocess
import sys
from collections import defaultdict
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from conftest import SMILES, slow
from PIL import Image, ImageCms

import smilevae
from smilevae import console, runs
from smilevae.apps import photo
from smilevae.apps.options import PhotoOptions
from smilevae.editing import alignment, attributes, detector, mesh
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


def save(image, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)
    return path


def edit(model, source, out, **options):
    """Edit a photo; gives the path of the result."""
    words = {"ckpt": model, "image": source, "out": out} | options
    words = [f"{key}={value}" for key, value in words.items()]
    photo.main(console.parse_words(words, PhotoOptions))
    return out


def changes(before, path):
    """Where a result differs from a photo: (H, W)."""
    return (np.asarray(Image.open(path)) != before).any(2)


def test_outside_the_mask_every_pixel_stays_and_inside_the_detail_does(model, tmp_path):
    before = picture()
    source = save(before, tmp_path / "in.png")
    out = edit(model, source, tmp_path / "out.png", intensity=2, box="100,50,200")
    changed = changes(before, out)
    changed[50:250, 100:300] = False
    assert not changed.any()
    inside = before[50:250, 100:300].astype(float)
    edited = np.asarray(Image.open(out))[50:250, 100:300].astype(float)
    assert np.abs(edited - inside).max() > 2
    detail = np.abs(np.diff(inside, axis=1)).mean()
    assert np.abs(np.diff(edited, axis=1)).mean() == pytest.approx(detail, rel=0.1)
    still = edit(model, source, tmp_path / "still.png", intensity=0, box="100,50,200")
    assert not changes(before, still).any()


def test_cutting_and_pasting_are_inverse_wherever_the_face_is_and_however_it_is_turned():
    """A smooth change pasted into a grey photograph and cut out again is that change, within the mask's plateau."""
    y, x = np.mgrid[0:64, 0:64] / 64
    change = np.stack([0.3 * np.sin(6 * x), 0.2 * np.cos(5 * y), 0.2 * x * y], 2)
    grey = np.full((500, 600, 3), 128, np.uint8)
    mask = alignment.soft_mask(64)
    for turn, middle in ((0.4, 260 + 240j), (0.3 * np.exp(0.6j), 260 + 220j), (1.0, 266 + 270j)):
        matrix = alignment.matrix_of(turn, middle, 64)
        pasted = alignment.paste(grey, change, alignment.Face(matrix, mask))
        back = alignment.cut(pasted, matrix, 64) / 255 - 128 / 255
        assert np.abs(back - change)[16:48, 16:48].max() < 0.03
    off = alignment.Face(alignment.matrix_of(0.7, -500 - 500j, 64), mask)
    assert np.array_equal(alignment.paste(grey, change, off), grey)


def test_a_part_of_a_photo_gives_the_same_crop_as_the_whole(monkeypatch):
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(50):
        photo = picture(*rng.integers(1, 700, 2), seed=rng)
        turn = np.exp(rng.uniform(-1, 1) + 1j * rng.uniform(-np.pi, np.pi))
        middle = complex(*rng.uniform(-0.5, 1.5, 2) * photo.shape[1::-1])  # also outside the photo
        matrix = alignment.matrix_of(turn, middle, 32)
        cases.append((photo, matrix, alignment.cut(photo, matrix, 32)))
    monkeypatch.setattr(alignment, "MAX_SIDE", 250)
    for photo, matrix, whole in cases:
        assert np.abs(alignment.cut(photo, matrix, 32).astype(int) - whole).max() <= 1


LONG = [(40, 33_000, 16_000, 5), (33_000, 40, 5, 32_960)]


@pytest.mark.parametrize(("height", "width", "left", "top"), LONG)
def test_a_photo_of_any_length_is_edited_where_its_face_is(
    model, tmp_path, height, width, left, top
):
    before = picture(height, width)
    source = save(before, tmp_path / "in.png")
    out = edit(model, source, tmp_path / "out.png", intensity=2, box=f"{left},{top},30")
    changed = changes(before, out)
    assert changed[top : top + 30, left : left + 30].sum() == changed.sum() > 100


def test_a_similarity_is_the_least_squares_one_and_recovers_a_known_one():
    rng = np.random.default_rng(0)
    points = rng.normal(0, 50, (3, 2))
    known = alignment.matrix_of(0.3 * np.exp(2j), 7 - 90j, 64)
    target = alignment.moved(points, known)
    assert alignment.similarity(points, target) == pytest.approx(known)
    assert alignment.moved_back(target, known) == pytest.approx(points)
    noisy = target + rng.normal(0, 3, (3, 2))
    rows = np.concatenate([[[x, -y, 1, 0], [y, x, 0, 1]] for x, y in points])
    a, b, x, y = np.linalg.lstsq(rows, noisy.ravel(), rcond=None)[0]
    expected = np.array([[a, -b, x], [b, a, y]])
    assert alignment.similarity(points, noisy) == pytest.approx(expected)


def test_the_mask_ends_at_the_outline_of_the_face_and_at_the_border():
    angles = np.linspace(0, 2 * np.pi, len(alignment.OUTLINE), endpoint=False)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1)
    marks = np.zeros((468, 2))
    marks[alignment.OUTLINE] = [40, 30] + circle * [30, 20]  # leaves the crop
    mask = alignment.soft_mask(64, marks)
    square = alignment.soft_mask(64)
    y, x = np.mgrid[0:64, 0:64]
    assert mask[((x - 40) / 30) ** 2 + ((y - 30) / 20) ** 2 > 1.1].max() == 0
    assert mask[30, 40] == square[30, 30] == 1
    for each in (mask, square):
        assert each[[0, -1]].max() == each[:, [0, -1]].max() == 0
        assert np.abs(np.diff(each, axis=0)).max() < 0.3  # it fades


@pytest.fixture(scope="module")
def portrait():
    """The head of a photograph that scikit-image ships, 220 pixels, and its landmarks."""
    head = pytest.importorskip("skimage.data").astronaut()[:220, 110:330].copy()
    (face,) = detector.find_faces(head)
    return head, face


POSES = [(60, 1.0), (-60, 1.0), (35, 0.5), (-20, 2.0), (0, 0.4)]


@pytest.mark.parametrize(("degrees", "size"), POSES)
def test_a_face_is_located_at_the_same_place_however_turned_and_sized(portrait, degrees, size):
    head, face = portrait
    matrix = alignment.matrix_of(size * np.exp(1j * np.radians(degrees)), 110 + 85j, 400)
    modes = {"flags": cv2.INTER_AREA, "borderMode": cv2.BORDER_REPLICATE}
    (moved,) = detector.find_faces(cv2.warpAffine(head, matrix, (400, 400), **modes))
    found = alignment.keypoints(moved)
    expected = alignment.moved(alignment.keypoints(face), matrix)
    assert np.hypot(*(found - expected).T).max() < 0.1 * np.hypot(*(found[0] - found[1]))


def test_a_face_is_cut_with_its_eyes_and_mouth_where_training_images_have_theirs(portrait):
    head, marks = portrait
    layout = np.array([[0.3, 0.35], [0.7, 0.35], [0.5, 0.7]])
    face = alignment.face_at(marks, 64, layout)
    at = alignment.moved(alignment.keypoints(marks), face.matrix) / 64
    assert at == pytest.approx(layout, abs=0.03)
    crops = np.stack([alignment.cut(head, face.matrix, 64)] * 10)
    assert np.array(detector.typical_points(crops)) == pytest.approx(layout, abs=0.03)
    assert detector.typical_points(crops[:9]) is None
    assert detector.typical_points(np.stack([picture(64, 64)] * 10)) is None


def test_opencv_5_reads_the_networks_with_the_engine_that_gives_every_layer(portrait, monkeypatch):
    dnn = cv2.dnn
    classic = 7
    read = dnn.readNetFromTFLite
    real = [dnn.ENGINE_CLASSIC] if hasattr(dnn, "ENGINE_CLASSIC") else []
    new_engine = Mock()
    new_engine.forward.side_effect = cv2.error("requested and actual outputs must be the same")

    def read_with(path, engine=0):
        return read(path, *real) if engine == classic else new_engine

    monkeypatch.setattr(mesh, "_idle", defaultdict(list))  # no network was read
    monkeypatch.setattr(dnn, "ENGINE_CLASSIC", classic, raising=False)
    monkeypatch.setattr(dnn, "readNetFromTFLite", read_with)
    head, face = portrait
    assert np.array_equal(detector.find_faces(head), [face])


def test_faces_seen_in_several_threads_are_those_seen_in_one(monkeypatch):
    x = torch.rand(12, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone = mesh.see(x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    together = mesh.see(x)
    assert torch.equal(alone.features, together.features)
    assert np.array_equal(alone.points, together.points)
    assert np.array_equal(alone.scores, together.scores)


FIRST = """
import torch
from smilevae.editing import mesh
torch.set_num_threads(8)
mesh.see(torch.rand(16, 3, 64, 64))
"""


@slow
def test_the_first_faces_of_a_process_may_be_seen_in_several_threads():
    """Two first reads at once ended 2 of 20 processes; each process has one first time."""
    for _ in range(40):
        done = subprocess.run([sys.executable, "-c", FIRST], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_an_opencv_that_does_not_run_the_networks_is_one_sentence_and_the_evaluation_does_without(
    portrait, monkeypatch
):
    error = cv2.error("OpenCV(6.0.0) error: (-2:Unspecified error)\n> where\n>     1")
    head, _ = portrait
    monkeypatch.setattr(mesh, "_idle", defaultdict(list))  # no network was read
    monkeypatch.setattr(cv2.dnn, "readNetFromTFLite", Mock(side_effect=error))
    problem = r"^face_\w+.tflite: OpenCV\(6.0.0\) error: .+; run pip install .+$"
    with pytest.raises(DataError, match=problem):
        detector.find_faces(head)
    assert detector.typical_points(np.stack([head[:64, :64]] * 10)) is None


def test_only_what_is_within_the_face_changes(model, portrait, tmp_path):
    head, marks = portrait
    out = edit(model, save(head, tmp_path / "in.png"), tmp_path / "out.png", intensity=3)
    changed = changes(head, out)
    outline = cv2.convexHull(marks[alignment.OUTLINE].astype(np.float32))
    grown = (outline - outline.mean(0)) * 1.1 + outline.mean(0)
    inside = cv2.fillConvexPoly(np.zeros(head.shape[:2], np.uint8), grown.round().astype(int), 1)
    assert changed.sum() > 0.3 * inside.sum()
    assert not changed[inside == 0].any()


def test_what_only_looks_like_a_face_is_refused(model, portrait, monkeypatch):
    """The same picture in shuffled squares; it is the mesh that refuses it, so without its word places are wrong."""
    head, _ = portrait
    squares = head.reshape(10, 22, 10, 22, 3).swapaxes(1, 2).reshape(100, 22, 22, 3)
    squares = np.random.default_rng(0).permutation(squares).reshape(10, 10, 22, 22, 3)
    shuffled = squares.swapaxes(1, 2).reshape(head.shape)
    loaded = smilevae.load(model)
    with pytest.raises(DataError, match="shuffled: no face was detected with certainty; pass box="):
        photo.locate(loaded, shuffled, "shuffled")
    monkeypatch.setattr(detector, "TRUST", -100)
    monkeypatch.setattr(detector, "LIKELY", -2)
    assert photo.locate(loaded, shuffled, "shuffled")


def test_a_large_face_is_cut_without_aliasing():
    stripes = np.zeros((800, 800, 3), np.uint8)
    stripes[:, ::2] = 255
    found = alignment.cut(stripes, np.array([[0.09, 0, -2], [0, 0.09, -2]]), 64)
    assert np.abs(found.astype(int) - 127).max() < 12


def test_orientation_is_applied_the_profile_kept_and_the_place_left_out(model, tmp_path):
    exif = Image.Exif()
    exif.update({0x0112: 6, 0x010E: "at home"})
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = tmp_path / "in.jpg"
    Image.fromarray(picture()).save(source, exif=exif, icc_profile=profile, quality=95)
    out = edit(model, source, tmp_path / "out.jpg", box="0,0,60")
    assert b"at home" not in out.read_bytes()
    with Image.open(out) as after:
        assert after.size == (300, 400)
        assert after.info["icc_profile"] == profile
        assert not after.getexif()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"intensity": "much"}, "intensity=much must be a number"),
        ({"intensity": "nan"}, "intensity=nan must be a number"),
        ({"intensity": "11"}, "intensity=11 must be a number from -10 to 10"),
        ({"box": "1,2"}, "box=1,2 must be LEFT,TOP,SIDE"),
        ({"box": "nan,1,50"}, "box=nan,1,50 must be LEFT,TOP,SIDE"),
        ({"face": 0}, "face=0 must be a whole number from 1 or all"),
        ({"attribute": "up"}, "attribute=up cannot be edited; choose one of smile"),
        ({"colour": 1}, "colour is not an option"),
        ({"out": "x.txt"}, "is of no known kind"),
        ({"out": ""}, "out is not set"),
    ],
)
def test_a_wrong_option_is_one_sentence(model, tmp_path, options, problem):
    source = save(picture(), tmp_path / "in.png")
    words = {"out": tmp_path / "out.png", "box": "50,0,300"} | options
    with pytest.raises(ConfigError, match=problem):
        edit(model, source, **words)
    assert not (tmp_path / "out.png").exists()


def test_pictures_that_cannot_be_edited_are_one_sentence_each(model, tmp_path):
    empty = save(np.full((200, 200, 3), 90, np.uint8), tmp_path / "empty.png")
    (tmp_path / "text.jpg").write_text("not a picture")
    with pytest.raises(DataError, match="does not lie in its 200x200 pixels"):
        edit(model, empty, tmp_path / "out.png", box="150,0,100")
    with pytest.raises(DataError) as both:
        edit(model, tmp_path, tmp_path / "folder")
    first, second = str(both.value).splitlines()
    assert "empty.png: no face was detected" in first
    assert "text.jpg: not an image" in second


def test_edits_of_strangers_are_read_as_numbers_only(model, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(model, run)
    best = runs.find(str(run))
    path = run / "evaluation" / best.stem / attributes.NAME
    vae = checkpoint.load(best).vae
    good = runs.read_tensors(path)
    assert attributes.read(best, vae).main.name == "smile"
    smile = good["attributes"][0]
    tensors = good.pop("tensors")
    direction = tensors["0.direction"]
    for content, parts in (
        ({"attributes": []}, {}),
        ({"attributes": [1]}, {}),
        ({"attributes": [smile, smile]}, {}),
        ({"attributes": [smile | {"gain": "x"}]}, {}),
        ({"attributes": [smile | {"gain": float("nan")}]}, {}),
        ({"points": [[1e9, 0], [0, 0]]}, {}),
        ({"points": [[0.5, 0.5]]}, {}),
        ({}, {"0.direction": torch.ones(1)}),
        ({}, {"0.direction": direction * torch.nan}),
        ({}, {"0.direction": -direction}),
        ({}, {"0.matrix": torch.ones(2, 2)}),
    ):
        path.write_bytes(runs.tensor_file(tensors | parts, good | content))
        with pytest.raises(CheckpointError, match="is damaged"):
            attributes.read(best, vae)


BOX = {"box": "0,0,60"}


def results(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*.png")}


def test_a_folder_of_pictures_keeps_names_and_originals_and_edits_no_result(model, tmp_path):
    photos = tmp_path / "in"
    for name in ("a.png", "a.jpg", "deep/a.png"):
        save(picture(60, 80), photos / name)
    out = edit(model, photos, tmp_path / "out", **BOX)
    assert results(out) == {"a.png.png", "a.jpg.png", "deep/a.png"}
    edit(model, photos / "deep", photos, **BOX, intensity=0)  # out holds the photos
    assert (photos / "a.png").exists()
    for _ in range(2):
        edit(model, photos / "deep", photos / "deep" / "b" / "out", **BOX)
    assert results(photos / "deep") == {"a.png", "b/out/a.png"}
    for source in (photos, photos / "a.png"):
        with pytest.raises(ConfigError, match="is the place of the photo itself"):
            edit(model, source, source, **BOX)


def test_a_photo_that_opencv_refuses_does_not_end_the_others(model, tmp_path, monkeypatch):
    for name, height in (("a.png", 61), ("b.png", 62), ("c.png", 63)):
        save(picture(height, 80), tmp_path / "in" / name)
    cut = alignment.cut

    def refuse(photo, matrix, side):
        return cut(photo if len(photo) != 62 else photo.astype(str), matrix, side)

    monkeypatch.setattr(alignment, "cut", refuse)
    with pytest.raises(DataError, match=r"^\S+b\.png: OpenCV.+; pass another photo$"):
        edit(model, tmp_path / "in", tmp_path / "out", **BOX)
    assert results(tmp_path / "out") == {"a.png", "c.png"}


@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_a_photo_that_is_too_long_for_its_format_is_one_sentence(tmp_path, suffix):
    with pytest.raises(ConfigError, match=r"too long for (JPEG|WEBP); end it in \.png$"):
        photo.save(picture(1, 70_000), tmp_path / f"out{suffix}", None)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not SMILES.exists(), reason="real faces are not here")
def test_real_faces_are_found_in_larger_pictures_with_their_eyes():
    right = 0
    for file in sorted((SMILES / "train" / "smile").glob("*.jpg"))[:10]:
        face = Image.open(file).convert("RGB").resize((240, 240), Image.Resampling.BICUBIC)
        scene = np.full((500, 700, 3), 110, np.uint8)
        scene[130:370, 250:490] = face
        faces = detector.find_faces(scene)
        if len(faces) == 1:
            matrix = alignment.face_at(faces[0], 64, alignment.LAYOUT).matrix
            corner = alignment.moved_back(np.zeros(2), matrix)
            right += np.abs(corner - [250, 130]).max() < 60  # training faces are not aligned
    assert right >= 9


def test_the_command_ends_with_a_sentence_and_its_code(call, model):
    code, errors = call("photo", f"ckpt={model}", "image=nowhere.png", "out=x.png")
    assert (code, errors.count("\n")) == (3, 1)
    assert "nowhere.png: No such file" in errors


def test_help_shows_every_option(call, monkeypatch):
    printed = []
    monkeypatch.setattr("builtins.print", lambda *texts, **_: printed.extend(map(str, texts)))
    assert call("photo", "--help") == (0, "")
    for name in ("smilevae photo ckpt=RUN", *PhotoOptions.model_fields):
        assert name in "\n".join(printed)
