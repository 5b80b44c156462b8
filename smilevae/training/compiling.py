"""torch.compile, with a cache in the user's cache folder: a later process builds nothing."""

import os
from collections.abc import Callable
from typing import Any

import platformdirs
import torch
from torch._inductor import config, exc
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from smilevae.errors import ConfigError


def compiled(function: Callable[..., Any], graphs: bool) -> Callable[..., Any]:
    """A compiled function, with CUDA graphs or not. A call raises ConfigError without a compiler."""
    name = "TORCHINDUCTOR_CACHE_DIR"
    if os.environ.get(name) in (None, default_cache_dir()):  # torch's import sets it
        os.environ[name] = str(platformdirs.user_cache_path("smilevae") / "compiled")
    config.fallback_random = True  # dropout's masks are those of the plain step
    fast = torch.compile(function, mode="reduce-overhead" if graphs else None)

    def call(*arguments: Any) -> Any:
        try:
            return fast(*arguments)
        except exc.InductorError as error:
            reason = f"compile=true cannot build the step ({str(error).splitlines()[0]})"
            raise ConfigError(f"{reason}; install a C++ compiler, or pass compile=false") from None

    return call
