"""Variational autoencoders on smiling and non-smiling faces: train, compare, and edit a smile.

    model = smilevae.load("drawn")  # or a run folder: "runs/NAME"
    images = model.sample(8)
    smiling = model.smile(images, 1.5)

Importing this package costs no torch; `load` imports it.
"""

import os
from typing import TYPE_CHECKING

from smilevae.errors import CheckpointError, ConfigError, DataError, UserError

if TYPE_CHECKING:
    from smilevae.apps.model import Model

__version__ = "0.2.0"
__all__ = ["CheckpointError", "ConfigError", "DataError", "UserError", "load"]


def load(ckpt: str | os.PathLike[str], attribute: str | None = None) -> "Model":
    """The model of a run folder (its best checkpoint), a checkpoint file, an exported folder or a name.

    Names are "drawn", a model of drawn faces that comes with smilevae, and "hf-hub:OWNER/NAME".
    `attribute` is the one that edits change without a name. Raises CheckpointError, ConfigError.
    """
    from smilevae.apps.model import Model

    return Model(ckpt, attribute)
