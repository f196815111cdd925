"""What an exit says where floats end: overflow, NaN, infinity, a saturated softmax, ties."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.policy.confidence import ConfidenceKind
from dvt_edge.profile import ExitsConfig
from tests.confidence_reference import confidence
from tests.conftest import stage_graphs

HUGE = float(np.finfo(np.float32).max)
ROWS: dict[str, list[float]] = {
    "NaN": [np.nan, 0, 0, 0, 0],
    "infinity": [0, np.inf, 0, 0, 0],
    "minus infinity": [0, 1, -np.inf, 0, 0],
    "saturated": [0, 1e4, 0, -1e4, 0],
    "largest floats": [HUGE, -HUGE, 0, 0, 0],
    "tie of all": [2, 2, 2, 2, 2],
    "tie of two": [0, 3, 0, 3, 0],
    "tie of the largest": [0, HUGE, 0, HUGE, 0],
    "subnormal": [1e-45, 0, 0, 0, 0],
}


@pytest.fixture
def stage(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Callable[[ConfidenceKind], onnx.ModelProto]:
    """A function giving the graph of the first stage."""
    cascade = random_cascade(tiny_config())
    return lambda kind: stage_graphs(cascade, ExitsConfig(confidence=kind))[0]


def _set_logits(model: onnx.ModelProto, row: list[float]) -> None:
    """Let the head give ``row``, whatever it is given."""
    weight, bias = (
        next(t for t in model.graph.initializer if t.name.startswith("head") and test(t.dims))
        for test in (lambda dims: len(dims) == 2, lambda dims: len(dims) == 1)
    )
    for tensor, values in ((weight, np.zeros(weight.dims)), (bias, np.asarray(row))):
        tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float32), tensor.name))


def _run(model: onnx.ModelProto, image: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, {"image": image}), strict=True))


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("kind", ["max_softmax", "margin", "entropy"])
@pytest.mark.parametrize("row", ROWS)
def test_exit(
    stage: Callable[[ConfidenceKind], onnx.ModelProto], row: str, kind: ConfidenceKind, half: bool
) -> None:
    """NaN where a logit is not finite; else what the definition says, and of equals the first."""
    model = stage(kind)
    _set_logits(model, ROWS[row])
    if half:
        model = fp16_body(model)
    image = np.zeros((1, 1, 16, 16), np.float16 if half else np.float32)
    found = _run(model, image)
    expected = confidence([ROWS[row]], kind)
    assert found["confidence"] == pytest.approx(expected, abs=1e-6, nan_ok=True)
    assert 0 <= found["class_id"][0] < 5
    if np.isfinite(expected[0]):
        assert found["class_id"][0] == int(np.argmax(ROWS[row]))


def test_fp16_overflow(stage: Callable[[ConfidenceKind], onnx.ModelProto]) -> None:
    """What is too large for float16 becomes infinite and then NaN: the exit is not sure of it."""
    model = stage("max_softmax")
    exact = _run(model, np.full((1, 1, 16, 16), 6e4, np.float32))
    assert np.isfinite(exact["confidence"]).all()
    embed = next(
        t
        for t in model.graph.initializer
        if t.name.startswith("patch_embed") and t.data_type == onnx.TensorProto.FLOAT
    )
    weights = numpy_helper.to_array(embed)
    embed.CopyFrom(numpy_helper.from_array(np.full_like(weights, 100), embed.name))
    # ONNX Runtime computes float16 in float32 on a CPU; the reference rounds at every step.
    half = ReferenceEvaluator(fp16_body(model))
    with np.errstate(all="ignore"):
        answers = half.run(None, {"image": np.full((1, 1, 16, 16), 6e4, np.float16)})
    found = dict(zip(half.output_names, answers, strict=True))
    assert np.isnan(found["confidence"]).all()
    assert 0 <= found["class_id"][0] < 5
