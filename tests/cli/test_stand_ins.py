"""Commands where the native operators are missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from dvt_edge.runtime.native import operator_library
from tests.cli.conftest import Run, Write

WORDS = "its stages run without the native operators"


@pytest.mark.skipif(
    operator_library.unavailable() is not None, reason=str(operator_library.unavailable())
)
@pytest.mark.parametrize("command", ["classify", "run"])
def test_said_once(
    dvt_edge: Run,
    write_profile: Write,
    images: Path,
    command: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """In the log, and not once more as a note."""
    monkeypatch.setattr(operator_library, "_load", lambda: (None, None, "was not built"))
    more = (images,) if command == "classify" else ("--source", "test://", "--max-frames", 3)
    result = dvt_edge(command, "--profile", write_profile(), *more)
    assert result.code == 0
    assert [WORDS in record.getMessage() for record in caplog.records].count(True) == 1
    assert WORDS not in result.err
