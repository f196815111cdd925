"""The host half of a build: checkpoint -> stage graphs -> quantized graphs -> bundle.

For ONNX Runtime that is the whole build; for TensorRT the bundle is portable, and
``dvt_edge.converters.device`` finishes it on the device.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
from dataclasses import dataclass, replace
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
    UNLABELLED,
    Manifest,
    StageSpec,
)
from dvt_edge.converters.graphs.chain import Chain, Images, batches
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.plausible import check_plausible
from dvt_edge.converters.quantizing.quantize_cascade import (
    Labels,
    QuantizedCascade,
    figures,
    quantize_cascade,
)
from dvt_edge.converters.selection import Candidate, Parity, choose_precisions
from dvt_edge.errors import BuildError, BundleError, CheckpointError, DataError
from dvt_edge.files.datasets import (
    FolderDataset,
    ImageDataset,
    image_groups,
    open_images,
    spread_rows,
)
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.checkpoint import read_config, read_metadata
from dvt_edge.models.config import CascadeConfig
from dvt_edge.policy import Records
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.progress import Progress
from dvt_edge.runtime.preprocess import Preprocessor

PYTORCH_TOLERANCE = 1e-4
"""Largest difference between a graph's logits and PyTorch's, relative to the largest logit if that
exceeds one."""
PYTORCH_IMAGES = 8
FIELD_BATCH = 256
"""Unlabelled images in memory at a time."""
PARITY_IMAGES = 200
"""Calibration images that precisions are compared on, and that travel with a portable bundle."""
LEAST_FP16_SAME_CLASS = 0.9
"""Share of the parity images whose class the float16 serialisation must keep; less is a collapse,
not rounding."""


@dataclass(frozen=True)
class _Calibration:
    """Calibration images, ready for the stages."""

    images: npt.NDArray[np.float32]
    label: Labels
    group: npt.NDArray[np.int32] | None
    frame_shape: tuple[int, int]
    digest: str
    parity_rows: npt.NDArray[np.intp]
    parity_pixels: npt.NDArray[np.uint8]
    """[n, crop, crop] or [n, crop, crop, 3]: those rows before normalisation."""


def build_host(profile: Profile, progress: Progress, *, force: bool) -> tuple[Bundle, bool]:
    """The bundle that ``profile`` describes, and whether it was built now.

    Raises :class:`~dvt_edge.errors.CheckpointError`, :class:`~dvt_edge.errors.DataError` or
    :class:`~dvt_edge.errors.BuildError` for a model, images or accuracy that cannot be used.
    """
    config = read_config(profile.model)
    _check_fit(profile, config)
    calibration = _read_calibration(profile, config, progress)
    field = _open_field(profile, grouped=calibration.group is not None)
    key = _build_key(profile, calibration.digest, field)
    if not force and (bundle := _existing(profile, key)):
        return bundle, False
    cascade = Cascade.load(profile.model)
    target: Target = "tensorrt" if profile.engine.builds_engines else "onnxruntime"
    few = calibration.images[:PYTORCH_IMAGES]
    graphs = _checked_graphs(cascade, few, profile.exits, target, progress)
    quantized = quantize_cascade(profile, graphs, calibration.images, calibration.label, progress)
    choices: list[PrecisionFigures] = []
    same_class: tuple[float, ...] | None = None
    half: list[list[onnx.ModelProto]] = []
    if profile.engine.builds_engines:
        half, same_class = _portable(profile, quantized, calibration)
    elif profile.engine.precision == "auto":
        chosen, choices = _faster(profile, quantized, calibration, progress)
        records = Chain(chosen).records(calibration.images, calibration.label)
        quantized = replace(quantized, stages=chosen, records=records)
    changes = figures(profile, quantized, same_class)
    check_plausible(quantized.records, changes.changed_decisions)
    with replaced_folder(profile.output) as folder:
        stages = tuple(
            _save(folder, f"stage{i + 1}.onnx", model, quantized.float_layers[i])
            for i, model in enumerate(quantized.stages)
        )
        in_half = tuple(
            tuple(
                _save(folder, f"stage{i + 1}.{{}}.onnx", model, quantized.float_layers[i])
                for model in models
            )
            for i, models in enumerate(half)
        )
        write_records(folder / RECORDS, replace(quantized.records, group=calibration.group))
        if field is not None:
            answers = _field_records(profile, field, quantized.stages, progress)
            write_records(folder / UNLABELLED, answers)
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
            camera=profile.camera,
            class_names=config.names,
            recorded_thresholds=read_metadata(profile.model).get("dynamic_threshold"),
            frame_shape=calibration.frame_shape,
            stages=stages,
            quantization=changes,
            choices=tuple(choices),
            graphs=in_half,
            stand_ins=stages if half else (),
            files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
            versions=_versions(),
        )
        (folder / MANIFEST).write_text(manifest.model_dump_json(indent=2), encoding="utf-8")
    return Bundle(profile.output), True


def _save(
    folder: Path, file: str, model: onnx.ModelProto, float_layers: tuple[str, ...]
) -> StageSpec:
    """Write a graph to ``file``, whose braces stand for its precision."""
    spec = stage_spec(model)
    file = file.format(spec.precision)
    onnx.save(model, folder / file)
    kept = float_layers if spec.precision == "int8" else ()
    return spec.model_copy(update={"file": file, "float_layers": kept})


def _portable(
    profile: Profile, quantized: QuantizedCascade, calibration: _Calibration
) -> tuple[list[list[onnx.ModelProto]], tuple[float, ...]]:
    """Every stage with a float16 body in each precision that the profile leaves open, and the share
    of images that keep their class at each exit."""
    kinds = []
    if profile.engine.precision != "fp16":
        kinds.append((quantized.stages, quantized.records))
    if profile.engine.precision != "int8":
        kinds.append((quantized.graphs, quantized.reference))
    rows = calibration.parity_rows
    images = calibration.images[rows].astype(np.float16)
    cascades, same = [], []
    for stages, exact in kinds:
        cascades.append([fp16_body(stage) for stage in stages])
        # What float16 does, not what INT8 did.
        same.append(_same_class(cascades[-1], images, exact.prediction[rows]))
    worst = np.min(same, axis=0)
    if worst.min() < LEAST_FP16_SAME_CLASS:
        k = int(worst.argmin())
        raise BuildError(
            f"stage {k + 1}: in float16 only {100 * worst[k]:.1f} % of {len(rows)} images keep "
            "their class; its activations leave float16's range, which TensorRT computes in: "
            "train with weight decay or mixed precision, or use engine.backend: onnxruntime"
        )
    return [list(models) for models in zip(*cascades, strict=True)], tuple(worst.tolist())


def _same_class(
    stages: list[onnx.ModelProto],
    images: Images,
    expected: npt.NDArray[np.int32],
) -> npt.NDArray[np.float64]:
    """[K]: share of ``images`` whose class is the ``expected`` [n, K] one and sure of a number."""
    chain, parts = Chain(stages), []
    for part in batches(images):
        outputs = chain.run(part)
        answers = [np.where(np.isfinite(o["confidence"]), o["class_id"], -1) for o in outputs]
        parts.append(np.stack(answers, axis=1))
    shares: npt.NDArray[np.float64] = (np.concatenate(parts) == expected).mean(axis=0)
    return shares


@dataclass(frozen=True)
class _Graph(Candidate):
    """A stage's graph in one precision, saved."""

    model: onnx.ModelProto


def _faster(
    profile: Profile, quantized: QuantizedCascade, calibration: _Calibration, progress: Progress
) -> tuple[list[onnx.ModelProto], list[PrecisionFigures]]:
    """Of every stage the precision that is faster here and passes."""
    rows, reference = calibration.parity_rows, quantized.reference
    parity = Parity(
        calibration.images[rows],
        reference.take(rows),
        quantized.provisional.thresholds,
        profile.calibration.tolerance_points,
    )
    with tempfile.TemporaryDirectory() as name:
        candidates: list[list[_Graph]] = []
        for i, pair in enumerate(zip(quantized.stages, quantized.graphs, strict=True)):
            candidates.append([])
            for model in pair:
                spec = stage_spec(model)
                path = Path(name) / f"stage{i + 1}.{spec.precision}.onnx"
                onnx.save(model, path)
                candidates[-1].append(_Graph(path, spec, model))
        chosen, table = choose_precisions(candidates, parity, profile.engine, progress)
    return [stage.model for stage in chosen], table


def _check_fit(profile: Profile, config: CascadeConfig) -> None:
    found = (profile.input.channels, profile.input.crop)
    if found != (config.channels, config.image_size):
        raise CheckpointError(
            f"{profile.model}: takes {config.channels}x{config.image_size}x{config.image_size}, "
            f"the profile's input gives {found[0]}x{found[1]}x{found[1]}; change 'input'"
        )


def _read_calibration(profile: Profile, config: CascadeConfig, progress: Progress) -> _Calibration:
    data = open_images(profile.calibration.data, config.names)
    chosen = spread_rows(len(data), profile.calibration.samples)
    label = _labels(data, chosen, config, profile.calibration.data)
    group = image_groups(data, chosen, profile.calibration.data, profile.calibration.groups)
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
    for what, known in ((b"", label), (b"groups", group)):
        if known is not None:
            digest.update(what + known.tobytes())
    height, width = np.median(sizes, axis=0).astype(int)
    shape = (int(height), int(width))
    return _Calibration(
        images, label, group, shape, digest.hexdigest(), parity_rows, np.stack(kept)
    )


@dataclass(frozen=True)
class _Field:
    """Images without classes, still to be read."""

    data: ImageDataset
    group: npt.NDArray[np.int32] | None


def _open_field(profile: Profile, *, grouped: bool) -> _Field | None:
    path, pattern = profile.calibration.unlabelled, profile.calibration.groups
    if path is None:
        return None
    data = open_images(path)
    if isinstance(data, FolderDataset) and data.labels is not None:
        data = replace(data, labels=None, class_names=None)  # in folders of whatever kind
    group = image_groups(data, np.arange(len(data)), path, pattern)
    if grouped and group is None:
        raise DataError(
            f"{path}: calibration.data says which images are alike, and nothing says it of these; "
            "give calibration.groups for a folder, an array 'groups' for an archive"
        )
    return _Field(data, group)


def _field_records(
    profile: Profile, field: _Field, stages: list[onnx.ModelProto], progress: Progress
) -> Records:
    """What ``stages`` answer to the field's images, some of which are in memory at a time."""
    chain, preprocess = Chain(stages), Preprocessor(profile.input)
    parts = []
    for start in range(0, len(field.data), FIELD_BATCH):
        rows = range(start, min(start + FIELD_BATCH, len(field.data)))
        images = np.empty((len(rows), *preprocess.shape), np.float32)
        for image, row in zip(images, rows, strict=True):
            preprocess(field.data.image(row), image, "rgb")
        parts.append(chain.records(images, None))
        progress("unlabelled images", rows.stop, len(field.data))
    return Records(
        np.concatenate([part.confidence for part in parts]),
        np.concatenate([part.prediction for part in parts]),
        group=field.group,
    )


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


def _digest(field: _Field) -> str:
    """Of the images' bytes and groups; files are not decoded for it."""
    digest = hashlib.sha256()
    for row in range(len(field.data)):
        if isinstance(field.data, FolderDataset):
            digest.update(file_sha256(field.data.paths[row]).encode())
        else:
            digest.update(field.data.image(row).tobytes())
    if field.group is not None:
        digest.update(field.group.tobytes())
    return digest.hexdigest()


def _build_key(profile: Profile, calibration_digest: str, field: _Field | None) -> str:
    """Hash of all that decides the stages and records. The budget does not: it only chooses
    thresholds, at run time."""
    # Of a build of engines only these two decide the host half.
    keys = {"backend", "precision"} if profile.engine.builds_engines else None
    parts = {
        "checkpoint": hashlib.sha256(profile.model.read_bytes()).hexdigest(),
        "calibration": calibration_digest,
        "unlabelled": None if field is None else _digest(field),
        "tolerance": profile.calibration.tolerance_points,
        "device": profile.device.name,
        "input": profile.input.model_dump(mode="json"),
        "exits": profile.exits.model_dump(mode="json"),
        "engine": profile.engine.model_dump(mode="json", include=keys),
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
    return bundle if bundle.manifest.build_key == key else None


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
