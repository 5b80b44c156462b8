"""The edge of every program: option words, errors as one sentence with an exit code, Lightning's notes."""

import contextlib
import difflib
import errno
import inspect
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from smilevae import config
from smilevae.errors import ConfigError, Interrupted, UserError, sentences

HYDRA = ("hydra.", "omegaconf.", "antlr4")
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG)
logging.getLogger("matplotlib").setLevel(logging.WARNING)
NOISE = ("Tip:", "GPU available", "TPU available", "HPU available", "💡", "`Trainer.fit` stopped", "Restor")


@contextlib.contextmanager
def one_sentence() -> Iterator[None]:
    """Exit on a mistake: 1 a job failed, 2 configuration, 3 data, 4 checkpoint, 128 + signal."""
    try:
        yield
    except (Interrupted, KeyboardInterrupt) as stop:
        end(str(stop) or "interrupted", getattr(stop, "exit_code", 130))
    except BrokenPipeError:  # of the output, which Hydra may have written
        raise
    except Exception as error:
        if (explained := _explain(error)) is None:
            raise
        end(*explained)


def _explain(error: Exception) -> tuple[str, int] | None:
    """The sentence and exit code of a mistake; None for an error of ours."""
    if isinstance(error, UserError):
        return str(error), error.exit_code
    if isinstance(error, BrokenPipeError):
        return None
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    modules = type(error).__module__, frame.f_globals["__name__"]
    if any(module.startswith(HYDRA) for module in modules):
        return sentence(error), 2
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # Hydra looks for data=NAME among its files
        return f"...{str(error.filename)[-60:]} is too long for a name; choose one that is there", 2
    if isinstance(error, OSError) and (error.filename or error.errno in FULL):
        return f"{error.filename or 'writing'}: {error.strerror}; make room there, or choose another folder", 1
    return None


Options = TypeVar("Options", bound=BaseModel)


def parse_words(words: Sequence[str], options: type[Options], rest: str | None = None) -> Options:
    """The key=value words of a command line as options; the option `rest` collects words without =.

    The docstring of `options` begins with the usage; --help prints it. A value may be quoted as for Hydra. Raises
    ConfigError.
    """
    text = inspect.getdoc(options) or ""
    usage, known = text.partition("\n")[0], options.model_fields
    aliases = {str(a): f for f in known.values() for a in getattr(f.validation_alias, "choices", ())}
    if {"-h", "--help"} & set(words):
        print(text, *(f"  {name:12} {field.description}" for name, field in known.items()), sep="\n")
        sys.exit(0)
    given: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if rest and not word.startswith("-") and (not equals or os.path.exists(word)):
            given.setdefault(rest, []).append(word)
            continue
        if not equals or key.startswith("-"):
            raise ConfigError(f"{word} is not understood; {usage}")
        quoted = len(value) > 1 and value[0] == value[-1] and value[0] in "'\""
        given[key] = re.sub(r"(\\*)\1(\\(')|$)", r"\1\3", value[1:-1]) if quoted else value
    for name, field in known.items():
        if field.is_required() and not given.get(name):
            raise ConfigError(f"{name} is not set; {usage}")
    not_known = f"an option; there are {', '.join(known)}"
    try:
        return options.model_validate({key: value for key, value in given.items() if value != "null"})
    except ValidationError as error:
        raise ConfigError("\n".join(sentences(error, known | aliases, not_known))) from None


def end(text: str, code: int) -> NoReturn:
    """Print lines to stderr and exit."""
    for line in text.splitlines():
        print(f"error: {line}" if code < 128 else line, file=sys.stderr)
    sys.exit(code)


def sentence(error: Exception) -> str:
    """Hydra's error in one line, with the nearest knob for a misspelt one."""
    text = str(error)
    if text.startswith("Config group override"):  # data=null
        return "data, model and trainer each need a choice; leave the override out for the default"
    if "Could not override" in text and "'" in text:
        name = text.split("'")[1]
        if name in config.FIELDS:
            return f"{name} does not apply here; see the file in conf/{name.partition('.')[0]}/ that you chose"
        near = difflib.get_close_matches(name, config.FIELDS, n=1)
        return f"{name} is not a knob; {f'did you mean {near[0]}?' if near else 'see --help'}"
    if "mismatched input" in text or "token recognition" in text:
        return f"{text.splitlines()[0]}; write key=value, and quote a value that holds = , or brackets: \"key='value'\""
    return " ".join(line.strip() for line in text.splitlines() if line.strip())[:300]


def quiet_lightning() -> None:
    """Pass Lightning's log through ours without its tips; ignore warnings that do not concern the user."""
    for text in ("isinstance.treespec", "does not have many workers", "ended before the epoch ended"):
        warnings.filterwarnings("ignore", message=f".*{text}.*")
    for name in ("pytorch_lightning", "lightning_fabric", "lightning"):  # if imported first, they have handlers
        logging.getLogger(name).propagate = True
        logging.getLogger(name).handlers.clear()
    for handler in logging.getLogger().handlers:
        handler.addFilter(lambda record: not record.getMessage().strip().startswith(NOISE))
