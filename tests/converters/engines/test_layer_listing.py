"""The planner's listing: ``listing.txt`` holds lines of TensorRT-RTX 1.7 for several stages."""

from __future__ import annotations

from pathlib import Path

import pytest
from relations import bytes_moved

from dvt_edge.converters.engines.layer_listing import (
    Kernel,
    Tensor,
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
    qkv, attention, mix, convolution, winner, class_id, shapes, batched = kernels
    assert [t.dtype for t in qkv.inputs] == ["Int8"]
    assert [t.dtype for t in qkv.outputs] == ["Half"]
    assert attention.inputs[0] == Tensor((2, 10, 64), "Half")
    assert attention.outputs == (Tensor((2, 10, 64), "Int8"),)
    assert mix.inputs == (Tensor((2, 5, 6), "Half"), Tensor((2, 6, 4), "Half"))
    assert convolution.inputs == (Tensor((1, 12, 5, 5), "Half"),)
    assert winner.outputs == (Tensor((1, 1), "Float"), Tensor((1, 1), "Int32"))
    assert class_id.outputs == (Tensor((1,), "Int32"),)
    assert shapes.inputs == shapes.outputs == ()
    assert batched.inputs == (Tensor((-1, 8), "Int8"),)


def test_what_a_kernel_is(kernels: list[Kernel]) -> None:
    assert [k.profile for k in kernels] == [0, 0, 0, 0, 0, 0, 1, 1]
    assert [k.is_fused_attention for k in kernels] == [False, True, *[False] * 6]
    assert [k.computes for k in kernels] == [
        *("Int8", "Half", "Half", "Half", "Float", "Int32", "", "Int8")
    ]
    assert kernels[1].onnx_nodes == (
        "blocks.0.attn/joined:0/quantize",
        "blocks.0.attn/mix",
        "blocks.0.attn/softmax",
        "blocks.0.attn/logits",
    )
    assert kernels[5].onnx_nodes == ("exit/class_id",)
    assert kernels[6].onnx_nodes == ()


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
    assert Tensor((2, 10, 64), "Half").bytes == 2560
    assert Tensor((), "Float").bytes == 4
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
    assert kernel.inputs == (Tensor((), "Bool"),)
    assert bytes_moved([kernel]) == 1 + 24
