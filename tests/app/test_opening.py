"""Names of cameras."""

from __future__ import annotations

from dvt_edge.app.opening import camera_names


def test_names_tell_cameras_apart() -> None:
    """Also those whose URIs differ only in what is not shown."""
    uris = ["rtsp://a:secret@host/1", "rtsp://b:secret@host/1", "test://", "rtsp://host/2"]
    assert camera_names(uris) == [
        "rtsp://***@host/1",
        "rtsp://***@host/1 (2)",
        "test://",
        "rtsp://host/2",
    ]
