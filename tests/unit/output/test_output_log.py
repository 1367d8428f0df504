"""What a child prints is kept to a fixed size, whole up to there, and costs its parent next to nothing."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time

import pytest

from dure.output_log import OutputLog


def printed(path, code, max_bytes=1 << 20, limit_s=10.0):
    log = OutputLog(path, max_bytes)
    try:
        child = subprocess.Popen([sys.executable, "-c", code], stdout=log.writer, stderr=log.writer, start_new_session=True)
    finally:
        log.started()
    child.wait()
    log.end(limit_s)
    return log


def test_everything_is_there_in_order_and_a_second_child_adds_to_it(tmp_path):
    path = tmp_path / "sub" / "log"
    code = "import sys, os; os.write(1, b'one '); os.write(2, b'two '); os.write(1, b'three\\n')"
    assert printed(path, code).bytes == 14
    assert printed(path, "print('again')").bytes == 6
    assert path.read_text() == "one two three\nagain\n"


@pytest.mark.parametrize("splices", [True, False])
def test_the_newest_output_is_kept_within_the_limit(tmp_path, splices, monkeypatch):
    """Where the file system cannot splice the bytes are copied: the same files either way."""
    if not splices:
        monkeypatch.setattr(OutputLog, "_splice", OutputLog._copy)
    path, lines = tmp_path / "log", "".join(f"{k:09d}\n" for k in range(70_000))
    assert printed(path, "for k in range(70_000): print(f'{k:09d}')", max_bytes=200_000).bytes == len(lines)
    kept = path.with_name("log.1").read_text() + path.read_text()
    assert path.stat().st_size <= 100_000 and path.with_name("log.1").stat().st_size == 100_000
    assert lines.endswith(kept)


def test_a_child_that_prints_without_end_does_not_take_its_parents_time(tmp_path):
    """Through the agent's event loop 300 MB were more than a second of it, and every other run of the node waited."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
    log = printed(tmp_path / "log", "import os\nfor _ in range(300): os.write(1, b'z' * (1 << 20))")
    assert log.bytes == 300 << 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_utime - before < 0.4


def test_a_grandchild_that_holds_the_pipe_is_not_waited_for(tmp_path):
    code = "import subprocess; print('x', flush=True); subprocess.Popen(['sleep', '5'], start_new_session=True)"
    began = time.monotonic()
    printed(tmp_path / "log", code, limit_s=0.1)
    assert time.monotonic() - began < 4.0
    assert (tmp_path / "log").read_text() == "x\n"


def test_no_file_descriptor_is_left(tmp_path):
    printed(tmp_path / "log", "")
    before = os.listdir("/proc/self/fd")
    printed(tmp_path / "log", "print('x')")
    assert os.listdir("/proc/self/fd") == before
