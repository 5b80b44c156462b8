"""A step as one CUDA graph: the host launches it whole, so the GPU does not wait for Python."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import (
    BaseFinetuning,
    GradientAccumulationScheduler,
    ModelPruning,
    StochasticWeightAveraging,
)
from pytorch_lightning.strategies import SingleDeviceStrategy
from pytorch_lightning.utilities.model_helpers import is_overridden
from torch import Tensor

from smilevae.data.batches import to_unit
from smilevae.errors import ConfigError

log = logging.getLogger(__name__)
# Callbacks that change the step during a training
CHANGING = (BaseFinetuning, GradientAccumulationScheduler, ModelPruning, StochasticWeightAveraging)
# Hooks of callbacks that a replay does not call
WITHIN = ("on_before_backward", "on_after_backward", "on_before_optimizer_step")
DEVICE = "cuda"
PRECISIONS = ("32-true", "bf16-mixed")
MOST_VALIDATED = 8  # batches that are captured; each holds its faces
WARM_UP = 3  # steps: cuDNN, cuBLAS and the optimizer allocate before a capture


def warm_up(step: Callable[[], None]) -> None:
    """Run a step WARM_UP times on its own stream: PyTorch requires it before a capture."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream().wait_stream(side)


def capture(step: Callable[[], None], pool: Any) -> Callable[[], None]:
    """A step that has run before, as a replay. Raises RuntimeError where it cannot be captured.

    Graphs of one memory pool must be replayed in the order in which they were captured.
    """
    graph = torch.cuda.CUDAGraph()
    here = torch.cuda.stream(torch.cuda.current_stream())  # a failed capture does not come back
    with here, torch.cuda.graph(graph, pool=pool, stream=torch.cuda.Stream()):
        step()
    return graph.replay


class Graph:
    """`step` of inputs that stay where they are. `state` gives every tensor that it changes.

    The warm-up is undone, so every step of a run, resumed or not, is a replay. Dropout draws from
    the device's generator: seed it before a call. `failure` says why there is no graph; then a call
    runs the step itself.
    """

    def __init__(
        self,
        step: Callable[..., None],
        inputs: list[Tensor],
        state: Callable[[], list[Tensor]],
        pool: Any = None,
    ):
        self.inputs = [part.clone() for part in inputs]
        self.failure: str | None = None
        kept = {part: part.detach().clone() for part in state()}
        warm_up(lambda: step(*self.inputs))
        with torch.no_grad():
            for part in state():  # the optimizer's state begins at zero in its first step
                if part in kept:
                    part.copy_(kept[part])
                else:
                    part.zero_()
        try:
            self._run = capture(lambda: step(*self.inputs), pool)
        except RuntimeError as error:
            cause = error.__context__ or error  # the end of a failed capture fails, too
            self.failure = str(cause).splitlines()[0]
            self._run = lambda: step(*self.inputs)

    def __call__(self, inputs: list[Tensor]) -> None:
        for to, part in zip(self.inputs, inputs):
            to.copy_(part, non_blocking=True)
        self._run()


def obstacle(trainer: pl.Trainer, optimizer: torch.optim.Optimizer) -> str | None:
    """Why a training step cannot be one CUDA graph; None if it can."""
    device = getattr(trainer.datamodule, "device", None)  # type: ignore[attr-defined]
    kind = type(optimizer).__name__
    fused = optimizer.defaults.get("fused") and "capturable" in optimizer.defaults
    several = trainer.world_size > 1 or not isinstance(trainer.strategy, SingleDeviceStrategy)
    inside = [
        type(one).__name__
        for one in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(one, CHANGING)
        or any(is_overridden(hook, one, pl.Callback) for hook in WITHIN)
    ]
    reasons = {
        "the faces are not in the memory of a GPU": not device or device.type != DEVICE,
        "several processes train": several,
        f"trainer.precision={trainer.precision}": trainer.precision not in PRECISIONS,
        "gradients of several batches are added": trainer.accumulate_grad_batches > 1,
        f"{kind} is not fused": not fused,
        f"callbacks look into the step: {', '.join(inside)}": inside,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


class WholeStep:
    """A training step of a module as one graph, and the batches of its validation.

    `inputs` are a batch's rows, flips and noise. Where a graph is required and cannot be had, a call
    raises ConfigError.
    """

    def __init__(self, module: Any, required: bool):
        zeros = partial(torch.zeros, device=module.device)
        self.module = module
        self.required = required
        self.inputs: list[Tensor] = []
        self._rate = zeros(())
        self._share = zeros(())
        self._progress = zeros((), dtype=torch.float64)
        self._sums = zeros(5, dtype=torch.float64)
        self._val_sums = zeros(5, dtype=torch.float64)
        self._moments = zeros(3, module.vae.latent_dim)
        self._graph: Graph | None = None
        self._validations: dict[int, Graph] = {}
        self._pool = torch.cuda.graph_pool_handle() if DEVICE == "cuda" else None

    def __call__(self, epoch: int, batch_idx: int) -> None:
        module = self.module
        group = module.optimizer.param_groups[0]
        rate = group["lr"]
        self._rate.fill_(rate)
        self._share.fill_(module.share())
        self._progress.fill_(module.progress())
        if self._graph is None:
            # While the step is captured, the optimizer reads its rate on the device
            group |= {"lr": self._rate, "capturable": True}
            self._graph = Graph(self._step, self.inputs, self._changed)
            group |= {"lr": rate, "capturable": False}
            self._tell(self._graph.failure)

        # A new epoch's sums begin at zero, those of a resume within one where it stopped.
        earlier = module.epoch.sums.get("train")
        if earlier is None:
            self._sums.zero_()
        elif earlier is not self._sums:
            self._sums.copy_(earlier)
        module.epoch.sums["train"] = self._sums
        module.seed("train", epoch, batch_idx)
        self._graph(self.inputs)

    def _step(self, rows: Tensor, flips: Tensor, *drawn: Tensor) -> None:
        """What Lightning does in a step, of tensors on the device alone."""
        module = self.module
        module.optimizer.zero_grad()
        images, _ = module.trainer.datamodule.batches[rows, flips]
        with module.trainer.precision_plugin.forward_context():
            loss, sums = module.learn(to_unit(images), self._share, self._progress, *drawn)
        loss.backward()
        module.clip_gradients(module.optimizer)
        module.optimizer.step()
        self._sums.add_(sums)

    def _changed(self) -> list[Tensor]:
        """The tensors that a step changes."""
        vae = self.module.vae
        states = self.module.optimizer.state.values()
        moments = [part for state in states for part in state.values()]
        return [*vae.parameters(), *vae.buffers(), *moments, self._sums]

    def _tell(self, failure: str | None) -> None:
        if failure and self.required:
            raise ConfigError(f"graph=true: the step cannot be captured ({failure})")
        if failure:
            log.info(f"A step is not one CUDA graph, so it is slower: {failure}.")

    def validate(self, batch_idx: int, x: Tensor, noise: Tensor) -> None:
        """Add a batch to the sums of a validation. Its faces and noise are always the same."""
        changed = [self._val_sums, self._moments]
        if batch_idx not in self._validations:
            graph = Graph(self._val_step, [x, noise], lambda: changed, self._pool)
            self._tell(graph.failure)
            self._validations[batch_idx] = graph
        if batch_idx == 0:
            for sums in changed:
                sums.zero_()
        self._validations[batch_idx]([])
        self.module.epoch.sums["val"], self.module.moments = changed

    def _val_step(self, x: Tensor, noise: Tensor) -> None:
        sums, moments = self.module.validated(x, noise)
        self._val_sums.add_(sums)
        self._moments.add_(moments)
