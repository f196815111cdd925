"""What a build asks of the process that makes an engine, and what that answers."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from typing_extensions import Self

MODULE_VARIABLE = "DVT_EDGE_TENSORRT"
"""Environment variable with the module to build with: ``tensorrt`` or ``tensorrt_rtx``."""


@dataclass(frozen=True)
class Request:
    """One engine to build."""

    graph: str
    """ONNX file."""
    plan: str
    """File to write."""
    largest_batch: int
    """Above 1 the engine has a second profile, of 1 to this many images."""
    workspace_bytes: int
    quantized: bool
    """Whether the graph has Q/DQ, for versions that want a flag for it."""
    compute_capabilities: tuple[int, ...] = ()
    """86 for 8.6; empty for the GPU of this machine."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        values = json.loads(text)
        capabilities = tuple(values.pop("compute_capabilities"))
        return cls(**values, compute_capabilities=capabilities)


@dataclass(frozen=True)
class Built:
    """How an engine was built."""

    version: str
    """Of TensorRT."""
    seconds: float
    flags: tuple[str, ...]
    """Network and builder flags, by TensorRT's names."""
    warnings: tuple[str, ...]
    listing: str | None
    """The planner's text on its kernels, where it gives one."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_values(cls, values: dict[str, object]) -> Self:
        lists = {name: tuple(values.pop(name)) for name in ("flags", "warnings")}  # type: ignore[arg-type, var-annotated]
        return cls(**values, **lists)  # type: ignore[arg-type]
