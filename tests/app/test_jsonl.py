"""JSON lines: what is in them, and that they are whole."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.app.jsonl import PAGE, JsonLines, check_file
from dvt_edge.app.loop import Note
from dvt_edge.errors import ConfigError
from tests.app.conftest import seen, wait_until

Notes = list[tuple[str, str]]


def _lines(path: Path) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_answers_and_events_in_order(tmp_path: Path, notes: Notes) -> None:
    path = tmp_path / "answers.jsonl"
    sink = JsonLines(str(path), lambda *note: notes.append(note))
    sink.take(seen(7, label="Schlüssel", energy_mj=1.5))
    sink.event(Note("disconnected", "no frame for 5 s", "camera", "stalled", 1e9))
    sink.close()
    first, second = _lines(path)
    assert first == {
        "time": "2001-09-09T01:46:47.000+00:00",
        "source": "camera",
        "seq": 7,
        "dropped_before": 0,
        "class_id": 1,
        "label": "Schlüssel",
        "confidence": 0.9,
        "exit_stage": 2,
        "latency_ms": 2.0,
        "preprocess_ms": 0.5,
        "stage_latency_ms": [0.5, 1.0],
        "age_ms": 5.0,
        "confidences": [0.4, 0.9],
        "classes": [0, 1],
        "truncated": False,
        "reason": None,
        "energy_mj": 1.5,
    }
    assert second == {
        "time": "2001-09-09T01:46:40.000+00:00",
        "event": "disconnected",
        "cause": "stalled",
        "reason": "no frame for 5 s",
        "source": "camera",
    }
    assert sink.summary() == {"file": str(path), "lines": 2, "lost": 0}
    assert notes == []


def test_confidences_that_are_no_number_are_null(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    sink = JsonLines(str(path), lambda *_: None)
    nan = float("nan")
    sink.take(seen(confidence=nan, confidences=(nan, nan)))
    sink.close()
    (line,) = _lines(path)
    assert (line["confidence"], line["confidences"]) == (None, [None, None])


def test_another_run_appends(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for seq in (1, 2):
        sink = JsonLines(str(path), lambda *_: None)
        sink.take(seen(seq))
        sink.close()
    assert [line["seq"] for line in _lines(path)] == [1, 2]


def test_full_disk(notes: Notes) -> None:
    """Every line is counted, and people are told once."""
    sink = JsonLines("/dev/full", lambda *note: notes.append(note))
    for k in range(50):
        sink.take(seen(k))
    sink.close()
    assert sink.summary() == {"file": "/dev/full", "lines": 0, "lost": 50}
    assert [kind for kind, _ in notes] == ["lines_lost"]
    assert "No space left on device" in notes[0][1]


def test_a_disk_that_fills_up_in_the_middle_of_a_line(tmp_path: Path, notes: Notes) -> None:
    """The part that was written is taken back; when there is space again, lines go on."""
    path = tmp_path / "answers.jsonl"
    sink = JsonLines(str(path), lambda *note: notes.append(note))
    sink.take(seen(0))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, before[1]))
    try:
        sink.take(seen(1))
        sink.take(seen(2))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    sink.take(seen(3))
    sink.close()
    assert [line["seq"] for line in _lines(path)] == [0, 3]
    assert (sink.lines, sink.lost) == (2, 2)
    assert [kind for kind, _ in notes] == ["lines_lost", "lines_again"]
    assert "2 lines were lost" in notes[1][1]


def test_a_pipe_takes_a_line_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write may take only the first bytes."""
    path, write = tmp_path / "answers.jsonl", os.write
    sink = JsonLines(str(path), lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr("dvt_edge.app.jsonl.os.write", lambda file, data: write(file, data[:100]))
        sink.take(seen(0))
    sink.close()
    assert [line["seq"] for line in _lines(path)] == [0]


def test_a_reader_that_has_gone(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    sink = JsonLines(str(pipe), lambda *_: None)
    sink.take(seen(0))
    assert not sink.reader_gone
    os.close(reader)
    sink.take(seen(1))
    assert sink.reader_gone
    assert (sink.lines, sink.lost) == (1, 1)
    sink.close()


def test_no_line_crosses_a_page(tmp_path: Path) -> None:
    """Between two pages of a write SIGKILL would end it."""
    path = tmp_path / "answers.jsonl"
    sink = JsonLines(str(path), lambda *_: None)
    for k in range(500):
        sink.take(seen(k, label="x" * (k * 37 % 400)))
    sink.close()
    start = 0
    for line in path.read_bytes().splitlines(keepends=True):
        assert start // PAGE == (start + len(line) - 1) // PAGE
        start += len(line)
    assert len(_lines(path)) == 500


_WRITER = """
import sys
sys.path[:0] = {path!r}
from dvt_edge.app.jsonl import JsonLines
from tests.app.conftest import seen
sink = JsonLines(sys.argv[1], print)
k = 0
while True:
    sink.take(seen(k, label="x" * (k * 37 % 700)))
    k += 1
"""


@pytest.mark.slow
def test_lines_are_whole_after_kill_9(tmp_path: Path) -> None:
    """Of a process that does nothing but write."""
    path = tmp_path / "answers.jsonl"
    command = [sys.executable, "-c", _WRITER.format(path=sys.path), str(path)]
    with subprocess.Popen(command) as process:
        try:
            wait_until(lambda: path.exists() and path.stat().st_size > 1_000_003, 60)
        finally:
            process.send_signal(signal.SIGKILL)
    assert len(_lines(path)) > 1000


@pytest.mark.parametrize("name", ["gone/answers.jsonl", "."])
def test_files_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be written"):
        check_file(str(tmp_path / name))
    assert not (tmp_path / "gone").exists()
