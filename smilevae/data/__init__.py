"""From image files to batches: decoding, sources, synthetic faces, the split by person, the cache, augmentation."""

from smilevae.data.card import format_card
from smilevae.data.dataset import Faces, load_faces
from smilevae.data.sources import UNKNOWN
from smilevae.data.spectrum import spectrum_of

__all__ = ["UNKNOWN", "Faces", "format_card", "load_faces", "spectrum_of"]
