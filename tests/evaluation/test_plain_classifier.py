"""Any ONNX classifier: fed as the profile says, refused with a remedy where it is none."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from dvt_edge.errors import BackendError
from dvt_edge.evaluation.plain_classifier import PlainClassifier
from dvt_edge.profile import InputConfig
from tests.conftest import write_onnx

GRAY = InputConfig(resize=10, crop=8, mean=(0.5,), std=(0.25,), color_order="gray")
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """A function writing a linear classifier; class k sums column k of the image."""

    def make(
        shape: Sequence[int | str] = ("N", 1, 8, 8),
        dtype: int = TensorProto.FLOAT,
        inputs: int = 1,
        output_rank: int = 2,
    ) -> Path:
        names = [f"x{i}" for i in range(inputs)]
        nodes = [helper.make_node("ReduceSum", [names[0], "axes"], ["sums"], keepdims=0)]
        axes = [1, 2] if output_rank == 2 else [1]
        result: list[int | str] = ["N", "C"] if output_rank == 2 else ["N", "H", "C"]
        images = [helper.make_tensor_value_info(name, dtype, list(shape)) for name in names]
        sums = helper.make_tensor_value_info("sums", dtype, result)
        return write_onnx(tmp_path / "model.onnx", nodes, images, sums, axes=np.array(axes))

    return make


def column(at: int, size: int = 8) -> np.ndarray[Any, Any]:
    """A frame with one bright column."""
    frame = np.zeros((size, size), np.uint8)
    frame[:, at] = 255
    return frame


@pytest.mark.parametrize("shape", [("N", 1, 8, 8), (1, 1, 8, 8), ("N", 1, "H", "W")], ids=str)
def test_answers(write: Write, shape: Sequence[int | str]) -> None:
    """The profile's preprocessing, the largest score, and a time."""
    config = GRAY.model_copy(update={"resize": 8})
    classifier = PlainClassifier(write(shape), config, threads=1)
    for at in (0, 3, 7):
        answer = classifier.classify(column(at))
        assert answer.class_id == at
        assert answer.latency_ms > 0
    assert classifier.classes == 8
    assert classifier.size_bytes == classifier.path.stat().st_size
    assert classifier.engine.startswith("ONNX Runtime ")


def test_own_image_size(write: Write) -> None:
    """The model's, with the resize in the profile's proportion to the crop."""
    classifier = PlainClassifier(write(("N", 1, 16, 16)), GRAY)
    frame = column(13, 16).repeat(2, axis=0).repeat(2, axis=1)  # bright from 26 to 28 of 32
    # Resized to 20, 16.25 to 17.5, of which 2 are cut off; resized to 16 it would be column 13.
    assert classifier.classify(frame).class_id == 14
    assert classifier.classes == 16


def test_colour_models_take_colour_frames(write: Write) -> None:
    """Three channels."""
    config = InputConfig(resize=8, crop=8, mean=(0, 0, 0), std=(1, 1, 1))
    classifier = PlainClassifier(write(("N", 3, 8, 8)), config)
    frame = np.repeat(column(2)[..., None], 3, axis=2)
    assert classifier.classify(frame, "rgb").class_id == 2


def test_weights_beside_it_count(write: Write) -> None:
    """As torch exports large models."""
    path = write()
    path.with_name("model.onnx.data").write_bytes(b"x" * 1000)
    assert PlainClassifier(path, GRAY).size_bytes == path.stat().st_size + 1000


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"inputs": 2}, "image as its only input"),
        ({"shape": ("N", 64), "output_rank": 3}, "image as its only input"),
        ({"dtype": TensorProto.DOUBLE}, "convert it to a float32 input"),
        ({"shape": (4, 1, 8, 8)}, "batch of 1 or a dynamic batch"),
        ({"shape": ("N", 3, 8, 8)}, "gives 1 channels"),
        ({"shape": ("N", 8, 8, 1)}, "export it channels first"),
        ({"shape": ("N", 1, 8, 12)}, "only square images"),
        ({"output_rank": 3}, "the outputs sums tensor(float)"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else "",
)
def test_other_models_are_refused(write: Write, changes: dict[str, Any], words: str) -> None:
    """What was found, what was expected, what to do."""
    with pytest.raises(BackendError) as caught:
        PlainClassifier(write(**changes), GRAY)
    assert "model.onnx: " in str(caught.value)
    if "shape" not in changes or len(changes["shape"]) == 4:
        assert words in str(caught.value)
        assert "expected one float32 image input [N, C, H, W]" in str(caught.value)


def test_no_model(tmp_path: Path) -> None:
    """Nothing there, and something else."""
    with pytest.raises(BackendError, match="no such file"):
        PlainClassifier(tmp_path / "gone.onnx", GRAY)
    (tmp_path / "x.onnx").write_text("text")
    with pytest.raises(BackendError, match=r"x\.onnx: .* refused it"):
        PlainClassifier(tmp_path / "x.onnx", GRAY)
