"""python -m multirun_analysis SWEEP [SWEEP ...] [rank_by=val/nelbo] [out=FOLDER]: which runs are best, and why."""

import os
import sys
from pathlib import Path

from smilevae.errors import ConfigError, UserError


def main(arguments: list[str]) -> int:
    """Exit code: 0, 2 or 1 with one sentence, 130 when interrupted."""
    options = {"rank_by": "val/nelbo", "out": ""}
    folders = []
    try:
        for text in arguments:
            key, equals, value = text.partition("=")
            if equals and key in options:
                options[key] = value
            elif text in ("-h", "--help"):
                print(__doc__)
                return 0
            elif text.startswith("-") or (equals and not Path(text).exists()):
                raise ConfigError(f"{text} is unknown; {__doc__}")
            else:
                folders.append(Path(os.path.expanduser(text)))
        if not folders:
            raise ConfigError(f"no folder given; {__doc__}")
        from multirun_analysis import report

        out = Path(options["out"] or folders[0] / "analysis")
        print(report.analyse(folders, options["rank_by"], out))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except OSError as error:
        print(f"error: {error.filename}: {error.strerror}; choose another folder with out=FOLDER", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
