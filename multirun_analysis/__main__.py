"""python -m multirun_analysis SWEEP: the same as `smilevae analyse SWEEP`; see options.py."""

import signal
import sys
from collections.abc import Sequence

from multirun_analysis.options import AnalyseOptions
from smilevae import console


def main(words: Sequence[str]) -> None:
    """Exit codes: 0, 2 or 1 with one sentence, 130 when interrupted."""
    with console.one_sentence():
        options = console.parse_words(words, AnalyseOptions, rest="folders")
        from multirun_analysis import report  # pandas and matplotlib are imported only now

        report.main(options)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `... | head` ends the process without a message
    main(sys.argv[1:])
