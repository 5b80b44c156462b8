"""The judge tells two faces in one picture from one face. The face may be sharp or blurred."""

import functools

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from smilevae.config import Settings
from smilevae.data.dataset import load_faces
from smilevae.editing import mesh
from smilevae.editing.classifier import blur
from smilevae.evaluation import exposures


def test_a_double_exposure_keeps_its_share_of_an_image_and_takes_the_rest_of_another():
    x = torch.rand(7, 3, 5, 5)
    shares = torch.tensor([0.3, 0.5, 0.7, 1, 0, 0.2, 0.9])
    overlaid = exposures.double_exposures(x, shares, torch.Generator().manual_seed(0))
    for index, share in enumerate(shares):
        candidates = share * x[index] + (1 - share) * x
        nearest = (candidates - overlaid[index]).flatten(1).norm(dim=1)
        assert nearest.min() < 1e-6
        assert nearest.argmin() != index or share == 1


def test_edges_are_the_moments_of_the_layers_of_the_face_mesh():
    x = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    seen = mesh.see_edges(x)
    assert seen.shape == (2, mesh.NUM_EDGES)
    mean, root = np.split(seen[0, : 2 * 16 * mesh.CELLS**2], 2)
    assert (root >= np.abs(mean) - 1e-5).all()  # the root mean square is at least the mean

    # The first and the last cell of the first layer's first channel: 9 pixels a side, without the margin.
    crop = F.interpolate(x[:1], (108, 108), mode="bicubic", align_corners=False).clamp(0, 1)
    blob = F.pad(crop, (42,) * 4, mode="replicate").numpy() * 2 - 1
    (layer,) = mesh.forward(mesh.MODEL, blob, ["add"])
    assert layer.shape == (1, 16, 96, 96)
    assert mean[0] == pytest.approx(layer[0, 0, 21:30, 21:30].mean(), abs=1e-5)
    assert mean[35] == pytest.approx(layer[0, 0, 66:75, 66:75].mean(), abs=1e-5)
    assert root[35] == pytest.approx((layer[0, 0, 66:75, 66:75] ** 2).mean() ** 0.5, abs=1e-5)


@functools.cache
def drawn():
    data = {"data.num_smiling": 200, "data.num_not_smiling": 200, "data.num_test": 0}
    return load_faces(Settings().with_values(data | {"data.val_fraction": 0.3}).data, 64)


def test_the_judge_tells_double_exposures_of_people_it_has_not_seen():
    faces = drawn()
    judge = exposures.Judge(faces)
    labels = np.repeat([0, 1], [len(judge.real), len(judge.overlaid)])
    area = roc_auc_score(labels, np.concatenate([judge.real, judge.overlaid]))
    assert area > 0.95
    assert (judge.real > 0).mean() < 0.15 < 0.8 < (judge.overlaid > 0).mean()

    # It asks whether there are two, not whether they are sharp.
    x = faces.batch(np.sort(faces.rows("val")))
    assert (judge(blur(x, 1.2)) > 0).mean() < 0.25
    assert judge(x) == pytest.approx(judge.real, abs=1e-4)
    assert judge(x.flip(3)) == pytest.approx(judge.real, abs=1e-4)


def test_the_judge_from_the_cache_is_the_same_and_is_not_fitted_again(monkeypatch):
    first = exposures.Judge(drawn())
    monkeypatch.setattr(exposures, "_fitted", lambda x: pytest.fail("fitted again"))
    second = exposures.Judge(drawn())
    x = drawn().batch(np.arange(4))
    assert np.array_equal(first(x), second(x))
    assert np.array_equal(first.overlaid, second.overlaid)
