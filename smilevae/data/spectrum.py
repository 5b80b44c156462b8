"""The spectrum of the faces, from which linear models are forecast."""

import math
from typing import Any

import numpy as np

from smilevae.data.batches import hash64
from smilevae.data.cache import cached
from smilevae.data.dataset import AT_ONCE, Faces, flat_faces
from smilevae.models.axes import spectrum
from smilevae.models.linear import Spectrum


def spectrum_of(faces: Faces, cache: bool = True) -> Spectrum:
    """The spectrum of the training faces and their mirror images, with the held-out ones on it; cached."""
    num_pixels = math.prod(faces.images.shape[1:])

    def build(_: np.ndarray) -> dict[str, Any]:
        some = np.random.default_rng(0).permutation(faces.rows("val"))[: AT_ONCE // num_pixels]
        return spectrum(faces.axes, flat_faces(faces, np.sort(some)))._asdict()

    key = f"{faces.fingerprint}-{num_pixels}-{hash64(*faces.rows('val')):x}-spectrum"
    return Spectrum(**cached(key, (1,), build, cache)[1])
