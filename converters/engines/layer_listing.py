"""The planner's listing of kernels, as text -> what was fused and what computes in which type.

TensorRT-RTX logs one message per engine, a kernel a line; ``kind`` is the planner's word for it.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass

_LINE = re.compile(
    r"Name: (?P<name>.*?), LayerType: (?P<kind>\w+), Inputs: \[(?P<inputs>.*?)\], "
    r"(?:Constants: \[.*?\], )?Outputs: \[(?P<outputs>.*?)\], "
    r"TacticName: .*?Metadata: ?(?P<onnx>.*)$"
)
_SYNCHRONISATION = ("signal", "wait")


@dataclass(frozen=True)
class Kernel:
    """One kernel of an engine, in the planner's words."""

    name: str
    kind: str
    """Such as ``gemm``, ``correlation`` (a convolution), ``kgen`` (a generated kernel)."""
    inputs: str
    """Activations with ``Dimensions`` and ``Datatype``; constants are left out."""
    outputs: str
    onnx: str
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
        """Type of its activations, such as ``Half`` or ``Int8``; empty without any."""
        match = re.search(r"Datatype: (\w+)", self.inputs)
        return match[1] if match else ""


def kernels_from_listing(text: str) -> list[Kernel]:
    """The kernels of a listing, in order, without synchronisation between streams."""
    matches = filter(None, map(_LINE.match, text.splitlines()))
    kernels = [Kernel(**match.groupdict()) for match in matches]
    return [kernel for kernel in kernels if kernel.kind not in _SYNCHRONISATION]


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
