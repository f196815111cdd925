"""The host half of a build: checkpoint -> stage graphs -> quantized graphs -> bundle.

For ONNX Runtime that is the whole build; for TensorRT the bundle is portable, and
``dvt_edge.converters.device`` finishes it on the device.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

import dvt_edge
from dvt_edge.bundle.bundle import Bundle, file_sha256, replaced_folder, write_records
from dvt_edge.bundle.engine_records import PrecisionFigures
from dvt_edge.bundle.manifest import (
    MANIFEST,
    PARITY,
    RECORDS,
    Manifest,
    QuantizationFigures,
    StageSpec,
)
from dvt_edge.converters.graphs.chain import BATCH, Chain, Images
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.quantizing.quantize_cascade import (
    Labels,
    QuantizedCascade,
    figures,
    quantize_cascade,
)
from dvt_edge.converters.selection import Candidate, Parity, choose_precisions
from dvt_edge.errors import BuildError, BundleError, CheckpointError, DataError
from dvt_edge.files.datasets import ImageDataset, open_images, spread_rows
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.checkpoint import read_config, read_metadata
from dvt_edge.models.config import CascadeConfig
from dvt_edge.policy import Records
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.progress import Progress
from dvt_edge.runtime.backends.opening import open_stages
from dvt_edge.runtime.preprocess import Preprocessor

PYTORCH_TOLERANCE = 1e-4
"""Largest difference between a graph's logits and PyTorch's, relative to the largest logit if that
exceeds one."""
PYTORCH_IMAGES = 8
PARITY_IMAGES = 200
"""Calibration images that precisions are compared on, and that travel with a portable bundle."""
LEAST_FP16_SAME_CLASS = 0.9
"""Share of the parity images whose class the float16 serialisation must keep; less is a collapse,
not rounding."""


@dataclass(frozen=True)
class _Calibration:
    """Calibration images, ready for the stages."""

    images: Images
    label: Labels
    frame_shape: tuple[int, int]
    digest: str
    parity_rows: npt.NDArray[np.intp]
    parity_pixels: npt.NDArray[np.uint8]
    """[n, crop, crop] or [n, crop, crop, 3]: those rows before normalisation."""


@dataclass(frozen=True)
class _Parts:
    """What goes into the bundle."""

    graphs: list[dict[str, onnx.ModelProto]]
    """File suffix -> graph, for every stage; the first is the one that runs, or stands in."""
    records: Records
    figures: QuantizationFigures
    choices: list[PrecisionFigures]


def build_host(profile: Profile, progress: Progress, *, force: bool) -> tuple[Bundle, bool]:
    """The bundle that ``profile`` describes, and whether it was built anew.

    Raises :class:`~dvt_edge.errors.CheckpointError`, :class:`~dvt_edge.errors.DataError` or
    :class:`~dvt_edge.errors.BuildError` for a model, images or accuracy that cannot be used.
    """
    config = read_config(profile.model)
    _check_fit(profile, config)
    calibration = _read_calibration(profile, config, progress)
    key = _build_key(profile, calibration.digest)
    if not force and (bundle := _existing(profile, key)):
        return bundle, False
    cascade = Cascade.load(profile.model)
    target: Target = "tensorrt" if profile.engine.builds_engines else "onnxruntime"
    few = calibration.images[:PYTORCH_IMAGES]
    graphs = _checked_graphs(cascade, few, profile.exits, target, progress)
    quantized = quantize_cascade(profile, graphs, calibration.images, calibration.label, progress)
    if profile.engine.builds_engines:
        parts = _portable(profile, quantized, calibration)
    else:
        parts = _for_onnxruntime(profile, quantized, calibration, progress)
    with replaced_folder(profile.output) as folder:
        specs = [
            _save_stage(folder, i, stage, quantized.float_layers[i])
            for i, stage in enumerate(parts.graphs)
        ]
        write_records(folder / RECORDS, parts.records)
        if profile.engine.builds_engines:
            np.savez_compressed(
                folder / PARITY,
                pixels=calibration.parity_pixels,
                rows=calibration.parity_rows,
                thresholds=quantized.provisional.thresholds,
            )
        manifest = Manifest(
            build_key=key,
            device=profile.device.name,
            engine=profile.engine,
            input=profile.input,
            exits=profile.exits,
            temperatures=quantized.temperatures,
            budget=profile.budget,
            class_names=config.class_names or tuple(str(i) for i in range(config.classes)),
            recorded_thresholds=read_metadata(profile.model).get("dynamic_threshold"),
            frame_shape=calibration.frame_shape,
            stages=tuple(specs),
            quantization=parts.figures,
            choices=tuple(parts.choices),
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
            versions=_versions(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Bundle(profile.output), True


def _save_stage(
    folder: Path, index: int, graphs: dict[str, onnx.ModelProto], float_layers: tuple[str, ...]
) -> StageSpec:
    files = {kind: f"stage{index + 1}{kind}.onnx" for kind in graphs}
    for kind, model in graphs.items():
        onnx.save(model, folder / files[kind])
    kind, model = next(iter(graphs.items()))
    spec = stage_spec(model, files[kind])
    if spec.precision != "int8":  # as ``auto`` may have chosen: nothing is an exception
        float_layers = ()
    if not kind:
        return spec.model_copy(update={"float_layers": float_layers})
    named = {kind.removeprefix("."): file for kind, file in files.items()}
    return spec.model_copy(update={"float_layers": float_layers, "graphs": named})


def _portable(profile: Profile, quantized: QuantizedCascade, calibration: _Calibration) -> _Parts:
    """All serialisations that some TensorRT takes."""
    half = [fp16_body(graph) for graph in quantized.graphs]
    quantized_half = [fp16_body(stage) for stage in quantized.stages]
    precision = profile.engine.precision
    graphs: list[dict[str, onnx.ModelProto]] = []
    for i, stage in enumerate(quantized.stages):
        int8 = {".int8": stage, ".int8-fp16": quantized_half[i]} if precision != "fp16" else {}
        graphs.append(int8 | ({".fp16": half[i]} if precision != "int8" else {}))
    records, rows = quantized.records, calibration.parity_rows
    images = calibration.images[rows].astype(np.float16)
    pairs = [(half, quantized.reference)] * (precision != "int8")
    pairs += [(quantized_half, records)] * (precision != "fp16")
    # What float16 does, not what INT8 did.
    same = [_same_class(chain, images, exact.prediction[rows]) for chain, exact in pairs]
    worst = np.min(same, axis=0)
    if worst.min() < LEAST_FP16_SAME_CLASS:
        k = int(worst.argmin())
        raise BuildError(
            f"stage {k + 1}: in float16 only {100 * worst[k]:.1f} % of {len(rows)} images keep "
            "their class; its activations leave float16's range, which TensorRT computes in: "
            "train with weight decay or mixed precision, or use engine.backend: onnxruntime"
        )
    told = figures(profile, quantized.reference, records, quantized.provisional)
    told = told.model_copy(update={"fp16_same_class": tuple(float(share) for share in worst)})
    return _Parts(graphs, records, told, [])


def _same_class(
    stages: list[onnx.ModelProto],
    images: npt.NDArray[np.float16],
    expected: npt.NDArray[np.int32],
) -> npt.NDArray[np.float64]:
    """[K]: share of ``images`` whose class is the ``expected`` [n, K] one and sure of a number."""
    chain, parts = Chain(stages), []
    for start in range(0, len(images), BATCH):
        outputs = chain.run(images[start : start + BATCH])
        answers = [np.where(np.isfinite(o["confidence"]), o["class_id"], -1) for o in outputs]
        parts.append(np.stack(answers, axis=1))
    shares: npt.NDArray[np.float64] = (np.concatenate(parts) == expected).mean(axis=0)
    return shares


def _for_onnxruntime(
    profile: Profile, quantized: QuantizedCascade, calibration: _Calibration, progress: Progress
) -> _Parts:
    """One graph per stage; with ``auto`` whichever precision is faster here and passes."""
    stages, records = quantized.stages, quantized.records
    choices: list[PrecisionFigures] = []
    if profile.engine.precision == "auto":
        stages, choices = _faster(profile, quantized, calibration, progress)
        records = Chain(stages).records(calibration.images, calibration.label)
    told = figures(profile, quantized.reference, records, quantized.provisional)
    return _Parts([{"": stage} for stage in stages], records, told, choices)


def _faster(
    profile: Profile, quantized: QuantizedCascade, calibration: _Calibration, progress: Progress
) -> tuple[list[onnx.ModelProto], list[PrecisionFigures]]:
    rows, reference = calibration.parity_rows, quantized.reference
    parity = Parity(
        calibration.images[rows],
        reference.take(rows),
        quantized.provisional.thresholds,
        profile.calibration.tolerance_points,
    )
    with tempfile.TemporaryDirectory() as name:
        models: dict[Path, onnx.ModelProto] = {}
        candidates: list[list[Candidate]] = []
        for i, pair in enumerate(zip(quantized.stages, quantized.graphs, strict=True)):
            candidates.append([])
            for model in pair:
                spec = stage_spec(model, "")
                path = Path(name) / f"stage{i + 1}.{spec.precision}.onnx"
                onnx.save(model, path)
                models[path] = model
                candidates[-1].append(Candidate(spec.precision, path, spec))
        chosen, table = choose_precisions(
            candidates,
            parity,
            lambda stages: open_stages(
                profile.engine, [s.path for s in stages], [s.spec for s in stages], max_batch=1
            ),
            progress,
        )
        return [models[stage.path] for stage in chosen], table


def _check_fit(profile: Profile, config: CascadeConfig) -> None:
    found = (profile.input.channels, profile.input.crop)
    if found != (config.channels, config.image_size):
        raise CheckpointError(
            f"{profile.model}: takes {config.channels}x{config.image_size}x{config.image_size}, "
            f"the profile's input gives {found[0]}x{found[1]}x{found[1]}; change 'input'"
        )


def _read_calibration(profile: Profile, config: CascadeConfig, progress: Progress) -> _Calibration:
    data = open_images(profile.calibration.data, config.class_names)
    chosen = spread_rows(len(data), profile.calibration.samples)
    label = _labels(data, chosen, config, profile.calibration.data)
    preprocess = Preprocessor(profile.input)
    images = np.empty((len(chosen), *preprocess.shape), np.float32)
    parity_rows = spread_rows(len(chosen), PARITY_IMAGES)
    parity = set(parity_rows.tolist())
    kept, sizes = [], []
    digest = hashlib.sha256()
    for row, index in enumerate(chosen):
        image = data.image(int(index))
        pixels = preprocess.crop(image, "rgb")
        preprocess.normalise(pixels, images[row])
        if row in parity:
            kept.append(pixels)
        sizes.append(image.shape[:2])
        digest.update(image.tobytes())
        progress("calibration images", row + 1, len(chosen))
    if label is not None:
        digest.update(label.tobytes())
    height, width = np.median(sizes, axis=0).astype(int)
    shape = (int(height), int(width))
    return _Calibration(images, label, shape, digest.hexdigest(), parity_rows, np.stack(kept))


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
        "engine": profile.engine.model_dump(mode="json", include=_host_keys(profile)),
        "versions": _versions(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _host_keys(profile: Profile) -> set[str] | None:
    """Keys of ``engine`` that decide the host half; None for all."""
    return {"backend", "precision"} if profile.engine.builds_engines else None


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
    cascade: Cascade, images: Images, exits: ExitsConfig, target: Target, progress: Progress
) -> list[onnx.ModelProto]:
    """FP32 graphs of all stages, proven equal to PyTorch on ``images``."""
    total = len(cascade.stages)
    graphs = []
    for i in range(total):
        graphs.append(stage_graph_from_cascade(cascade, i, exits, target))
        progress("stage graphs", i + 1, total)
    with torch.no_grad():
        expected = [o.logits.numpy() for o in cascade(torch.from_numpy(images))]
    for i, outputs in enumerate(Chain(graphs).run(images)):
        bound = PYTORCH_TOLERANCE * max(1.0, float(np.abs(expected[i]).max()))
        difference = float(np.abs(outputs["logits"] - expected[i]).max())
        if not difference <= bound:
            raise BuildError(
                f"stage {i + 1}: the graph's logits differ from PyTorch's by {difference:.2g} "
                f"(at most {bound:.2g}); the weights may hold NaN or the converter has a defect"
            )
    return graphs
