"""Which layers INT8 costs the most, and how a build leaves them in float."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.converters import host, selection
from dvt_edge.converters.build import build
from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
from dvt_edge.converters.quantizing import quantize_cascade
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.converters.quantizing.insert_qdq import (
    ONNXRUNTIME_OPS,
    TENSORRT_OPS,
    quantizable_layers,
)
from dvt_edge.converters.quantizing.quantize_cascade import most_sensitive
from dvt_edge.errors import BuildError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.profile import Profile
from tests.converters.conftest import calibration_images, calibration_pixels, changed

Profiles = Callable[..., Profile]
Ranges = dict[str, float]


@pytest.fixture(scope="module")
def graph(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> onnx.ModelProto:
    """The first stage of a cascade with convolutions."""
    cascade = random_cascade(tiny_config(tokenizer="conv"))
    return stage_graph_from_cascade(cascade, 0, target="tensorrt")


def _feeds(count: int = 2) -> list[dict[str, Any]]:
    rng = np.random.default_rng(4)
    return [{"image": rng.normal(size=(4, 1, 16, 16)).astype(np.float32)} for _ in range(count)]


def _input_of(graph: onnx.ModelProto, layer: str) -> str:
    return next(node.input[0] for node in graph.graph.node if node.name == layer)


@pytest.mark.parametrize("layer", ["patch_embed.proj", "blocks.0.attn.proj", "blocks.1.mlp.fc2"])
def test_ruined_layer_comes_first(graph: onnx.ModelProto, layer: str) -> None:
    layers = quantizable_layers(graph, TENSORRT_OPS)
    ranges = dict.fromkeys(layers.values(), 6.0)
    ranges[_input_of(graph, layer)] = 1e-3
    order = most_sensitive(graph, ranges, list(layers), _feeds())
    assert order[0] == layer
    assert sorted(order) == sorted(layers)


def test_progress_counts_layers(graph: onnx.ModelProto) -> None:
    layers = quantizable_layers(graph, ONNXRUNTIME_OPS)
    ranges = dict.fromkeys(layers.values(), 6.0)
    calls: list[tuple[object, ...]] = []
    order = most_sensitive(graph, ranges, list(layers), _feeds(1), lambda *call: calls.append(call))
    assert calls == [("sensitive layers", i + 1, len(order)) for i in range(len(order))]


def _labelled_by(exit_: int, profile: Profile, tolerance: float, **engine: Any) -> Profile:
    """Calibrated with labels of which exit ``exit_`` (from 0) of the float model is right about
    all."""
    path = profile.calibration.data.with_name("labelled.npz")
    with torch.no_grad():
        answers = Cascade.load(profile.model)(torch.from_numpy(calibration_images(profile)))
    labels = answers[exit_].logits.argmax(-1).numpy()
    np.savez(path, images=calibration_pixels(profile), labels=labels)
    relabelled = changed(profile, "calibration", data=path, tolerance_points=tolerance)
    return changed(relabelled, "engine", **engine)


@pytest.fixture
def ruin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A function that ruins the ranges of ``layers`` in stage ``stage`` (from 0) during builds,
    of all layers in all stages if nothing is given."""
    original = activation_ranges

    def apply(stage: int | None = None, layers: Iterable[str] = ()) -> None:
        def ranges(model: onnx.ModelProto, names: list[str], feeds: Any) -> Ranges:
            found = original(model, names, feeds)
            if stage is None:
                return dict.fromkeys(found, 1e-4)
            if model.graph.name == f"stage{stage + 1}":
                found |= {_input_of(model, layer): 1e-4 for layer in layers}
            return found

        monkeypatch.setattr(quantize_cascade, "activation_ranges", ranges)

    return apply


def _operator_inputs(bundle: Bundle, stage: int) -> dict[str, bool]:
    """Whether each product and convolution of a stage reads INT8 weights."""
    graph = onnx.load(bundle.stage_path(stage)).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    return {
        node.name: made_by.get(node.input[1]) == "DequantizeLinear"
        for node in graph.node
        if node.op_type in ("MatMul", "Conv")
    }


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt"])
@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_layer_that_costs_too_much_stays_in_float(
    tiny_profile: Profiles, ruin: Callable[..., None], backend: str, stage: int
) -> None:
    """It, and none that the exit can do with."""
    layer = "blocks.0.mlp.fc2"
    ruin(stage, [layer])
    profile = _labelled_by(stage, tiny_profile(), 10.0, backend=backend)
    bundle = build(profile, phase="host").bundle
    manifest = bundle.manifest
    for i, spec in enumerate(manifest.stages):
        float_layers = set(spec.float_layers)
        assert (layer in float_layers) == (i == stage)
        quantized = _operator_inputs(bundle, i)
        assert not any(quantized[name] for name in float_layers)
        assert quantized["blocks.1.mlp.fc1"]
    drops = [100 * (e.accuracy_before - e.accuracy_after) for e in manifest.quantization.exits]
    assert max(drops) <= 10.0
    assert Bundle(bundle.folder).manifest.stages == manifest.stages


def test_nothing_stays_in_float_without_need(tiny_profile: Profiles) -> None:
    profile = _labelled_by(2, tiny_profile(), 100.0)
    calls: list[str] = []
    manifest = build(profile, lambda what, *rest: calls.append(what)).bundle.manifest
    assert [stage.float_layers for stage in manifest.stages] == [(), (), ()]
    assert "sensitive layers" not in calls


@pytest.mark.parametrize("chosen", ["int8", "fp32"])
def test_stages_that_are_float_anyway_name_no_layers(
    tiny_profile: Profiles,
    ruin: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    chosen: str,
) -> None:
    """With precision auto, where float turns out faster."""
    times = [1.0, 2.0] if chosen == "int8" else [2.0, 1.0]
    monkeypatch.setattr(selection, "_median_ms", lambda backends, stage: times)
    monkeypatch.setattr(selection, "MOST_CHANGED_DECISIONS", 1.0)
    ruin(0, ["blocks.0.mlp.fc2"])
    profile = _labelled_by(0, tiny_profile(), 10.0, precision="auto")
    stages = build(profile).bundle.manifest.stages
    assert [stage.precision for stage in stages] == [chosen] * 3
    assert ("blocks.0.mlp.fc2" in stages[0].float_layers) == (chosen == "int8")


def test_repair_is_told(tiny_profile: Profiles, ruin: Callable[..., None]) -> None:
    ruin(0, ["blocks.0.mlp.fc2"])
    calls: list[Any] = []
    build(_labelled_by(0, tiny_profile(), 10.0), lambda *call: calls.append(call))
    steps = [(done, total) for what, done, total, *_ in calls if what == "sensitive layers"]
    assert steps[0][0] == 1
    assert steps[-1][0] == steps[-1][1] > 5


def test_limit_of_the_repair(tiny_profile: Profiles, ruin: Callable[..., None]) -> None:
    """Where half of the layers in float do not suffice, INT8 is not for this stage."""
    ruin()
    with pytest.raises(BuildError) as caught:
        build(_labelled_by(0, tiny_profile(), 1.0))
    message = str(caught.value)
    assert message.startswith("quantization costs exit 1 ")
    assert "even with its 4 most sensitive layers in float" in message  # of 9
    assert "calibration.tolerance_points allows 1:" in message
    assert "engine.precision to fp32 (ONNX Runtime) or fp16 (TensorRT)" in message
    assert not (tiny_profile().output).exists()


@pytest.mark.slow
def test_tolerance_decides(
    tiny_profile: Profiles, ruin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not one layer goes back to float at exactly the loss that is allowed."""
    monkeypatch.setattr(host, "check_plausible", lambda *given: None)  # it ends in guesses
    ruin()
    figures = build(_labelled_by(2, tiny_profile(), 100.0)).bundle.manifest.quantization
    assert figures.exits[-1].accuracy_before == 1.0
    lost = max(e.accuracy_before - e.accuracy_after for e in figures.exits)
    worst = 100 * round(60 * lost) / 60
    assert worst > 20
    monkeypatch.setattr(quantize_cascade, "MOST_FLOAT_LAYERS", 0.0)
    with pytest.raises(BuildError, match="even with its 0 most sensitive layers"):
        build(_labelled_by(2, tiny_profile(), worst - 0.01))
    stages = build(_labelled_by(2, tiny_profile(), worst)).bundle.manifest.stages
    assert not any(stage.float_layers for stage in stages)


@pytest.mark.slow
def test_refused_accuracy_leaves_the_old_bundle(
    tiny_build: Path, tiny_profile: Profiles, ruin: Callable[..., None]
) -> None:
    profile = tiny_profile()
    before = build(profile).bundle.manifest
    ruin()
    with pytest.raises(BuildError, match="quantization costs exit"):
        build(_labelled_by(2, profile, 1.0))
    assert Bundle(profile.output).manifest == before
    assert [path.name for path in profile.output.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize(("backend", "precision"), [("onnxruntime", "fp32"), ("tensorrt", "fp16")])
def test_float_precision_cannot_lose_accuracy(
    tiny_profile: Profiles, ruin: Callable[..., None], backend: str, precision: str
) -> None:
    ruin()
    profile = _labelled_by(2, tiny_profile(), 0.0, backend=backend, precision=precision)
    bundle = build(profile, phase="host").bundle
    figures = bundle.manifest.quantization
    assert figures.precision == precision
    assert figures.changed_decisions == 0
    assert all(e.accuracy_before == e.accuracy_after for e in figures.exits)
    assert not any(any(_operator_inputs(bundle, i).values()) for i in range(3))
