"""The host half of a build: checkpoint -> stage graphs -> quantized graphs -> bundle.

For ONNX Runtime that is the whole build; for TensorRT the bundle is portable, and
``dvt_edge.converters.device`` finishes it on the device.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import platform
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch

import dvt_edge
from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.engine_records import PrecisionFigures
from dvt_edge.bundle.manifest import (
    MANIFEST,
    PARITY,
    RECORDS,
    UNLABELLED,
    Manifest,
    StageSpec,
)
from dvt_edge.bundle.output import replaced_folder
from dvt_edge.converters.calibration_images import (
    Calibration,
    Field,
    field_digest,
    field_records,
    open_field,
    read_calibration,
)
from dvt_edge.converters.graphs.chain import Chain, Images, batches
from dvt_edge.converters.graphs.facts import native_spec, stage_spec
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.plausible import check_plausible
from dvt_edge.converters.quantizing.native_graph import native_stages
from dvt_edge.converters.quantizing.quantize_cascade import (
    QuantizedCascade,
    figures,
    quantize_cascade,
)
from dvt_edge.converters.selection import (
    Candidate,
    Parity,
    choose_native,
    choose_precisions,
    not_native,
)
from dvt_edge.errors import BuildError, BundleError, CheckpointError
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.checkpoint import read_config, read_metadata
from dvt_edge.models.config import CascadeConfig
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.progress import Progress
from dvt_edge.runtime.native import operator_library

PYTORCH_TOLERANCE = 1e-4
"""Largest difference between a graph's logits and PyTorch's, relative to the largest logit if that
exceeds one."""
PYTORCH_IMAGES = 8
LEAST_FP16_SAME_CLASS = 0.9
"""Share of the parity images whose class the float16 serialisation must keep; less is a collapse,
not rounding."""


def build_host(profile: Profile, progress: Progress, *, force: bool) -> tuple[Bundle, bool]:
    """The bundle that ``profile`` describes, and whether it was built now.

    Raises :class:`~dvt_edge.errors.CheckpointError`, :class:`~dvt_edge.errors.DataError` or
    :class:`~dvt_edge.errors.BuildError` for a model, images or accuracy that cannot be used.
    """
    config = read_config(profile.model)
    _check_fit(profile, config)
    calibration = read_calibration(profile, config, progress)
    field = open_field(profile, grouped=calibration.group is not None)
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
    native: list[onnx.ModelProto] = []
    if profile.engine.builds_engines:
        half, same_class = _portable(profile, quantized, calibration)
    elif profile.engine.precision == "auto":
        chosen, choices = _faster(profile, quantized, calibration, progress)
        records = Chain(chosen).records(calibration.images, calibration.label)
        quantized = replace(quantized, stages=chosen, records=records)
    if profile.engine.runs_on_cpu and profile.engine.precision != "fp32":
        native, tried = _native(profile, config, quantized, calibration, progress)
        if native:
            instead = {"chosen": False, "remark": "without the operators"}
            choices = [row.model_copy(update=instead) if row.chosen else row for row in choices]
            records = Chain(native).records(calibration.images, calibration.label)
            quantized = replace(quantized, records=records)
        choices = sorted([*choices, *tried], key=lambda row: row.stage)
    changes = figures(profile, quantized, same_class)
    check_plausible(quantized.records, changes.changed_decisions)
    with replaced_folder(profile.output) as folder:
        stages = tuple(
            _save(folder, f"stage{i + 1}.onnx", model, quantized.float_layers[i])
            for i, model in enumerate(quantized.stages)
        )
        on_native = tuple(
            _save_native(folder, f"stage{i + 1}.native.onnx", model, stages[i])
            for i, model in enumerate(native)
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
            answers = field_records(profile, field, native or quantized.stages, progress)
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
            stages=on_native or stages,
            quantization=changes,
            choices=tuple(choices),
            graphs=in_half,
            stand_ins=stages if half or native else (),
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


def _save_native(
    folder: Path, file: str, model: onnx.ModelProto, reference: StageSpec
) -> StageSpec:
    onnx.save(model, folder / file)
    return native_spec(model, reference).model_copy(update={"file": file})


def _portable(
    profile: Profile, quantized: QuantizedCascade, calibration: Calibration
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
    profile: Profile, quantized: QuantizedCascade, calibration: Calibration, progress: Progress
) -> tuple[list[onnx.ModelProto], list[PrecisionFigures]]:
    """Of every stage the precision that is faster here and passes."""
    parity = _parity(profile, quantized, calibration)
    with _scratch() as folder:
        candidates: list[list[_Graph]] = []
        for i, pair in enumerate(zip(quantized.stages, quantized.graphs, strict=True)):
            candidates.append([])
            for model in pair:
                spec = stage_spec(model)
                path = folder / f"stage{i + 1}.{spec.precision}.onnx"
                onnx.save(model, path)
                candidates[-1].append(_Graph(path, spec, model))
        chosen, table = choose_precisions(candidates, parity, profile.engine, progress)
    return [stage.model for stage in chosen], table


def _native(
    profile: Profile,
    config: CascadeConfig,
    quantized: QuantizedCascade,
    calibration: Calibration,
    progress: Progress,
) -> tuple[list[onnx.ModelProto], list[PrecisionFigures]]:
    """The stages on native operators, if they are faster here than ``quantized`` and pass; and what
    was tried."""
    if operator_library.unavailable() is not None:
        return [], []
    in_float = [k for k, layers in enumerate(quantized.float_layers) if layers]
    if in_float:  # operators have no float layers
        remark = f"{len(quantized.float_layers[in_float[0]])} of its layers stay in float"
        return [], [not_native(in_float[0] + 1, remark)]
    models = native_stages(quantized.graphs, config, quantized.ranges)
    with _scratch() as folder:
        kinds: tuple[list[Candidate], list[Candidate]] = ([], [])
        for i, (model, native) in enumerate(zip(quantized.stages, models, strict=True)):
            spec = stage_spec(model)
            specs = (spec, native_spec(native, spec))
            for kind, graph, of in zip(kinds, (model, native), specs, strict=True):
                path = folder / f"{i}.{of.native}.onnx"
                onnx.save(graph, path)
                kind.append(Candidate(path, of))
        parity = _parity(profile, quantized, calibration)
        faster, table = choose_native(*kinds, parity, profile.engine, progress)
    return models if faster else [], table


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    try:
        with tempfile.TemporaryDirectory() as name:
            yield Path(name)
    except OSError as error:
        raise BuildError(
            f"{tempfile.gettempdir()}: cannot be written ({error.strerror or error}); free some "
            "space, or name another folder in TMPDIR"
        ) from None


def _parity(profile: Profile, quantized: QuantizedCascade, calibration: Calibration) -> Parity:
    """The FP32 graphs' answers to the parity images."""
    rows = calibration.parity_rows
    return Parity(
        calibration.images[rows],
        quantized.reference.take(rows),
        quantized.provisional.thresholds,
        profile.calibration.tolerance_points,
    )


def _check_fit(profile: Profile, config: CascadeConfig) -> None:
    found = (profile.input.channels, profile.input.crop)
    if found != (config.channels, config.image_size):
        raise CheckpointError(
            f"{profile.model}: takes {config.channels}x{config.image_size}x{config.image_size}, "
            f"the profile's input gives {found[0]}x{found[1]}x{found[1]}; change 'input'"
        )


def _build_key(profile: Profile, calibration_digest: str, field: Field | None) -> str:
    """Hash of all that decides the stages and records. The budget does not: it only chooses
    thresholds, at run time."""
    # Of a build of engines only these two decide the host half.
    keys = {"backend", "precision"} if profile.engine.builds_engines else None
    parts = {
        "checkpoint": hashlib.sha256(profile.model.read_bytes()).hexdigest(),
        "calibration": calibration_digest,
        "unlabelled": None if field is None else field_digest(field),
        "tolerance": profile.calibration.tolerance_points,
        "device": profile.device.name,
        "input": profile.input.model_dump(mode="json"),
        "exits": profile.exits.model_dump(mode="json"),
        "engine": profile.engine.model_dump(mode="json", include=keys),
        "versions": _versions(),
    }
    if profile.engine.runs_on_cpu:
        parts["operators"] = operator_library.instruction_set()
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
        bundle = Bundle(profile.output, profile.trusted_keys)
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
