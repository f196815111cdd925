"""GStreamer's part: which elements a source needs, and pipelines where its bindings are there."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dvt_edge.camera import Cause, missing_elements, open_source
from dvt_edge.camera.elements import needed_elements
from dvt_edge.errors import SourceError
from tests.camera.clips import Events, check_accounts, check_closed_accounts, nothing_left

DEBIAN = Path("/usr/lib/python3/dist-packages/gi")
"""Where Debian and JetPack have it; a virtual environment sees it with --system-site-packages."""


@pytest.fixture
def gi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PyGObject, lent by the system's Python if that is of the same version."""
    (tmp_path / "gi").symlink_to(DEBIAN)
    monkeypatch.syspath_prepend(str(tmp_path))
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import gi\n"
        "gi.require_version('Gst', '1.0'); gi.require_version('GstApp', '1.0')\n"
        "from gi.repository import Gst, GstApp; Gst.init(None)\n"
        "assert Gst.ElementFactory.find('videoconvert'), 'no gstreamer1.0-plugins-base'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no GStreamer for this Python: {done.stderr.strip().splitlines()[-1]}")


@pytest.mark.parametrize(
    ("uri", "names"),
    [
        ("test://", []),
        ("rtsp://host/x", []),
        (
            "csi://1?size=1280x720&fps=30",
            ["nvarguscamerasrc", "nvvidconv", "videoconvert", "appsink"],
        ),
        (
            "gst://v4l2src device=/dev/video0 ! video/x-raw,width=640 ! tee name=t t. ! queue",
            ["v4l2src", "tee", "queue", "videoconvert", "appsink"],
        ),
        (
            'gst://rtspsrc location="rtsp://h/a b!c" ! rtph264depay!h264parse ! nvv4l2decoder',
            ["rtspsrc", "rtph264depay", "h264parse", "nvv4l2decoder", "videoconvert", "appsink"],
        ),
    ],
)
def test_needed_elements(uri: str, names: list[str]) -> None:
    assert needed_elements(uri) == names


def test_without_bindings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said with the command that installs them."""
    (tmp_path / "gi.py").write_text("raise ImportError('no gi')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing_elements("csi://0") == ["gi"]
    assert missing_elements("test://") == []
    monkeypatch.setitem(sys.modules, "gi", None)
    with pytest.raises(SourceError, match="csi:// needs PyGObject; install with sudo apt"):
        open_source("csi://0")


@pytest.mark.usefixtures("gi")
class TestPipelines:
    def test_missing_elements(self) -> None:
        assert missing_elements("gst://videotestsrc ! nosuchelement ! queue") == ["nosuchelement"]

    def test_live(self) -> None:
        uri = "gst://videotestsrc is-live=true ! video/x-raw,width=322,height=241,framerate=60/1"
        with nothing_left(), open_source(uri) as source:
            frames = [next(source) for _ in range(10)]
            assert all(frame.age_ms >= 0 for frame in frames)
            assert frames[0].pixels.shape == (241, 322, 3)
            check_accounts(frames)
            del frames
        check_closed_accounts(source)

    @pytest.mark.parametrize(
        ("form", "shape", "colour"),
        [("RGB", (17, 33, 3), [0, 0, 255]), ("GRAY8", (17, 33), 81)],
    )
    def test_colours_and_odd_sizes(
        self, form: str, shape: tuple[int, ...], colour: list[int] | int
    ) -> None:
        """BGR or gray, as the pipeline has it; what is no camera ends."""
        events = Events()
        uri = (
            "gst://videotestsrc num-buffers=5 pattern=red ! "
            f"video/x-raw,format={form},width=33,height=17"
        )
        with open_source(uri, on_event=events) as source:
            frames = list(source)
        assert frames[-1].pixels.shape == shape
        np.testing.assert_allclose(frames[-1].pixels[8, 16], colour, atol=6)
        assert [event.kind for event in events] == ["ended"]

    @pytest.mark.parametrize(
        ("pipeline", "cause", "words"),
        [
            ("nosuchelement", Cause.NOT_FOUND, 'no element "nosuchelement"'),
            ("videotestsrc ! fakesink", Cause.UNDECODABLE, "cannot be built"),
            ("filesrc location=/absent ! decodebin", Cause.NOT_FOUND, "not found"),
            ("v4l2src device=/dev/video97", Cause.NOT_FOUND, "/dev/video97"),
        ],
    )
    def test_what_does_not_start(self, pipeline: str, cause: Cause, words: str) -> None:
        with nothing_left(), pytest.raises(SourceError, match=words) as caught:
            open_source(f"gst://{pipeline}")
        assert caught.value.cause is cause
