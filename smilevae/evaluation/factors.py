"""Disentanglement: does one latent dimension follow one true factor? Locatello et al. 1811.12359 compare the scores.

Shapes: N faces, D latent dimensions, K factors. Codes (N, D) are posterior means, factors (N, K)
true values such as `Faces.attributes`. Every score raises DataError for what `_checked` rejects.
"""

from typing import TYPE_CHECKING

import numpy as np
from scipy.special import entr
from scipy.stats import rankdata
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.metrics import balanced_accuracy_score, mutual_info_score
from sklearn.svm import LinearSVC

from smilevae.errors import DataError

if TYPE_CHECKING:
    from smilevae.data.dataset import Faces
    from smilevae.models.vae import VAE

CODE_BINS = 20  # of equal width
FACTOR_LEVELS = 10
MIN_FACES = 200
MIN_OTHERS = 20  # faces that differ from the most frequent value of a factor
NUM_VOTES = 5000  # in each half
VOTE_FACES = 64
TREES = {"n_estimators": 50, "learning_rate": 0.2, "subsample": 0.5}
MIN_SD = 0.01  # of the largest standard deviation; a dimension below it has collapsed
NOTES = {  # without unit, from 0 to 1; higher is better
    "mig": "Mutual Information Gap: 1 if one dimension alone determines each factor",
    "dci_disentanglement": "DCI disentanglement: 1 if each dimension predicts only one factor",
    "dci_completeness": "DCI completeness: 1 if only one dimension predicts each factor",
    "dci_informativeness": "DCI informativeness: R^2 of the factors, predicted from all dimensions",
    "sap": "Separated Attribute Predictability: score of the best dimension minus the second best",
    "factor_vae": "FactorVAE score: how often the steadiest dimension identifies a fixed factor",
}


def disentanglement(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict[str, float]:
    """All scores of codes (N, D) for factors (N, K), named as in NOTES."""
    scores = {"mig": mig(codes, factors), **dci(codes, factors, seed), "sap": sap(codes, factors)}
    return scores | {"factor_vae": factor_vae(codes, factors, seed)}


def of_model(vae: "VAE", faces: "Faces") -> dict[str, dict[str, float]]:
    """The scores of a model, of PCA with as many components, and of random codes.

    The codes are those of training and held-out faces whose factors are all known. Raises
    DataError without factors.
    """
    from smilevae.data.encode import encode

    if not faces.attributes:
        raise DataError("no factors are known; name a table with attributes=FILE.csv")
    factors = np.stack([*faces.attributes.values()], axis=1)
    known = np.isfinite(factors).all(axis=1) & np.isin(faces.part, ("train", "val"))
    rows = np.flatnonzero(known)
    axes = faces.axes(vae.latent_dim)
    pixels = faces.batch(rows).flatten(1) - axes.mean
    codes = {
        "model": encode(vae, faces, rows)[0].numpy(),
        "pca": (pixels @ axes.basis[:, : vae.latent_dim]).numpy(),
        "random": np.random.default_rng(0).standard_normal((len(rows), vae.latent_dim)),
    }
    return {name: disentanglement(code, factors[rows]) for name, code in codes.items()}


def mig(codes: np.ndarray, factors: np.ndarray) -> float:
    """Mutual Information Gap of codes (N, D) and factors (N, K). Chen et al. 1802.04942, eq. 6.

    Information comes from counts: codes in CODE_BINS bins (as in 1811.12359), factors in `levels`.
    Bins and levels overlap: the true factors of drawn faces score 0.89 for themselves.
    """
    codes, factors = _checked(codes, factors)
    values = [levels(factor) for factor in factors.T]
    information = np.zeros((codes.shape[1], len(values)))
    for d, k in np.ndindex(information.shape):
        counts = np.histogram2d(codes[:, d], values[k], (CODE_BINS, FACTOR_LEVELS))[0]
        information[d, k] = mutual_info_score(None, None, contingency=counts)
    second, best = np.sort(information, axis=0)[-2:]
    return float(((best - second) / [mutual_info_score(v, v) for v in values]).mean())


def dci(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> dict[str, float]:
    """Disentanglement, completeness and informativeness. Eastwood & Williams 2018, section 2.

    Importances come from gradient boosted trees, as in disentanglement_lib, fitted to a random half
    of the faces. Informativeness is the mean R^2 in the other half, where below 0 counts as 0; the
    paper's NRMSE is sqrt(1 - R^2). Trees are not linear: rotated factors score up to 0.4, not 0.
    """
    codes, factors = _checked(codes, factors)
    train, test = np.array_split(np.random.default_rng(seed).permutation(len(codes)), 2)
    importance = np.zeros((codes.shape[1], factors.shape[1]))
    r2 = np.zeros(factors.shape[1])
    for k, factor in enumerate(factors.T):
        trees = GradientBoostingRegressor(**TREES, random_state=seed).fit(
            codes[train], factor[train]
        )
        importance[:, k] = trees.feature_importances_
        r2[k] = max(0.0, trees.score(codes[test], factor[test]))
    scores = concentration(importance), concentration(importance.T), float(r2.mean())
    return dict(zip(("dci_disentanglement", "dci_completeness", "dci_informativeness"), scores))


def sap(codes: np.ndarray, factors: np.ndarray) -> float:
    """Separated Attribute Predictability. Kumar et al. 1711.00848, section 3.

    A dimension scores its squared correlation with a factor or, if the factor has two values, the
    balanced accuracy of a linear classifier on the faces that it is fitted to. The best gap is 1
    for a continuous factor, and 0.5 for a factor of two values.
    """
    codes, factors = _checked(codes, factors)
    scores = (codes.T @ factors / len(codes)) ** 2
    for k in np.flatnonzero([len(np.unique(factor)) == 2 for factor in factors.T]):
        label = factors[:, k] > 0
        for d, x in enumerate(codes.T[:, :, None]):
            classifier = LinearSVC(C=0.01, class_weight="balanced", dual=False).fit(x, label)
            scores[d, k] = balanced_accuracy_score(label, classifier.predict(x))
    second, best = np.sort(scores, axis=0)[-2:]
    return float((best - second).mean())


def factor_vae(codes: np.ndarray, factors: np.ndarray, seed: int = 0) -> float:
    """Accuracy of a majority vote for the fixed factor. Kim & Mnih 1802.05983, section 4; chance is 1 / K.

    The paper draws new faces with one factor fixed. Here they are existing faces with the same one
    of its `levels`, so a continuous factor still varies a little. Training and test votes come from
    separate halves of the faces. Collapsed dimensions (MIN_SD) do not vote.
    """
    sd = np.std(codes, axis=0, dtype=np.float64)
    codes, factors = _checked(codes, factors)
    codes = codes[:, sd >= MIN_SD * sd.max()]
    values = np.stack([levels(factor) for factor in factors.T], axis=1)
    rng = np.random.default_rng(seed)
    halves = np.array_split(rng.permutation(len(codes)), 2)
    train, test = (votes(codes[rows], values[rows], rng) for rows in halves)
    guess = train.argmax(axis=0)
    return float(test[guess, np.arange(len(guess))].sum() / test.sum())


def votes(codes: np.ndarray, values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """How often each dimension varies least at a fixed level: scaled (N, D), levels (N, K) -> (K, D)."""
    counts = np.zeros((values.shape[1], codes.shape[1]), dtype=int)
    for factor in rng.integers(values.shape[1], size=NUM_VOTES):
        same = np.flatnonzero(values[:, factor] == rng.choice(values[:, factor]))
        chosen = rng.choice(same, min(VOTE_FACES, len(same)), replace=False)
        counts[factor, codes[chosen].var(axis=0).argmin()] += 1
    return counts


def levels(factor: np.ndarray) -> np.ndarray:
    """A factor (N,) as integers: up to FACTOR_LEVELS values, or else equal groups by rank; equal values together."""
    values, level = np.unique(factor, return_inverse=True)
    if len(values) > FACTOR_LEVELS:
        level = (FACTOR_LEVELS * (rankdata(factor) - 0.5) / len(factor)).astype(int)
    return level


def concentration(importance: np.ndarray) -> float:
    """Mean over rows of 1 - entropy, base S, of importances (R, S), weighted by the sums of the rows."""
    importance = importance + 1e-12
    sums = importance.sum(axis=1)
    entropies = entr(importance / sums[:, None]).sum(axis=1) / np.log(importance.shape[1])
    return float((1 - entropies) @ sums / sums.sum())


def _checked(codes: np.ndarray, factors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standardised codes and factors. Raises DataError if they are few, not finite or nearly constant."""
    if len(codes) < MIN_FACES or min(codes.shape[1], factors.shape[1]) < 2:
        raise DataError(f"disentanglement needs {MIN_FACES} faces, 2 dimensions and 2 factors")
    if not (np.isfinite(codes).all() and np.isfinite(factors).all()):
        raise DataError("codes or factors are not finite; leave out faces with unknown factors")
    others = [len(v) - np.unique(v, return_counts=True)[1].max() for v in factors.T]
    if min(others) < MIN_OTHERS:
        raise DataError(f"factor {np.argmin(others)} varies in only {min(others)} faces; omit it")
    centred = [table - table.mean(axis=0, dtype=np.float64) for table in (codes, factors)]
    codes, factors = (table / np.maximum(table.std(axis=0), 1e-12) for table in centred)
    return codes, factors
