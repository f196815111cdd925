"""The planner's listing of kernels, as text -> what was fused and what computes in which type.

TensorRT-RTX logs one message per engine, a kernel a line; ``kind`` is the planner's word for it.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass

_BYTES = {"Half": 2, "Float": 4, "Int8": 1, "Int32": 4, "Int64": 8, "Bool": 1}
_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[.*?\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*?Metadata: ?(?P<onnx>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[([\d,-]*)\].*?Datatype: (\w+)")
_SYNCHRONISATION = ("signal", "wait")


@dataclass(frozen=True)
class Tensor:
    """What a kernel reads or writes."""

    shape: tuple[int, ...]
    dtype: str
    """The planner's name, such as ``Half`` or ``Int8``."""

    @property
    def bytes(self) -> int:
        return _BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine."""

    name: str
    kind: str
    """Such as ``gemm``, ``correlation`` (a convolution), ``kgen`` (a generated kernel)."""
    inputs: tuple[Tensor, ...]
    """Activations; constants are left out."""
    outputs: tuple[Tensor, ...]
    onnx_nodes: tuple[str, ...]
    """Nodes of the graph that went into it, as far as the planner says."""

    @property
    def profile(self) -> int:
        """Optimization profile that it belongs to, from 0."""
        match = re.search(r"_myl(\d+)_\d+$", self.name)
        return int(match[1]) if match else 0

    @property
    def is_fused_attention(self) -> bool:
        return "_mha_" in self.name

    @property
    def computes(self) -> str:
        """Type of its activations, for products and convolutions."""
        return self.inputs[0].dtype if self.inputs else ""


def kernels_from_listing(text: str) -> list[Kernel]:
    """The kernels of a listing, in order, without synchronisation between streams."""
    kernels = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None or match["kind"] in _SYNCHRONISATION:
            continue
        kernels.append(
            Kernel(
                match["name"],
                match["kind"],
                _tensors(match["inputs"]),
                _tensors(match["outputs"]),
                tuple(re.findall(r"ONNX Layer: ([^\]]*)\]", match["onnx"])),
            )
        )
    return kernels


def counts_by_kind(kernels: list[Kernel]) -> dict[str, int]:
    """Kernels at batch 1 by kind: fused attention, products and convolutions by type, the rest."""
    counts: Counter[str] = Counter()
    for kernel in kernels:
        if kernel.profile:
            continue
        if kernel.is_fused_attention:
            counts["fused attention"] += 1
        elif kernel.kind in ("gemm", "correlation"):
            counts[f"{kernel.computes.lower()} {kernel.kind}"] += 1
        else:
            counts["other"] += 1
    return dict(counts)


def _tensors(text: str) -> tuple[Tensor, ...]:
    return tuple(
        Tensor(tuple(int(size) for size in shape.split(",") if size), dtype)
        for shape, dtype in _TENSOR.findall(text)
    )
