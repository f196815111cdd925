"""The planner's listing: ``listing.txt`` holds lines of TensorRT-RTX 1.7 for several stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from relations import ONNX_NODE, TENSOR, bytes_moved

from dvt_edge.converters.engines.layer_listing import (
    Kernel,
    counts_by_kind,
    kernels_from_listing,
)

LISTING = Path(__file__).with_name("listing.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def kernels() -> list[Kernel]:
    return kernels_from_listing(LISTING)


def test_every_line_is_a_kernel(kernels: list[Kernel]) -> None:
    assert LISTING.startswith("Layers:\n")
    assert len(kernels) == len(LISTING.splitlines()) - 1 == 8
    kinds = ["gemm", "kgen", "gemm", "correlation", "kgen", "kgen", "shape_call", "gemm"]
    assert [kernel.kind for kernel in kernels] == kinds


def test_tensors(kernels: list[Kernel]) -> None:
    """Activations in order, constants left out, scalars and dynamic sizes included."""

    def tensors(text: str) -> list[tuple[str, str]]:
        return TENSOR.findall(text)

    qkv, attention, mix, convolution, winner, class_id, shapes, batched = kernels
    assert [dtype for _, dtype in tensors(qkv.inputs)] == ["Int8"]
    assert [dtype for _, dtype in tensors(qkv.outputs)] == ["Half"]
    assert tensors(attention.inputs)[0] == ("2,10,64", "Half")
    assert tensors(attention.outputs) == [("2,10,64", "Int8")]
    assert tensors(mix.inputs) == [("2,5,6", "Half"), ("2,6,4", "Half")]
    assert tensors(convolution.inputs) == [("1,12,5,5", "Half")]
    assert tensors(winner.outputs) == [("1,1", "Float"), ("1,1", "Int32")]
    assert tensors(class_id.outputs) == [("1", "Int32")]
    assert tensors(shapes.inputs) == tensors(shapes.outputs) == []
    assert tensors(batched.inputs) == [("-1,8", "Int8")]


def test_what_a_kernel_is(kernels: list[Kernel]) -> None:
    assert [k.profile for k in kernels] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert [k.is_fused_attention for k in kernels] == [False, True, *[False] * 6]
    assert [k.computes for k in kernels] == [
        *("Int8", "Half", "Half", "Half", "Float", "Int32", "", "Int8")
    ]
    joined, attention = "blocks.0.attn/joined:0/quantize", "blocks.0.attn"
    nodes = [joined, f"{attention}/mix", f"{attention}/softmax", f"{attention}/logits"]
    assert ONNX_NODE.findall(kernels[1].onnx) == nodes
    assert ONNX_NODE.findall(kernels[5].onnx) == ["exit/class_id"]
    assert ONNX_NODE.findall(kernels[6].onnx) == []


def test_counts_are_those_of_batch_1(kernels: list[Kernel]) -> None:
    assert counts_by_kind(kernels) == {
        "int8 gemm": 1,
        "fused attention": 1,
        "half gemm": 1,
        "half correlation": 1,
        "other": 2,
    }
    assert counts_by_kind([]) == {}


def test_bytes(kernels: list[Kernel]) -> None:
    """Written and read, of the profile whose sizes are known: that of batch 1."""
    attention, class_id, batched = kernels[1], kernels[5], kernels[7]
    assert bytes_moved([attention]) == 3 * 2560 + 1280
    assert bytes_moved([class_id]) == 8
    assert bytes_moved([class_id, batched]) == 8


@pytest.mark.parametrize(
    "line",
    [
        "",
        "Layers:",
        "Bindings: image, class_id",
        "Name: half a line, LayerType: gemm, Inputs: [",
        "Name: sync_0, LayerType: signal, Inputs: [], Outputs: [], TacticName: , Metadata: ",
        "Name: sync_1, LayerType: wait, Inputs: [], Outputs: [], TacticName: , Metadata: ",
    ],
)
def test_lines_that_are_no_kernel(line: str) -> None:
    assert kernels_from_listing(line) == []


def test_listing_without_constants() -> None:
    """Other versions leave that part out."""
    line = (
        "Name: copy, LayerType: Reformat, Inputs: [ { Name: a, Dimensions: [], Datatype: Bool }], "
        "Outputs: [ { Name: b, Dimensions: [3], Datatype: Int64 }], TacticName: x, Metadata:"
    )
    (kernel,) = kernels_from_listing(line)
    assert (kernel.name, kernel.kind, kernel.profile) == ("copy", "Reformat", 0)
    assert kernel.computes == "Bool"
    assert bytes_moved([kernel]) == 1 + 24
