"""What a manifest records of the engines that were built, and of the precisions that were tried."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvt_edge.files.documents import Document
from dvt_edge.machine.platform import Platform

Precision = Literal["int8", "fp16", "fp32"]


class PlanRecord(Document):
    """How one stage's engine was built."""

    precision: Precision
    graph: str
    """ONNX file in the bundle that it was built from."""
    seconds: float = Field(ge=0)
    """Of the build; of the earlier one where the engine came from the cache."""
    cached: bool
    warnings: tuple[str, ...] = ()
    """What the builder warned of."""
    planned: dict[str, int] | None = None
    """Kernels by kind as the planner listed them; None where it lists nothing."""


class PrecisionFigures(Document):
    """One precision that was tried for one stage."""

    stage: int = Field(ge=1)
    precision: Precision | Literal["native"]
    """``native`` is INT8 on dvt-edge's own operators, for all stages or none."""
    latency_ms: float | None = None
    """Median of the stage alone at batch 1; None, as the next two, where nothing could run it."""
    same_class: float | None = None
    """Share of the parity images that keep their class at this exit, 0..1."""
    same_exit: float | None = None
    """Share that decides at this exit as before: leaves or goes on."""
    chosen: bool
    remark: str
    """Why it was chosen or not."""


class Engines(Document):
    """The device half of a build."""

    platform: Platform
    flags: tuple[str, ...] = ("STRONGLY_TYPED",)
    """Network flags, by TensorRT's names."""
    workspace_mb: int
    plans: tuple[PlanRecord, ...] = Field(min_length=1)
    built_at: str
    """UTC, ISO 8601."""
    signature: str | None = None
    """Of the engines, by the key of the machine that built them; None where none was made."""
    preprocess: Literal["host", "device"] = "host"
    """Where frames become images, as ``input.preprocess: auto`` found it out."""
    preprocess_ms: dict[str, float] | None = None
    """Median from the frame to the end of stage 1, by place; None where it was not measured."""
