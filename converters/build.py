"""Profile -> bundle: checkpoint, stage graphs, quantization, records, manifest."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

import dvt_edge
from dvt_edge.bundle import (
    RECORDS,
    Bundle,
    ExitFigures,
    Manifest,
    QuantizationFigures,
    file_sha256,
    replaced_folder,
    write_records,
)
from dvt_edge.converters.calibration import activation_ranges
from dvt_edge.converters.chain import Chain, Images, batches
from dvt_edge.converters.graph_facts import count_macs, stage_spec
from dvt_edge.converters.quantize import (
    ONNXRUNTIME_OPS,
    TENSORRT_OPS,
    quantizable_inputs,
    quantize,
)
from dvt_edge.converters.stage_graph import set_temperature, stage_graph_from_cascade
from dvt_edge.datasets import ImageDataset, open_images
from dvt_edge.errors import BuildError, BundleError, CheckpointError, DataError
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.checkpoint import read_config, read_metadata
from dvt_edge.models.config import CascadeConfig
from dvt_edge.policy import Records, Solution, solve
from dvt_edge.policy.confidence import fit_temperature
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.runtime.preprocess import Preprocessor

PARITY = 1e-4
"""Largest difference between a graph's logits and PyTorch's, relative to the largest logit if that
exceeds one."""
PARITY_IMAGES = 8
RANGE_IMAGES = 512
"""Images per stage that set the activation ranges; more do not move them."""

Progress = Callable[[str, int, int], None]
"""Called with what is being done, steps done, and steps in all."""


@dataclass(frozen=True)
class BuildResult:
    """What :func:`build` did."""

    bundle: Bundle
    rebuilt: bool
    """False when the bundle there was already the result of the same inputs."""


@dataclass(frozen=True)
class _Calibration:
    """Calibration images, ready for the stages."""

    images: Images
    label: npt.NDArray[np.int32] | None
    frame_shape: tuple[int, int]
    digest: str


def build(
    profile: Profile, progress: Progress | None = None, *, force: bool = False
) -> BuildResult:
    """Build the bundle that ``profile`` describes, unless it is there already.

    The new bundle takes the old one's place only when it is complete.

    Raises :class:`~dvt_edge.errors.CheckpointError`, :class:`~dvt_edge.errors.DataError` or
    :class:`~dvt_edge.errors.BuildError` for a model, images or accuracy that cannot be used.
    """
    report = progress or (lambda what, done, total: None)
    config = read_config(profile.model)
    _check_fit(profile, config)
    calibration = _read_calibration(profile, config, report)
    key = _build_key(profile, calibration.digest)
    if not force and (bundle := _existing(profile, key)):
        return BuildResult(bundle, rebuilt=False)
    cascade = Cascade.load(profile.model)
    graphs = _checked_graphs(cascade, calibration.images[:PARITY_IMAGES], profile.exits, report)
    stages, figures, records, temperatures = _quantized(profile, graphs, calibration, report)
    with replaced_folder(profile.output) as folder:
        specs = []
        for i, model in enumerate(stages):
            specs.append(stage_spec(model, f"stage{i + 1}.onnx"))
            onnx.save(model, folder / specs[-1].file)
        write_records(folder / RECORDS, records)
        names = [spec.file for spec in specs] + [RECORDS]
        manifest = Manifest(
            build_key=key,
            device=profile.device.name,
            engine=profile.engine,
            input=profile.input,
            exits=profile.exits,
            temperatures=temperatures,
            budget=profile.budget,
            class_names=config.class_names or tuple(str(i) for i in range(config.classes)),
            recorded_thresholds=read_metadata(profile.model).get("dynamic_threshold"),
            frame_shape=calibration.frame_shape,
            stages=tuple(specs),
            quantization=figures,
            files={name: file_sha256(folder / name) for name in names},
            versions=_versions(),
        )
        (folder / "manifest.json").write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return BuildResult(Bundle(profile.output), rebuilt=True)


def _check_fit(profile: Profile, config: CascadeConfig) -> None:
    found = (profile.input.channels, profile.input.crop)
    if found != (config.channels, config.image_size):
        raise CheckpointError(
            f"{profile.model}: takes {config.channels}x{config.image_size}x{config.image_size}, "
            f"the profile's input gives {found[0]}x{found[1]}x{found[1]}; change 'input'"
        )


def _read_calibration(profile: Profile, config: CascadeConfig, report: Progress) -> _Calibration:
    data = open_images(profile.calibration.data, config.class_names)
    count = min(len(data), profile.calibration.samples)
    chosen = np.unique(np.linspace(0, len(data) - 1, count).round().astype(int))
    label = _labels(data, chosen, config, profile.calibration.data)
    preprocess = Preprocessor(profile.input)
    images = np.empty((len(chosen), *preprocess.shape), np.float32)
    sizes = []
    digest = hashlib.sha256()
    for row, index in enumerate(chosen):
        image = data.image(int(index))
        preprocess(image, images[row], "rgb")
        sizes.append(image.shape[:2])
        digest.update(image.tobytes())
        report("calibration images", row + 1, len(chosen))
    if label is not None:
        digest.update(label.tobytes())
    height, width = np.median(sizes, axis=0).astype(int)
    return _Calibration(images, label, (int(height), int(width)), digest.hexdigest())


def _labels(
    data: ImageDataset, chosen: npt.NDArray[np.int64], config: CascadeConfig, path: Path
) -> npt.NDArray[np.int32] | None:
    if data.labels is None:
        return None
    label = np.asarray(data.labels, np.int32)[chosen]
    if label.min() < 0 or label.max() >= config.classes:
        raise DataError(
            f"{path}: classes run from {label.min()} to {label.max()}, the model has "
            f"{config.classes}; give calibration data of the model's own classes"
        )
    if len(np.unique(label)) == 1:
        raise DataError(
            f"{path}: all {len(label)} images are of class {label[0]}; thresholds chosen on one "
            "class say nothing about the others, so give images of several"
        )
    return label


def _build_key(profile: Profile, calibration_digest: str) -> str:
    """Hash of all that decides the stages and records. The budget does not: it only chooses
    thresholds, at run time."""
    parts = {
        "checkpoint": hashlib.sha256(profile.model.read_bytes()).hexdigest(),
        "calibration": calibration_digest,
        "tolerance": profile.calibration.tolerance_points,
        "device": profile.device.name,
        "input": profile.input.model_dump(mode="json"),
        "exits": profile.exits.model_dump(mode="json"),
        "engine": profile.engine.model_dump(mode="json"),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _versions() -> dict[str, str]:
    return {
        "dvt_edge": dvt_edge.__version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "onnx": onnx.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def _existing(profile: Profile, key: str) -> Bundle | None:
    try:
        bundle = Bundle(profile.output)
    except BundleError:
        return None
    if bundle.manifest.build_key != key:
        return None
    if bundle.manifest.budget != profile.budget:
        bundle.set_budget(profile.budget)
    return bundle


def _checked_graphs(
    cascade: Cascade, images: Images, exits: ExitsConfig, report: Progress
) -> list[onnx.ModelProto]:
    """FP32 graphs of all stages, proven equal to PyTorch on ``images``."""
    total = len(cascade.stages)
    graphs = []
    for i in range(total):
        graphs.append(stage_graph_from_cascade(cascade, i, exits))
        report("stage graphs", i + 1, total)
    with torch.no_grad():
        expected = [o.logits.numpy() for o in cascade(torch.from_numpy(images))]
    for i, outputs in enumerate(Chain(graphs).run(images)):
        bound = PARITY * max(1.0, float(np.abs(expected[i]).max()))
        difference = float(np.abs(outputs["logits"] - expected[i]).max())
        if not difference <= bound:
            raise BuildError(
                f"stage {i + 1}: the graph's logits differ from PyTorch's by {difference:.2g} "
                f"(at most {bound:.2g}); the weights may hold NaN or the converter has a defect"
            )
    return graphs


def _quantized(
    profile: Profile,
    graphs: Sequence[onnx.ModelProto],
    calibration: _Calibration,
    report: Progress,
) -> tuple[list[onnx.ModelProto], QuantizationFigures, Records, tuple[float, ...] | None]:
    """Stages in the profile's precision, what that changed, their records and temperatures."""
    images, label = calibration.images, calibration.label
    total = 2 * len(graphs) + 1
    report("quantization", 0, total)
    before = Chain(graphs).records(images, label)
    report("quantization", 1, total)
    # Which images reach which stage is known only once thresholds are; those that halve the work
    # on the FP32 records are close enough to choose calibration images by.
    work = np.cumsum([count_macs(graph) for graph in graphs])
    provisional = solve(before, work, (work[0] + work[-1]) / 2)
    if profile.engine.precision == "fp32":
        stages, after = list(graphs), before
    else:
        stages = _quantize_stages(profile, graphs, images, before, provisional, report)
        after = Chain(stages).records(images, label)
    temperatures = None
    if profile.exits.fit_temperature:
        temperatures = _fit_temperatures(stages, graphs, images, label)
        before, after = (Chain(m).records(images, label) for m in (graphs, stages))
        provisional = solve(before, work, (work[0] + work[-1]) / 2)
    report("quantization", total, total)
    figures = _figures(profile, before, after, provisional)
    _check_tolerance(figures)
    return stages, figures, after, temperatures


def _fit_temperatures(
    stages: Sequence[onnx.ModelProto],
    graphs: Sequence[onnx.ModelProto],
    images: Images,
    label: npt.NDArray[np.int32] | None,
) -> tuple[float, ...]:
    """Fit every exit's temperature on the finished stages, and set it in both kinds of graphs."""
    chain = Chain(stages)
    parts = [[o["logits"] for o in chain.run(part)] for part in batches(images)]
    logits = [np.concatenate(exit_) for exit_ in zip(*parts, strict=True)]
    truth = logits[-1].argmax(axis=1) if label is None else label
    temperatures = tuple(fit_temperature(values, truth) for values in logits)
    for models in (stages, graphs):
        for model, temperature in zip(models, temperatures, strict=True):
            set_temperature(model, temperature)
    return temperatures


def _quantize_stages(
    profile: Profile,
    graphs: Sequence[onnx.ModelProto],
    images: Images,
    records: Records,
    provisional: Solution,
    report: Progress,
) -> list[onnx.ModelProto]:
    """Quantize stage after stage, each on the images that reach it, fed by the quantized ones."""
    ops = TENSORRT_OPS if profile.engine.backend == "tensorrt" else ONNXRUNTIME_OPS
    stages: list[onnx.ModelProto] = []
    reaching = np.ones(len(images), bool)
    for i, graph in enumerate(graphs):
        rows = np.flatnonzero(reaching)
        if not len(rows):  # nobody gets here: any image is better than none
            rows = np.arange(len(images))
        spread = np.linspace(0, len(rows) - 1, min(len(rows), RANGE_IMAGES)).round().astype(int)
        upstream = Chain(stages)
        feeds = (upstream.next_feeds(part) for part in batches(images[rows[spread]]))
        names = quantizable_inputs(graph, ops)
        report("quantization", 2 + 2 * i, 2 * len(graphs) + 1)
        stages.append(quantize(graph, activation_ranges(graph, names, feeds), ops))
        report("quantization", 3 + 2 * i, 2 * len(graphs) + 1)
        reaching &= records.confidence[:, i] < provisional.thresholds[i]
    return stages


def _figures(
    profile: Profile, before: Records, after: Records, provisional: Solution
) -> QuantizationFigures:
    truth = before.prediction[:, -1] if before.label is None else before.label
    exits = tuple(
        ExitFigures(
            accuracy_before=float((before.prediction[:, k] == truth).mean()),
            accuracy_after=float((after.prediction[:, k] == truth).mean()),
        )
        for k in range(before.exits)
    )
    leaves_before, leaves_after = (
        (r.confidence >= provisional.thresholds).argmax(axis=1) for r in (before, after)
    )
    return QuantizationFigures(
        precision=profile.engine.precision,
        exits=exits,
        changed_decisions=float((leaves_before != leaves_after).mean()),
        tolerance_points=profile.calibration.tolerance_points,
    )


def _check_tolerance(figures: QuantizationFigures) -> None:
    for k, exit_ in enumerate(figures.exits):
        drop = 100 * (exit_.accuracy_before - exit_.accuracy_after)
        if drop > figures.tolerance_points:
            raise BuildError(
                f"quantization costs exit {k + 1} {drop:.2f} points of top-1 "
                f"({100 * exit_.accuracy_before:.2f} to {100 * exit_.accuracy_after:.2f} %), more "
                f"than calibration.tolerance_points allows ({figures.tolerance_points:g}); "
                "calibrate on more or more typical images, raise the tolerance, or set "
                "engine.precision to fp32"
            )
