"""Do faces look real? The scores against independent oracles, and bad generators that each must be caught."""

import dataclasses
import functools
import sys

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from torchmetrics.image.kid import poly_mmd

from smilevae.config import Settings
from smilevae.data.dataset import load_faces
from smilevae.editing import mesh
from smilevae.editing.classifier import blur
from smilevae.errors import DataError
from smilevae.evaluation import realism


def test_the_distance_is_the_kernel_distance_and_its_interval_holds():
    """Against torchmetrics, but for pairs of one position; the interval holds 0 about 19 times in 20."""
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(60, 16, generator=generator), torch.randn(80, 16, generator=generator) + 0.5
    paired = (((a * b[:60]).sum(1).double() / 16 + 1) ** 3).mean()
    between = (((a.double() @ b[:60].double().T) / 16 + 1) ** 3).mean()
    mmd = poly_mmd(a.double(), b[:60].double(), degree=3, gamma=None, coef=1.0)
    expected = mmd + 2 * (paired - between) / 59
    assert realism.kernel_distance(a, b[:60]).value == pytest.approx(float(expected), rel=1e-4)
    generator = torch.Generator().manual_seed(0)
    pairs = [torch.randn(2, 100, 16, generator=generator) for _ in range(60)]
    values, errors = np.array([realism.kernel_distance(*pair) for pair in pairs]).T
    assert 50 <= (abs(values) <= errors).sum() <= 60
    assert abs(values.mean()) < 0.5 * values.std()  # unbiased
    apart = realism.kernel_distance(a, b)
    assert apart.value > apart.error


def test_the_distance_of_faces_to_their_own_reconstructions_is_unbiased():
    """Pairs that depend on each other, of one distribution: the mean distance is 0."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(60):
        common, a, b = torch.randn(3, 60, 16, generator=generator)
        found.append(realism.kernel_distance(common + 0.2 * a, common + 0.2 * b).value)
    assert abs(np.mean(found)) < 3 * np.std(found) / 60**0.5


def test_precision_recall_density_and_coverage_agree_with_their_definitions():
    rng = np.random.default_rng(0)
    real, fake = rng.standard_normal((40, 3)), 0.7 * rng.standard_normal((50, 3)) + 0.5

    def ball(points):
        return [sorted(np.linalg.norm(points - p, axis=1))[realism.NEIGHBOURS] for p in points]

    between = np.linalg.norm(real[:, None] - fake, axis=2)
    inside = between < np.array(ball(real))[:, None]
    expected = {
        "precision": inside.any(0).mean(),
        "recall": (between < ball(fake)).any(1).mean(),
        "density": inside.sum(0).mean() / realism.NEIGHBOURS,
        "coverage": inside.any(1).mean(),
    }
    assert realism.prdc(torch.from_numpy(real), torch.from_numpy(fake)) == pytest.approx(expected)


def test_copies_are_a_rank_test():
    seen, unseen, fake = torch.randn(30, 4), torch.randn(40, 4), torch.randn(50, 4) * 0.8
    new, real = (torch.cdist(x, seen).min(1).values.numpy() for x in (fake, unseen))
    share = mannwhitneyu(real, new).statistic / (40 * 50)
    assert realism.copies(seen, unseen, fake) == pytest.approx(share)
    assert realism.copies(seen, unseen, seen) == 1
    assert realism.copies(seen, unseen, unseen) == 0.5


@functools.cache
def drawn():
    """Drawn faces with their space: training faces, held-out ones, and as many of other people."""
    data = {"data.num_smiling": 250, "data.num_not_smiling": 250}
    data |= {"data.val_fraction": 0.3, "data.num_test": 150}
    settings = Settings().with_values(data | {"image_size": 64})
    faces = load_faces(settings.data, 64)
    parts = {part: faces.batch(faces.rows(part)) for part in ("train", "val", "test")}
    return faces, realism.feature_space(faces), parts


def test_looks_from_the_cache_are_in_the_order_of_the_rows():
    data = {"data.num_smiling": 9, "data.num_not_smiling": 9, "data.num_test": 0}
    faces = load_faces(Settings().with_values(data).data, 64)
    rows = np.array([9, 2, 5])
    direct = mesh.see(faces.batch(rows))
    for _ in range(2):
        seen = realism.seen_by_the_mesh(faces, rows)
        assert torch.equal(seen.features, direct.features)
        np.testing.assert_array_equal(seen.points, direct.points)


@pytest.fixture(scope="module")
def scores():
    """Good and bad generators, scored."""
    _, space, parts = drawn()
    train, other = parts["train"], parts["test"]
    noise = torch.Generator().manual_seed(0)
    sets = {
        "others": other,
        "copies": train[:150] + 0.01 * torch.randn(train[:150].shape, generator=noise),
        "blurred": blur(other, 3.0),
        "noisy": other + 0.1 * torch.randn(other.shape, generator=noise),
        "ghosts": (other + other.roll(1, 0)) / 2,
        "few": other[:8].repeat(19, 1, 1, 1)[:150],
    }
    features = {name: space(x) for name, x in sets.items()}
    return realism.compared(space(parts["val"]), space.training, features)


def test_real_faces_of_other_people_pass(scores):
    good = scores["others"]
    assert good["distance"] < 3 * good["error"] + 0.02
    assert min(good[key] for key in ("precision", "recall", "coverage")) > 0.7
    assert good["copies"] == pytest.approx(0.5, abs=0.12)


@pytest.mark.parametrize("bad", ["blurred", "ghosts", "noisy"])
def test_faces_that_do_not_look_real_are_far(scores, bad):
    found, good = scores[bad], scores["others"]
    assert found["distance"] - abs(good["distance"]) > np.hypot(found["error"], good["error"])


def test_a_generator_that_copies_or_repeats_is_caught_by_its_own_number(scores):
    assert scores["copies"]["copies"] > 0.8 > 0.65 > scores["others"]["copies"]
    assert scores["copies"]["precision"] > 0.5  # and nothing else catches it
    assert scores["few"]["coverage"] < 0.5 * scores["others"]["coverage"]
    assert scores["few"]["recall"] < 0.5 * scores["others"]["recall"]


def test_without_opencv_or_without_faces_there_is_no_space(monkeypatch):
    faces, *_ = drawn()
    noise = np.random.default_rng(0).integers(0, 256, faces.images.shape, dtype=np.uint8)
    strange = dataclasses.replace(faces, images=noise, fingerprint="noise", cache=False)
    with pytest.raises(DataError, match="sees no faces in these images"):
        realism.feature_space(strange)
    few = dataclasses.replace(faces, part=np.where(np.arange(len(faces.part)) < 19, "val", "train"))
    with pytest.raises(DataError, match="each part needs 20 faces"):
        realism.feature_space(few)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match="OpenCV, which is not installed"):
        realism.feature_space(faces)
