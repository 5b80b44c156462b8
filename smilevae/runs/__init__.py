"""The run folder: what a run was, how it stands and what came of it. The only hand-over between programs.

config.yaml    resolved, plain             status.json   RUNNING | COMPLETED | FAILED | INTERRUPTED, with the reason
metrics.jsonl  one line an epoch           result.json   written last: its presence means COMPLETED
checkpoints/   the best two, last, previous: see runs/checkpoint.py, which needs torch; this room does not
evaluation/    measures and pictures of a checkpoint
"""

from smilevae.runs.commands import override, resume_line, short, typed
from smilevae.runs.evaluations import evaluation_folder, point_to_best, read_evaluation
from smilevae.runs.files import replace_file, replacing, write_bytes, write_text
from smilevae.runs.folder import Run, new_run_dir, what_next
from smilevae.runs.machine import environment
from smilevae.runs.reading import (
    epochs_done,
    in_use,
    read_json,
    read_metrics,
    read_result,
    state,
)
from smilevae.runs.resuming import continued, read_settings
from smilevae.runs.signals import Stop

__all__ = [
    "Run",
    "Stop",
    "continued",
    "environment",
    "epochs_done",
    "evaluation_folder",
    "in_use",
    "new_run_dir",
    "override",
    "point_to_best",
    "read_evaluation",
    "read_json",
    "read_metrics",
    "read_result",
    "read_settings",
    "replace_file",
    "replacing",
    "resume_line",
    "short",
    "state",
    "typed",
    "what_next",
    "write_bytes",
    "write_text",
]
