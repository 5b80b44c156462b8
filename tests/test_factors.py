"""Scores of disentanglement: codes with known scores, and other implementations.

Shapes: N faces, D dimensions, K factors. disent is optional; its formulas are disentanglement_lib's:
pip install --no-deps disent h5py
"""

import json
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
import pytorch_lightning
from scipy.stats import entropy
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.metrics import mutual_info_score
from sklearn.svm import LinearSVC

from smilevae.data.dataset import load_faces
from smilevae.data.sources import Synthetic
from smilevae.errors import DataError
from smilevae.evaluation import factors as scores
from smilevae.models.architectures import Patch
from smilevae.models.axes import linear_vae_weights
from smilevae.models.vae import VAE

N, K = 1000, 6
RNG = np.random.default_rng(1)
# Independent factors: uniform ones, one with a spike at 0 like glasses, one of two values.
FACTORS = RNG.uniform(-1, 1, (N, K))
FACTORS[:, 1] = np.where(RNG.random(N) < 0.5, 0, RNG.uniform(0.5, 1, N))
FACTORS[:, 2] = RNG.random(N) < 0.4
LEVELS = np.stack([scores.levels(factor) for factor in FACTORS.T])
NOISE = RNG.standard_normal((N, K + 2))
GOOD = np.hstack([FACTORS[:, ::-1] * [10, -3, 1, 0.5, 2, -1], np.full((N, 1), 7.0)])
ROTATED = FACTORS / FACTORS.std(0) @ np.linalg.qr(RNG.standard_normal((K, K)))[0]
PARTLY = ROTATED + FACTORS / FACTORS.std(0) + 0.5 * NOISE[:, :K]


@pytest.fixture(scope="module")
def table():
    codes = {"good": GOOD, "rotated": ROTATED, "noise": NOISE, "partly": PARTLY}
    return {name: scores.disentanglement(x, FACTORS) for name, x in codes.items()}


def test_true_factors_permuted_and_scaled_score_high(table):
    """MIG loses 0.1 as bins overlap; SAP is 1 for 5 continuous factors, 0.5 for one of two values."""
    best = dict.fromkeys(scores.NOTES, 1.0) | {"mig": 0.9, "sap": (5 + 0.5) / 6}
    assert table["good"] == pytest.approx(best, abs=0.05)


def test_a_rotation_scores_low_though_it_keeps_all_information(table):
    low = {"mig": 0.15, "dci_disentanglement": 0.4, "dci_completeness": 0.4, "sap": 0.3}
    assert all(table["rotated"][name] < limit for name, limit in low.items())
    assert table["rotated"]["dci_informativeness"] > 0.8


def test_noise_scores_0_and_chance(table):
    """Chance of FactorVAE is 1 / K: training votes say nothing about the votes of other faces."""
    assert table["noise"]["factor_vae"] == pytest.approx(1 / K, abs=0.07)
    others = {name: value for name, value in table["noise"].items() if name != "factor_vae"}
    assert others == pytest.approx(dict.fromkeys(others, 0), abs=0.06)


@pytest.mark.parametrize("name", scores.NOTES)
def test_a_worse_code_scores_lower(table, name):
    assert 0 <= table["noise"][name] < table["partly"][name] < table["good"][name] <= 1


def predictability(x, factor):
    """R^2, or the mean of the accuracies of both values."""
    if len(set(factor)) > 2:
        return np.corrcoef(x, factor)[0, 1] ** 2
    x = ((x - x.mean()) / x.std())[:, None]
    guess = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(x, factor).predict(x)
    return np.mean([(guess[factor == value] == value).mean() for value in (0, 1)])


@pytest.mark.parametrize("codes", [PARTLY, NOISE])
def test_mig_and_sap_agree_with_explicit_loops(codes):
    mig, sap = np.zeros((2, K))
    bins = [np.digitize(x, np.histogram(x, 20)[1][:-1]) for x in codes.T]
    for k, level in enumerate(LEVELS):
        information = sorted(mutual_info_score(level, x) for x in bins)
        mig[k] = (information[-1] - information[-2]) / entropy(np.bincount(level))
        predictable = sorted(predictability(x, FACTORS[:, k]) for x in codes.T)
        sap[k] = predictable[-1] - predictable[-2]
    assert scores.mig(codes, FACTORS) == pytest.approx(np.mean(mig), abs=1e-3)
    assert scores.sap(codes, FACTORS) == pytest.approx(np.mean(sap), abs=1e-3)


class Drawn:
    """The fixed faces as a data set of disent: `sample_factors` gives levels (B, K)."""

    def __init__(self, codes, rows):
        self.codes = codes[rows]
        self.levels = LEVELS.T[rows]
        self.num_factors = K
        self.gt_data = self

    def sample_factors(self, num):
        return self.levels[np.random.randint(len(self.levels), size=num)]  # noqa: NPY002

    def dataset_batch_from_factors(self, levels, mode):
        fixed = np.flatnonzero((levels == levels[0]).all(0))[0]
        same = np.flatnonzero(self.levels[:, fixed] == levels[0, fixed])
        return self.codes[np.random.permutation(same)[: len(levels)]]  # noqa: NPY002


def test_scores_agree_with_disent(monkeypatch):
    """FactorVAE to within the chance of its draws; the others exactly."""
    monkeypatch.setitem(sys.modules, "lightning", pytorch_lightning)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("disent.metrics", exc_type=ImportError)
    from disent.metrics import _dci, _factor_vae, _mig, _sap

    np.random.seed(0)  # noqa: NPY002
    halves = np.array_split(np.random.default_rng(0).permutation(N), 2)
    trees = GradientBoostingRegressor(**scores.TREES, random_state=0)
    for codes in (PARTLY, NOISE):
        x, factors = scores._checked(codes, FACTORS)
        rows = halves[0]
        fits = [trees.fit(x[rows], factor[rows]).feature_importances_ for factor in factors.T]
        importance = np.stack(fits, axis=1)
        theirs = _dci._disentanglement(importance), _dci._completeness(importance)
        assert [*scores.dci(codes, FACTORS).values()][:2] == pytest.approx(theirs, abs=1e-3)
        mig = _mig._compute_mig(codes.T, LEVELS)["mig.discrete_score"]
        assert scores.mig(codes, FACTORS) == pytest.approx(mig, abs=1e-3)
        sap = _sap._compute_sap(codes.T, FACTORS[:, 3:].T, None, None, True)["sap.score"]
        assert scores.sap(codes, FACTORS[:, 3:]) == pytest.approx(sap, abs=1e-3)
        settings = (lambda x: x, 64, 3000, codes.var(0), np.ones(codes.shape[1], bool))
        draws = [Drawn(codes, rows) for rows in halves]
        train, test = (_factor_vae._generate_training_batch(d, *settings) for d in draws)
        accuracy = test[train.argmax(0), np.arange(codes.shape[1])].sum() / test.sum()
        assert scores.factor_vae(codes, FACTORS) == pytest.approx(accuracy, abs=0.04)


def test_levels_are_equal_groups_that_keep_equal_values_together():
    assert np.bincount(LEVELS[0]).tolist() == [N // 10] * 10
    assert len({*LEVELS[1][FACTORS[:, 1] == 0]}) == 1


def test_what_cannot_be_scored_is_an_error_with_a_remedy():
    with pytest.raises(DataError, match="factor 6 varies in only 19 faces; omit it"):
        scores.mig(GOOD, np.column_stack([FACTORS, np.arange(N) < 19]))
    with pytest.raises(DataError, match="leave out faces with unknown factors"):
        scores.sap(GOOD, np.where(FACTORS > 0.9, np.nan, FACTORS))
    with pytest.raises(DataError, match="needs 200 faces, 2 dimensions and 2 factors"):
        scores.factor_vae(GOOD[:199], FACTORS[:199])


def test_the_module_imports_no_torch():
    code = "import sys, smilevae.evaluation.factors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_an_untrained_linear_vae_scores_as_pca_does_and_random_codes_score_less():
    faces = load_faces(Synthetic(num_smiling=150, num_not_smiling=150, num_test=0), 64)
    vae = VAE(Patch(widths=[8, 16]), 64, 6, linear=True).eval()
    vae.linear.load_state_dict(linear_vae_weights(faces.axes(6), 1.0, 6))
    found = scores.of_model(vae, faces)
    assert found["model"] == pytest.approx(found["pca"], abs=0.02)
    assert all(found["pca"][name] > found["random"][name] for name in scores.NOTES)


def test_an_evaluation_shows_the_scores_or_says_why_not(call, tiny_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(tiny_run, run)
    assert call("evaluate", f"ckpt={run}", "measures=disentanglement", "edits=false")[0] == 0
    metrics = json.loads((run / "evaluation" / "best" / "metrics.json").read_text())
    assert "disentanglement needs 200 faces" in " ".join(metrics["left_out"])
