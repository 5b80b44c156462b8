"""The edge of the two scripts: errors as one sentence with an exit code, resolvers, Lightning's chatter."""

import contextlib
import difflib
import errno
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smilevae import UserError, knobs, runs, sweeps

CONF = Path(__file__).parents[1] / "conf"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
NOISE = ("Tip:", "GPU available", "TPU available", "HPU available", "💡", "`Trainer.fit` stopped", "Restor")


def run(main: Callable[..., Any]) -> None:
    """Run a Hydra main; end with the exit codes of design: 0, 1 a job, 2 config, 3 data, 4 checkpoint, 130, 143."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands its errors over instead of printing them its way
    register_resolvers()
    try:
        sys.argv[1:] = sweeps.full_command(sys.argv[1:])
        main()
    except UserError as error:
        end(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        end(sentence(error), 2)
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:  # Hydra looks for data=NAME among its files
            raise
        end(f"...{str(error.filename)[-60:]} is too long for a name; choose one that is there", 2)
    except (ValueError, TypeError, AssertionError) as error:  # Hydra's own words for some lines it does not understand
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        if frame.f_globals["__name__"].partition(".")[0] not in ("hydra", "omegaconf", "antlr4"):
            raise
        end(sentence(error), 2)
    except (runs.Interrupted, KeyboardInterrupt) as stop:
        end(str(stop) or "interrupted", getattr(stop, "exit_code", 130))


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """End the process on a mistake, before Hydra prints lines of its own about the job."""
    try:
        yield
    except UserError as error:
        end(str(error), error.exit_code)
    except (HydraException, OmegaConfBaseException) as error:
        end(sentence(error), 2)
    except OSError as error:
        if not error.filename and error.errno not in FULL:
            raise
        end(f"{error.filename or 'writing'}: {error.strerror}; make room there, or choose another folder", 1)
    except KeyboardInterrupt:
        end("interrupted", 130)


def register_resolvers() -> None:
    """What conf/ may call in ${...}; the folder's name is drawn once a process."""
    OmegaConf.register_new_resolver("new_run_dir", runs.new_run_dir, use_cache=True, replace=True)


def end(text: str, code: int) -> NoReturn:
    """Print a sentence (or several lines) to stderr and exit."""
    for line in text.splitlines():
        print(f"error: {line}" if code < 128 else line, file=sys.stderr)
    sys.exit(code)


def sentence(error: Exception) -> str:
    """Hydra's several lines as one, with the nearest knob for a misspelt one."""
    text = str(error)
    if text.startswith("Config group override"):  # data=null
        return "data, model and trainer each need a choice; leave the override out for the default"
    if "Could not override" in text and "'" in text:
        name = text.split("'")[1]
        if name in knobs.KNOBS:
            return f"{name} does not apply here; see the file in conf/{name.partition('.')[0]}/ that you chose"
        near = difflib.get_close_matches(name, knobs.KNOBS, n=1)
        return f"{name} is not a knob" + (f"; did you mean {near[0]}?" if near else "; see python train.py --help")
    if "mismatched input" in text or "token recognition" in text:
        return f"{text.splitlines()[0]}; write key=value, and quote a value that holds = , or brackets: \"key='value'\""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:300]


def quiet_lightning() -> None:
    """Send Lightning's log through ours without its advertisements; silence warnings that are not about the user."""
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*ended before the epoch ended.*")  # our sampler resumes within an epoch
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):  # imported first, they keep to themselves
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().strip().startswith(NOISE))
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
