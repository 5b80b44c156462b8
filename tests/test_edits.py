"""The edit scorecard: edits that work, and bad ones that it names."""

import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smilevae.config import Data, Model
from smilevae.data import load_faces
from smilevae.data.encode import encode
from smilevae.editing import directions, fitting
from smilevae.editing.calibration import decode, images
from smilevae.editing.geometry import GeometryReader, upright
from smilevae.errors import ConfigError
from smilevae.evaluation import edits, edits_page, edits_text, judges, realism
from smilevae.models.axes import linear_vae_weights
from smilevae.models.vae import VAE


@pytest.fixture(scope="module")
def world():
    """A linear VAE on drawn faces of which more smiling ones have long hair; what was fitted, and the spaces."""
    some = {"num_smiling": 250, "num_not_smiling": 250, "num_test": 0, "val_fraction": 0.4}
    faces = load_faces(Data(source="synthetic", confound=0.5, **some), 64)
    faces.attributes = {name: faces.attributes[name] for name in ("hair_length", "skin", "glasses", "eye_colour")}
    vae = VAE(Model(network="patch", widths=[8, 16], dropout=0.0), 64, 120, linear=True).eval()
    vae.linear.load_state_dict(linear_vae_weights(faces.axes(), 0.1, 120))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(realism, "EPOCHS", 6)
        fitted = fitting.fit_dials(vae, faces)
        spaces = realism.spaces(faces)
    return vae, faces, fitted, spaces


@pytest.fixture(scope="module")
def card(world):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edits, "MAX_FACES", 60)
        patch.setattr(edits, "LEVELS", edits.SOME)
        patch.setattr(directions, "angles", functools.partial(directions.angles, resamples=5))
        return edits.score_edits(*world)


def test_the_scorecard_shows_the_planted_confound_and_the_default_direction_removes_it(card, world):
    hair = card["confounds"]["hair_length"]
    assert hair["correlation"] == pytest.approx(0.4, abs=0.15)
    assert hair["cosine"]["orthogonal"] == pytest.approx(0, abs=1e-5)
    of = card["attributes"]["smile"]["directions"]
    drift = {name: abs(scores["drift"][1]["hair_length"]) for name, scores in of.items()}
    for name in ("transport", "unmixed"):
        assert drift[name] < 0.45 * min(drift["mean_difference"], drift[edits.PLAIN])
    assert world[2].dials.edits["smile"].best == "transport"
    assert "is hair_length: unmixed" in edits_text.format_card(card)


def test_changes_of_another_attribute_in_both_senses_do_not_cancel():
    assert judges._drift(torch.tensor([1.0, -1.0, 1.0, -1.0])) == 1
    assert judges._drift(torch.tensor([-0.3, -0.3])) == pytest.approx(-0.3)


def test_every_dial_is_at_rest_at_zero_and_has_the_attribute_at_one(card):
    of = card["attributes"]["smile"]["directions"]
    assert len({round(scores["classifier"][0]["mean"], 5) for scores in of.values()}) == 1
    for name in ("transport", "unmixed", "mean_difference", "lda"):
        at = dict(zip(of[name]["intensities"], of[name]["classifier"]))
        assert at[1.0]["called"] > 0.9 > 0.4 > at[0.0]["called"]
        assert 0.7 < at[1.0]["mean"] < 1.5  # another classifier, other people
        assert of[name]["identity"][0] == 0 < of[name]["identity"][1] < of[name]["identity"][2]
        assert 0 < of[name]["reversibility"] < 0.5
    assert set(card["angle_degrees"]) == set(of) - {edits.PLAIN, "unmixed", "transport"}
    assert card["composition"]["1"] > card["composition"]["10"] > 10


def test_every_attribute_has_a_dial_that_changes_it_and_not_the_others(card):
    assert set(card["attributes"]) >= {"smile", "hair_length", "skin"}
    for name in ("hair_length", "skin"):
        scores = card["attributes"][name]["directions"]["unmixed"]
        assert scores["classifier"][1]["mean"] - scores["classifier"][0]["mean"] > 0.6
        assert max(abs(value) for value in scores["drift"][1].values()) < 0.35


def test_an_attribute_that_reconstructions_do_not_show_has_no_dial(world):
    _, faces, fitted, _ = world
    small = VAE(Model(network="patch", widths=[8, 16], dropout=0.0), 64, 4, linear=True).eval()
    small.linear.load_state_dict(linear_vae_weights(faces.axes(), 0.1, 4))
    few = fitting.fit_dials(small, faces)
    assert "glasses" in fitted.dials.edits
    assert "of other people's reconstructions" in few.left_out["glasses"]
    assert {"smile", "skin"} <= few.dials.edits.keys()
    assert "glasses" not in few.labels


def bad_edits(vae, faces, rows):
    """Deliberately bad ways to make faces smile, as intensity -> images."""
    rest = decode(vae, encode(vae, faces, rows)[0]).clamp(0, 1)
    smiling = images(faces, faces.rows("train")[faces.smile[faces.rows("train")] == 1])
    other = smiling[: len(rows)]

    def sticker(level):
        x = rest.clone()
        x[:, :, 46:54, 20:44] = x[:, :, 46:54, 20:44] * (1 - min(level, 1)) + min(level, 1)
        return x

    blend = 0.5 * rest + 0.5 * smiling.mean(0)
    return {
        "nothing": lambda level: rest,
        "sticker": sticker,
        "blend": lambda level: torch.lerp(rest, blend, min(level, 1.0)),
        "swap": lambda level: other if level else rest,
    }


@pytest.mark.parametrize(
    ("kind", "fault"),
    [("nothing", "does nothing"), ("sticker", "not real"), ("blend", "blurred"), ("swap", "another person")],
)
def test_a_deliberately_bad_edit_is_named(world, kind, fault):
    vae, faces, fitted, spaces = world
    val = faces.rows("val")
    rows = val[faces.smile[val] == 0][:60]
    court = judges.Judges(vae, faces, "smile", rows, fitted, spaces)
    scores = court.score(bad_edits(vae, faces, rows)[kind], (0.0, 1.0))
    assert fault in edits.verdict(scores, court.references, court.person["other"] / court.person["same"])


def test_a_good_edit_is_not_called_bad(card):
    assert card["attributes"]["smile"]["directions"]["mean_difference"]["verdict"] == "holds"


def test_unmixing_inverts_what_directions_do_to_each_other():
    plain = torch.randn(3, 20)
    effects = torch.eye(3) + 0.3 * torch.randn(3, 3)
    combined = torch.stack(directions.unmixed(list(plain), effects))
    weights = torch.linalg.lstsq(plain.T, combined.T).solution.T  # of each plain direction in each combination
    torch.testing.assert_close(weights @ effects, torch.eye(3), atol=1e-4, rtol=0)


def test_shapes_do_not_depend_on_where_the_face_is_how_large_and_how_turned():
    points = np.random.default_rng(0).random((5, 468, 2))
    turn = 3 * np.exp(0.4j)
    moved = (points[..., 0] + 1j * points[..., 1]) * turn + (2 - 1j)
    np.testing.assert_allclose(upright(np.stack([moved.real, moved.imag], -1)), upright(points), atol=1e-9)


def test_geometry_reads_a_planted_shape_of_people_outside_its_training():
    rng = np.random.default_rng(0)
    base, wide = rng.random((468, 2)), np.zeros((468, 2))
    wide[60:90] = [0.05, 0]
    label = np.arange(300) % 2
    points = base + 0.01 * rng.standard_normal((300, 468, 2)) + label[:, None, None] * wide
    people = [str(k // 2) for k in range(300)]
    reader = GeometryReader(points[:200], {"wide": label[:200].astype(float)}, people[:200])
    scores = reader.read(points[200:])["wide"].numpy()
    assert reader.accuracy["wide"] > 0.95
    assert ((scores > reader.threshold["wide"]) == label[200:]).mean() > 0.95
    assert [scores[label[200:] == v].mean() for v in (0, 1)] == pytest.approx([0, 1], abs=0.2)


def test_landmarks_of_people_who_cannot_test_them_read_nothing():
    """One person, or one class: no accuracy on other people, and no numbers that are not."""
    rng = np.random.default_rng(0)
    points, label = rng.random((40, 468, 2)), np.arange(40) % 2.0
    one_person, one_class = ["A"] * 40, np.ones(40)
    reader = GeometryReader(points, {"a": label, "b": one_class}, one_person)
    assert (reader.accuracy, reader.threshold, reader.read(points)) == ({}, {}, {})
    reader = GeometryReader(points, {"a": label, "b": one_class}, [str(k) for k in range(40)])
    assert set(reader.accuracy) == set(reader.read(points)) == {"a"}


def test_one_held_out_person_or_a_handful_of_faces_have_no_scores(world):
    _, faces, fitted, _ = world
    val = faces.rows("val")
    assert edits.obstacle(faces, fitted, "smile") is None
    people = [("A" if faces.part[row] == "val" else name) for row, name in enumerate(faces.people)]
    assert "two held-out people" in edits.obstacle(dataclasses.replace(faces, people=people), fitted, "smile")
    smile = faces.smile.copy()
    smile[val[smile[val] == 0][edits.MIN_EDITED - 1 :]] = 1
    assert "4 held-out faces" in edits.obstacle(dataclasses.replace(faces, smile=smile), fitted, "smile")
    untested = copy.copy(fitted.scoring)
    untested.accuracy = {"smile": float("nan")}
    assert edits.obstacle(faces, dataclasses.replace(fitted, scoring=untested), "smile") == fitting.UNTESTED


def test_a_copy_of_a_file_is_no_second_photo_of_a_person(world):
    """Twenty held-out people, each with the same photo twice: two photos of one person are not known."""
    _, faces, _, spaces = world
    pictures = np.array(faces.images)
    people, val = list(faces.people), faces.rows("val")[:40]
    for first, second in val.reshape(-1, 2):
        pictures[second] = pictures[first]
        people[second] = people[first]
    copied = dataclasses.replace(faces, images=pictures, people=people)
    found = judges._persons(copied, val, spaces)
    assert found["pairs"] == 0
    assert found["same"] == found["other"] / 2 > 0


def test_real_faces_are_matched_to_the_edited_ones():
    faces = load_faces(Data(source="synthetic", num_smiling=300, num_not_smiling=300, num_test=0, confound=0.6), 64)
    hair, rows = faces.labels("hair_length"), np.arange(600)
    smiling, calm = rows[faces.smile == 1], rows[faces.smile == 0]
    assert hair[smiling].mean() > hair[calm].mean() + 0.3
    chosen = judges.matched(faces, smiling, calm, ["hair_length"])
    assert hair[chosen].mean() == pytest.approx(hair[calm].mean(), abs=0.03)
    assert len(chosen) >= 20
    assert (judges.matched(faces, smiling, calm, []) == smiling).all()


@pytest.mark.parametrize(
    ("attribute", "problem"),
    [("hat", "attribute=hat is unknown; choose one of smile, hair_length"), ("rare", "have it and")],
)
def test_an_attribute_that_cannot_be_edited_is_one_sentence(world, attribute, problem):
    vae, faces, *_ = world
    rare = np.zeros(len(faces.smile), np.float32)
    rare[faces.rows("train")[:15]] = 1
    faces.attributes["rare"] = rare
    try:
        with pytest.raises(ConfigError, match=problem):
            fitting.fit_dials(vae, faces, attribute)
    finally:
        del faces.attributes["rare"]


def test_without_smile_labels_another_attribute_is_the_main_one(world):
    vae, faces, *_ = world
    rare = np.full(len(faces.smile), np.nan, np.float32)
    rare[faces.rows("val")] = 1
    names = {"rare": rare, "hair_length": faces.attributes["hair_length"]}
    bare = dataclasses.replace(faces, smile=np.full_like(faces.smile, -1), attributes=names)
    fitted = fitting.fit_dials(vae, bare)
    assert (fitted.dials.attribute, set(fitted.dials.edits)) == ("hair_length", {"hair_length"})
    assert "0 training faces have it" in fitted.left_out["rare"]
    assert fitting.fit_dials(vae, dataclasses.replace(bare, attributes={"rare": rare})) is None


def test_the_page_opens_from_disk_and_shows_every_direction(world, card):
    vae, faces, fitted, _ = world
    card["attributes"]["smile"]["directions"]["lda"]["drift"][1]["<b>$x$ $"] = 0.1  # a user's name
    for scores in card["attributes"]["smile"]["directions"].values():
        scores["drift"][1].setdefault("<b>$x$ $", 0.0)
    metrics = {"edits": card, "part": "val", "epoch": 3}
    page = edits_page.page(vae, faces, fitted.dials, metrics)
    for word in ("unmixed", "mean_difference", "hair_length", "<svg", "prefers-color-scheme: dark", "data:image/jpeg"):
        assert word in page
    assert "<b>" not in page
    outside = page[: page.index("<svg")] + page[page.index("</svg>") :]
    assert "://" not in outside  # nothing is loaded from elsewhere


def test_the_readers_disagreement_is_said():
    def scores(classifier, geometry):
        return {
            "intensities": [0, 1.0],
            "classifier": [{}, {"called": classifier}],
            "geometry": [{}, {"called": geometry}],
        }

    reference = {"their reconstructions": {"classifier": {"called": 0.95}, "geometry": {"called": 0.9}}}
    assert "geometry 61%" in edits.disagreement(scores(0.95, 0.55), reference, 100)
    assert edits.disagreement(scores(0.95, 0.88), reference, 100) is None
    assert edits.disagreement(scores(0.95, 0.55), {}, 100) is None


def test_blur_of_images_is_seen_as_lost_edges():
    x = torch.rand(4, 3, 64, 64)
    assert (judges._edges(F.avg_pool2d(x, 3, 1, 1)) / judges._edges(x)).mean() < edits.BLURRED
