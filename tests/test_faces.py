import numpy as np
import pytest

from smilevae.data.synthetic import FACTORS, TEETH_FROM, SyntheticFaces, draw_face

PLAIN = dict.fromkeys(FACTORS, 0.5)
PLAIN |= dict.fromkeys(("yaw", "roll", "light", "glasses", "beard"), 0.0)


def test_the_same_seed_draws_the_same_faces_and_another_seed_others():
    a, b, c = SyntheticFaces(5, 5, 2), SyntheticFaces(5, 5, 2), SyntheticFaces(5, 5, 2, seed=1)
    assert a.fingerprint == b.fingerprint != c.fingerprint
    np.testing.assert_array_equal(np.asarray(a.draw(3)), np.asarray(b.draw(3)))
    assert (np.asarray(a.draw(3)) != np.asarray(c.draw(3))).any()


def test_counts_labels_and_factors_agree():
    faces = SyntheticFaces(30, 40, 11)
    assert len(faces) == 81
    assert (faces.smile[:70] == 1).sum() == 30
    assert faces.test.sum() == 11
    assert set(faces.factors) == set(FACTORS)
    smile = faces.factors["smile"]
    assert smile[faces.smile == 1].min() > 0.4 > smile[faces.smile == 0].max()


@pytest.mark.parametrize("confound", [0.0, 0.36, -0.6])
def test_the_dialled_correlation_is_there_and_no_other(confound):
    faces = SyntheticFaces(3000, 3000, 0, confound=confound)
    for name, values in faces.factors.items():
        if name != "smile":
            expected = confound if name == "hair_length" else 0.0
            assert np.corrcoef(values, faces.smile)[0, 1] == pytest.approx(expected, abs=0.05), name


@pytest.mark.parametrize("factor", [f for f in FACTORS if f != "smile"])
def test_every_factor_shows_in_the_picture(factor):
    low = np.asarray(
        draw_face(PLAIN | {factor: -1.0 if factor in ("yaw", "roll", "light") else 0.0})
    )
    high = np.asarray(draw_face(PLAIN | {factor: 1.0}))
    assert np.abs(low.astype(int) - high).max() > 30


def test_a_smile_moves_the_mouth_more_than_the_background():
    smiling, calm = (
        np.asarray(draw_face(PLAIN | {"smile": smile})).astype(int) for smile in (1.0, 0.0)
    )
    change = np.abs(smiling - calm).mean(2)
    assert change[40:56, 18:46].mean() > 10 * change[:8].mean() + 5


def test_teeth_appear_from_the_threshold_on_and_grow():
    def teeth(smile: float) -> int:
        mouth = np.asarray(draw_face(PLAIN | {"smile": smile, "skin": 0.1}))[42:58, 18:46]
        return int((mouth.min(2) > 200).sum())

    assert teeth(-0.3) == teeth(TEETH_FROM - 0.1) == 0
    counts = [teeth(s) for s in (0.6, 0.7, 0.8, 0.9, 1.0)]
    assert counts[-1] > 20
    assert counts == sorted(counts)


def test_pictures_are_antialiased_and_shaded():
    picture = np.asarray(draw_face(PLAIN))
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 800
