"""V4L2 devices, whose answers are made as the kernel makes them; no camera is needed."""

from __future__ import annotations

import errno
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from dvt_edge.camera import attached as attached_module
from dvt_edge.camera.attached import find_attached
from dvt_edge.camera.v4l2 import Ioctl, find_devices
from dvt_edge.cli import cameras

CAPTURE, CAPTURE_MPLANE, METADATA, OUTPUT = 0x1, 0x1000, 0x800000, 0x2
DEVICE_CAPABILITIES = 0x80000000

Sizes = list[tuple[int, int, list[tuple[int, int]]]]
"""Width, height, and times between frames as fractions of a second."""


class Kernel:
    """Answers for one device, in the layout of ``linux/videodev2.h``."""

    def __init__(
        self,
        name: str = "HD Webcam",
        driver: str = "uvcvideo",
        capabilities: int = CAPTURE,
        formats: dict[str, Sizes | tuple[int, int, int, int]] | None = None,
    ) -> None:
        self.name, self.driver, self.capabilities = name, driver, capabilities
        self.formats = formats or {}

    def ioctl(self, descriptor: int, code: int, answer: bytearray) -> None:
        assert len(answer) == code >> 16 & 0x3FFF
        if code == 0x80685600:
            answer[0:16] = self.driver.encode().ljust(16, b"\0")
            answer[16:48] = self.name.encode().ljust(32, b"\0")
            everything = CAPTURE | METADATA | DEVICE_CAPABILITIES
            answer[84:92] = struct.pack("=II", everything, self.capabilities)
        elif code == 0xC0405602:
            index, kind = struct.unpack_from("=II", answer)
            assert kind == (9 if self.capabilities & CAPTURE_MPLANE else 1)
            name = self.entry(list(self.formats), index)
            struct.pack_into("=I32sI", answer, 8, name == "MJPG", b"Motion", self.code(name))
        elif code == 0xC02C564A:
            index, pixel_format = struct.unpack_from("=II", answer)
            sizes = self.of(pixel_format)
            if isinstance(sizes, tuple):
                self.entry([0], index)
                widest, narrowest = sizes[2:], sizes[:2]
                numbers = (narrowest[0], widest[0], 8, narrowest[1], widest[1], 8)
                struct.pack_into("=I6I", answer, 8, 3, *numbers)
            else:
                struct.pack_into("=III", answer, 8, 1, *self.entry(sizes, index)[:2])
        elif code == 0xC034564B:
            index, pixel_format, width, height = struct.unpack_from("=IIII", answer)
            sizes = self.of(pixel_format)
            assert isinstance(sizes, list)
            rates = next(size[2] for size in sizes if size[:2] == (width, height))
            struct.pack_into("=III", answer, 16, 1, *self.entry(rates, index))
        else:
            raise OSError(errno.ENOTTY, "not a typewriter")

    @staticmethod
    def entry(entries: list[Any], index: int) -> Any:
        if index >= len(entries):
            raise OSError(errno.EINVAL, "Invalid argument")
        return entries[index]

    @staticmethod
    def code(name: str) -> int:
        return int.from_bytes(name.encode(), "little")

    def of(self, pixel_format: int) -> Sizes | tuple[int, int, int, int]:
        return next(
            sizes for name, sizes in self.formats.items() if self.code(name) == pixel_format
        )


WEBCAM = Kernel(
    formats={
        "YUYV": [(640, 480, [(1, 30), (1, 15)]), (1280, 720, [(1, 10)])],
        "MJPG": [(640, 480, [(1, 30)]), (1280, 720, [(1, 30)]), (1920, 1080, [(1001, 30000)])],
    }
)
CSI = Kernel("vi-output, imx219 9-0010", "tegra-video", formats={"RG10": [(3280, 2464, [(1, 21)])]})
SENSOR = Kernel("thermal", formats={"Y16 ": [(160, 120, [(1, 9)])]})


@pytest.fixture
def machine(tmp_path: Path) -> Any:
    """A function that makes a machine's root with these devices, and what answers for them."""

    def make(*kernels: Kernel | None) -> tuple[Path, Ioctl]:
        (tmp_path / "dev").mkdir()
        for number in range(len(kernels)):
            (tmp_path / f"dev/video{number}").touch()

        def ioctl(descriptor: int, code: int, answer: bytearray) -> None:
            path = Path(f"/proc/self/fd/{descriptor}").readlink()
            kernel = kernels[int(path.name.removeprefix("video"))]
            if kernel is None:
                raise OSError(errno.ENOTTY, "not a typewriter")
            kernel.ioctl(descriptor, code, answer)

        return tmp_path, ioctl

    return make


def test_what_a_webcam_says(machine: Any) -> None:
    """Its second node, which takes no pictures, is left out."""
    root, ioctl = machine(WEBCAM, Kernel(capabilities=METADATA), None)
    (device,) = find_devices(root, ioctl)
    assert (device.path, device.name, device.driver) == ("/dev/video0", "HD Webcam", "uvcvideo")
    yuyv, mjpg = device.formats
    assert (yuyv.code, yuyv.compressed) == ("YUYV", False)
    assert (mjpg.code, mjpg.compressed, mjpg.description) == ("MJPG", True, "Motion")
    assert [(s.width, s.height, s.fps) for s in yuyv.sizes] == [
        (640, 480, (30.0, 15.0)),
        (1280, 720, (10.0,)),
    ]
    assert mjpg.sizes[2].fps == (29.97,)


def test_ranges_of_sizes(machine: Any) -> None:
    root, ioctl = machine(
        Kernel(capabilities=CAPTURE_MPLANE, formats={"NV12": (32, 32, 1920, 1080)})
    )
    (device,) = find_devices(root, ioctl)
    assert [(s.width, s.height) for s in device.formats[0].sizes] == [(32, 32), (1920, 1080)]


@pytest.mark.parametrize(
    ("kernel", "line"),
    [
        (WEBCAM, "v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg"),
        (CSI, "csi://0"),
        (SENSOR, "v4l2:///dev/video0?size=160x120&fps=9&format=gray16le"),
        (Kernel(formats={"RG10": [(640, 480, [])]}), "v4l2:///dev/video0"),
        (
            Kernel(formats={"NV12": (32, 32, 1280, 720)}),
            "v4l2:///dev/video0?size=1280x720&format=nv12",
        ),
    ],
)
def test_the_line_to_paste(machine: Any, kernel: Kernel, line: str) -> None:
    root, ioctl = machine(kernel)
    (found,) = find_attached(root, ioctl, lambda uri: [])
    assert found.uri == line


def test_csi_without_its_elements(machine: Any) -> None:
    root, ioctl = machine(CSI, WEBCAM, CSI)
    found = find_attached(root, ioctl, lambda uri: ["nvarguscamerasrc"])
    assert [camera.uri.partition("?")[0] for camera in found] == [
        "csi://0",
        "v4l2:///dev/video1",
        "csi://1",
    ]
    assert found[0].remark == "CSI; GStreamer lacks nvarguscamerasrc"


class TestCommand:
    @pytest.fixture
    def run(self, machine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
        def call(kernels: list[Kernel], *arguments: str) -> str:
            root, ioctl = machine(*kernels)
            monkeypatch.setattr(
                cameras,
                "find_attached",
                lambda _: attached_module.find_attached(root, ioctl, lambda uri: []),
            )
            result = CliRunner().invoke(cameras.command, arguments, standalone_mode=False)
            assert result.return_value == 0
            return result.output

        return call

    def test_for_people(self, run: Any) -> None:
        lines = run([WEBCAM, CSI]).splitlines()
        assert lines[0] == "/dev/video0  HD Webcam, uvcvideo"
        assert lines[1] == "  YUYV  1280x720 at 10 fps, 640x480 at 30 fps"
        assert lines[3] == "  --source 'v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg'"
        assert lines[4] == (
            "  camera: {source: 'v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg', fps: 30, "
            "frame: [1280, 720]}"
        )
        assert "  --source 'csi://0'" in lines

    def test_json(self, run: Any) -> None:
        (camera,) = json.loads(run([WEBCAM], "--json"))["cameras"]
        assert camera["source"] == "v4l2:///dev/video0?size=1280x720&fps=30&format=mjpeg"
        assert (camera["fps"], camera["frame"]) == (30.0, [1280, 720])
        assert camera["device"]["formats"][1]["code"] == "MJPG"

    def test_none(self, run: Any) -> None:
        said = run([])
        assert "No camera is attached" in said
        assert "--source test://" in said

    def test_none_as_json(self, run: Any) -> None:
        assert json.loads(run([], "--json")) == {"cameras": []}


def test_no_permission(machine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    root, ioctl = machine(WEBCAM)

    def refuse(path: object, flags: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.open", refuse)
    (device,) = find_devices(root, ioctl)
    assert device.problem == "no permission"


def test_opening_what_is_no_camera() -> None:
    """Absent, and something else: said at once, with the device's name."""
    pytest.importorskip("av")
    from dvt_edge.camera import Cause, open_source
    from dvt_edge.errors import SourceError

    for uri in ("v4l2:///dev/video97", "97", "v4l2:///dev/null"):
        with pytest.raises(SourceError) as caught:
            open_source(uri)
        assert caught.value.cause is Cause.NOT_FOUND
        assert "/dev/" in str(caught.value)
