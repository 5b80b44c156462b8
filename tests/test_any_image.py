"""Images that are no faces: grey digits in torchvision's files, CIFAR10's shapes, sources of others."""

import json
import pickle
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageDraw, ImageFont

import smilevae
from smilevae import runs, testing
from smilevae.data.dataset import UNKNOWN, classes_of, load_faces
from smilevae.data.images import to_pil
from smilevae.data.sources import Folder, Torchvision
from smilevae.errors import DataError
from smilevae.models.architectures import Conv, Patch
from smilevae.plugins import Example, Source, kinds

pytestmark = pytest.mark.usefixtures("forget_plugins")
SMALL = ("model.widths=[8]", "latent_dim=4", "epochs=2", "batch_size=32", "threads=1")


def write_mnist(root: Path, train: int = 240, test: int = 40) -> Path:
    """Digits in the files of torchvision's MNIST."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    font = ImageFont.load_default(size=22)
    for stem, num in (("train", train), ("t10k", test)):
        labels = rng.integers(0, 10, num).astype(np.uint8)
        images = []
        for label in labels:
            image = Image.new("L", (28, 28))
            place = (14 + rng.normal(0, 1), 14 + rng.normal(0, 1))
            ImageDraw.Draw(image).text(place, str(label), 255, font, anchor="mm")
            images.append(image.rotate(rng.normal(0, 10), Image.Resampling.BILINEAR))
        pixels = np.stack(images)
        head = struct.pack(">IIII", 0x803, num, 28, 28)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        head = struct.pack(">II", 0x801, num)
        (folder / f"{stem}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())
    return root


@pytest.fixture(scope="module")
def mnist(tmp_path_factory):
    return write_mnist(tmp_path_factory.mktemp("mnist"))


def test_grey_images_of_28_px_train_and_are_evaluated_exported_and_swept(mnist, call, tmp_path):
    run = tmp_path / "s" / "seed-0"
    words = ["experiment=mnist", f"data.root={mnist}", *SMALL]
    assert call("train", *words, f"hydra.run.dir={run}")[0] == 0
    assert call("evaluate", f"ckpt={run}")[0] == 0
    metrics = json.loads((run / "evaluation" / "best" / "metrics.json").read_text())
    assert (metrics["part"], metrics["num_images"]) == ("test", 40)
    assert metrics["pca"]["psnr"] > metrics["mean_face"]["psnr"] > 10
    assert metrics["model"]["psnr"] > 8
    assert "sees no faces in these images" in " ".join(metrics["left_out"])
    assert (run / "evaluation" / "best" / "index.html").exists()

    assert call("export", f"ckpt={run}", f"out={tmp_path / 'given'}")[0] == 0
    model = smilevae.load(tmp_path / "given")
    assert model.sample(2).shape == (2, 1, 28, 28)
    code = model.encode([Image.new("L", (28, 28), 7)])
    assert torch.equal(code, model.encode(np.full((1, 28, 28, 1), 7, np.uint8)))
    code, problem = call("photo", f"ckpt={run}", f"image={ROOT}/docs/smile.jpg", "out=x.png")
    assert code == 2
    assert "is a model of grey images; take one with channels=3" in problem
    second = tmp_path / "s" / "seed-1"
    assert call("train", *words, f"hydra.run.dir={second}", "seed=1")[0] == 0
    assert call("analyse", tmp_path / "s")[0] == 0


def test_a_torch_data_set_keeps_its_classes_pixels_and_test_part(mnist):
    faces = load_faces(Torchvision(root=str(mnist)), 28, 1)
    assert faces.images.shape == (280, 28, 28, 1)
    raw = (mnist / "MNIST/raw/train-images-idx3-ubyte").read_bytes()[16:]
    stored = np.frombuffer(raw, np.uint8).reshape(-1, 28, 28, 1)
    np.testing.assert_array_equal(faces.images[:240], stored)
    assert (faces.part == "test").sum() == 40
    assert faces.label == "0 - zero"
    assert len(faces.attributes) == 9
    digits = (mnist / "MNIST/raw/train-labels-idx1-ubyte").read_bytes()[8:]
    np.testing.assert_array_equal(faces.labels("7 - seven")[:240], np.frombuffer(digits, "u1") == 7)
    testing.check_source(Torchvision(root=str(mnist)), 28)


def test_images_of_cifar10_are_read(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)  # of the real files
    monkeypatch.setattr(CIFAR10, "_load_meta", lambda self: None)
    monkeypatch.setattr(CIFAR10, "classes", [f"c{k}" for k in range(10)], raising=False)
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)
    for name, _ in CIFAR10.train_list + CIFAR10.test_list:
        data = rng.integers(0, 256, (8, 3072), np.uint8)
        content = {"data": data, "labels": rng.integers(0, 10, 8).tolist()}
        (folder / name).write_bytes(pickle.dumps(content))
    faces = load_faces(Torchvision(root=str(tmp_path), name="CIFAR10"), 32)
    assert faces.images.shape == (48, 32, 32, 3)
    np.testing.assert_array_equal(faces.images[-8:].transpose(0, 3, 1, 2).reshape(8, -1), data)


def test_a_data_set_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=r"MNIST was not found in .*data.root=PATH"):
        load_faces(Torchvision(root=str(tmp_path)), 28)
    for name in ("Nothing", "FakeData", "DatasetFolder"):
        with pytest.raises(DataError, match=f"data.name={name} is none of torchvision's; name one"):
            load_faces(Torchvision(root=str(tmp_path), name=name), 28)


@pytest.mark.parametrize("network", [Conv(widths=[4, 8]), Patch(widths=[8])])
@pytest.mark.parametrize("channels", [1, 3])
def test_our_networks_take_grey_and_colour(network, channels):
    testing.check_network(network, 28, 4, channels)


@pytest.mark.parametrize(
    "image",
    [
        np.full((5, 5), 255, np.uint8),
        np.full((5, 5, 3), 255, np.uint8),
        torch.ones(1, 5, 5),
        torch.ones(3, 5, 5),
        Image.new("L", (5, 5), 255),
    ],
)
def test_arrays_tensors_and_pil_images_are_the_same_picture(image):
    assert np.asarray(to_pil(image).convert("RGB")).tolist() == [[[255] * 3] * 5] * 5


def test_an_array_of_floats_is_refused_in_a_sentence():
    with pytest.raises(DataError, match=r"array of float64; give bytes \(uint8\), or a tensor"):
        to_pil(np.ones((5, 5, 3)))


def test_colours_become_grey_and_grey_stays(tmp_path):
    for k in range(8):
        Image.new("RGB", (40, 30), (20 * k, 0, 0)).save(tmp_path / f"a{k}.png")
        Image.new("L", (40, 30), 20 * k).save(tmp_path / f"b{k}.png")
    faces = load_faces(Folder(root=str(tmp_path)), 28, 1)
    grey = {name: int(image.mean()) for name, image in zip(faces.names, faces.images)}
    assert [grey[f"b{k}.png"] for k in range(8)] == [20 * k for k in range(8)]
    assert grey["a7.png"] == round(0.299 * 140)
    assert set(faces.smile) == {UNKNOWN}


@pytest.mark.parametrize(
    ("labels", "classes"),
    [
        (["smile", "non_smile"], ["smile"]),
        (["a", "b", ""], ["a"]),
        (["not_z", "z"], ["z"]),
        (["c", "a", "b"], ["a", "b", "c"]),
        (["", ""], []),
        (["one"], ["one"]),
    ],
)
def test_of_two_classes_one_is_the_attribute(labels, classes):
    assert classes_of(labels) == classes


class Colours(Source):
    """Flat images, a person for each hue."""

    broken: str = ""

    def examples(self):
        for k in range(30):
            image = np.full((9, 9, 3), 8 * k, np.uint8)
            name = f"{k}" if self.broken != "names" else "x"
            made = partial(np.copy, image) if self.broken == "digest" else image
            label = "dark" if k < 15 else "bright"
            yield Example(made, name, label if self.broken != "label" else k, f"p{k // 2}")

    def attributes_of(self, names):
        num = len(names) - (self.broken == "attributes")
        return {"value": np.arange(num, dtype=np.float32)}


kinds.CHOICES["data"].pop(Colours.choice)  # other tests shall not see it


def test_a_source_of_others_is_checked_and_split_by_person():
    testing.check_source(Colours(), 28)
    faces = load_faces(Colours(), 28)
    assert faces.label == "bright"
    train, val = ({faces.people[row] for row in faces.rows(part)} for part in ("train", "val"))
    assert not train & val
    assert set(faces.attributes) == {"value"}


@pytest.mark.parametrize(
    ("broken", "why"),
    [
        ("names", "two examples have the same name"),
        ("label", "a field is no text"),
        ("digest", "a function needs a digest"),
        ("attributes", "value has the shape"),
    ],
)
def test_the_check_of_a_source_says_what_is_wrong(broken, why):
    with pytest.raises(AssertionError, match=why):
        testing.check_source(Colours(broken=broken), 28)


PETS = """
from PIL import Image
from smilevae.plugins import Example, Source, knob

class Pets(Source):
    num: int = knob(40, "images", 2, 1000)

    def examples(self):
        for k in range(self.num):
            image = Image.new("RGB", (32, 32), (5 * k % 256, k % 7 * 30, 90))
            yield Example(image, f"pet{k}", ("cat", "dog")[k % 2])
"""


def test_a_source_in_a_file_trains_and_its_knob_is_a_setting(call, tmp_path):
    file = tmp_path / "pets.py"
    file.write_text(PETS)
    run = tmp_path / "run"
    words = [f"plugin={file}", "data=pets", "data.num=50", "image_size=32", "model=patch", *SMALL]
    assert call("train", *words, f"hydra.run.dir={run}")[0] == 0
    assert runs.read_settings(run).flat()["data.num"] == 50
    card = json.loads((run / "data_card.json").read_text())
    assert (card["images"], card["label"]) == (50, "cat")
    assert call("evaluate", f"ckpt={run}", f"plugin={file}", "edits=false")[0] == 0
