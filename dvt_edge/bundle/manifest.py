"""``manifest.json``: what is inside a bundle, and what its build found out."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, TypeVar

import numpy as np
from pydantic import Field, model_validator

from dvt_edge.bundle.engine_records import Engines, Precision, PrecisionFigures
from dvt_edge.bundle.members import FileName
from dvt_edge.errors import BundleError
from dvt_edge.files.documents import Document
from dvt_edge.profile import (
    BudgetConfig,
    CameraConfig,
    EngineConfig,
    ExitsConfig,
    InputConfig,
)

Value = TypeVar("Value")

SCHEMA_VERSION: Literal[3] = 3
MANIFEST = "manifest.json"
RECORDS = "records.npz"
UNLABELLED = "unlabelled.npz"
COSTS = "costs.json"
MEASUREMENT = "measurement.json"
PARITY = "parity.npz"
SIGNATURE = "model.sig"
"""What model-signing calls it by default."""
NATIVE_DOMAIN = "dvt_edge"
"""Of the project's own operators in a graph for ONNX Runtime on the CPU."""
HANDED_ON = "next_"
"""A stage's outputs of this prefix are the next stage's inputs of the name without it."""


class TensorSpec(Document):
    """One input or output of a stage."""

    name: str
    shape: tuple[Annotated[int, Field(ge=1, le=1 << 31)] | str, ...] = Field(min_length=1)
    """``"N"`` is the batch."""
    dtype: Literal["float32", "float16", "int32", "int8"]

    def shape_at(self, batch: int) -> tuple[int, ...]:
        return tuple(batch if isinstance(size, str) else size for size in self.shape)

    @property
    def bytes_per_image(self) -> int:
        return math.prod(self.shape_at(1)) * np.dtype(self.dtype).itemsize


def handed_on(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """What the next stage takes of one stage's ``tensors``, by the names that it reads."""
    return {
        name.removeprefix(HANDED_ON): value
        for name, value in tensors.items()
        if name.startswith(HANDED_ON)
    }


class StageSpec(Document):
    """One stage file."""

    file: str
    inputs: tuple[TensorSpec, ...] = Field(min_length=1)
    outputs: tuple[TensorSpec, ...]
    parameters: int = Field(ge=0)
    """Weights and biases in the graph, upsampling constants included."""
    macs: int = Field(ge=0)
    """Multiply-accumulates of matrix products and convolutions at batch 1, counted on the graph."""
    precision: Precision = "fp32"
    """Of the layers that quantization is about."""
    layers: dict[str, dict[str, int]] = Field(default_factory=dict)
    """How many layers of each class compute in each precision."""
    float_layers: tuple[str, ...] = ()
    """Layers left in float because INT8 cost this exit too much."""
    native: bool = False
    """Whether the graph has operators of :data:`NATIVE_DOMAIN`."""

    @property
    def handed_on_bytes(self) -> int:
        """Size of features and relations for the next stage, per image."""
        return sum(handed_on({t.name: t.bytes_per_image for t in self.outputs}).values())


def check_handed_on(stages: Sequence[StageSpec]) -> None:
    """Whether each stage writes what the next one reads, in the type and shape that it reads.

    The reader finds the writer's memory as it is. Raises
    :class:`~dvt_edge.errors.BundleError`.
    """
    for number, (writer, reader) in enumerate(itertools.pairwise(stages), start=1):
        written = handed_on({t.name: t for t in writer.outputs})
        written["image"] = stages[0].inputs[0]
        for read in reader.inputs:
            found = written.get(read.name)
            if found is None or (found.dtype, found.shape) != (read.dtype, read.shape):
                what = f"{found.dtype} {list(found.shape)}" if found else "nothing of that name"
                raise BundleError(
                    f"stage {number + 1} reads '{read.name}' as {read.dtype} {list(read.shape)}, "
                    f"stage {number} hands on {what}; rebuild the bundle"
                )


class ExitFigures(Document):
    """What quantization did to one exit, on the calibration images (shares, 0..1)."""

    accuracy_before: float
    """Top-1 of the FP32 graphs; agreement with the last FP32 exit where labels are missing."""
    accuracy_after: float
    """The same for the stages in the bundle."""


class QuantizationFigures(Document):
    """What quantization did, on the calibration images."""

    precision: Literal["int8", "fp16", "fp32", "auto"]
    """As the profile asked for it."""
    exits: tuple[ExitFigures, ...]
    changed_decisions: float
    """Share of images that leave at another exit than with the FP32 graphs."""
    tolerance_points: float
    fp16_same_class: tuple[float, ...] | None = None
    """[K]: share of the parity images whose class the float16 serialisation keeps, where there is
    one; run by ONNX Runtime, which computes float16 products in float32."""


class Manifest(Document):
    """``manifest.json``."""

    schema_version: Literal[3] = SCHEMA_VERSION
    build_key: str
    """Hash of everything that decided the contents; the same key rebuilds nothing."""
    device: str
    engine: EngineConfig
    input: InputConfig
    exits: ExitsConfig
    temperatures: tuple[float, ...] | None = None
    """Fitted temperature of every exit, where ``exits.fit_temperature`` asked for it."""
    budget: BudgetConfig
    camera: CameraConfig = CameraConfig()
    """As the profile had it when the bundle was built last; it decides nothing but what is
    measured."""
    class_names: tuple[str, ...]
    recorded_thresholds: tuple[tuple[float | str, ...], ...] | None = None
    """[P, K] as an imported checkpoint carries them; infinities are strings."""
    frame_shape: tuple[int, int]
    """Median height and width of the calibration images."""
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    quantization: QuantizationFigures
    choices: tuple[PrecisionFigures, ...] = ()
    """Every precision that was tried, stage by stage, with ``precision: auto``."""
    graphs: tuple[tuple[StageSpec, ...], ...] = ()
    """For TensorRT: every stage in each precision that its engine may be built in."""
    stand_ins: tuple[StageSpec, ...] = ()
    """What ONNX Runtime runs where ``stages`` cannot run. For TensorRT, where there is no NVIDIA
    driver: float32 but for INT8 layers; the records are their answers. For native stages, where the
    operators are missing: Q/DQ or float graphs."""
    engines: Engines | None = None
    """The device half; None before it, when ``stages`` are ``stand_ins``, and where there are no
    engines."""
    files: dict[FileName, str] = Field(max_length=64)
    """SHA-256 of every file but the manifest, the costs and the measurement."""
    versions: dict[str, str]
    """Of the programs that built the bundle."""

    @property
    def measured_shape(self) -> tuple[int, int]:
        """Height and width of the frames that costs are measured with."""
        if self.camera.frame is None:
            return self.frame_shape
        width, height = self.camera.frame
        return height, width

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        graphs = [stage.file for stage in (*self.stand_ins, *itertools.chain(*self.graphs))]
        graphs += [plan.graph for plan in self.engines.plans] if self.engines else []
        stages = [stage.file for stage in self.stages]
        for name in (*stages, *graphs, RECORDS):
            if name not in self.files:
                raise ValueError(f"files has no SHA-256 of {name}")
        # The suffix says what is checked before a runtime reads the file.
        plans = self.engine.builds_engines and self.engines is not None
        for names, suffix in ((stages, ".plan" if plans else ".onnx"), (graphs, ".onnx")):
            for name in names:
                if not name.endswith(suffix):
                    raise ValueError(f"expected a {suffix} file, found {name}")
        for stage in (*self.stages, *self.stand_ins, *itertools.chain(*self.graphs)):
            for output in stage.outputs:
                if output.name == "logits" and output.shape[-1] != len(self.class_names):
                    raise ValueError(
                        f"class_names has {len(self.class_names)} names, {stage.file} answers with "
                        f"{output.shape[-1]} classes"
                    )
        if (self.engine.builds_engines or self.native) and len(self.stand_ins) != len(self.stages):
            raise ValueError("stand_ins has not one entry for each stage")
        return self

    @property
    def native(self) -> bool:
        """Whether its stages run on operators of :data:`NATIVE_DOMAIN`."""
        return any(stage.native for stage in self.stages)

    @property
    def portable(self) -> bool:
        """Whether engines are still to be built from it, on the device."""
        return self.engine.builds_engines and self.engines is None

    @property
    def bytes_resident(self) -> int:
        """Images, reuse tensors and answers that a backend holds for the largest batch."""
        own = sum(t.bytes_per_image for stage in self.stages for t in stage.outputs)
        image = self.stages[0].inputs[0].bytes_per_image
        return max(self.engine.batch_sizes) * (image + own)

    @property
    def content_hash(self) -> str:
        """Hash over all stage files; measured costs are bound to it."""
        hashes = "".join(self.files[stage.file] for stage in self.stages)
        return hashlib.sha256(hashes.encode()).hexdigest()
