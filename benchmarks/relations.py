"""Relations handed on as logits or as queries and keys: kernels, bytes, ONNX Runtime time.

    python benchmarks/relations.py [--runs 30] [--output benchmarks/results/cpu/relations.json]

Plans every stage with TensorRT-RTX for compute capability 8.6 at batch 1 (weights are random, plans
depend on shapes alone) and counts kernels and the activations that they read and write. Times the
INT8 stages of both kinds in ONNX Runtime, one thread, taking turns.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import tempfile
from collections.abc import Collection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table

from dvt_edge.converters.engines.layer_listing import Kernel, kernels_from_listing
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import Target, stage_graph_from_cascade
from dvt_edge.converters.quantizing.insert_qdq import (
    ONNXRUNTIME_OPS,
    TENSORRT_OPS,
    quantizable_layers,
    quantize,
)
from dvt_edge.machine.board import processor_name
from dvt_edge.models.cascade import create
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session

MODELS = ("dvt_fashion_scenes", "dvt_deit_small", "dvt_t2t_vit_12")
KINDS: dict[str, Target] = {"logits": "onnxruntime", "queries and keys": "tensorrt"}


TYPE_BYTES = {"Half": 2, "Float": 4, "Int8": 1, "Int32": 4, "Int64": 8, "Bool": 1}
TENSOR = re.compile(r"Dimensions: \[([\d,-]*)\].*?Datatype: (\w+)")
ONNX_NODE = re.compile(r"ONNX Layer: ([^\]]*)\]")


def bytes_moved(kernels: list[Kernel]) -> int:
    """Activations that the kernels at batch 1 read and write, in bytes; others' sizes are open."""
    at_one = [kernel for kernel in kernels if not kernel.profile]
    return sum(
        TYPE_BYTES[dtype] * math.prod(int(size) for size in shape.split(",") if size)
        for kernel in at_one
        for shape, dtype in TENSOR.findall(kernel.inputs) + TENSOR.findall(kernel.outputs)
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=30)
    arguments.add_argument("--output", type=Path)
    given = arguments.parse_args()
    rows: list[dict[str, Any]] = []
    for name in MODELS:
        torch.manual_seed(0)
        cascade = create(name)
        for stage in range(len(cascade.stages)):
            graphs = {
                kind: stage_graph_from_cascade(cascade, stage, target=target)
                for kind, target in KINDS.items()
            }
            times = _median_ms(list(graphs.values()), given.runs)
            for (kind, graph), ms in zip(graphs.items(), times, strict=True):
                rows.append({"model": name, "stage": stage + 1, "relations": kind})
                rows[-1] |= _planned(graph) | {"onnxruntime_ms": ms}
    machine = processor_name()
    table = Table(title="Relations handed on as logits, or as queries and keys", caption=machine)
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="right")
    for row in rows:
        table.add_row(*(f"{v:.2f}" if isinstance(v, float) else str(v) for v in row.values()))
    Console().print(table)
    if given.output:
        values = {"machine": machine, "runs": given.runs, "rows": rows}
        given.output.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _planned(graph: onnx.ModelProto) -> dict[str, Any]:
    half = fp16_body(_int8(graph, TENSORRT_OPS))
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(half, f"{folder}/stage.onnx")
        request = Request(
            graph=f"{folder}/stage.onnx",
            plan=f"{folder}/stage.plan",
            batch_sizes=(1,),
            workspace_bytes=1 << 30,
            compute_capabilities=(86,),
        )
        built = run_build("tensorrt_rtx", request, lambda remark: None)
    kernels = kernels_from_listing(built.listing or "")
    return {
        "kernels": len(kernels),
        "fused_attention": sum(kernel.is_fused_attention for kernel in kernels),
        "activations_mb": bytes_moved(kernels) / 1e6,
        "handed_on_kb": stage_spec(half, "").handed_on_bytes / 1e3,
    }


def _median_ms(graphs: list[onnx.ModelProto], runs: int) -> list[float]:
    """Median time of each graph at batch 1 in INT8."""
    sessions = [
        open_session(_int8(graph, ONNXRUNTIME_OPS).SerializeToString(), threads=1)
        for graph in graphs
    ]
    noise = np.random.default_rng(0)
    feeds = []
    for session in sessions:
        shapes = {i.name: [1, *i.shape[1:]] for i in session.get_inputs()}
        feeds.append(
            {name: 0.3 * noise.standard_normal(s).astype(np.float32) for name, s in shapes.items()}
        )
    samples = np.zeros((len(sessions), runs))
    for run in range(-3, runs):  # the first ones warm up
        for i, (session, feed) in enumerate(zip(sessions, feeds, strict=True)):
            started = perf_counter()
            session.run(None, feed)
            if run >= 0:
                samples[i, run] = 1e3 * (perf_counter() - started)
    return [float(ms) for ms in np.median(samples, axis=1)]


def _int8(graph: onnx.ModelProto, ops: Collection[str]) -> onnx.ModelProto:
    layers = quantizable_layers(graph, ops)
    return quantize(graph, dict.fromkeys(layers.values(), 4.0), layers)


if __name__ == "__main__":
    main()
