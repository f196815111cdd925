"""Answers and events as JSON lines in a file."""

from __future__ import annotations

import json
import os
import stat
from typing import Any

from dvt_edge.app.sinks import MakeNote, Note, Seen
from dvt_edge.app.values import answer_values, event_values
from dvt_edge.errors import ConfigError

PAGE = 4096
"""The least that Linux copies to a file at once."""
ROOM = 1024
"""What a line is expected to take, until a longer one was seen; up to half a page."""


class LineFile:
    """Appends whole lines to ``file``; ``-`` is standard output.

    A line is one write to a descriptor in append mode, so others may append as well. Linux copies
    it page by page and looks for SIGKILL in between: spaces at the end of a line keep the next one
    within a page, so that lines are whole whatever ends the process. Raises
    :class:`~dvt_edge.errors.ConfigError` for a file that cannot be written.
    """

    def __init__(self, file: str) -> None:
        self._descriptor = os.dup(1) if file == "-" else _open_appending(file)
        self._regular = stat.S_ISREG(os.fstat(self._descriptor).st_mode)
        self._room = ROOM

    def write(self, values: dict[str, Any]) -> None:
        """One object; raises :class:`OSError`, and then nothing of it is there."""
        line = json.dumps(values, allow_nan=False).encode()
        if self._regular:
            self._room = min(PAGE // 2, max(self._room, len(line) + 1))
            left = -(os.fstat(self._descriptor).st_size + len(line) + 1) % PAGE
            if left < self._room:
                line += b" " * left
        line += b"\n"
        written = os.write(self._descriptor, line)
        while written < len(line):  # the disk is full, or a pipe takes it piece by piece
            try:
                written += os.write(self._descriptor, line[written:])
            except OSError:
                if self._regular:  # half a line would spoil the next one as well
                    size = os.fstat(self._descriptor).st_size
                    os.ftruncate(self._descriptor, size - written)
                raise

    def close(self) -> None:
        os.close(self._descriptor)


class JsonLines:
    """One object per answer and per event, appended to ``file``; ``-`` is standard output.

    Where a write fails, such as on a full disk, the line is lost and counted; ``note`` is told
    once, and once more when lines are written again. Raises
    :class:`~dvt_edge.errors.ConfigError` for a file that cannot be written.
    """

    def __init__(self, file: str, note: MakeNote) -> None:
        self.lines = 0
        self.lost = 0
        self.reader_gone = False
        """The other end of a pipe is closed."""
        self._name, self._note = file, note
        self._lost_in_a_row = 0
        self._file = LineFile(file)

    def take(self, seen: Seen) -> None:
        self._write(answer_values(seen))

    def event(self, event: Note) -> None:
        self._write(event_values(event))

    def close(self) -> None:
        self._file.close()

    def summary(self) -> dict[str, Any]:
        """What came of it."""
        return {"file": self._name, "lines": self.lines, "lost": self.lost}

    def _write(self, values: dict[str, Any]) -> None:
        try:
            self._file.write(values)
        except OSError as error:
            self.lost += 1
            self.reader_gone |= isinstance(error, BrokenPipeError)
            if self._lost_in_a_row == 0:
                self._note(
                    "lines_lost",
                    f"{self._name}: cannot be written ({error.strerror}); lines are lost until it "
                    "can, and counted",
                )
            self._lost_in_a_row += 1
            return
        self.lines += 1
        if self._lost_in_a_row:
            lost, self._lost_in_a_row = self._lost_in_a_row, 0
            self._note("lines_again", f"{self._name}: is written again; {lost} lines were lost")


def check_file(file: str) -> None:
    """Raise :class:`~dvt_edge.errors.ConfigError` unless ``file`` can be written."""
    os.close(_open_appending(file))


def _open_appending(file: str) -> int:
    try:
        return os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise ConfigError(
            f"{file}: cannot be written ({error.strerror}); choose another file, or make its folder"
        ) from None
