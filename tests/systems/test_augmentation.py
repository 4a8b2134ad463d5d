"""Mirrored and noisy training faces."""

import numpy as np
import pytest

from fcdeploy.systems.augmentation import mirrors, noisy


def test_mirrors_turn_a_share_of_the_coordinates_of_each_group():
    signs = mirrors(200, 50, 0.2, np.random.default_rng(3))
    assert (signs.shape, signs.dtype) == ((200, 50), np.float32)
    assert set(signs.ravel()) == {-1, 1}
    assert 0.18 < (signs < 0).mean() < 0.22
    assert len(np.unique(signs, axis=0)) == 200
    assert (mirrors(3, 5, 0.0, np.random.default_rng(0)) == 1).all()
    assert (mirrors(3, 5, 1.0, np.random.default_rng(0)) == -1).all()


def test_noise_is_as_long_as_asked_for_and_each_face_has_its_own():
    rng = np.random.default_rng(4)
    features = np.repeat(rng.standard_normal((1, 1, 256)), 300, axis=1).repeat(2, axis=0).astype(np.float32)
    features /= np.linalg.norm(features, axis=-1, keepdims=True)
    moved = noisy(features, 0.5, np.random.default_rng(5))
    assert moved.dtype == np.float32
    assert np.allclose(np.linalg.norm(moved, axis=-1), 1, atol=1e-6)
    # Noise of length l that is nearly at right angles to a unit feature turns it by atan(l), two faces by less.
    assert np.median((moved * features).sum(-1)) == pytest.approx(1 / np.sqrt(1 + 0.25), abs=0.01)
    assert np.median(moved[0] @ moved[1].T) == pytest.approx(1 / (1 + 0.25), abs=0.01)
    assert len(np.unique(moved.reshape(600, -1), axis=0)) == 600
    assert np.allclose(noisy(features, 0.0, np.random.default_rng(5)), features, atol=1e-6)
