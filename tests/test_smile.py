import dataclasses
import json

import numpy as np
import pytest
import torch

from smilevae.config import Data, Model
from smilevae.data import batches, load_faces, sources
from smilevae.editing import dial as dial_module
from smilevae.editing import directions, fitting
from smilevae.editing.classifier import (
    AttributeClassifier,
    blur,
    features,
    import_classifier,
    independence,
    meter_from,
    validated,
)
from smilevae.errors import ConfigError, DataError
from smilevae.evaluation import edits_text
from smilevae.models.axes import linear_vae_weights
from smilevae.models.vae import VAE


def planted(num=4000, dims=6, share=0.6, noise=1.0):
    """Codes that a smile moves along axis 0 and another attribute along axis 1; `share` of smilers have it, 1 - share
    of the others."""
    rng = np.random.default_rng(0)
    label = rng.integers(0, 2, num)
    other = (rng.random(num) < np.where(label == 1, share, 1 - share)).astype(np.float32)
    mu = rng.normal(size=(num, dims)) * noise
    mu[:, 0] += 2 * label
    mu[:, 1] += 3 * other
    return torch.from_numpy(mu).float(), torch.from_numpy(label), torch.from_numpy(other)


def test_balancing_recovers_what_the_mean_difference_mixes():
    mu, label, other = planted(share=0.8)
    naive, fair = directions.mean_difference(mu, label), directions.balanced(mu, label, other[:, None])
    assert naive[1] == pytest.approx(3 * 0.6, abs=0.15)
    assert fair[:2].tolist() == pytest.approx([2, 0], abs=0.15)
    continuous = torch.stack([other + 0.0, torch.randn(len(mu))], 1)
    assert directions.balanced(mu, label, continuous)[:2].tolist() == pytest.approx([2, 0], abs=0.15)


def test_balancing_one_label_is_the_weighted_mean_of_the_differences_within_its_groups():
    mu, label, other = planted(share=0.7)
    weights, within = [], []
    for value in (0, 1):
        rows = other == value
        weights.append(float(rows.sum() * label[rows].float().var(correction=0)))
        within.append(directions.mean_difference(mu[rows], label[rows]))
    expected = sum(w * d for w, d in zip(weights, within)) / sum(weights)
    torch.testing.assert_close(directions.balanced(mu, label, other[:, None]), expected, atol=1e-4, rtol=1e-4)


def test_lda_whitens_by_the_covariance_within_the_classes():
    mu, label, _ = planted(share=0.5)
    scale = torch.tensor([1, 5, 1, 1, 1, 1.0])
    mu = mu * scale
    mu[:, 0] += 0.3 * mu[:, 1]
    found = directions.lda(mu, label)
    within = torch.cat([mu[label == v] - mu[label == v].mean(0) for v in (0, 1)]).double()
    exact = torch.linalg.solve(within.T @ within / len(within), directions.mean_difference(mu, label).double())
    assert directions.cosine(found.double(), exact) > 0.999
    assert (
        directions.cosine(directions.linear(mu, label).double(), exact) > 0.99
    )  # logistic regression agrees on Gaussians


def test_transport_gives_one_class_the_mean_and_covariance_of_the_other(monkeypatch):
    """The map between two Gaussians with these moments and a symmetric, positive matrix is optimal (Brenier 1991)."""
    monkeypatch.setattr(directions, "SHARED", 0.0)
    generator = torch.Generator().manual_seed(0)
    lacks, has = (torch.randn(20_000, 4, generator=generator) @ torch.randn(4, 4, generator=generator) for _ in "01")
    mu, label = torch.cat([lacks, has + 2]), torch.arange(2).repeat_interleave(20_000)
    matrix = directions.transport(mu, label)
    moved = lacks + directions.mean_difference(mu, label) + lacks @ matrix[:-1] + matrix[-1]
    torch.testing.assert_close(moved.mean(0), mu[label == 1].mean(0), atol=1e-3, rtol=0)
    torch.testing.assert_close(moved.T.cov(), has.T.cov(), atol=0.02, rtol=0.02)
    torch.testing.assert_close(matrix[:-1], matrix[:-1].T, atol=1e-4, rtol=0)
    assert torch.linalg.eigvalsh(matrix[:-1] + torch.eye(4)).min() > 0
    monkeypatch.setattr(directions, "SHARED", 1.0)  # equal covariances: every face has the mean difference
    torch.testing.assert_close(directions.transport(mu, label), torch.zeros(5, 4), atol=1e-4, rtol=0)


def test_projecting_out_leaves_nothing_of_the_others():
    direction, others = torch.randn(8), torch.randn(3, 8)
    found = directions.orthogonal(direction, others)
    torch.testing.assert_close(others @ found, torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close((direction - found) @ found, torch.tensor(0.0), atol=1e-5, rtol=0)


def test_pairs_compare_people_with_themselves():
    people = [f"p{i // 2}" for i in range(400)]
    label = torch.tensor([0, 1] * 200)
    own = torch.randn(200, 5).repeat_interleave(2, 0) * 10
    mu = own + label[:, None] * torch.tensor([1.0, 0, 0, 0, 0])
    torch.testing.assert_close(directions.paired(mu, label, people), torch.tensor([1.0, 0, 0, 0, 0]), atol=1e-5, rtol=0)
    assert directions.paired(mu, label, [str(i) for i in range(400)]) is None


def test_directions_are_equally_long_and_only_those_the_labels_allow():
    mu, label, other = planted()
    label[:50] = -1
    found = directions.directions(
        mu, label, {"hat": other, "coin": torch.randn(len(mu))}, [str(i) for i in range(len(mu))]
    )
    assert set(found) == {"mean_difference", "balanced", "orthogonal", "lda", "linear"}
    assert len({round(float(d.norm()), 4) for d in found.values()}) == 1
    assert set(directions.directions(mu, label, {"coin": torch.randn(len(mu))})) == {"mean_difference", "lda", "linear"}
    other[:100] = torch.nan
    assert "balanced" in directions.directions(mu, label, {"hat": other})
    with pytest.raises(ValueError, match="with and without the attribute"):
        directions.directions(mu, torch.zeros(len(mu)), {})


def test_the_angle_of_a_direction_is_surer_with_more_people():
    mu, label, other = planted(num=1200, dims=20)
    people = [str(i // 2) for i in range(len(mu))]
    few = directions.angles(mu[:200], label[:200], {"hat": other[:200]}, people[:200], 20)
    many = directions.angles(mu, label, {"hat": other}, people, 20)
    assert all(0 < many[name] < few[name] < 90 for name in ("mean_difference", "balanced"))


def dial(**more):
    direction = torch.tensor([2.0, 0, 0])
    return dial_module.Dial("d", direction, torch.tensor([0.5, 0.1, 0]), 0.2, 1.0, **more)


def test_zero_is_the_face_as_it_is_and_one_is_an_average_smile_on_every_face():
    mu = torch.randn(50, 3) * 0.5
    turned = dial().turn(mu, torch.tensor([-1.0, 0, 1, 2]))
    assert torch.equal(turned[:, 1], mu)
    estimate = turned @ torch.tensor([0.5, 0.1, 0]) + 0.2
    assert (estimate.diff(dim=1) > 0).all()
    below = estimate[:, 1] < 0.75  # nearer faces still move by `least`
    torch.testing.assert_close(estimate[below][:, 2], torch.ones(int(below.sum())))
    torch.testing.assert_close(turned[:, 3] - mu, 2 * (turned[:, 2] - mu))


def test_a_dial_with_a_matrix_moves_each_face_along_its_own_direction_and_survives_json():
    mu, matrix = torch.randn(20, 3) * 0.5, 0.2 * torch.randn(4, 3)
    some = dial(matrix=matrix)
    turned = dial_module.dial_from(json.loads(json.dumps(some.plain())), 3).turn(mu, torch.tensor([0.0, 1, 2]))
    own = turned[:, 1] - mu
    expected = some.direction + mu @ matrix[:3] + matrix[3]
    torch.testing.assert_close(own / own.norm(dim=1, keepdim=True), expected / expected.norm(dim=1, keepdim=True))
    assert torch.equal(turned[:, 0], mu)
    torch.testing.assert_close(turned[:, 2] - mu, 2 * own)
    for damaged in (torch.zeros(3, 3), torch.full((4, 3), torch.nan)):
        with pytest.raises(ValueError, match="not a dial of 3 dimensions"):
            dial_module.dial_from(dial(matrix=damaged).plain(), 3)


def test_measuring_corrects_what_the_estimate_from_a_code_gets_wrong():
    mu = torch.randn(50, 3) * 0.5

    def read(codes):  # neither linear nor what the weights say
        return torch.tanh(0.4 * codes[:, 0] + 0.3 * codes[:, 2])

    at_one = read(dial(gain=0.6).turn(mu, torch.tensor([1.0]))[:, 0]).std()
    some = dial(gain=0.6)
    some.target = 0.6
    measured = read(some.turn(mu, torch.tensor([1.0]), read)[:, 0])
    short = read(mu) < 0.3
    assert measured[short].std() < 0.2 * at_one
    assert measured[short].mean() == pytest.approx(0.6, abs=0.03)


def test_calibration_finds_the_gain_and_where_the_smile_stops_to_follow():
    mu = torch.randn(200, 3) * 0.1
    weights = dial().weights

    def half(codes):
        return 0.5 * (codes @ weights) + 0.2

    found = dial_module.calibrate(dial(), mu, lambda codes: (half(codes), torch.zeros(len(codes))))
    assert found.gain == pytest.approx(2, rel=0.05)
    assert (found.low, found.high) == (-4, 4)

    def stops(codes):
        return (codes @ weights + 0.2).clamp(-0.6, 1.7)

    found = dial_module.calibrate(dial(), mu, lambda codes: (stops(codes), torch.zeros(len(codes))))
    assert found.gain == pytest.approx(1, rel=0.05)
    assert -1.5 <= found.low <= -0.5
    assert 1.5 <= found.high <= 2.5

    def breaks(codes):  # 5% of a picture's values are clipped from a measured smile of 2.6 on
        smiles = codes @ weights + 0.2
        return smiles, 0.05 * (smiles > 2.6)

    found = dial_module.calibrate(dial(), mu, breaks)
    assert 2 <= found.high <= 3
    assert found.low == -4


def test_the_estimate_from_codes_is_what_was_measured():
    mu = torch.randn(300, 4)
    truth = torch.tensor([0.5, -0.2, 0, 1.0])
    weights, bias = dial_module.fit_estimate(mu, mu @ truth + 0.7)
    torch.testing.assert_close(weights, truth, atol=0.01, rtol=0.01)
    assert bias == pytest.approx(0.7, abs=0.01)


@pytest.fixture(scope="module")
def drawn():
    return load_faces(Data(source="synthetic", num_smiling=150, num_not_smiling=150, num_test=0), 64)


def pictures(faces, part):
    return batches.to_unit(torch.from_numpy(faces.images[faces.rows(part)])).contiguous()


def test_the_classifier_measures_people_outside_its_training_data_sharp_and_blurred(drawn):
    train, val = drawn.rows("train"), drawn.rows("val")
    glasses = (drawn.attributes["glasses"] > 0).astype(float)
    glasses[train[:20]] = np.nan
    attributes = {"smile": drawn.smile.astype(float), "glasses": glasses, "face_width": drawn.attributes["face_width"]}
    classifier = AttributeClassifier(
        pictures(drawn, "train"), {n: v[train] for n, v in attributes.items()}, [drawn.people[r] for r in train]
    )
    x = pictures(drawn, "val")
    for name in attributes:  # the stored model measures as the classifier does
        torch.testing.assert_close(classifier.meter(name)(x), classifier(x)[name], atol=1e-3, rtol=1e-3)
    kept = json.loads(json.dumps(classifier.meter("smile").plain()))
    torch.testing.assert_close(meter_from(kept)(x), classifier(x)["smile"], atol=1e-3, rtol=1e-3)
    for seen in (x, blur(x)):
        scores = classifier(seen)
        for name in ("smile", "glasses"):
            right = (scores[name].numpy() > classifier.threshold[name]) == (attributes[name][val] == 1)
            assert right.mean() > (0.85 if name == "smile" else 0.75), name
        assert scores["smile"][drawn.smile[val] == 1].mean() == pytest.approx(1, abs=0.35)
        assert scores["smile"][drawn.smile[val] == 0].mean() == pytest.approx(0, abs=0.35)
        assert np.corrcoef(scores["face_width"], attributes["face_width"][val])[0, 1] > 0.7
    assert classifier.accuracy["smile"] > 0.85
    assert "face_width" not in classifier.threshold
    close = torch.cdist(classifier.embed(blur(x, 1.0)), classifier.embed(x)).argmin(1)
    assert (close == torch.arange(len(x))).float().mean() > 0.9


def test_weights_make_two_attributes_independent_and_leave_others_alone():
    rng = np.random.default_rng(0)
    a = rng.integers(0, 2, 4000).astype(float)
    b = (rng.random(4000) < np.where(a == 1, 0.8, 0.3)).astype(float)
    c = rng.integers(0, 2, 4000).astype(float)
    b[:100] = np.nan
    weights = independence("b", {"a": a, "b": b, "c": c, "age": rng.random(4000)})
    known = np.isfinite(b)
    assert abs(np.cov(a[known], b[known], aweights=weights[known])[0, 1]) < 1e-9
    assert abs(np.corrcoef(a[known], b[known])[0, 1]) > 0.4
    assert np.average(b[known], weights=weights[known]) == pytest.approx(b[known].mean())
    assert (weights[:100] == 1).all()
    assert (independence("c", {"a": a, "c": c}) == 1).all()


def test_a_classifier_of_the_user_is_imported_by_its_name():
    assert import_classifier("smilevae.editing.classifier:AttributeClassifier") is AttributeClassifier
    for name in ("no.such:one", "smilevae.editing.classifier:nobody", "smilevae.editing.classifier:SIDE", "::", ""):
        with pytest.raises(ConfigError, match="classifier="):
            import_classifier(name)


def test_without_other_attributes_the_card_says_so():
    assert "attributes=CSV adds" in edits_text.confound_sentence({})


def test_a_card_without_a_confounder_says_how_many_attributes_were_tested(drawn):
    others = {name for name in drawn.attributes if name != "smile"}
    assert len(others) == 18
    weak = {name: {"correlation": -0.09 if name == "glasses" else 0.01} for name in others}
    sentence = edits_text.confound_sentence(weak)
    assert "18 known attributes" in sentence
    assert "glasses -0.09" in sentence


@pytest.mark.parametrize(("smiling", "enough"), [(0, True), (-1, False)])
def test_the_scorecard_needs_the_labelled_faces_that_its_constant_says(drawn, smiling, enough):
    """MIN_LABELLED smiling and other training faces in each half of the people, and not one fewer."""
    train = drawn.rows("train")
    smile = np.full(len(drawn.smile), -1, dtype=np.int8)
    people = list(drawn.people)
    for side in (0, 1):
        for label in (0, 1):
            num = fitting.MIN_LABELLED + (smiling if label and side == 0 else 0)
            for row in train[drawn.smile[train] == label][side::2][:num]:
                smile[row] = label
                people[row] = f"person {side}"
    smile[drawn.rows("val")] = 0
    short = fitting.shortage(dataclasses.replace(drawn, smile=smile, people=people), "smile")
    assert (short is None) == enough
    assert enough or "39 training faces have it and 40 do not; 40 of each are needed" in short


class Fitting(Exception):
    """In place of the training of a classifier."""


@pytest.mark.parametrize("most", [fitting.MAX_TRAIN, 210])
def test_the_shortage_is_that_of_the_halves_that_are_fitted(drawn, monkeypatch, most):
    """Eight people with one label each, ten without; more faces than are fitted to."""
    vae = VAE(Model(network="patch", widths=[8, 16], dropout=0.0), 64, 4, linear=True).eval()
    vae.linear.load_state_dict(linear_vae_weights(drawn.axes(), 0.1, 4))
    counts = []

    def counted(faces, rows, labels, side, make):
        smile = labels["smile"].numpy()
        counts.extend((smile[half] == label).sum() for half in (side, ~side) for label in (0, 1))
        raise Fitting

    monkeypatch.setattr(fitting, "classifier_of", counted)
    monkeypatch.setattr(fitting, "typical_points", lambda *_: None)
    monkeypatch.setattr(fitting, "MAX_TRAIN", most)
    outcomes = []
    train = drawn.rows("train")
    for seed in range(24):
        rng = np.random.default_rng(seed)
        smile, people = drawn.smile.copy(), list(drawn.people)
        names = rng.permutation(18)
        for number, row in enumerate(train):
            labelled = number % 9 < 5
            smile[row] = smile[row] if labelled else -1
            people[row] = f"P{names[number % 4 + 4 * smile[row] if labelled else 8 + number % 10]:02}"
        faces = dataclasses.replace(drawn, smile=smile, people=people)
        counts.clear()
        enough = fitting.shortage(faces, "smile") is None
        try:
            fitting.fit_dials(vae, faces)
        except Fitting:
            assert min(counts) >= fitting.MIN_LABELLED
        assert enough == bool(counts)
        outcomes.append(enough)
    assert {True, False} == set(outcomes)


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
    rng = np.random.default_rng(0)
    codes, values = rng.standard_normal((40, 3)), np.arange(40) % 2.0
    weights = np.ones(40)
    one, two = np.zeros(40, int), np.arange(40) % 2
    for folds, some in ((one, codes), (two, codes), (np.arange(40) // 2 % 5, codes.repeat(2, 0)[:40])):
        accuracy, low, high = validated(some, values, folds, True, weights)
        assert np.isnan(accuracy)
        assert (low, high) == (0, 1)
    assert fitting._unreadable({"smile": torch.from_numpy(values)}, {"smile": float("nan")}, "") == {
        "smile": fitting.UNTESTED
    }


def test_a_plain_dial_has_the_class_means_at_zero_and_one():
    mu, label, _ = planted()
    dial = dial_module.plain_dial(mu, label)
    reading = mu @ dial.weights + dial.bias
    assert [float(reading[label == v].mean()) for v in (0, 1)] == pytest.approx([0, 1], abs=1e-4)


def test_features_are_of_the_face_and_not_of_its_size_and_blur_keeps_the_mean():
    x = torch.rand(2, 3, 64, 64)
    assert features(x).shape == features(torch.rand(2, 3, 128, 128)).shape
    flat = torch.full((1, 3, 64, 64), 0.4)
    torch.testing.assert_close(blur(flat), flat)
    large = torch.nn.functional.interpolate(blur(x), (128, 128), mode="bilinear", align_corners=False)
    assert (features(large) - features(blur(x))).abs().mean() < 0.05


def test_attributes_come_from_a_table(pictures_csv):
    path, names = pictures_csv
    found = sources.read_attributes(path, names)
    assert set(found) == {"gender", "age"}
    assert found["gender"][:3].tolist() == [0.0, 1.0, 0.0]
    assert found["age"][0] == 31
    assert np.isnan(found["age"][1])
    assert np.isnan(found["gender"][3])


@pytest.fixture
def pictures_csv(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "file,identity,smile,gender,age,town\ntrain/smile/a.jpg,A,1,female,31,x\nb.jpg,B,1,male,,y\nc.jpg,C,0,female,40,z\n"
    )
    return path, ["train/smile/a.jpg", "smile/b.jpg", "c.jpg", "d.jpg"]


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
        sources.read_attributes(path, ["a.jpg"])
