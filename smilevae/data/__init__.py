"""From image files to batches of faces."""

from smilevae.data.card import data_card, format_card
from smilevae.data.dataset import Faces, load_faces, spectrum_of
from smilevae.data.sources import UNKNOWN

__all__ = ["UNKNOWN", "Faces", "data_card", "format_card", "load_faces", "spectrum_of"]
