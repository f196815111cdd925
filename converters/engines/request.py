"""What a build asks of the process that makes an engine, and what that answers."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ConfigDict, TypeAdapter

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
        return TypeAdapter(Request).dump_json(self).decode()

    @classmethod
    def from_json(cls, text: str) -> Request:
        return TypeAdapter(Request).validate_json(text)


@dataclass(frozen=True)
class Built:
    """How an engine was built."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    version: str
    """Of TensorRT."""
    seconds: float
    flags: tuple[str, ...]
    """Network and builder flags, by TensorRT's names."""
    warnings: tuple[str, ...]
    listing: str | None
    """The planner's text on its kernels, where it gives one."""

    @classmethod
    def from_values(cls, values: object) -> Built:
        """From what JSON gives; raises :class:`ValueError` for what is no such thing."""
        return TypeAdapter(Built).validate_python(values)
