"""The run folder, the only hand-over between programs. Only runs/checkpoint.py needs torch.

config.yaml    all settings, plain    status.json   RUNNING, COMPLETED, FAILED, INTERRUPTED, PAUSED
metrics.jsonl  one line an epoch      result.json   written last: its presence means COMPLETED
checkpoints/   the best two, last     evaluation/   measures and figures of a checkpoint
"""
# ruff: noqa: F401

from smilevae.runs.checkpoint_files import (
    EXPORTED,
    best_name,
    find,
    rank_of,
    ranked,
    run_of,
)
from smilevae.runs.commands import (
    command_line,
    command_name,
    hydra_argument,
    override,
    resume_line,
    shell_path,
)
from smilevae.runs.evaluations import evaluation_folder, point_to_best, read_evaluation, whole
from smilevae.runs.files import replace_file, replacing, write_bytes, write_text
from smilevae.runs.folder import Run, closing_lines, new_run_dir, refuse_used
from smilevae.runs.machine import COST, code, code_now, environment, fast_precision, keep_memory
from smilevae.runs.reading import epochs_done, in_use, read_json, read_metrics, read_result, state
from smilevae.runs.resuming import read_settings, settings_for_resume
from smilevae.runs.signals import Stop
from smilevae.runs.tensors import read_tensors, tensor_file
