"""How events are called, and which paths of a profile are relative to it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dvt_edge.app.opening import beside
from dvt_edge.app.values import iso_time, note_of
from dvt_edge.policy.live.controller import Change
from dvt_edge.runtime.events import NotFinite, OtherConditions


@pytest.mark.parametrize(
    ("event", "kind", "cause"),
    [
        (Change(1, (0.5,), "slower", certificate_holds=False), "thresholds_changed", None),
        (NotFinite(1, "NaN"), "not_finite", None),
        (OtherConditions("smaller"), "other_conditions", None),
        (SimpleNamespace(kind="disconnected", cause="busy", reason="x"), "disconnected", "busy"),
        (SimpleNamespace(kind="resized", cause=None, reason="x"), "resized", None),
    ],
)
def test_events(event: Any, kind: str, cause: str | None) -> None:
    """Those of the Runtime are called as in the metrics."""
    note = note_of(event, "camera")
    assert (note.kind, note.cause, note.source) == (kind, cause, "camera")
    assert note.reason == event.reason


def test_times() -> None:
    assert iso_time(1e9 + 0.0125) == "2001-09-09T01:46:40.012+00:00"


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("replay://rec?fps=0", "replay://{}/rec?fps=0"),
        ("file://rec/a.mp4?loop=1", "file://{}/rec/a.mp4?loop=1"),
        ("images://rec", "images://{}/rec"),
        ("rec", "{}/rec"),
        ("rec?fps=5", "{}/rec?fps=5"),
        ("replay:///rec", "replay:///rec"),
        ("file://~/rec", "file://~/rec"),
        ("file://${HERE}/rec", "file://${HERE}/rec"),
        ("rtsp://rec/stream", "rtsp://rec/stream"),
        ("v4l2://0", "v4l2://0"),
        ("test://", "test://"),
        ("0", "0"),
        ("${CAMERA}", "${CAMERA}"),
        ("/dev/video0", "/dev/video0"),
    ],
)
def test_paths_are_relative_to_the_profile(tmp_path: Path, uri: str, expected: str) -> None:
    (tmp_path / "rec").mkdir()
    assert beside(uri, tmp_path) == expected.replace("{}", str(tmp_path))
