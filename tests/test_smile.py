"""Directions, edits of codes and their calibration, the attribute classifier."""

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from smilevae.data import table
from smilevae.data.dataset import load_faces
from smilevae.data.sources import Synthetic
from smilevae.editing import calibration, directions, fitting
from smilevae.editing.attributes import Attribute, Edits, mean_difference, plain_attribute
from smilevae.editing.classifier import AttributeClassifier, blur, features, independence, validated
from smilevae.errors import ConfigError, DataError
from smilevae.models.architectures import Patch
from smilevae.models.axes import linear_vae_weights
from smilevae.models.vae import VAE


def test_the_mean_difference_is_the_difference_of_the_means():
    mu = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 5.0], [100.0, 100.0]])
    assert mean_difference(mu, torch.tensor([1, 1, 0, -1])).tolist() == [2.0, -5.0]
    with pytest.raises(ValueError, match="with and without the attribute"):
        mean_difference(mu, torch.tensor([1, 1, 1, -1]))


def test_transport_gives_one_class_the_mean_and_covariance_of_the_other(monkeypatch):
    """The map between two Gaussians with these moments and a symmetric, positive matrix is optimal (Brenier 1991)."""
    monkeypatch.setattr(directions, "SHARED", 0.0)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randn(2, 20_000, 4, generator=generator)
    lacks, has = samples @ torch.randn(2, 4, 4, generator=generator)
    mu = torch.cat([lacks, has + 2])
    label = torch.arange(2).repeat_interleave(20_000)
    matrix = directions.transport(mu, label)
    moved = lacks + mean_difference(mu, label) + lacks @ matrix[:-1] + matrix[-1]
    torch.testing.assert_close(moved.mean(0), mu[label == 1].mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved.T.cov(), has.T.cov(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(matrix[:-1], matrix[:-1].T, atol=1e-4, rtol=0)
    assert torch.linalg.eigvalsh(matrix[:-1] + torch.eye(4)).min() > 0
    # With equal covariances every face has the mean difference
    monkeypatch.setattr(directions, "SHARED", 1.0)
    assert directions.transport(mu, label).abs().max() < 1e-4


def attribute(**more):
    """One whose score is 0.5 along the first dimension, 0.1 along the second, and 0.2 at the origin."""
    known = {"weights": torch.tensor([0.5, 0.1, 0]), "bias": 0.2, "target": 1.0}
    return Attribute("smile", torch.empty(0), torch.tensor([2.0, 0, 0]), **known | more)


def test_zero_is_the_face_as_it_is_and_one_is_an_average_smile_on_every_face():
    mu = torch.randn(50, 3) * 0.5
    edited = attribute().edit(mu, torch.tensor([-1.0, 0, 1, 2]))
    assert torch.equal(edited[:, 1], mu)
    estimate = edited @ torch.tensor([0.5, 0.1, 0]) + 0.2
    assert (estimate.diff(dim=1) > 0).all()
    below = estimate[:, 1] < 0.75  # nearer faces still move by LEAST_STEP
    torch.testing.assert_close(estimate[below][:, 2], torch.ones(int(below.sum())))
    torch.testing.assert_close(edited[:, 3] - mu, 2 * (edited[:, 2] - mu))


def test_with_a_matrix_each_face_moves_along_its_own_direction():
    mu = torch.randn(20, 3) * 0.5
    matrix = 0.2 * torch.randn(4, 3)
    edited = attribute(matrix=matrix).edit(mu, torch.tensor([0.0, 1, 2]))
    assert torch.equal(edited[:, 0], mu)
    own = edited[:, 1] - mu
    expected = attribute().direction + mu @ matrix[:3] + matrix[3]
    torch.testing.assert_close(F.normalize(own), F.normalize(expected))
    torch.testing.assert_close(edited[:, 2] - mu, 2 * own)


def test_edits_of_several_attributes_add_up():
    mu = torch.randn(5, 3)
    third = torch.tensor([0, 0, 1.0])
    other = dataclasses.replace(attribute(), name="glasses", direction=third, weights=third)
    edits = Edits([attribute(), other], ())
    both = edits.mix(mu, {"smile": 1, "glasses": -0.5})
    each = edits.mix(mu, {"smile": 1}) + edits.mix(mu, {"glasses": -0.5}) - mu
    torch.testing.assert_close(both, each)
    assert edits.with_main("glasses").main is other
    problem = "attribute=hat cannot be edited; choose one of glasses, smile"
    with pytest.raises(ConfigError, match=problem):
        edits.mix(mu, {"hat": 1})


def test_calibration_finds_the_gain_and_where_the_smile_stops_to_follow():
    mu = torch.randn(200, 3) * 0.1

    def fitted(scores_of, clipped_of=torch.zeros_like):
        """The gain and the range where a smile is measured as something else than estimated."""

        def measure(level, gain=1.0):
            codes = attribute(gain=gain).edit(mu, torch.tensor([level]))
            smiles = codes @ attribute().weights + 0.2
            return float(scores_of(smiles).mean()), float(clipped_of(smiles).mean())

        gain = calibration.reaching(1.0, calibration.GAINS, lambda level: measure(level)[0])
        return gain, *calibration.fitted_range(lambda level: measure(level, gain))

    assert fitted(lambda smiles: 0.5 * (smiles - 0.2) + 0.2) == (pytest.approx(2, rel=0.05), -4, 4)
    gain, low, high = fitted(lambda smiles: smiles.clamp(-0.6, 1.7))
    assert gain == pytest.approx(1, rel=0.05)
    assert -1.5 <= low <= -0.5
    assert 1.5 <= high <= 2.5
    # 5% of the values are clipped from a measured smile of 2.6 on
    _, low, high = fitted(lambda smiles: smiles, lambda smiles: 0.05 * (smiles > 2.6))
    assert 2 <= high <= 3
    assert low == -4


def test_the_estimate_from_codes_is_what_was_measured():
    mu = torch.randn(300, 4)
    truth = torch.tensor([0.5, -0.2, 0, 1.0])
    weights, bias = calibration.fit_estimate(mu, mu @ truth + 0.7)
    torch.testing.assert_close(weights, truth, atol=0.01, rtol=0.01)
    assert bias == pytest.approx(0.7, abs=0.01)


@pytest.fixture(scope="module")
def drawn():
    some = {"num_smiling": 150, "num_not_smiling": 150, "num_test": 0}
    return load_faces(Synthetic(**some), 64)


def test_the_classifier_measures_people_outside_its_training_data_sharp_and_blurred(drawn):
    train = drawn.rows("train")
    val = drawn.rows("val")
    glasses = (drawn.attributes["glasses"] > 0).astype(float)
    glasses[train[:20]] = np.nan
    smile = drawn.smile.astype(float)
    known = {"smile": smile[train], "glasses": glasses[train]}
    people = [drawn.people[row] for row in train]
    classifier = AttributeClassifier(drawn.batch(train).contiguous(), known, people)
    x = drawn.batch(val).contiguous()
    for seen in (x, blur(x)):
        scores = classifier(seen)
        for name, truth, least in (("smile", smile, 0.85), ("glasses", glasses, 0.75)):
            has = scores[name].numpy() > classifier.threshold[name]
            assert (has == (truth[val] == 1)).mean() > least, name
        for label in (0, 1):
            assert scores["smile"][smile[val] == label].mean() == pytest.approx(label, abs=0.35)
    assert classifier.accuracy["smile"] > 0.85
    close = torch.cdist(classifier.embed(blur(x, 1.0)), classifier.embed(x)).argmin(1)
    assert (close == torch.arange(len(x))).float().mean() > 0.9


def test_weights_make_two_attributes_independent_and_leave_others_alone():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 4000).astype(float)
    b = (rng.random(4000) < np.where(a == 1, 0.8, 0.3)).astype(float)
    c = rng.integers(0, 2, 4000).astype(float)
    b[:100] = np.nan
    weights = independence("b", {"a": a, "b": b, "c": c})
    known = np.isfinite(b)
    assert abs(np.cov(a[known], b[known], aweights=weights[known])[0, 1]) < 1e-9
    assert abs(np.corrcoef(a[known], b[known])[0, 1]) > 0.4
    assert np.average(b[known], weights=weights[known]) == pytest.approx(b[known].mean())
    assert (weights[:100] == 1).all()
    assert (independence("c", {"a": a, "c": c}) == 1).all()


@pytest.mark.parametrize(("missing", "enough"), [(0, True), (1, False)])
def test_the_scorecard_needs_the_labelled_faces_that_its_constant_says(drawn, missing, enough):
    """MIN_LABELLED smiling and other training faces in each half of the people, and not one fewer."""
    train = drawn.rows("train")
    smile = np.full(len(drawn.smile), -1, dtype=np.int8)
    people = list(drawn.people)
    for side, label in ((0, 0), (0, 1), (1, 0), (1, 1)):
        num = fitting.MIN_LABELLED - (missing if (side, label) == (0, 1) else 0)
        for row in train[drawn.smile[train] == label][side::2][:num]:
            smile[row] = label
            people[row] = f"person {side}"
    smile[drawn.rows("val")] = 0
    short = fitting.shortage(dataclasses.replace(drawn, smile=smile, people=people), "smile")
    assert (short is None) == enough
    assert enough or "39 training faces have it and 40 do not; 40 of each are needed" in short


@pytest.mark.parametrize("most", [fitting.MAX_TRAIN, 210])
def test_the_shortage_is_that_of_the_halves_that_are_fitted(drawn, monkeypatch, most):
    """Eight people with one label each, ten without; more faces than are fitted to."""
    vae = VAE(Patch(widths=[8, 16]), 64, 4, linear=True).eval()
    vae.linear.load_state_dict(linear_vae_weights(drawn.axes(), 0.1, 4))
    counts = []

    def counted(faces, rows, attributes, side):
        smile = attributes[0].labels.numpy()
        sides = (side, ~side)
        counts.extend((smile[half] == label).sum() for half in sides for label in (0, 1))
        raise InterruptedError  # in place of the training of a classifier

    monkeypatch.setattr(fitting, "training_data", counted)
    monkeypatch.setattr(fitting, "typical_points", lambda *_: None)
    monkeypatch.setattr(fitting, "MAX_TRAIN", most)
    outcomes = set()
    for seed in range(24):
        names = np.random.default_rng(seed).permutation(18)
        smile = drawn.smile.copy()
        people = list(drawn.people)
        for number, row in enumerate(drawn.rows("train")):
            person = number % 4 + 4 * smile[row]
            if number % 9 >= 5:
                smile[row] = -1
                person = 8 + number % 10
            people[row] = f"P{names[person]:02}"
        faces = dataclasses.replace(drawn, smile=smile, people=people)
        counts.clear()
        enough = fitting.shortage(faces, "smile") is None
        try:
            fitting.fit_edits(vae, faces)
        except InterruptedError:
            assert min(counts) >= fitting.MIN_LABELLED
        assert enough == bool(counts)
        outcomes.add(enough)
    assert outcomes == {True, False}


def test_of_many_faces_a_rare_class_is_among_those_fitted_to():
    labels = np.array([0] * 50 + [1, -1] + [0] * 50)
    rows = np.random.default_rng(0).permutation(len(labels))
    for num in (5, 80, 200):
        some = directions.some_of_both(rows, labels, num)
        assert (labels[some] == 1).sum() == 1
        assert (some[:num] == rows[:num]).all()
        assert len(some) <= num + 1


def test_a_classifier_that_no_other_people_can_test_has_an_unknown_accuracy():
    """One person; two people of one class each; equal images in both classes."""
    codes = np.random.default_rng(0).standard_normal((40, 3))
    face = np.arange(40)
    values = face % 2.0
    twins = codes.repeat(2, 0)[:40]
    for folds, some in ((0 * face, codes), (face % 2, codes), (face // 2 % 5, twins)):
        accuracy, low, high = validated(some, values, folds, np.ones(40))
        assert np.isnan(accuracy)
        assert (low, high) == (0, 1)
    one = Attribute("smile", torch.from_numpy(values), torch.zeros(3))
    left_out = fitting.unrecognised([one], {"smile": float("nan")}, "")
    assert left_out == {"smile": fitting.UNTESTED}


def test_a_plain_edit_has_the_class_means_at_zero_and_one():
    labels = torch.arange(1000) % 2
    mu = torch.randn(1000, 6) + 2 * labels[:, None]
    plain = plain_attribute("smile", mu, labels)
    score = mu @ plain.weights + plain.bias
    assert [float(score[labels == v].mean()) for v in (0, 1)] == pytest.approx([0, 1], abs=1e-4)


def test_features_are_of_the_face_and_not_of_its_size_and_blur_keeps_the_mean():
    flat = torch.full((1, 3, 64, 64), 0.4)
    torch.testing.assert_close(blur(flat), flat)
    x = blur(torch.rand(2, 3, 64, 64))
    large = F.interpolate(x, (128, 128), mode="bilinear", align_corners=False)
    assert (features(large) - features(x)).abs().mean() < 0.05


def test_attributes_come_from_a_table(tmp_path):
    path = tmp_path / "a.csv"
    rows = ["train/smile/a.jpg,A,1,female,31,x", "b.jpg,B,1,male,,y", "c.jpg,C,0,female,40,z"]
    path.write_text("\n".join(["file,identity,smile,gender,age,town", *rows, ""]))
    names = ["train/smile/a.jpg", "smile/b.jpg", "c.jpg", "d.jpg"]
    found = table.read_attributes(path, names)
    assert set(found) == {"gender", "age"}
    assert np.array_equal(found["gender"], [0, 1, 0, np.nan], equal_nan=True)
    assert found["age"][0] == 31
    assert np.isnan(found["age"][1])


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "No such file"),
        ("file,gender\nx.jpg,male\n", "names none of the 1 images"),
        ("a,b\n1,2\n", "names none"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(tmp_path, text, problem):
    path = tmp_path / "t.csv"
    if text:
        path.write_text(text)
    with pytest.raises(DataError, match=problem):
        table.read_attributes(path, ["a.jpg"])
