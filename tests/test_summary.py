"""What an evaluation prints: short lines that a newcomer understands, and bad news when there is some."""

import copy
import json
from pathlib import Path

import pytest
from PIL import Image

from smilevae.evaluation import page, summary

OUT = Path("runs/demo/evaluation/epoch-0050")
REFERENCE = {
    "real": {"score": 1.0, "success": 0.83, "success_landmarks": 0.91},
    "reconstructed": {"score": 0.9, "success": 0.8, "distance": [0.05, 0.02]},
}
SMILE = {
    "num_faces": 100,
    "intensities": [0.0, 1.0, 2.0],
    "score": [0.1, 1.2, 2.2],
    "success": [0.02, 1.0, 1.0],
    "success_landmarks": [0.03, 0.89, 0.99],
    "distance": [[0.05, 0.02], [0.09, 0.03], [0.3, 0.1]],
    "identity": [0.0, 0.22, 0.41],
    "changes": [{}, {}, {"skin": -0.7}],
    "reference": REFERENCE,
    "accuracy": 0.93,
    "other_person": 2.1,
    "range": [-1.0, 1.5],
}
GLASSES = SMILE | {"intensities": [0.0, 1.0], "changes": [{}, {"beard": 0.61}], "num_faces": 40}
NATIVE = {"native_psnr": 26.9, "native_ssim": 0.84}
PRDC = {"precision": 0.9, "recall": 0.8, "density": 1, "coverage": 0.7}
DEMO = {
    "measures": {},
    "checkpoint": "checkpoints/epoch-0050.ckpt",
    "part": "test",
    "num_images": 300,
    "epoch": 50,
    "image_size": 128,
    "native_size": 64,
    "model": {"psnr": 27.03, "ssim": 0.8512, "mse": 0.002, **NATIVE},
    "pca": {"psnr": 30.48, "ssim": 0.9093, "mse": 0.0009, **NATIVE},
    "mean_face": {"psnr": 16.12, "ssim": 0.6461, "mse": 0.024, **NATIVE},
    "pca_dim": 120,
    "loss": 181.04,
    "recon": 126.5,
    "kl": 54.54,
    "beta": 1.0,
    "nelbo": -82052.0,
    "loss_study_units": 560.5,
    "active_units": 120,
    "latent_dim": 120,
    "realism": {
        "training": {"distance": 0.002, "error": 0.004, **PRDC},
        "reconstructed": {"distance": 0.05, "error": 0.01, **PRDC, "copies": 0.5, "own_face": 0.97}
        | {"double": 0.09},
        "sampled": {"distance": 0.153, "error": 0.02, **PRDC, "copies": 0.52, "double": 0.124},
        "mean_face": {"distance": 1.9, "error": 0.1},
        "real": {"double": 0.08},
        "overlaid": {"double": 0.87, "area": 0.95},
    },
    "edits": {"smile": SMILE, "glasses": GLASSES},
    "not_editable": {"jaw": "it cannot be recognised: accuracy 53% on unseen people"},
    "left_out": [],
}
PRINTED = """\
300 held-out faces, epoch 50. These faces were not used to choose the epoch.
Reconstructions (higher is better)        PSNR      SSIM
this model                             27.0 dB     0.851
PCA, 120 dimensions (no KL penalty)    30.5 dB     0.909
mean face                              16.1 dB     0.646
Loss 181.0 (lower is better) = squared error 126.5 + beta 1 x KL 54.5; 120/120 dimensions used
Distance to real faces (0: as real): reconstructions 50 ± 10, new faces 153 ± 20, mean face 1,900.
Two faces in one (low is good): reconstructions 9%, new faces 12%; real 8%, real ones overlaid 87%.
Smile, intensity 1: a classifier sees it on 2% before, 100% after; of real faces that have it, 83%.
Smile, intensity 1: landmarks show it on 3% before, 89% after; of real faces that have it, 91%.
Change of the person: 0.22 (0: none, 1: another photo of the person, 2.10: another person).
From -1 to 1.5 the smile grows; from 0 on faces stay near real ones. Nothing else changes clearly.
Also editable: glasses. Not editable (the page says why): jaw.
page: runs/demo/evaluation/epoch-0050/index.html"""


def test_the_report_of_the_demo_is_this():
    assert summary.summary(DEMO, OUT) == PRINTED


def smile(**changes):
    return {"edits": {"smile": SMILE | changes}}


NO_SPACE = {key: value for key, value in SMILE.items() if key != "distance"}
MANY = [f"attribute_{k:02}" for k in range(40)]
COPIES = DEMO["realism"] | {"sampled": DEMO["realism"]["sampled"] | {"copies": 0.97}}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"part": "val"},
            ". They also chose the epoch; set data.test_fraction=0.2 to avoid that.",
        ),
        ({"active_units": None}, "= squared error 126.5 + beta 1 x KL 54.5\n"),
        (smile(changes=[{}, {"skin": -0.72}, {}]), "Also changed: skin -0.7."),
        (smile(), "near real ones. No other attribute was tested."),
        (smile(success=[0.02, 0.1, 0.1]), "before, 10% after; of real faces that have it, 83%."),
        (smile(reference={}), "before, 100% after.\n"),
        ({"edits": {"smile": NO_SPACE}}, "From -1 to 1.5 the smile grows. No other"),
        (smile(other_person=2.0), "person: 0.22 (0: none, 2.00: another person)."),
        ({"left_out": ["No landmarks: " + 200 * "x"]}, "No landmarks: xxx"),
        ({"not_editable": dict.fromkeys(MANY)}, "attribute_00 and 39 more."),
        ({"beta": 0.00314}, " + beta 0.0031 x KL"),
        ({"realism": COPIES}, "New faces are near to copies of training faces: 0.97"),
    ],
)
def test_bad_news_and_gaps_are_said(changes, words):
    assert words in summary.summary(DEMO | changes, OUT) + "\n"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_images": 123_456, "epoch": 12_345, "part": "val"},
        {"left_out": [60 * "why "] * 9, "not_editable": dict.fromkeys(MANY)},
        {"edits": {"a" * 90: SMILE | {"changes": [{}, {"b" * 90: 1.0, "c" * 90: 2.0}, {}]}}},
        {"beta": 1.23456e-5, "loss": 12345678.9, "recon": 12345678.9, "kl": 12345.6},
    ],
)
def test_the_lines_are_few_and_short(changes):
    lines = summary.summary(DEMO | changes, OUT).splitlines()
    assert len(lines) <= summary.MAX_LINES
    assert max(map(len, lines)) <= summary.WIDTH
    assert lines[-1].startswith("page: ")


def test_the_page_opens_from_disk_and_holds_every_table():
    metrics = copy.deepcopy(DEMO)
    metrics["edits"]["<b>$x$ $"] = GLASSES  # a user's name
    image = Image.new("RGB", (80, 80), "grey")
    epochs = [{"epoch": 1, "val/psnr": 20.0}, {"epoch": 2, "val/psnr": 22.0}]
    figures = {"reconstructions.png": image, "samples.png": image}
    text = page.page(metrics, figures, {"smile": image, "<b>$x$ $": image}, epochs)
    words = ["Reconstructions", "New faces", "from -1 to 1.5", "<svg", "prefers-color-scheme: dark"]
    words += ["data:image/jpeg", "accuracy 53% on unseen people", "nELBO", "PSNR at 64 px"]
    words += ["beard +0.61", "Decoded random codes"]
    for word in words:
        assert word in text
    assert "<b>$x" not in text
    outside = text[: text.index("<svg")] + text[text.index("</svg>") :]
    assert "://" not in outside  # nothing is loaded from elsewhere


def test_every_table_has_as_many_cells_as_columns_and_the_page_explains_it():
    for table in summary.tables(json.loads(json.dumps(DEMO))):
        assert all(len(row) == len(table.columns) for row in table.rows)
        assert f'title == "{table.title}"' in page.TEMPLATE.read_text()
