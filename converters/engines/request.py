"""What a build asks of the process that makes an engine, and what that answers."""

from __future__ import annotations

from dvt_edge.files.documents import Document

MODULE_VARIABLE = "DVT_EDGE_TENSORRT"
"""Environment variable with the module to build with: ``tensorrt`` or ``tensorrt_rtx``."""


class Request(Document):
    """One engine to build."""

    graph: str
    """ONNX file."""
    plan: str
    """File to write."""
    batch_sizes: tuple[int, ...]
    """Ascending from 1; the engine has a static optimization profile for each, in this order."""
    workspace_bytes: int
    compute_capabilities: tuple[int, ...] = ()
    """86 for 8.6; empty for the GPU of this machine."""


class Built(Document):
    """How an engine was built."""

    version: str
    """Of TensorRT."""
    seconds: float
    warnings: tuple[str, ...]
    listing: str | None
    """The planner's text on its kernels, where it gives one."""
