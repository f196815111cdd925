"""``dvt-edge run`` in a process of its own, which is interrupted, killed, or no longer read."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.app.replay import read_answers
from tests.app.conftest import check_sum, objects, write_recording

Recorded = Callable[..., str]
Write = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def recorded(tmp_path: Path, samples: Path) -> Recorded:
    """:func:`~tests.app.conftest.write_recording` to the test's folder."""
    return partial(write_recording, tmp_path / "recording", samples)


@pytest.fixture
def start(write_profile: Write) -> Iterator[Start]:
    """A function that starts ``dvt-edge run`` with arguments; what is left in the end is killed."""
    started: list[subprocess.Popen[str]] = []
    profile = write_profile()

    def start(*arguments: object, **keywords: Any) -> subprocess.Popen[str]:
        code = "from dvt_edge.cli import main; main()"
        command = [sys.executable, "-c", code, "run", "--profile", profile, *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | keywords
        started.append(subprocess.Popen([str(part) for part in command], text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def _wait_for(path: Path, size: int) -> None:
    until = time.monotonic() + 60
    while not (path.exists() and path.stat().st_size > size):
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals(start: Start, recorded: Recorded, tmp_path: Path, number: signal.Signals) -> None:
    """Every output is closed, and the summary is exact; it takes about a fifth of a second."""
    lines, folder = tmp_path / "answers.jsonl", tmp_path / "new"
    source = recorded(100_000, 50.0)
    process = start("--json", "--source", source, "--jsonl", lines, "--record", folder)
    _wait_for(lines, 20_000)
    sent = time.monotonic()
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert time.monotonic() - sent < 5
    assert process.returncode == 0, err
    (summary,) = objects(out)
    check_sum(summary)
    assert summary["ended_by"] == number.name
    assert summary["answered"] > 10
    written = objects(lines.read_text(encoding="utf-8"))
    assert sum("event" not in line for line in written) == summary["answered"]
    record = summary["outputs"]["record"]
    assert len(read_answers(folder)) == record["frames"]
    assert record["frames"] + record["left_out"] == summary["answered"]


@pytest.mark.slow
def test_lines_are_whole_after_kill_9(start: Start, recorded: Recorded, tmp_path: Path) -> None:
    """And the recording can be replayed."""
    lines, folder = tmp_path / "answers.jsonl", tmp_path / "new"
    arguments = ("--source", recorded(100_000), "--every-frame", "--jsonl", lines)
    process = start(*arguments, "--record", folder)
    _wait_for(lines, 100_000)
    process.kill()
    process.wait()
    written = objects(lines.read_text(encoding="utf-8"))
    assert len(written) > 100
    assert all((folder / line["file"]).exists() for line in read_answers(folder))


@pytest.mark.slow
def test_a_reader_that_goes(start: Start, recorded: Recorded) -> None:
    """As with ``| head``: the run ends, for nobody wants its lines."""
    process = start("--source", recorded(100_000, 100.0), "--jsonl", "-")
    assert process.stdout is not None
    assert "seq" in process.stdout.readline()
    process.stdout.close()
    assert process.wait(30) == 1
    assert process.stderr is not None
    assert "ended by nobody reading its output" in process.stderr.read()


@pytest.mark.slow
def test_a_reader_that_does_not_read(start: Start, recorded: Recorded) -> None:
    """The pipe is full and the loop waits; Ctrl-C ends it all the same."""
    process = start("--source", recorded(100_000), "--jsonl", "-")
    assert process.stdout is not None
    assert "seq" in process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 1  # a line was lost
    assert process.stderr is not None
    assert "ended by Ctrl-C" in process.stderr.read()
