"""The sample programs, run as a user runs them, with something wrong as well."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.manifest import COSTS
from tests.conftest import random_pixels

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
APPS = sorted((ROOT / "samples").glob("*.py"))
WARNINGS = ("-W", "error", "-W", "ignore:DynamicImporter:ImportWarning")
"""But for one of PyGObject's own."""
MADE = "test://?size=96x96&fps=60"
DEBIAN = Path("/usr/lib/python3/dist-packages/gi")
"""Where Debian and JetPack have PyGObject."""

Write = Callable[..., Path]


def _run(app: str, *arguments: object, path: Path | None = None) -> subprocess.CompletedProcess:
    """``python samples/APP ARGUMENTS``; modules in the folder ``path`` come first."""
    return subprocess.run(
        [sys.executable, *WARNINGS, f"samples/{app}", *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | ({} if path is None else {"PYTHONPATH": str(path)}),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def _lines(app: str, *arguments: object, path: Path | None = None) -> list[str]:
    """What it prints, if it succeeds."""
    done = _run(app, *arguments, path=path)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def _refusal(app: str, *arguments: object, path: Path | None = None) -> str:
    """The one line that it ends with, if it fails."""
    done = _run(app, *arguments, path=path)
    assert done.returncode == 1
    assert re.fullmatch(r"error: .+\n", done.stderr), done.stderr
    return done.stderr


@pytest.mark.parametrize("app", APPS, ids=lambda path: path.name)
def test_apps_are_short(app: Path) -> None:
    text = app.read_text(encoding="utf-8")
    assert text.count("\n") < 80
    imported = set(re.findall(r"^(?:import|from) (dvt_edge[\w.]*)", text, flags=re.MULTILINE))
    assert imported == {"dvt_edge"}, "the public names alone"


def test_camera(write_profile: Write) -> None:
    *frames, promise = _lines(
        "camera_app.py", "--profile", write_profile(), "--source", MADE, "--max-frames", 3
    )
    assert len(frames) == 3
    for line in frames:
        assert re.fullmatch(
            r"frame \d+: [a-z-]+ \([01]\.\d\d\) from exit [123] in \d+\.\d\d ms; \d+ ms old, "
            r"\d+ left out before it",
            line,
        )
    assert promise.startswith("Promised: mean latency of 2 ms")


def test_camera_that_is_none(write_profile: Write) -> None:
    refusal = _refusal("camera_app.py", "--profile", write_profile(), "--source", "tset://")
    assert "unknown source tset://" in refusal
    assert "perhaps test://" in refusal


def test_folder(write_profile: Write, samples: Path, tmp_path: Path) -> None:
    """The answers are those of a Runtime; an image that cannot be read is named and left out."""
    profile, table = write_profile(), tmp_path / "answers.csv"
    folder = tmp_path / "images"
    wanted = {}
    with Runtime(profile) as runtime:
        for file in sorted((samples / "demo/scenes/test").glob("*/*8.png"))[::200]:
            copy = folder / file.parent.name / file.name
            copy.parent.mkdir(parents=True, exist_ok=True)
            gray = np.asarray(Image.open(file))
            pixels = np.stack([gray, gray // 2, gray // 4], axis=2)
            Image.fromarray(pixels).save(copy)
            answer = runtime.classify(pixels, color_order="rgb")
            wanted[str(copy.relative_to(folder))] = (answer.label, f"{answer.confidence:.4f}")
    (folder / "broken.png").write_text("no image")
    done = _run("folder_to_csv.py", "--profile", profile, "--folder", folder, "--csv", table)
    assert done.returncode == 1
    assert "broken.png: left out" in done.stderr
    assert f"{len(wanted)} of {len(wanted) + 1} images" in done.stdout
    rows = list(csv.DictReader(table.read_text(encoding="utf-8").splitlines()))
    assert {row["file"]: (row["label"], row["confidence"]) for row in rows} == wanted
    assert all(row["exit"] in "123" and float(row["latency_ms"]) > 0 for row in rows)


def test_folder_without_images(write_profile: Write, tmp_path: Path) -> None:
    arguments = ("--profile", write_profile(), "--folder", tmp_path / "absent", "--csv", "x.csv")
    assert "holds no images" in _refusal("folder_to_csv.py", *arguments)
    assert not (ROOT / "x.csv").exists()


def test_two_cameras(write_profile: Write) -> None:
    """Both get their turn, and a name; one that is not there holds nobody up."""
    profile, other = write_profile(), "test://?size=80x64&fps=60"
    sources = ("--source", MADE, "--source", other, "--source", "/absent.mp4")
    done = _run("two_cameras.py", "--profile", profile, *sources, "--max-frames", 120)
    assert done.returncode == 0, done.stderr
    assert "/absent.mp4: not found" in done.stderr
    lines = done.stdout.splitlines()
    for name in (f"camera 1 {MADE}", f"camera 2 {other}"):
        answers = [line for line in lines if re.match(rf"{re.escape(name)}: [a-z-]+ \(", line)]
        assert len(answers) >= 10
        assert f"{name}: {len(answers)} frames answered" in lines
    assert lines[-1].startswith("Promised: ")


def test_two_cameras_one_of_which_is_none(write_profile: Write) -> None:
    sources = ("--source", MADE, "--source", "tset://")
    refusal = _refusal("two_cameras.py", "--profile", write_profile(), *sources)
    assert "unknown source tset://" in refusal


@pytest.fixture
def energetic(write_profile: Write, own_bundle: Path, known_costs: Callable[..., Costs]) -> Path:
    """A profile whose exits take 10, 20 and 40 mJ above the 1 W that the machine draws at rest."""
    bundle = Bundle(own_bundle)
    energy: dict[str, Any] = {
        "energy_mj": (11.0, 22.0, 44.0),
        "net_mj": (10.0, 20.0, 40.0),
        "idle_mw": 1000.0,
        "energy_source": "declared: by a test",
        "energy_declared": True,
    }
    bundle.store(COSTS, known_costs(bundle).model_copy(update=energy))
    return write_profile(budget={"latency_ms": 1000.0})


def test_battery_that_is_made(energetic: Path) -> None:
    """It empties faster than planned: frames leave earlier and earlier."""
    lines = _lines(
        *("battery.py", "--profile", energetic, "--source", MADE, "--fps", 10),
        *("--hours", 0.001, "--every", 0.1, "--made-wh", 0.002, "--made-watts", 2.2),
    )
    looks = [line for line in lines if "Wh are left" in line]
    hours = [float(look.split()[5]) for look in looks]
    assert hours[0] == 0.001
    assert hours[-1] < 0.0005
    assert hours == sorted(hours, reverse=True)
    first = [int(part) for part in re.findall(r"(\d+)%", looks[0])]
    assert sum(first[1:]) > 20, "2 W less 1 W at rest are 100 mJ for each of 10 frames a second"
    stages = [int(re.findall(r"(\d+)%", look)[0]) for look in looks]
    assert stages == sorted(stages)
    assert stages[-1] == 100
    assert any(line.startswith("It will not last, so no later stage than 1 runs") for line in lines)
    assert lines[-1] == "Energy is declared: by a test"


@pytest.mark.parametrize(
    "files",
    [
        {"energy_now": "2000000"},
        {"charge_now": "200000", "voltage_now": "10000000"},
    ],
)
def test_battery_of_the_machine(energetic: Path, tmp_path: Path, files: dict[str, str]) -> None:
    """Linux tells its charge in one of two units."""
    for name, content in {"AC": {"type": "Mains"}, "BAT0": files | {"type": "Battery"}}.items():
        (tmp_path / "supplies" / name).mkdir(parents=True)
        for file, text in content.items():
            (tmp_path / "supplies" / name / file).write_text(f"{text}\n")
    first, *_ = _lines(
        *("battery.py", "--profile", energetic, "--source", MADE, "--max-frames", 2),
        *("--hours", 1, "--fps", 10, "--supplies", tmp_path / "supplies"),
    )
    assert first.startswith("2.0000 Wh are left for 1.0000 h")


def test_battery_without_energy(write_profile: Write) -> None:
    arguments = ("--profile", write_profile(), "--source", MADE, "--made-wh", 20)
    refusal = _refusal("battery.py", *arguments)
    assert "a battery needs the measured energy per exit" in refusal
    assert "declare energy.watts and energy.idle_watts" in refusal


def test_battery_that_is_not_there(energetic: Path, tmp_path: Path) -> None:
    arguments = ("--profile", energetic, "--source", MADE, "--supplies", tmp_path)
    assert "there is no battery in" in _refusal("battery.py", *arguments)


def test_detector(write_profile: Write, tmp_path: Path) -> None:
    """What moved is boxed where it was and where it is."""
    for number, (left, top) in enumerate([(32, 48), (192, 112), (192, 112)]):
        frame = np.zeros((240, 320), np.uint8)
        frame[top : top + 96, left : left + 96] = random_pixels(96, 96) // 2 + 100
        Image.fromarray(frame).save(tmp_path / f"{number}.png")
    lines = _lines("detector_crops.py", "--profile", write_profile(), "--source", tmp_path)
    assert [line for line in lines if line.startswith("frame")] == [
        "frame 0: 0 boxes",
        "frame 1: 2 boxes",
        "frame 2: 0 boxes",
    ]
    boxes = [re.fullmatch(r"  (\(.*?\)): [a-z-]+ \([01]\.\d\d\)", line) for line in lines[2:4]]
    assert [found and found[1] for found in boxes] == ["(32, 48, 96, 96)", "(192, 112, 96, 96)"]


def test_detector_without_pictures(write_profile: Write) -> None:
    arguments = ("--profile", write_profile(), "--source", "images:///absent")
    assert "no such file or folder" in _refusal("detector_crops.py", *arguments)


# What the sample takes of ROS 2. Messages come from a file, answers go to standard output.
ROS = {
    "rclpy/__init__.py": """
import json
from array import array
from pathlib import Path
from types import SimpleNamespace

def init(args=None):
    assert "--profile" not in args

def spin(node):
    ((kind, topic, callback),) = node.subscriptions
    assert topic == "/camera/image_raw"
    for values in json.loads(Path(__file__).with_name("messages.json").read_text()):
        values["data"] = array("B", bytes.fromhex(values["data"]))
        stamp = SimpleNamespace(sec=7, nanosec=50)
        callback(kind(header=SimpleNamespace(stamp=stamp), **values))
""",
    "rclpy/node.py": """
import sys
from types import SimpleNamespace

class Node:
    def __init__(self, name):
        self.subscriptions = []

    def create_publisher(self, kind, topic, depth):
        def publish(message):
            assert isinstance(message, kind)
            print(topic, message.data)

        return SimpleNamespace(publish=publish)

    def create_subscription(self, kind, topic, callback, quality):
        self.subscriptions.append((kind, topic, callback))

    def get_logger(self):
        return SimpleNamespace(error=lambda text, once=False: print(text, file=sys.stderr))
""",
    "rclpy/qos.py": "qos_profile_sensor_data = object()\n",
    "sensor_msgs/__init__.py": "",
    "sensor_msgs/msg.py": "from types import SimpleNamespace as Image\n",
    "std_msgs/__init__.py": "",
    "std_msgs/msg.py": "from types import SimpleNamespace as String\n",
}


def test_ros(write_profile: Write, samples: Path, tmp_path: Path) -> None:
    """With a stand-in of rclpy: every layout is read as what it is, and answered."""
    gray = np.asarray(Image.open(samples / "demo/scenes/test/sandal/00008.png"))
    colour = np.repeat(gray[..., None], 3, axis=2)
    luma = np.rint(gray * (219 / 255) + 16).astype(np.uint8)
    yuyv = np.stack([luma, np.full_like(luma, 128)], axis=2)
    messages = [
        _message("mono8", np.pad(gray, ((0, 0), (0, 16))), gray.shape),  # padded
        _message("bgr8", colour, gray.shape),
        _message("rgb8", colour, gray.shape),
        _message("yuv422_yuy2", yuyv, gray.shape),
        _message("16UC1", gray, gray.shape),
    ]
    for name, text in ROS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "rclpy/messages.json").write_text(json.dumps(messages))
    profile = write_profile()
    with Runtime(profile) as runtime:
        wanted = runtime.classify(gray, color_order="gray")
    arguments = ("--profile", profile, "--images", "/camera/image_raw", "--answers", "/answers")
    done = _run("ros2_node.py", *arguments, path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("16UC1 is none of ['bgr8'")
    answers = [json.loads(line.removeprefix("/answers ")) for line in done.stdout.splitlines()]
    assert [answer["label"] for answer in answers] == [wanted.label] * 4
    assert answers[0]["confidence"] == pytest.approx(wanted.confidence)
    assert {answer["stamp"] for answer in answers} == {7.00000005}


def _message(
    encoding: str, rows: np.typing.NDArray[np.uint8], shape: tuple[int, ...]
) -> dict[str, Any]:
    step = rows[0].nbytes
    height, width = shape
    values = {"encoding": encoding, "height": height, "width": width, "step": step}
    return values | {"data": rows.tobytes().hex()}


def test_ros_that_is_not_there(tmp_path: Path, write_profile: Write) -> None:
    (tmp_path / "rclpy.py").write_text("raise ImportError('No module named rclpy')\n")
    refusal = _refusal("ros2_node.py", "--profile", write_profile(), path=tmp_path)
    assert "ROS 2 is needed (No module named rclpy)" in refusal


PUBLISH_ONE = """
import rclpy
from sensor_msgs.msg import Image
from std_msgs.msg import String

rclpy.init()
node = rclpy.create_node("camera")
answers = []
node.create_subscription(String, "answers", answers.append, 10)
images = node.create_publisher(Image, "image_raw", 10)
image = Image(encoding="mono8", height=48, width=48, step=48, data=bytes(48 * 48))
for _ in range(200):
    images.publish(image)
    rclpy.spin_once(node, timeout_sec=0.1)
    if answers:
        break
print(answers[0].data)
"""


def test_ros_itself(write_profile: Write) -> None:
    pytest.importorskip("rclpy", reason="needs ROS 2: rclpy")
    command = [sys.executable, "samples/ros2_node.py", "--profile", str(write_profile())]
    node = subprocess.Popen(command, cwd=ROOT)
    try:
        answer = subprocess.run(
            [sys.executable, "-c", PUBLISH_ONE], capture_output=True, text=True, check=True
        )
    finally:
        node.kill()
        node.wait()
    assert set(json.loads(answer.stdout)) == {"label", "confidence", "exit", "stamp"}


@pytest.fixture
def gi(tmp_path: Path) -> Path:
    """A folder with PyGObject, lent by the system's Python if that is of the same version."""
    folder = tmp_path / "lent"
    folder.mkdir()
    (folder / "gi").symlink_to(DEBIAN)
    code = (
        "import gi; gi.require_version('Gst', '1.0'); gi.require_version('GstApp', '1.0')\n"
        "from gi.repository import Gst, GstApp; Gst.init(None)\n"
        "assert Gst.ElementFactory.find('videoconvert'), 'no gstreamer1.0-plugins-base'"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no GStreamer for this Python: {done.stderr.strip().splitlines()[-1]}")
    return folder


def test_gstreamer(gi: Path, write_profile: Write) -> None:
    """Rows of 322 BGR pixels are padded."""
    pipeline = "videotestsrc num-buffers=9 ! video/x-raw,width=322,height=241,framerate=10/1"
    arguments = ("--profile", write_profile(), "--pipeline", pipeline)
    lines = _lines("gstreamer_appsink.py", *arguments, path=gi)
    assert 3 <= len(lines) <= 9
    assert all(re.fullmatch(r"[a-z-]+ \([01]\.\d\d\) from exit [123]", line) for line in lines)
    live = ("--pipeline", "videotestsrc is-live=true", "--max-frames", 2)
    assert len(_lines("gstreamer_appsink.py", "--profile", write_profile(), *live, path=gi)) == 2


@pytest.mark.parametrize(
    ("pipeline", "words"),
    [("nosuchelement", 'no element "nosuchelement"'), ("filesrc location=/absent", "not found")],
)
def test_gstreamer_with_a_wrong_pipeline(
    gi: Path, write_profile: Write, pipeline: str, words: str
) -> None:
    arguments = ("--profile", write_profile(), "--pipeline", pipeline)
    assert words in _refusal("gstreamer_appsink.py", *arguments, path=gi)


def test_gstreamer_that_is_not_there(tmp_path: Path, write_profile: Write) -> None:
    (tmp_path / "gi.py").write_text("raise ImportError('No module named gi')\n")
    arguments = ("--profile", write_profile(), "--pipeline", "videotestsrc")
    refusal = _refusal("gstreamer_appsink.py", *arguments, path=tmp_path)
    assert "GStreamer's Python module is needed (No module named gi)" in refusal
