"""FP32 stage graphs -> stages in the profile's precision, and what that changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx

from dvt_edge.bundle.manifest import ExitFigures, QuantizationFigures
from dvt_edge.converters.graphs.chain import Chain, Images, Tensors, batches, open_graph, run_graph
from dvt_edge.converters.graphs.facts import count_macs
from dvt_edge.converters.graphs.stage_graph import set_temperature
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.converters.quantizing.insert_qdq import (
    ONNXRUNTIME_OPS,
    TENSORRT_OPS,
    quantizable_layers,
    quantize,
)
from dvt_edge.converters.quantizing.native_graph import native_activations
from dvt_edge.errors import BuildError
from dvt_edge.files.datasets import spread_rows
from dvt_edge.policy import Records, Solution, solve
from dvt_edge.policy.confidence import fit_temperature
from dvt_edge.profile import EngineConfig, Profile
from dvt_edge.progress import Progress, silent

RANGE_IMAGES = 512
"""Images per stage that set the activation ranges; more do not move them."""
SENSITIVITY_IMAGES = 32
MOST_FLOAT_LAYERS = 0.5
"""Share of a stage's layers that may be left in float before INT8 counts as unfit for it."""

Labels = npt.NDArray[np.int32] | None


@dataclass(frozen=True)
class QuantizedCascade:
    """What :func:`quantize_cascade` made of the FP32 graphs."""

    stages: list[onnx.ModelProto]
    """In the profile's precision; INT8 with ``auto``."""
    graphs: list[onnx.ModelProto]
    """The FP32 graphs, with fitted temperatures."""
    float_layers: list[tuple[str, ...]]
    """Layers of each stage left in float because INT8 cost its exit too much."""
    ranges: list[dict[str, float]]
    """Clipping values of each stage's activations; none of stages in a float precision."""
    records: Records
    """Answers of ``stages``."""
    reference: Records
    """Answers of ``graphs``."""
    provisional: Solution
    """Thresholds that about halve the work, to see which decisions change."""
    temperatures: tuple[float, ...] | None


@dataclass
class _Stage:
    """One quantized stage and what it was made of."""

    graph: onnx.ModelProto
    ranges: dict[str, float]
    layers: list[str]
    """That INT8 makes faster."""
    float_layers: tuple[str, ...] = ()
    """Those of ``layers`` left in float all the same."""

    def quantized(self) -> onnx.ModelProto:
        return quantize(self.graph, self.ranges, set(self.layers).difference(self.float_layers))


def quantize_cascade(
    profile: Profile,
    graphs: Sequence[onnx.ModelProto],
    images: Images,
    label: Labels,
    progress: Progress,
) -> QuantizedCascade:
    """Quantize all stages unless the profile's precision is a float one.

    Where INT8 costs an exit more than the tolerance, the stage's most sensitive layers go back to
    float. Raises :class:`~dvt_edge.errors.BuildError` if half of them do not suffice.
    """
    total = 2 * len(graphs) + 1
    progress("quantization", 0, total)
    reference = Chain(graphs).records(images, label)
    progress("quantization", 1, total)
    provisional = provisional_thresholds(graphs, reference)
    if profile.engine.precision in ("fp32", "fp16"):
        stages, records = list(graphs), reference
        float_layers: list[tuple[str, ...]] = [()] * len(graphs)
        ranges: list[dict[str, float]] = [{}] * len(graphs)
    else:
        parts = _quantize_stages(profile.engine, graphs, images, reference, provisional, progress)
        records = _repair(profile, parts, images, label, reference, progress)
        stages = [part.quantized() for part in parts]
        float_layers = [tuple(sorted(part.float_layers)) for part in parts]
        ranges = [part.ranges for part in parts]
    result = QuantizedCascade(
        stages, list(graphs), float_layers, ranges, records, reference, provisional, None
    )
    if profile.exits.fit_temperature:
        result = _with_temperatures(result, images, label)
    progress("quantization", total, total)
    return result


def provisional_thresholds(graphs: Sequence[onnx.ModelProto], records: Records) -> Solution:
    """Thresholds that halve the work on ``records``.

    Which images reach which stage is known only once costs are measured; these are close enough to
    choose calibration images by, and to see whether decisions change.
    """
    work = np.cumsum([count_macs(graph) for graph in graphs])
    return solve(records, work, (work[0] + work[-1]) / 2)


def figures(
    profile: Profile, cascade: QuantizedCascade, fp16_same_class: tuple[float, ...] | None
) -> QuantizationFigures:
    """What went from the FP32 graphs to the stages of ``cascade``."""
    before, after = cascade.reference, cascade.records
    thresholds = cascade.provisional.thresholds
    exits = tuple(
        ExitFigures(
            accuracy_before=float(before.accuracy[k]),
            accuracy_after=float((after.prediction[:, k] == before.truth).mean()),
        )
        for k in range(before.exits)
    )
    changed = before.exits_taken(thresholds) != after.exits_taken(thresholds)
    return QuantizationFigures(
        precision=profile.engine.precision,
        exits=exits,
        changed_decisions=float(changed.mean()),
        tolerance_points=profile.calibration.tolerance_points,
        fp16_same_class=fp16_same_class,
    )


def _with_temperatures(
    cascade: QuantizedCascade, images: Images, label: Labels
) -> QuantizedCascade:
    """Fit every exit's temperature on the finished stages, and set it in both kinds of graphs."""
    chain = Chain(cascade.stages)
    parts = [[o["logits"] for o in chain.run(part)] for part in batches(images)]
    logits = [np.concatenate(exit_) for exit_ in zip(*parts, strict=True)]
    truth = logits[-1].argmax(axis=1) if label is None else label
    temperatures = tuple(fit_temperature(values, truth) for values in logits)
    for models in (cascade.stages, cascade.graphs):
        for model, temperature in zip(models, temperatures, strict=True):
            set_temperature(model, temperature)
    records, reference = (
        Chain(models).records(images, label) for models in (cascade.stages, cascade.graphs)
    )
    return replace(
        cascade,
        records=records,
        reference=reference,
        provisional=provisional_thresholds(cascade.graphs, reference),
        temperatures=temperatures,
    )


def _quantize_stages(
    engine: EngineConfig,
    graphs: Sequence[onnx.ModelProto],
    images: Images,
    records: Records,
    provisional: Solution,
    progress: Progress,
) -> list[_Stage]:
    """Calibrate stage after stage, each on the images that reach it, fed by the quantized ones."""
    ops = TENSORRT_OPS if engine.builds_engines else ONNXRUNTIME_OPS
    total = 2 * len(graphs) + 1
    parts: list[_Stage] = []
    reaching = np.ones(len(images), bool)
    for i, graph in enumerate(graphs):
        rows = np.flatnonzero(reaching)
        if not len(rows):  # none gets here: any image is better than none
            rows = np.arange(len(images))
        upstream = Chain([part.quantized() for part in parts])
        chosen = images[rows[spread_rows(len(rows), RANGE_IMAGES)]]
        feeds = (upstream.next_feeds(part) for part in batches(chosen))
        progress("quantization", 2 + 2 * i, total)
        layers = quantizable_layers(graph, ops)
        more = native_activations(graph) if engine.runs_on_cpu else []
        ranges = activation_ranges(graph, [*layers.values(), *more], feeds)
        parts.append(_Stage(graph, ranges, list(layers)))
        progress("quantization", 3 + 2 * i, total)
        reaching &= records.confidence[:, i] < provisional.thresholds[i]
    return parts


def _repair(
    profile: Profile,
    parts: list[_Stage],
    images: Images,
    label: Labels,
    reference: Records,
    progress: Progress,
) -> Records:
    """Leave sensitive layers in float, in ``parts``, until no exit loses too much; the records."""
    tolerance = profile.calibration.tolerance_points
    records = Chain([p.quantized() for p in parts]).records(images, label)
    for k, part in enumerate(parts):
        drop = _drop(records.prediction[:, k], reference, k)
        if drop <= tolerance:
            continue
        few = images[spread_rows(len(images), SENSITIVITY_IMAGES)]
        upstream = Chain([p.quantized() for p in parts[:k]])
        feeds = [upstream.next_feeds(some) for some in batches(few)]
        order = most_sensitive(part.graph, part.ranges, part.layers, feeds, progress)
        most, count = int(MOST_FLOAT_LAYERS * len(order)), 0
        while drop > tolerance:
            if count == most:
                raise BuildError(_too_much(k, drop, reference, tolerance, count))
            count = min(most, max(1, 2 * count))
            part.float_layers = tuple(order[:count])
            exits = Chain([p.quantized() for p in parts[: k + 1]]).records(images, label)
            drop = _drop(exits.prediction[:, k], reference, k)
        records = Chain([p.quantized() for p in parts]).records(images, label)
    return records


def _drop(prediction: npt.NDArray[np.int32], reference: Records, k: int) -> float:
    """Points of top-1 that exit ``k`` lost; without labels the last FP32 exit is right."""
    before, after = int(reference.correct[:, k].sum()), int((prediction == reference.truth).sum())
    return 100 * (before - after) / len(reference)


def _too_much(k: int, drop: float, reference: Records, tolerance: float, count: int) -> str:
    before = 100 * float(reference.accuracy[k])
    return (
        f"quantization costs exit {k + 1} {drop:.2f} points of top-1 ({before:.2f} to "
        f"{before - drop:.2f} %), even with its {count} most sensitive layers in float; "
        f"calibration.tolerance_points allows {tolerance:g}: calibrate on more or more typical "
        "images, raise the tolerance, or set engine.precision to fp32 (ONNX Runtime) or fp16 "
        "(TensorRT)"
    )


def most_sensitive(
    graph: onnx.ModelProto,
    ranges: Mapping[str, float],
    layers: Sequence[str],
    feeds: Sequence[Tensors],
    progress: Progress = silent,
) -> list[str]:
    """``layers``, the one whose quantization moves the logits most first.

    Each layer is quantized alone, on ``feeds``, the stage's inputs for a few images; what counts is
    the mean squared change of the logits.
    """
    expected = _logits(graph, feeds)
    damage = []
    for done, layer in enumerate(layers):
        found = _logits(quantize(graph, ranges, [layer]), feeds)
        damage.append(float(np.mean((found - expected) ** 2)))
        progress("sensitive layers", done + 1, len(layers))
    return [layers[i] for i in np.argsort(damage, kind="stable")[::-1]]


def _logits(model: onnx.ModelProto, feeds: Sequence[Tensors]) -> npt.NDArray[np.float32]:
    session = open_graph(model)
    return np.concatenate([run_graph(session, given)["logits"] for given in feeds])
