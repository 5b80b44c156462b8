import dataclasses
import itertools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, SMILES
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from smilevae.data import cache, dataset, sources
from smilevae.data.batches import EpochBatches, FaceBatches, gather, hash64, in_order, to_unit
from smilevae.data.card import data_card, format_card
from smilevae.data.dataset import load_faces, spectrum_of
from smilevae.data.sources import Celeba, Folder, SmilingOrNot, Synthetic
from smilevae.data.split import split_parts
from smilevae.errors import DataError

laws = settings(deadline=None, derandomize=True)


def load(root, image_size=64, **more):
    return load_faces(Folder(root=root and str(root), **more), image_size)


def drawn(num=20, **more):
    """Synthetic faces, `num` of each class."""
    return load_faces(Synthetic(num_smiling=num, num_not_smiling=num, **{"num_test": 1} | more), 64)


def test_a_fifth_is_held_out_and_a_test_part_takes_people_from_training_alone():
    names = np.array([f"P{index}" for index in range(3000)])
    smile, train = np.arange(3000) % 2, np.full(3000, "train")
    without = split_parts(names, smile, train, 0, (0.2, 0))
    part = split_parts(names, smile, train, 0, (0.2, 0.3))
    assert ((part == "val") == (without == "val")).all()
    for label in (0, 1):  # four standard errors of a binomial share of 1500 people
        share = (part[smile == label] == "val").mean()
        assert share == pytest.approx(0.2, abs=4 * (0.16 / 1500) ** 0.5)
    assert (part == "test").mean() == pytest.approx(0.3, abs=4 * (0.21 / 3000) ** 0.5)


def test_a_report_is_of_the_test_part_where_nobody_was_trained_on():
    for num_test, expected in ((4, "val"), (24, "test")):
        faces = drawn(30, num_test=num_test)
        reported, part = faces.reporting()
        assert part == expected
        assert set(reported.rows("val")) == set(faces.rows(expected))
        assert set(reported.rows("train")) == set(faces.rows("train"))
    twin = faces.rows("test")[0]
    faces.people[twin] = faces.people[faces.rows("train")[0]]
    assert set(faces.reporting()[0].rows("val")) == set(faces.rows("test")) - {twin}


people_of_a_class = st.sets(st.integers(0, 10**6), min_size=2, max_size=20)


@st.composite
def labelled_people(draw):
    """The people of two classes, and how many files each of them has."""
    calm, smiling = draw(people_of_a_class), draw(people_of_a_class)
    labels = dict.fromkeys(map(str, smiling), 1) | dict.fromkeys(map(str, calm), 0)
    assume(set(labels.values()) == {0, 1})
    return {name: (label, draw(st.integers(1, 3))) for name, label in labels.items()}


def parts_of(people: dict, seed: int, fractions: tuple, order=sorted) -> dict:
    """The part of each person, of whom every file must be in the same one."""
    names = order([name for name, (_, num) in people.items() for _ in range(num)])
    smile = np.array([people[name][0] for name in names])
    part = split_parts(names, smile, np.full(len(names), "train"), seed, fractions)
    pairs = set(zip(names, part.tolist()))
    assert len(pairs) == len(people)
    return dict(pairs)


@laws
@given(
    labelled_people(),
    labelled_people(),
    st.integers(0, 99),
    st.tuples(st.floats(0.01, 0.6), st.floats(0, 0.3)),
    st.randoms(use_true_random=False),
)
def test_a_person_has_one_part_and_keeps_it(people, others, seed, fractions, random):
    before = parts_of(people, seed, fractions)
    for label in (0, 1):
        of_class = [part for name, part in before.items() if people[name][0] == label]
        assert len(of_class) < 2 or 0 < of_class.count("val") < len(of_class)
    shuffled = parts_of(people, seed, fractions, lambda names: random.sample(names, len(names)))
    assert shuffled == before
    photos = {name: (label, num + 1) for name, (label, num) in people.items()}
    assert parts_of(photos, seed, fractions) == before
    # More people move nobody, except the one of a class who was on a side for lack of another.
    after = parts_of(others | people, seed, fractions)
    moved = [people[name][0] for name in people if before[name] != after[name]]
    assert len(moved) == len(set(moved))


def test_a_sample_is_a_fixed_random_choice_and_a_batch_is_its_pixels():
    faces = drawn(cache=False)
    assert not faces.cache
    every, some = faces.sample("train"), faces.sample("train", 5)
    assert sorted(every) == faces.rows("train").tolist() != every.tolist()
    assert (some == every[:5]).all()
    x = faces.batch(some)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (x.permute(0, 2, 3, 1).mul(255).round().numpy() == faces.images[some]).all()


# folders


def draw(folder, *names: str) -> None:
    """Small images, no two alike."""
    folder.mkdir(exist_ok=True)
    for name in names:
        colour = tuple(hash64(name).to_bytes(8, "big")[:3])
        Image.new("RGB", (64, 64), colour).save(folder / name)


def test_the_public_layout_with_people_from_the_names(pictures):
    card = data_card(load(pictures))
    assert (card["images"], card["people"], card["native_size"]) == (52, 24 + 4, 64)
    assert card["people_in_train_and_val"] == 0
    train, val, test = card["parts"].values()
    for label in ("smiling", "not_smiling"):
        assert train[label] + val[label] == 24
    assert test == {"images": 4, "people": 4, "smiling": 0, "not_smiling": 0, "unlabelled": 4}


def test_unlabelled_faces_are_trained_on_unless_their_person_is_held_out(pictures, tmp_path):
    plain = load(pictures)
    held_out, trained = (plain.people[plain.rows(part)[0]] for part in ("val", "train"))
    people = [held_out, trained, "Somebody_Else"]
    draw(tmp_path / "more", *(f"{person}_0009.png" for person in people))
    faces = load(pictures, unlabelled=str(tmp_path / "more"))
    held_out, again = ([f.names[row] for row in f.rows("val")] for f in (plain, faces))
    assert held_out == again
    added = faces.rows("train")[-2:]
    assert {faces.people[row] for row in added} == {trained, "Somebody_Else"}
    assert set(faces.smile[added]) == {dataset.UNKNOWN}
    card = data_card(faces)
    assert (card["left_out"], card["people_in_train_and_val"]) == (1, 0)
    assert "left out of data.unlabelled: 1 images" in format_card(card)
    assert faces.fingerprint != plain.fingerprint


def test_a_folder_of_more_faces_that_is_not_there_or_empty_is_refused(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    for name, why in (("nowhere", ": No such file or directory"), ("empty", " holds no images")):
        sentence = f"data.unlabelled=.*{name}{why}; name a folder of images"
        with pytest.raises(DataError, match=sentence):
            load(pictures, unlabelled=str(tmp_path / name))


def flatten(root):
    """The classes directly below the root."""
    for name in ("smile", "non_smile"):
        (root / "train" / name).rename(root / name)
    (root / "train").rmdir()


def test_the_bare_layout_gives_the_same_faces(pictures):
    nested = load(pictures)
    flatten(pictures)
    bare = load(pictures)
    for name in ("images", "smile", "part"):
        np.testing.assert_array_equal(getattr(nested, name), getattr(bare, name))


def test_labels_and_people_follow_from_folders_and_names(pictures):
    faces = load(pictures / "train" / "smile")  # without classes
    assert set(faces.smile) == {dataset.UNKNOWN}
    assert set(faces.part) == {"train", "val"}
    draw(pictures / "test" / "smile", "Test_0099.png")
    draw(pictures / "train" / "smile", "me1x.png", "me2x.png")  # no number: a person each
    faces = load(pictures)
    assert sorted(faces.smile[faces.rows("test")]) == [-1, -1, -1, -1, 1]
    assert data_card(faces)["people"] == 24 + 4 + 1 + 2


def test_a_picture_under_two_names_lies_on_one_side(pictures, tmp_path):
    """Copies within the folder and among the unlabelled faces: nobody held out is trained on."""
    for path in sorted((pictures / "train" / "smile").iterdir()):
        shutil.copy(path, path.with_name(f"copy_of_{path.stem.replace('_', '-')}.png"))
    shutil.copytree(pictures / "train" / "non_smile", tmp_path / "more")
    for number, path in enumerate(sorted((tmp_path / "more").iterdir())):
        path.rename(path.with_name(f"{number}.png"))
    faces = load(pictures, unlabelled=str(tmp_path / "more"))
    train, val = ({faces.images[row].tobytes() for row in faces.rows(p)} for p in ("train", "val"))
    assert min(len(train), len(val)) > 0 == len(train & val)
    card = data_card(faces)
    assert card["left_out"] > 0
    assert len(card["duplicates"]) == 48


def test_unreadable_files_are_listed_or_refused_in_numbers(pictures):
    smile = pictures / "train" / "smile"
    (smile / "Bad_0001.jpg").write_bytes(b"hello")
    (smile / "loop_0001.jpg").symlink_to("loop_0001.jpg")
    (smile / "C_0001.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(50))
    draw(smile, "A_0001.avif", "B_0001.png")
    (smile / "B_0001.png").rename(smile / "B_0001.jfif")
    faces = load(pictures, max_skipped=0.06)
    assert {name.removeprefix("train/smile/"): why for name, why in faces.skipped.items()} == {
        "Bad_0001.jpg": "not an image",
        "C_0001.heic": "HEIC, which Pillow cannot read; convert it to JPEG",
        "loop_0001.jpg": "Too many levels of symbolic links",
    }
    assert {"train/smile/A_0001.avif", "train/smile/B_0001.jfif"} <= set(faces.names)
    assert len(faces.smile) == len(faces.images) == 54
    with pytest.raises(DataError, match=r"3 of 57 files are unreadable.*Bad_0001.jpg"):
        load(pictures)


ONE_PERSON = [f"Me_{index}.png" for index in range(5)]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ([], "is not a folder"),
        (["train/smile/", "train/non_smile/A_1.png"], r"one class is empty \(.*smile: 0 images"),
        (["train/"], "holds no images"),
        (ONE_PERSON, r"of 1 people leave no image in the (val|train) part; .*data.person_pattern"),
        (["P1_1.png", "P2_1.png"], "leave 1 image in the train part"),  # no variance for BatchNorm
    ],
)
def test_a_folder_that_cannot_train_is_refused_with_counts(tmp_path, names, sentence):
    for name in names:
        folder, _, file = name.rpartition("/")
        (tmp_path / "root" / folder).mkdir(parents=True, exist_ok=True)
        draw(tmp_path / "root" / folder, *filter(None, [file]))
    with pytest.raises(DataError, match=sentence):
        load(tmp_path / "root")


def test_a_folder_without_a_readable_file_is_refused_with_counts(tmp_path):
    (tmp_path / "A_1.png").touch()
    with pytest.raises(DataError, match="0 usable training images of 0 people leave no image"):
        load(tmp_path, max_skipped=1)


def test_a_cameras_name_for_many_faces_is_said(tmp_path):
    names = [f"{'IMG' if index % 2 else 'DSC'}_{index:04d}.png" for index in range(120)]
    draw(tmp_path, *names)
    said = "60 images are of one person by data.person_pattern: DSC"
    assert said in format_card(data_card(load(tmp_path)))
    faces = load(tmp_path, person_pattern="(.+)")
    assert len(set(faces.people)) == 120
    assert "of one person" not in format_card(data_card(faces))


def test_listing_compares_each_file_once(tmp_path, monkeypatch):
    """A set of the test part for every file made 22,000 files take ten seconds."""
    (tmp_path / "test").mkdir()
    for index in range(50):
        for folder in (tmp_path, tmp_path / "test"):
            (folder / f"P{index}_0001.png").touch()
    compared = []
    kind = type(tmp_path)
    monkeypatch.setattr(kind, "__hash__", lambda path: compared.append(1) or hash(str(path)))
    assert len(sources.folder(str(tmp_path))) == 100
    assert len(compared) < 1000


# the cache


def test_the_second_start_decodes_nothing_and_changes_nothing(pictures, monkeypatch):
    fresh, first = load(pictures, cache=False), load(pictures)
    monkeypatch.setattr(dataset, "decode_all", lambda *args: pytest.fail("decoded again"))
    second = load(pictures)
    assert isinstance(second.images, np.memmap)
    for faces in (first, second):
        np.testing.assert_array_equal(faces.images, fresh.images)
        assert data_card(faces) == data_card(fresh)


def test_changed_content_under_the_same_name_and_size_is_seen(pictures):
    path = next((pictures / "train" / "smile").iterdir())
    before = load(pictures)
    pixels = np.asarray(Image.open(path)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(path)
    after = load(pictures)
    assert before.fingerprint != after.fingerprint
    assert (before.images != after.images).any()


def test_an_interrupted_decoding_leaves_no_cache(pictures, monkeypatch):
    def breaks(images, size, channels):
        yield next(iter(decode_all(images, size, channels)))
        raise KeyboardInterrupt

    decode_all = dataset.decode_all
    monkeypatch.setattr(dataset, "decode_all", breaks)
    with pytest.raises(KeyboardInterrupt):
        load(pictures, image_size=72)
    monkeypatch.setattr(dataset, "decode_all", decode_all)
    one, two = load(pictures, image_size=72), load(pictures, image_size=72, cache=False)
    np.testing.assert_array_equal(one.images, two.images)


def test_a_full_or_unwritable_disk_is_one_sentence(pictures, monkeypatch, tmp_path):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 0))
    with pytest.raises(DataError, match=r"image cache needs .* GB in .*data.cache=false"):
        load(pictures, image_size=80)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"cannot be used \(Not a directory\).*data.cache=false"):
        load(pictures)


@pytest.mark.parametrize("torn", ["notes.json", "images.npy"])
def test_a_torn_cache_is_one_sentence(pictures, tmp_path, monkeypatch, torn):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    load(pictures)
    (path,) = (tmp_path / "smilevae").glob(f"*/{torn}")
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DataError, match="is damaged; remove it, and it is built again"):
        load(pictures)


# batches


small = st.integers(0, 9)


@laws
@given(st.integers(2, 60), st.integers(2, 20), small, small, small)
def test_batches_follow_from_seed_and_epoch_and_processes_share_them(num, size, seed, epoch, skip):
    rows = np.arange(100, 100 + num)

    def epoch_batches(epoch, **more):
        return EpochBatches(rows, size, seed, flip=True, epoch=epoch, **more)

    def plain(batches):
        return [(r.tolist(), f.tolist()) for r, f in batches]

    whole = plain(epoch_batches(epoch))
    assert len(whole) == max(1, num // size)
    seen = [row for batch, _ in whole for row in batch]
    assert len(seen) == len(set(seen)) == len(whole) * min(size, num)
    assert set(seen) <= set(rows.tolist())

    # A resume skips batches of its first epoch only.
    rest = epoch_batches(epoch, skip=skip)
    assert plain(rest) == whole[skip:]
    rest.set_epoch(epoch + 1)
    assert plain(rest) == plain(epoch_batches(epoch + 1))

    shares = [plain(epoch_batches(epoch, rank=rank, world=2)) for rank in (0, 1)]
    for (batch, _), (one, _), (two, _) in zip(whole, *shares):
        assert sorted(batch) == sorted(one + two)


def test_flips_mirror_half_of_the_pictures_and_can_be_off():
    rows = np.arange(2000)
    share = np.mean([f.mean() for _, f in EpochBatches(rows, 100, 0, flip=True)])
    assert share == pytest.approx(0.5, abs=0.05)
    assert not any(f.any() for _, f in EpochBatches(rows, 100, 0, flip=False))


def test_batches_flip_the_right_rows_and_become_unit_floats(pictures):
    faces = load(pictures)
    index = (np.array([3, 0, 7]), np.array([False, True, False]))
    images, smile = FaceBatches(faces.images, faces.smile)[index]
    np.testing.assert_array_equal(images[0], faces.images[3])
    np.testing.assert_array_equal(images[1], faces.images[0][:, ::-1])
    np.testing.assert_array_equal(smile, faces.smile[[3, 0, 7]])
    x = to_unit(images)
    assert x.shape == (3, 3, 64, 64)
    np.testing.assert_allclose(x[0, 2].numpy() * 255, faces.images[3][:, :, 2], atol=1e-4)


def test_in_order_covers_every_row_once():
    chunks = in_order(np.arange(10, 33), 8)
    assert [len(rows) for rows, _ in chunks] == [8, 8, 7]
    assert np.concatenate([rows for rows, _ in chunks]).tolist() == list(range(10, 33))


def test_hash64_separates_streams():
    parts = itertools.product("ab", range(30), range(30))
    assert len({hash64(*part) for part in parts}) == 1800
    assert hash64("a", 1, 23) != hash64("a", 12, 3)


# the public sets, up to the network's edge


def test_smiling_or_not_reads_kagglehubs_cache(pictures, monkeypatch, tmp_path):
    pytest.importorskip("kagglehub")
    version = tmp_path / "hub" / "datasets" / sources.KAGGLE_HANDLE
    version.parent.mkdir(parents=True)
    shutil.copytree(pictures, version)
    flatten(version)
    mark = f"{version.name}.complete"  # kagglehub's, of a whole download
    (version.parent.parent / mark).touch()
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "hub"))
    faces = load_faces(SmilingOrNot(), 64)
    assert faces.fingerprint
    np.testing.assert_array_equal(np.sort(faces.smile), np.sort(load(pictures).smile))


def test_a_public_set_offline_or_without_the_extra_is_one_sentence(monkeypatch, tmp_path):
    with pytest.raises(DataError, match=r"CelebA was not found in .*data.root=PATH"):
        load_faces(Celeba(root=str(tmp_path)), 64)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path))
    hub = pytest.importorskip("kagglehub")

    def unreachable(handle):
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(hub, "dataset_download", unreachable)
    sentence = r"Kaggle could not be reached.*go online once.*data.root=PATH"
    with pytest.raises(DataError, match=sentence):
        load_faces(SmilingOrNot(), 64)
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(DataError, match=r"needs kagglehub: pip install -e '.\[data\]'"):
        load_faces(SmilingOrNot(), 64)


def test_celeba_reads_torchvisions_layout(tmp_path, monkeypatch):
    from torchvision.datasets import CelebA

    base = tmp_path / "celeba"
    (base / "img_align_celeba").mkdir(parents=True)
    names = [(i, f"{i + 1:06d}.jpg") for i in range(40)]
    for index, name in names:
        Image.new("RGB", (178, 218), (index * 5, 0, 0)).save(base / "img_align_celeba" / name)
    tables = {
        "list_attr_celeba": ["40", "Smiling Male", *(f"{n} {i % 2 * 2 - 1} -1" for i, n in names)],
        "identity_CelebA": [f"{n} {i // 4}" for i, n in names],
        "list_eval_partition": [f"{n} {2 if i > 35 else 0}" for i, n in names],
        "list_bbox_celeba": ["40", "a b", *(f"{n} 1 1" for _, n in names)],
        "list_landmarks_align_celeba": ["40", "a b", *(f"{n} 1 1" for _, n in names)],
    }
    for table, lines in tables.items():
        (base / f"{table}.txt").write_text("\n".join(lines) + "\n")
    checksums = "_check_integrity"  # of the real 1.3 GB
    monkeypatch.setattr(CelebA, checksums, lambda self: True)
    faces = load_faces(Celeba(root=str(tmp_path)), 64)
    assert len(set(faces.people)) == 10
    assert (faces.part == "test").sum() == 4
    assert faces.smile.sum() == 20
    assert faces.native_size == 178
    assert set(faces.attributes) == {"male"}
    assert set(faces.labels("smile").tolist()) == {0, 1}
    assert data_card(faces)["people_in_train_and_val"] == 0


def test_folders_of_any_two_names_are_classes(pictures):
    before = load(pictures)
    (pictures / "train/smile").rename(pictures / "train/glasses")
    (pictures / "train/non_smile").rename(pictures / "train/no_glasses")
    faces = load(pictures)
    names = ["glasses", "glasses", "not glasses", "no label"]
    assert [faces.label, *faces.classes.values()] == names
    assert faces.smile.sum() == before.smile.sum()
    assert (faces.labels("glasses") == faces.smile).all()
    assert faces.attributes == {}
    assert " glasses, " in format_card(data_card(faces))


def test_each_of_more_folders_is_an_attribute_against_the_others(tmp_path):
    for name in ("cat", "dog", "owl"):
        draw(tmp_path / name, *(f"{name}{k}_0001.png" for k in range(9)))
    faces = load(tmp_path)
    assert (faces.label, set(faces.attributes)) == ("cat", {"dog", "owl"})
    of_folder = np.array([name.partition("/")[0] for name in faces.names])
    for name in ("cat", "dog", "owl"):
        np.testing.assert_array_equal(faces.labels(name), of_folder == name)
    draw(tmp_path, "stray.png")
    with pytest.raises(
        DataError, match=r"images beside its folders, such as stray\.png; move them"
    ):
        load(tmp_path)


def test_many_folders_are_people_and_not_classes(tmp_path):
    for number in range(30):
        draw(tmp_path / f"person{number}", f"P{number}_0001.png")
    assert set(load(tmp_path).smile) == {dataset.UNKNOWN}


def test_a_face_has_a_continuous_attribute_above_the_median_of_the_training_faces():
    faces = drawn(60, num_test=40)
    skin, glasses = faces.labels("skin"), faces.labels("glasses")
    train = faces.rows("train")
    assert abs(int(skin[train].sum()) - len(train) / 2) <= 1
    assert (skin == (faces.attributes["skin"] > np.median(faces.attributes["skin"][train]))).all()
    assert (glasses == (faces.attributes["glasses"] > 0)).all()
    row = np.arange(len(skin))
    faces.attributes["hat"] = np.where(row % 3, row % 2, np.nan)
    assert faces.labels("hat")[:4].tolist() == [-1, 1, 0, -1]


@pytest.mark.skipif(not SMILES.is_dir(), reason="the real faces are not here")
def test_the_real_faces_have_the_counts_that_their_notes_give():
    card = data_card(load(SMILES))
    # of 1121 names one stands on a picture that is among the test faces under another
    assert (card["people"] - card["parts"]["test"]["people"], card["skipped"]) == (1120, {})
    assert card["people_in_train_and_val"] == 0
    train, val, _ = card["parts"].values()
    assert train["smiling"] + val["smiling"] == 600
    assert train["not_smiling"] + val["not_smiling"] == 603
    assert 0.17 < val["images"] / 1203 < 0.23
    json.dumps(card)


def test_rows_read_from_the_file_are_those_of_the_map(pictures, tmp_path):
    faces = load(pictures)
    assert isinstance(faces.images, np.memmap)
    rows = np.array([5, 0, 51, 5])
    assert np.array_equal(gather(faces.images, rows), np.asarray(faces.images)[rows])
    array = np.arange(24).reshape(6, 4)
    assert np.array_equal(gather(array, np.array([3, 1])), array[[3, 1]])
    short = tmp_path / "short.npy"
    np.lib.format.open_memmap(short, "w+", np.uint8, (4, 8, 8, 3)).flush()
    mapped = np.load(short, mmap_mode="r")
    with open(short, "r+b") as file:
        file.truncate(400)
    with pytest.raises(DataError, match="was cut short"):
        gather(mapped, np.array([3]))


def test_a_cached_spectrum_is_of_its_own_training_part():
    """With other people in training a shared entry would leak the test part."""
    spectrum_of(drawn(40))
    for other in ({"test_fraction": 0.5}, {"val_fraction": 0.4}, {"split_seed": 1}):
        faces = drawn(40, **other)
        assert spectrum_of(faces) == spectrum_of(dataclasses.replace(faces, cache=False))


def test_what_torch_computes_is_cached_for_its_version_and_threads(monkeypatch):
    faces = drawn()
    rows = faces.rows("train")
    parts = [(rows,), (rows[:-1],), (rows, rows[:1]), (np.append(rows, rows[:1]),)]
    keys = [dataset.derived_key(faces, "x", *part) for part in parts]
    monkeypatch.setattr(dataset.torch, "get_num_threads", lambda: 77)
    keys.append(dataset.derived_key(faces, "x", rows))
    monkeypatch.setattr(dataset.torch, "__version__", "0")
    keys.append(dataset.derived_key(faces, "x", rows))
    assert len(set(keys)) == len(keys)


BUILDS = """
import numpy as np
from smilevae.data.cache import cached

def build(images):
    print("building", flush=True)
    input()

cached("never", (8,), build, True)
"""


def test_what_a_killed_decoding_left_is_removed_by_the_next(pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    process = subprocess.Popen([sys.executable, "-c", BUILDS], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "building\n"
    load(pictures)
    unfinished = tmp_path / "cache" / "smilevae"
    assert len(list(unfinished.glob("building-*"))) == 1  # its process lives
    process.kill()
    process.communicate()
    load(pictures, image_size=72)
    assert not list(unfinished.glob("building-*"))
