"""Edits of attributes and their scores: good ones pass, and bad ones do not."""

import copy
import dataclasses

import numpy as np
import pytest
import torch

from benchmarks import edit_scorecard
from smilevae.data.dataset import load_faces
from smilevae.data.encode import encode
from smilevae.data.sources import Synthetic
from smilevae.editing import directions, fitting
from smilevae.editing.calibration import decode
from smilevae.editing.geometry import GeometryReader, upright
from smilevae.errors import ConfigError
from smilevae.evaluation import realism, references, scoring
from smilevae.models.architectures import Patch
from smilevae.models.axes import linear_vae_weights
from smilevae.models.vae import VAE


@pytest.fixture(scope="module")
def world():
    """A linear VAE on drawn faces of which more smiling ones have long hair; its edits; the space."""
    some = {"num_smiling": 250, "num_not_smiling": 250, "num_test": 0, "val_fraction": 0.4}
    faces = load_faces(Synthetic(confound=0.5, **some), 64)
    names = ("hair_length", "skin", "glasses", "eye_colour")
    faces.attributes = {name: faces.attributes[name] for name in names}
    vae = VAE(Patch(widths=[8, 16]), 64, 120, linear=True).eval()
    vae.linear.load_state_dict(linear_vae_weights(faces.axes(), 0.1, 120))
    return vae, faces, fitting.fit_edits(vae, faces), realism.feature_space(faces)


@pytest.fixture(scope="module")
def scorer(world):
    return scoring.Scorer(*world)


@pytest.fixture(scope="module")
def scores(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "MAX_EDITED", 60)
        patch.setattr(scoring, "LEVELS", (0.0, 1.0, 2.0))
        return scoring.score_edits(*world)


def test_the_mean_difference_changes_a_planted_confound_and_the_edit_does_not(
    scores, scorer, world
):
    vae, faces, fitted, _ = world
    assert abs(np.corrcoef(faces.smile, faces.labels("hair_length"))[0, 1]) > 0.25
    smile = scores["smile"]
    assert "hair_length" in smile["mean_difference"]["changes"][1]
    assert "hair_length" not in smile["changes"][1]
    mu = encode(vae, faces, scoring.lacking(faces, "smile")[:60])[0]
    codes = fitted.edits.main.edit(mu, torch.tensor([0.0, 1]))
    rest, moved = (scorer.classifier(decode(vae, z))["hair_length"] for z in codes.unbind(1))
    change = (moved - rest).square().mean().sqrt().item()
    assert change < 0.45 * abs(smile["mean_difference"]["changes"][1]["hair_length"])


def test_an_edit_is_at_rest_at_zero_and_has_the_attribute_at_one(scores):
    smile = scores["smile"]
    assert smile["success"][1] > 0.9 > 0.4 > smile["success"][0]
    assert 0.7 < smile["score"][1] < 1.5  # another classifier, other people
    assert smile["identity"][0] == 0 < smile["identity"][1] < smile["identity"][2]
    assert smile["changes"][0] == {}
    assert set(smile["reference"]) == {"real", "reconstructed"}


def test_every_attribute_is_edited_and_not_the_others(scores):
    assert set(scores) >= {"smile", "hair_length", "skin"}
    for name in ("hair_length", "skin"):
        assert scores[name]["score"][1] - scores[name]["score"][0] > 0.6
        assert max(map(abs, scores[name]["changes"][1].values()), default=0) < 0.5


def test_an_attribute_that_reconstructions_do_not_show_cannot_be_edited(world):
    _, faces, fitted, _ = world
    small = VAE(Patch(widths=[8, 16]), 64, 4, linear=True).eval()
    small.linear.load_state_dict(linear_vae_weights(faces.axes(), 0.1, 4))
    few = fitting.fit_edits(small, faces)
    assert "glasses" in {one.name for one in fitted.edits.attributes}
    assert "on reconstructions of unseen people" in few.left_out["glasses"]
    assert {"smile", "skin"} <= {one.name for one in few.edits.attributes}


def test_a_range_ends_where_edits_stop_to_look_real(world, scores):
    _, _, fitted, _ = world
    main = dataclasses.replace(fitted.edits.main, low=-4.0, high=4.0)
    wide = fitted._replace(edits=fitted.edits._replace(attributes=[main]))
    far = copy.deepcopy(scores)
    for distance, high in ([0.0, 0.0], 2.0), ([1e6, 0.0], 1.0):
        far["smile"]["distance"][2] = distance
        ranged = scoring.with_ranges(wide, far).edits.main
        assert [ranged.low, ranged.high] == far["smile"]["range"] == [-high, high]
    del far["smile"]["distance"]
    assert scoring.with_ranges(wide, far).edits.main.high == 2.0


def test_a_deliberately_bad_edit_is_named_and_a_good_one_holds(world, scorer, scores):
    vae, faces, _, _ = world
    assert edit_scorecard.faults(scores["smile"], 1.0) == "holds"
    rows = scoring.lacking(faces, "smile")[:60]
    rest = decode(vae, encode(vae, faces, rows)[0]).clamp(0, 1)
    kinds = {"nothing": "does nothing", "sticker": "not real", "blend": "blurred"}
    kinds["swap"] = "another person"
    for kind, bad in edit_scorecard.bad_edits(faces, "smile", rest).items():
        found = scorer.score_images("smile", rows, edit_scorecard.LEVELS, [rest, bad])
        left = float((edit_scorecard.edges(bad) / edit_scorecard.edges(rest)).mean())
        assert kinds.pop(kind) in edit_scorecard.faults(found, left)
    assert not kinds


def test_an_edit_that_is_undone_leaves_little_and_ten_passes_cost_more_than_one(world):
    vae, faces, fitted, _ = world
    mu = encode(vae, faces, scoring.lacking(faces, "smile")[:20])[0]
    moved = fitted.edits.main.edit(mu, torch.ones(1))[:, 0]
    assert 0 < edit_scorecard.reversibility(vae, mu, moved) < 0.5
    with torch.no_grad():
        passes = edit_scorecard.composition(vae, faces)
    assert passes[1] > passes[10] > 10


def test_a_direction_is_surer_with_more_people():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1200) % 2
    mu = torch.randn(1200, 20, generator=generator) + labels[:, None] * torch.eye(20)[0]
    people = [str(i // 2) for i in range(1200)]
    few = edit_scorecard.angle(mu[:200], labels[:200], people[:200])
    assert 0 < edit_scorecard.angle(mu, labels, people) < few < 90


def test_changes_of_another_attribute_in_both_senses_do_not_cancel(scorer):
    before = {one.name: torch.zeros(4) for one in scorer.attributes}
    skin = torch.tensor([2.0, -2.0, 2.0, -2.0])
    after = before | {"skin": skin, "glasses": torch.full((4,), -3.0)}
    assert scorer._changes("smile", before, after) == pytest.approx({"skin": 2, "glasses": -3})
    slight = before | {"skin": torch.full((4,), 0.9 * scorer.errors["skin"])}
    assert scorer._changes("smile", before, slight) == {}


def test_unmixing_inverts_what_directions_do_to_each_other():
    torch.manual_seed(0)
    plain = torch.randn(3, 20)
    effects = torch.eye(3) + 0.3 * torch.randn(3, 3)
    combined = torch.stack(directions.unmixed(list(plain), effects))
    # Of each plain direction in each combination
    weights = torch.linalg.lstsq(plain.T, combined.T).solution.T
    torch.testing.assert_close(weights @ effects, torch.eye(3), atol=1e-4, rtol=0)


def test_shapes_do_not_depend_on_where_the_face_is_how_large_and_how_turned():
    points = np.random.default_rng(0).random((5, 468, 2))
    turn = 3 * np.exp(0.4j)
    moved = (points[..., 0] + 1j * points[..., 1]) * turn + (2 - 1j)
    shapes = upright(np.stack([moved.real, moved.imag], -1))
    np.testing.assert_allclose(shapes, upright(points), atol=1e-9)


def test_geometry_reads_a_planted_shape_of_people_outside_its_training():
    rng = np.random.default_rng(0)
    label = np.arange(300) % 2
    points = rng.random((468, 2)) + 0.01 * rng.standard_normal((300, 468, 2))
    points[label == 1, 60:90, 0] += 0.05
    people = [str(k // 2) for k in range(300)]
    reader = GeometryReader(points[:200], {"wide": label[:200].astype(float)}, people[:200])
    scores = reader.read(points[200:])["wide"].numpy()
    assert reader.accuracy["wide"] > 0.95
    assert ((scores > reader.threshold["wide"]) == label[200:]).mean() > 0.95
    assert [scores[label[200:] == v].mean() for v in (0, 1)] == pytest.approx([0, 1], abs=0.2)


def test_landmarks_of_people_who_cannot_test_them_read_nothing():
    """One person, or one class: no accuracy on other people, and no numbers that are not."""
    points = np.random.default_rng(0).random((120, 468, 2))
    labels = {"a": np.arange(120) % 2.0, "b": np.ones(120)}
    reader = GeometryReader(points, labels, ["A"] * 120)
    assert (reader.accuracy, reader.threshold, reader.read(points)) == ({}, {}, {})
    reader = GeometryReader(points, labels, [str(k) for k in range(120)])
    assert set(reader.accuracy) == set(reader.read(points)) == {"a"}


def test_one_held_out_person_or_a_handful_of_faces_have_no_scores(world):
    _, faces, fitted, _ = world
    val = faces.rows("val")
    assert scoring.obstacle(faces, fitted, "smile") is None
    people = [("A" if faces.part[row] == "val" else name) for row, name in enumerate(faces.people)]
    alone = dataclasses.replace(faces, people=people)
    assert "two held-out people" in scoring.obstacle(alone, fitted, "smile")
    smile = faces.smile.copy()
    smile[val[smile[val] == 0][scoring.MIN_EDITED - 1 :]] = 1
    few = dataclasses.replace(faces, smile=smile)
    assert "4 held-out faces" in scoring.obstacle(few, fitted, "smile")
    untested = copy.copy(fitted.scorer)
    untested.accuracy = {"smile": float("nan")}
    assert scoring.obstacle(faces, fitted._replace(scorer=untested), "smile") == fitting.UNTESTED


def test_a_copy_of_a_file_is_no_second_photo_of_a_person(world):
    """Twenty held-out people, each with the same photo twice: two photos of one person are not known."""
    _, faces, fitted, _ = world
    pictures = np.array(faces.images)
    people = list(faces.people)
    for first, second in faces.rows("val")[:40].reshape(-1, 2):
        pictures[second] = pictures[first]
        people[second] = people[first]
    copied = dataclasses.replace(faces, images=pictures, people=people)
    same, other = references.persons(copied, fitted.scorer)
    assert same == other / 2 > 0


def test_real_faces_are_matched_to_the_edited_ones(world):
    faces = world[1]
    hair = faces.labels("hair_length")
    smiling = np.flatnonzero(faces.smile == 1)
    calm = np.flatnonzero(faces.smile == 0)
    assert hair[smiling].mean() > hair[calm].mean() + 0.3
    chosen = references.matched(faces, smiling, calm, ["hair_length"])
    assert hair[chosen].mean() == pytest.approx(hair[calm].mean(), abs=0.03)
    assert len(chosen) >= 20
    assert (references.matched(faces, smiling, calm, []) == smiling).all()


def test_an_attribute_that_cannot_be_edited_is_one_sentence(world):
    vae, faces, *_ = world
    rare = np.zeros(len(faces.smile), np.float32)
    rare[faces.rows("train")[:15]] = 1
    faces = dataclasses.replace(faces, attributes=faces.attributes | {"rare": rare})
    unknown = "attribute=hat is unknown; choose one of smile, hair_length"
    for attribute, problem in (("hat", unknown), ("rare", "have it and")):
        with pytest.raises(ConfigError, match=problem):
            fitting.fit_edits(vae, faces, attribute)


def test_without_smile_labels_another_attribute_is_the_main_one(world):
    vae, faces, *_ = world
    rare = np.full(len(faces.smile), np.nan, np.float32)
    rare[faces.rows("val")] = 1
    names = {"rare": rare, "hair_length": faces.attributes["hair_length"]}
    bare = dataclasses.replace(faces, smile=np.full_like(faces.smile, -1), attributes=names)
    fitted = fitting.fit_edits(vae, bare)
    assert [one.name for one in fitted.edits.attributes] == ["hair_length"]
    assert "0 training faces have it" in fitted.left_out["rare"]
    assert fitting.fit_edits(vae, dataclasses.replace(bare, attributes={"rare": rare})) is None
