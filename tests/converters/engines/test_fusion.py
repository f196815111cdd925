"""What TensorRT-RTX's planner makes of every stage, for compute capability 8.6, without a GPU.

Weights are random for the large models: plans depend on shapes and types.
"""

from __future__ import annotations

from collections.abc import Callable

import onnx
import pytest
import torch
from relations import ONNX_NODE

from dvt_edge.converters.engines.layer_listing import (
    Kernel,
    counts_by_kind,
    kernels_from_listing,
)
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.quantizing.insert_qdq import (
    TENSORRT_OPS,
    quantizable_layers,
    quantize,
)
from dvt_edge.models import Cascade
from dvt_edge.models.cascade import create

pytest.importorskip("tensorrt_rtx")

ARCHITECTURES = (
    "dvt_fashion_scenes",
    pytest.param("dvt_deit_small", marks=pytest.mark.slow),
    pytest.param("dvt_t2t_vit_12", marks=pytest.mark.slow),
)
Planned = tuple[onnx.ModelProto, list[Kernel]]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def cascade(request: pytest.FixtureRequest) -> Cascade:
    torch.manual_seed(0)
    return create(request.param)


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Planned]:
    """A function giving a quantized stage and the kernels that the planner makes of it."""
    folder = tmp_path_factory.mktemp("plans")

    def planned(
        cascade: Cascade,
        stage: int,
        target: Target = "tensorrt",
        batch_sizes: tuple[int, ...] = (1,),
    ) -> Planned:
        graph = stage_graph_from_cascade(cascade, stage, target=target)
        layers = quantizable_layers(graph, TENSORRT_OPS)
        ranges = dict.fromkeys(layers.values(), 4.0)
        onnx.save(fp16_body(quantize(graph, ranges, layers)), folder / "stage.onnx")
        request = Request(
            graph=str(folder / "stage.onnx"),
            plan=str(folder / "stage.plan"),
            batch_sizes=batch_sizes,
            workspace_bytes=1 << 30,
            compute_capabilities=(86,),
        )
        built = run_build("tensorrt_rtx", request, lambda remark: None)
        assert built.listing is not None
        return graph, kernels_from_listing(built.listing)

    return planned


def _nodes(kernel: Kernel) -> list[str]:
    return ONNX_NODE.findall(kernel.onnx)


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_linears_are_int8_and_attention_is_one_kernel(
    cascade: Cascade, plan: Callable[..., Planned], stage: int
) -> None:
    graph, kernels = plan(cascade, stage)
    products = [k for k in kernels if k.kind in ("gemm", "correlation")]
    in_int8 = {node for k in products if k.computes == "Int8" for node in _nodes(k)}
    layers = quantizable_layers(graph, TENSORRT_OPS)
    assert len(layers) > 10
    assert not [name for name in layers if name not in in_int8]

    fused = {node for k in kernels if k.is_fused_attention for node in _nodes(k)}
    depth = cascade.config.stages[stage].depth
    # The last stage's last layer has one query, the class token's: no attention kernel is for that.
    whole = depth - 1 if stage == 2 else depth
    for layer in range(whole):
        name = f"blocks.{layer}.attn"
        assert {f"{name}/logits", f"{name}/softmax", f"{name}/mix"} <= fused, name


def test_logits_that_leave_the_graph_cannot_be_fused(plan: Callable[..., Planned]) -> None:
    """Why relations travel as queries and keys: the check above would fail otherwise."""
    torch.manual_seed(0)
    _, kernels = plan(create("dvt_fashion_scenes"), 0, "onnxruntime")
    assert not any(kernel.is_fused_attention for kernel in kernels)


def test_larger_batches_are_planned_as_batch_1_is(plan: Callable[..., Planned]) -> None:
    """A profile each, static: every size of every tensor is a number; the counts are batch 1's."""
    torch.manual_seed(0)
    cascade = create("dvt_fashion_scenes")
    _, alone = plan(cascade, 0)
    _, kernels = plan(cascade, 0, batch_sizes=(1, 4, 8))
    assert counts_by_kind(kernels) == counts_by_kind(alone)
    assert {kernel.profile for kernel in kernels} == {0, 1, 2}
    for profile in range(3):
        attention = [k for k in kernels if k.profile == profile and k.is_fused_attention]
        assert len(attention) == counts_by_kind(alone)["fused attention"]
    assert not [kernel for kernel in kernels if "-1" in kernel.inputs + kernel.outputs]
