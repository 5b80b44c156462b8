"""The edge of every program: option words, errors as one sentence with an exit code."""

import contextlib
import errno
import inspect
import logging
import os
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from smilevae import config
from smilevae.errors import ConfigError, Interrupted, UserError, sentences, unknown
from smilevae.plugins import loading

HYDRA = ("hydra.", "omegaconf.", "antlr4")  # raise errors that are the user's
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
LIGHTNING = ("pytorch_lightning", "lightning_fabric", "lightning")
TIPS = ("Tip:", "GPU avail", "TPU avail", "HPU avail", "💡", "`Trainer", "Restor")
WARNINGS = (
    *("isinstance.treespec", "does not have many workers", "ended before the epoch ended"),
    "smaller than the logging interval",  # an epoch is logged, whatever its steps
    "training_step. returned .None",  # a step that is a graph
    "decompression bomb",  # data/images.py has a limit of its own
)

Options = TypeVar("Options", bound=BaseModel)


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Exit on a mistake: 1 a job failed, 2 configuration, 3 data, 4 checkpoint, 128 + signal."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        end(str(stop) or "interrupted", getattr(stop, "exit_code", 130))
    except BrokenPipeError:  # of the output, which Hydra may have written
        raise
    except UserError as error:
        end(str(error), error.exit_code)
    except Exception as error:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        origins = (type(error).__module__, frame.f_globals["__name__"])
        if any(name.startswith(HYDRA) for name in origins):
            end(sentence(error), 2)
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # data=NAME, a file
            end(f"...{str(error.filename)[-60:]} is too long for a name; choose a file of conf/", 2)
        if isinstance(error, OSError) and (error.filename or error.errno in FULL):
            place = error.filename or "writing"
            end(f"{place}: {error.strerror}; make room there, or choose another folder", 1)
        raise


def end(text: str, code: int) -> NoReturn:
    """Print lines to stderr and exit."""
    prefix = "error: " if code < 128 else ""
    for line in text.splitlines():
        print(prefix + line, file=sys.stderr)
    sys.exit(code)


def sentence(error: Exception) -> str:
    """Hydra's error in one line, with the nearest knob for a misspelt one."""
    text = str(error)
    if text.startswith("Config group override"):  # data=null
        return "data, model and trainer each need a choice; leave the override out for the default"
    if "Could not override" in text and "'" in text:
        key = text.split("'")[1]
        knobs = config.FIELDS | loading.knobs()
        if key in knobs:
            return f"{key} is a knob of {' and '.join(loading.owners(key))}; choose it, too"
        return unknown(key, knobs, config.NOT_KNOWN)
    if any(words in text for words in ("mismatched input", "token recognition", "NoViableAlt")):
        remedy = "write key=value, and quote a value that holds = , or brackets: \"key='value'\""
        return f"{text.splitlines()[0]}; {remedy}"
    text = " ".join(line.strip() for line in text.splitlines() if line.strip())
    if any(f"Could not find '{group}/" in text for group in config.OPEN):
        known, _, _ = text.partition(" Config search path")
        return f"{known}; name the file of your own one with plugin=FILE.py"
    return text[:300]


def load_plugin(words: Sequence[str]) -> list[str]:
    """Load the file of `plugin=FILE`; gives the other words. Raises ConfigError."""
    others = []
    for word in words:
        key, _, value = word.partition("=")
        if key == "plugin":
            loading.load_file(value.strip("'\""))
        else:
            others.append(word)
    return others


def parse_words(words: Sequence[str], options: type[Options], rest: str | None = None) -> Options:
    """The key=value words of a command line as options; `rest` names the one for words without =.

    The docstring of `options` begins with the usage; --help prints it. A value may be quoted as for
    Hydra. Raises ConfigError.
    """
    known = options.model_fields
    text = inspect.getdoc(options) or ""
    usage = text.partition("\n")[0]
    if "-h" in words or "--help" in words:
        lines = [f"  {name:12} {field.description}" for name, field in known.items()]
        lines.append(f"  {'plugin':12} the .py file of your network or objective")
        print(text, *lines, sep="\n")
        sys.exit(0)

    words = load_plugin(words)

    # Split the words into names and values.
    given: dict[str, str | list[str]] = {}
    others = []
    for word in words:
        key, equals, value = word.partition("=")
        if rest and not word.startswith("-") and (not equals or os.path.exists(word)):
            others.append(word)
        elif not equals or key.startswith("-"):
            raise ConfigError(f"{word} is not understood; {usage}")
        elif value != "null":
            given[key] = value
            if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
                from hydra.core.override_parser.overrides_parser import OverridesParser

                given[key] = str(OverridesParser.create().parse_override(word).value())
    if rest and others:
        given[rest] = others

    # Check them.
    for name, field in known.items():
        if field.is_required() and not given.get(name):
            raise ConfigError(f"{name} is not set; {usage}")
    try:
        return options.model_validate(given)
    except ValidationError as error:
        not_known = f"an option; there are {', '.join(known)}"
        raise ConfigError("\n".join(sentences(error, known, not_known))) from None


def quiet_lightning() -> None:
    """Pass Lightning's log through ours without its tips; ignore what does not concern the user."""
    for text in WARNINGS:
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    logging.getLogger("matplotlib").setLevel(logging.WARNING)
    for name in LIGHTNING:  # if imported first, they have handlers
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().strip().startswith(TIPS))
