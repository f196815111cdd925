"""The profile: what is accepted, and what a mistake is answered with."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from dvt_edge.errors import ConfigError
from dvt_edge.profile import Profile

SAMPLES = Path(__file__).resolve().parents[1] / "samples" / "profiles"
BACKENDS = {
    "cpu.yaml": "onnxruntime",
    "demo-cpu.yaml": "onnxruntime",
    "battery.yaml": "onnxruntime",
    "jetson-agx-orin.yaml": "tensorrt",
    "jetson-orin-nano.yaml": "tensorrt",
    "jetson-orin.yaml": "tensorrt",
    "jetson-thor.yaml": "tensorrt",
    "rtx.yaml": "tensorrt-rtx",
}
GOOD = """\
device:
  name: a board
model: model.safetensors
input:
  resize: 48
  crop: 48
  mean: [0.13]
  std: [0.26]
  color_order: gray
engine:
  precision: int8
  batch_sizes: [1, 32]
calibration:
  data: images
  samples: 100
budget:
  latency_ms: 1.5
output: ../out/bundle
"""


def _write(folder: Path, text: str) -> Path:
    path = folder / "board.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.yaml")), ids=lambda path: path.name)
def test_samples_are_valid(path: Path) -> None:
    """The shipped profiles pass their own validation."""
    profile = Profile.from_yaml(path)
    assert profile.model.is_absolute() == path.is_absolute()
    assert profile.engine.backend == BACKENDS[path.name]


def test_samples_are_there() -> None:
    """The test above looked at all of them."""
    assert {path.name for path in SAMPLES.glob("*.yaml")} == set(BACKENDS)


def test_paths_are_beside_the_file(tmp_path: Path) -> None:
    """Relative paths are relative to the profile, not to where the program runs."""
    profile = Profile.from_yaml(_write(tmp_path, GOOD))
    assert profile.model == tmp_path / "model.safetensors"
    assert profile.calibration.data == tmp_path / "images"
    assert profile.output == tmp_path.parent / "out" / "bundle"


def test_images_from_the_field(tmp_path: Path) -> None:
    """Beside the profile, too; a part of a pattern that names nothing need not be a group."""
    text = _with("samples: 100", "unlabelled: field\n  groups: '(clip\\d+)_(?:left|right)'")
    profile = Profile.from_yaml(_write(tmp_path, text))
    assert profile.calibration.unlabelled == tmp_path / "field"
    assert profile.calibration.groups == r"(clip\d+)_(?:left|right)"


def test_defaults(tmp_path: Path) -> None:
    """What may be left out has the documented value."""
    profile = Profile.from_yaml(_write(tmp_path, GOOD))
    assert profile.engine.backend == "onnxruntime"
    assert profile.engine.threads == 0
    assert profile.input.interpolation == "bicubic"
    assert profile.calibration.tolerance_points == 1.0
    assert profile.calibration.groups is None
    assert profile.calibration.unlabelled is None


@pytest.mark.parametrize(("mean", "std"), [(-1, 0.001), (2, 2), (0, 1 / 255), (0.5, 0.5)])
def test_means_and_deviations(tmp_path: Path, mean: float, std: float) -> None:
    """As of models that scale to -1..1, 0..255 and others."""
    text = GOOD.replace("[0.13]", f"[{mean}]").replace("[0.26]", f"[{std}]")
    found = Profile.from_yaml(_write(tmp_path, text)).input
    assert (found.mean, found.std) == ((mean,), (std,))


def _with(old: str, new: str) -> str:
    assert GOOD.count(old) == 1
    return GOOD.replace(old, new)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # typos: file, line, dotted key, nearest key
        (_with("  resize: 48", "  reszie: 48"), [":5: input.reszie", "did you mean 'resize'?"]),
        (_with("latency_ms", "latency"), [":17: budget.latency", "did you mean 'latency_ms'?"]),
        (_with("budget:", "buget:"), [":16: buget", "did you mean 'budget'?"]),
        (_with("batch_sizes", "batch_size"), [":12: engine.batch_size", "'batch_sizes'?"]),
        (_with("a board", "a board\n  xyz: 1"), [":3: device.xyz", "valid keys: name"]),
        # missing keys
        (_with("  crop: 48\n", ""), [":4: input: the key 'crop' is missing"]),
        (_with("output: ../out/bundle\n", ""), [":1: the document: the key 'output' is missing"]),
        (_with("  latency_ms: 1.5", "  {}"), [":16: budget: give latency_ms, "]),
        # wrong types
        (_with("resize: 48", "resize: big"), [":5: input.resize", "integer", "found 'big'"]),
        (_with("resize: 48", "resize: 48.5"), [":5: input.resize", "integer", "found 48.5"]),
        (_with("mean: [0.13]", "mean: 0.13"), [":7: input.mean", "tuple", "found 0.13"]),
        (_with("[1, 32]", "[1, x]"), [":12: engine.batch_sizes.1", "found 'x'"]),
        (_with("samples: 100", "samples: yes"), [":15: calibration.samples", "boolean"]),
        (_with("name: a board", "name: 3"), [":2: device.name", "string", "found 3"]),
        (_with("\n  name: a board", " a board"), [":1: device", "found 'a board'"]),
        (_with("model: model.safetensors", "model:"), [":3: model", "path", "found None"]),
        # values that cannot be
        (_with("crop: 48", "crop: 64"), [":4: input: crop 64 is larger than resize 48"]),
        (_with("crop: 48", "crop: 0"), [":6: input.crop", "found 0"]),
        (_with("std: [0.26]", "std: [0]"), [":8: input.std: expected 0.001 to 2", "found 0"]),
        # means and deviations of levels 0..255, and worse
        (_with("mean: [0.13]", "mean: [33.15]"), [":7: input.mean", "found 33.15", "by 255"]),
        (_with("mean: [0.13]", "mean: [-99999]"), [":7: input.mean: expected -1 to 2", "-99999"]),
        (_with("mean: [0.13]", "mean: [2.01]"), [":7: input.mean", "found 2.01"]),
        (_with("std: [0.26]", "std: [66.3]"), [":8: input.std", "found 66.3", "by 255"]),
        (_with("std: [0.26]", "std: [0.0009]"), [":8: input.std", "found 0.0009"]),
        (_with("std: [0.26]", "std: [-1]"), [":8: input.std", "found -1"]),
        (_with("std: [0.26]", "std: [.nan]"), [":8: input.std.0", "finite"]),
        (_with("mean: [0.13]", "mean: [0.1, 0.2, 0.3]"), [":4: input: mean and std need one"]),
        (_with("color_order: gray", "color_order: bgr"), [":4: input: color_order gray goes"]),
        (_with("color_order: gray", "color_order: brg"), [":9: input.color_order", "'bgr'", "brg"]),
        (_with("latency_ms: 1.5", "latency_ms: 0"), [":17: budget.latency_ms", "greater than 0"]),
        (_with("latency_ms: 1.5", "latency_ms: -2"), [":17: budget.latency_ms", "found -2"]),
        (_with("latency_ms: 1.5", "latency_ms: .inf"), [":17: budget.latency_ms", "finite"]),
        (_with("  latency_ms: 1.5", "  fps: 0"), [":17: budget.fps", "greater than 0"]),
        (_with("  latency_ms: 1.5", "  duty_cycle: 2"), [":17: budget.duty_cycle", "found 2"]),
        (
            _with("  latency_ms: 1.5", "  battery: {wh: 0, hours: 8, fps: 10}"),
            [":17: budget.battery.wh", "greater than 0", "found 0"],
        ),
        (
            _with("  latency_ms: 1.5", "  battery: {wh: 20, hours: 8}"),
            [":17: budget.battery: the key 'fps' is missing"],
        ),
        (
            _with("  latency_ms: 1.5", "  battery: {wh: 9, hours: 8, fps: 1}\n  adapt: true"),
            [":16: budget: adapt keeps a mean latency: it needs latency_ms, fps or duty_cycle"],
        ),
        (
            _with("latency_ms: 1.5", "energy_mj: 3\n  fps: 3\n  adapt: true"),
            [":16: budget: adapt keeps a mean latency alone, no energy_mj, battery or"],
        ),
        (_with("[1, 32]", "[32]"), [":10: engine: batch_sizes must contain 1"]),
        (_with("[1, 32]", "[1, 0]"), [":12: engine.batch_sizes.1", "found 0"]),
        (_with("samples: 100", "samples: 0"), [":15: calibration.samples", "found 0"]),
        (
            _with("samples: 100", "groups: '(clip'"),
            [":15: calibration.groups: not a regular expression (missing )", "found '(clip'"],
        ),
        (
            _with("samples: 100", "groups: 'clip\\d+'"),
            [":15: calibration.groups: needs exactly one group in parentheses", "found 0"],
        ),
        (_with("samples: 100", "groups: '(clip)(\\d+)'"), ["calibration.groups: needs", "found 2"]),
        (
            _with("samples: 100", "groups: '(a{99999999999999})'"),
            ["groups: not a regular", "large"],
        ),
        (_with("samples: 100", "unlabeled: field"), [":15: calibration.", "'unlabelled'"]),
        (
            _with("precision: int8", "precision: int4"),
            [":11: engine.precision", "'int8', 'fp16', 'fp32' or 'auto'"],
        ),
        (_with("precision: int8", "precision: fp16"), [":10: engine: onnxruntime takes", "fp32"]),
        (
            _with("precision: int8", "backend: tensorrt\n  precision: fp32"),
            [":10: engine: tensorrt takes precision int8, fp16 or auto, found fp32"],
        ),
        (
            _with("precision: int8", "backend: tensorrt\n  compute_capabilities: [87]"),
            [":10: engine: compute_capabilities belong to tensorrt-rtx"],
        ),
        (
            _with("precision: int8", "backend: tensorrt-rtx\n  compute_capabilities: [8.6]"),
            ["engine.compute_capabilities.0", "found 8.6"],
        ),
        (_with("precision: int8", "workspace_mb: 8"), [":11: engine.workspace_mb", "found 8"]),
        (_with("precision: int8", "backend: tpu"), [":11: engine.backend", "'tensorrt'", "tpu"]),
        # no document at all
        ("", ["expected a mapping of keys, found an empty file"]),
        ("device: [\n", [":2: not valid YAML"]),
        ("- device\n", ["found a list"]),
    ],
)
def test_mistakes(tmp_path: Path, text: str, expected: list[str]) -> None:
    """The message names file, line, key, what was expected and the nearest valid key."""
    path = _write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        Profile.from_yaml(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize("order", ["nv12", "yuyv"])
def test_yuv_goes_with_gray_and_colour(tmp_path: Path, order: str) -> None:
    """Cameras give YUV to models of either kind."""
    text = _with("color_order: gray", f"color_order: {order}")
    assert Profile.from_yaml(_write(tmp_path, text)).input.channels == 1
    text = text.replace("mean: [0.13]", "mean: [0.1, 0.2, 0.3]").replace(
        "std: [0.26]", "std: [0.1, 0.2, 0.3]"
    )
    assert Profile.from_yaml(_write(tmp_path, text)).input.channels == 3


def test_binary_file(tmp_path: Path) -> None:
    """A checkpoint given as the profile is refused by name."""
    path = tmp_path / "weights.bin"
    path.write_bytes(b"\x93\xff\x00\x80" * 50)
    with pytest.raises(ConfigError, match=r"weights\.bin: cannot be read as text"):
        Profile.from_yaml(path)


def test_every_typo_in_a_key_is_found(tmp_path: Path) -> None:
    """Whichever key loses its last letter, the message proposes the right one."""
    keys = [line.split(":")[0].strip() for line in GOOD.splitlines()]
    for number, key in enumerate(keys, start=1):
        lines = GOOD.splitlines()
        lines[number - 1] = lines[number - 1].replace(f"{key}:", f"{key[:-1]}:", 1)
        with pytest.raises(ConfigError) as caught:
            Profile.from_yaml(_write(tmp_path, "\n".join(lines)))
        assert f"board.yaml:{number}: " in str(caught.value)
        assert f"did you mean '{key}'?" in str(caught.value)


def test_round_trip(tmp_path: Path) -> None:
    """What a profile dumps is a profile again."""
    profile = Profile.from_yaml(_write(tmp_path, GOOD))
    again = _write(tmp_path, yaml.safe_dump(profile.model_dump(mode="json")))
    assert Profile.from_yaml(again) == profile
