import contextlib
import errno
import multiprocessing
import os
import platform
import subprocess
import sys
import threading

import pytest
from filelock import FileLock

from smilevae import runs
from smilevae.errors import CheckpointError, ConfigError, Interrupted
from smilevae.runs import Run, folder
from smilevae.runs.reading import LOCK


@pytest.mark.parametrize("step", ["fsync", "replace", "check"])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path, monkeypatch, step):
    path = tmp_path / "status.json"
    runs.write_text(path, "old")

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    def check(work):
        assert work.read_text() == "new"
        if step == "check":
            full()

    if step != "check":
        monkeypatch.setattr(os, step, full)
    with pytest.raises(OSError, match="No space"):
        runs.replace_file(path, lambda file: file.write(b"new"), check)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["status.json"]


def _claim(path, answers):
    try:
        Run(path)
        answers.put("claimed")
    except ConfigError as error:
        answers.put(str(error))


def test_a_folder_is_claimed_by_one_process_and_freed_by_its_end(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    run = Run(tmp_path / "run")
    refusal = f"{run.dir} is in use by another process; wait for it or stop it"
    for expected in (refusal, "claimed"):
        process = context.Process(target=_claim, args=(tmp_path / "run", answers))
        process.start()
        assert answers.get(timeout=30) == expected
        process.join()
        run.close()


def test_a_claim_waits_for_who_only_asks_whether_the_run_is_in_use(tmp_path):
    """On a busy machine the asking process may be off the processor while it holds the lock."""
    asked = FileLock(tmp_path / LOCK, thread_local=False)
    asked.acquire()
    release = threading.Timer(0.5, asked.release)
    release.start()
    Run(tmp_path).close()
    release.join()


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (None, "RUNNING", None),
        (ConfigError("no good"), "FAILED", "no good"),
        (ZeroDivisionError("x"), "FAILED", "ZeroDivisionError: x"),
        (SystemExit(0), "FAILED", "SystemExit: 0"),
        (Interrupted(15), "INTERRUPTED", "stopped by signal 15"),
        (KeyboardInterrupt(), "INTERRUPTED", ""),
    ],
)
def test_the_status_tells_how_the_body_ended(tmp_path, error, status, reason):
    run = Run(tmp_path)
    raises = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with raises, run.recording():  # gives the folder up in the end
        assert runs.read_json(tmp_path / "status.json")["status"] == "RUNNING"
        if error:
            raise error
    found = runs.read_json(tmp_path / "status.json")
    assert (found["status"], found["reason"]) == (status, reason)


def test_the_result_comes_before_the_word_completed(tmp_path, monkeypatch):
    run = Run(tmp_path)
    order = []
    noted = lambda path, text: order.append((path.name, "COMPLETED" in text))  # noqa: E731
    monkeypatch.setattr(folder, "write_text", noted)
    run.complete({"a": 1})
    assert order == [("cost.json", False), ("result.json", False), ("status.json", True)]
    run.close()


def test_new_run_folders_of_one_second_differ_and_survive_a_command_line():
    names = {runs.new_run_dir("runs", None) for _ in range(50)}
    assert len(names) == 50
    assert not any(set(name) & set("=, '\"") for name in names)
    assert runs.new_run_dir("runs", "old/run/") == "old/run"


def test_metrics_with_a_torn_last_line_are_read_as_far_as_they_are_whole(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"epoch": 1}\n{"epoch": 2}\n{"epo')
    assert runs.read_metrics(tmp_path) == [{"epoch": 1}, {"epoch": 2}]
    assert runs.read_metrics(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "is not a run folder"),
        ("a: [", "config.yaml cannot be read .*; restore it"),
        ("- 1", "config.yaml cannot be read .*; restore it"),
        ("", "config.yaml cannot be read .*; restore it"),
        ("beta: 1", "latent_dim is missing"),
    ],
)
def test_a_folder_that_is_no_run_is_one_sentence(tmp_path, content, sentence):
    if content is not None:
        (tmp_path / "config.yaml").write_text(content)
    with pytest.raises(ConfigError, match=sentence):
        runs.read_settings(tmp_path)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_kept_memory_is_not_faulted_in_again():
    code = """
import resource, sys
from smilevae import runs
assert sys.argv[1] == "system" or runs.keep_memory()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    b"x" * 2**26
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    faults = {}
    for kind in ("keep", "system"):
        faults[kind] = int(subprocess.check_output([sys.executable, "-c", code, kind]))
    assert faults["keep"] < 0.1 * faults["system"]


@pytest.mark.parametrize(
    ("flags", "precision"), [("fpu avx512_bf16 sse", "bf16-mixed"), ("fpu avx512f", "32-true")]
)
def test_bfloat16_is_chosen_where_the_cpu_has_it(monkeypatch, tmp_path, flags, precision):
    (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags : {flags}\n")
    monkeypatch.setattr("smilevae.runs.machine.Path", lambda _: tmp_path / "cpuinfo")
    assert runs.fast_precision() == precision
    monkeypatch.setattr("smilevae.runs.machine.Path", lambda _: tmp_path / "missing")
    assert runs.fast_precision() == "32-true"


def test_a_run_folder_without_metrics_does_not_guess_its_best_checkpoint(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for epoch in (2, 3):
        (tmp_path / "checkpoints" / f"epoch-000{epoch}.ckpt").touch()
    sentence = r"no metrics.jsonl, .*; pass epoch-0002.ckpt or epoch-0003.ckpt"
    with pytest.raises(CheckpointError, match=sentence):
        runs.find(str(tmp_path))
    (tmp_path / "checkpoints" / "epoch-0003.ckpt").unlink()
    assert runs.find(str(tmp_path)).name == "epoch-0002.ckpt"


@pytest.mark.parametrize(
    "value", ["tr\\ail", "tr\\ail\\", "it's", "\\'", "a\\\\'b", "/ä b/=,[]{}$ %#", "'", '"']
)
def test_a_path_is_the_same_to_hydra_and_to_our_own_commands(value):
    from hydra.core.override_parser.overrides_parser import OverridesParser

    from smilevae.console import parse_words
    from smilevae.evaluation.options import EvaluateOptions

    word = runs.override("ckpt", value)
    assert OverridesParser.create().parse_override(word).value() == value
    assert parse_words([word], EvaluateOptions).ckpt == value
