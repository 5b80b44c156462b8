"""The random numbers of batches. Shapes: B batch, W width of an example's numbers."""

from typing import Any

import torch
from torch import Tensor

from smilevae.data.batches import hash64
from smilevae.training.datamodule import VAL_BATCH

AT_ONCE = 64  # batches: then a step waits for no transfer


class Noise:
    """The noise of a module's batches, from its seed, the stage, the epoch and the batch alone.

    It is drawn on the CPU, for AT_ONCE batches at a time: the same on every device and for any
    number of processes.
    """

    def __init__(self, module: Any):
        self.module = module
        self._drawn: dict[str, Tensor] = {}  # stage -> noise
        self._block: dict[str, tuple[int, int]] = {}  # stage -> epoch, block of batches

    def __call__(
        self, draw: Any, stage: str, epoch: int, batch_idx: int, num: int, width: int
    ) -> Tensor:
        """This process's `num` rows of a batch's noise, (B, W), by torch.randn or torch.rand."""
        module = self.module
        block, index = divmod(batch_idx, AT_ONCE)
        if self._block.get(stage) != (epoch, block):
            first = block * AT_ONCE
            end = first + AT_ONCE
            rows = VAL_BATCH
            if stage != "val":
                end = min(end, int(module.trainer.num_training_batches))
                rows = module.settings.batch_size
            drawn = []
            for number in range(first, end):
                seed = hash64("noise", stage, module.settings.seed, epoch, number)
                generator = torch.Generator().manual_seed(seed)
                drawn.append(draw(rows, width, generator=generator))
            self._drawn[stage] = torch.stack(drawn).to(module.device)
            self._block[stage] = (epoch, block)
        return self._drawn[stage][index, module.global_rank :: module.trainer.world_size][:num]
