"""The released architectures, stage by stage: PyTorch eager against the stage graphs.

    python benchmarks/models.py [NAME ...] [--rounds 15] [--threads 2] [--cpu-time]
                                [--set avx2] [--out benchmarks/results/models]

Random weights, batch 1 and 8. Six variants take turns within one process, so that drifts of the
machine meet all of them alike; medians are reported:

eager         the PyTorch model
plain FP32    what PyTorch's TorchScript exporter makes of it: none of the algebra is folded
plain INT8    the same, its Linears quantized as ours are
FP32, INT8    the graphs of ``dvt_edge.converters``, INT8 with quantize and dequantize nodes
native        INT8 on the project's own operators

``plain`` has the model's own operations, with pixel-by-pixel unfolds in T2T. INT8 ranges come from
noise: they decide accuracy, not speed. Prints tables and writes JSON. `of peak` is what the native
stages reach of the processor's INT8 peak, counting all multiply-accumulates of the model though
attention multiplies bfloat16 or floats.

With ``--set`` native stages take that instruction set, and all others are as before: ONNX Runtime
cannot be kept from the processor's best.

Where other programs use the machine too, two threads that wait for each other are stretched
unevenly. ``--threads 1 --cpu-time`` then tells more: the processor time of the process.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from operators import peak_gmac_s
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from dvt_edge.bundle.manifest import handed_on
from dvt_edge.converters.graphs.chain import open_graph, run_graph
from dvt_edge.converters.graphs.facts import count_macs
from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.converters.quantizing.insert_qdq import ONNXRUNTIME_OPS, quantizable_layers, quantize
from dvt_edge.converters.quantizing.native_graph import native_activations, native_stages
from dvt_edge.machine.board import processor_name
from dvt_edge.models import Cascade, StageOutput, create
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from dvt_edge.runtime.native import operator_library

ROOT = Path(__file__).resolve().parents[1]
NAMES = ("dvt_deit_small", "dvt_t2t_vit_12", "dvt_t2t_vit_14")
BATCHES = (1, 8)
VARIANTS = ("eager", "plain FP32", "plain INT8", "FP32", "INT8", "native")
Feeds = dict[str, np.ndarray[Any, Any]]
Call = Callable[[], object]


class _Plain(nn.Module):
    """One stage with tensors in and out, for PyTorch's exporter."""

    def __init__(self, stage: nn.Module) -> None:
        super().__init__()
        self.stage = stage

    def forward(
        self, image: Tensor, features: Tensor | None = None, relations: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        upstream = None
        if features is not None:
            upstream = StageOutput(features, features, relations)
        return tuple(t for t in self.stage(image, upstream) if t is not None)


def plain_graph(stage: nn.Module, feeds: Feeds) -> onnx.ModelProto:
    """The stage as PyTorch's exporter writes it; Linears get the names that the quantizer reads."""
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Plain(stage),
            tuple(torch.from_numpy(value) for value in feeds.values()),
            file,
            input_names=list(feeds),
            opset_version=17,
            dynamo=False,
        )
    model = onnx.load_from_string(file.getvalue())
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    upsampling = {tuple(reversed(m.shape)) for n, m in stage.named_buffers() if "upsample" in n}
    for i, node in enumerate(model.graph.node):
        weight = weights.get(node.input[1]) if node.op_type == "MatMul" else None
        if weight is None or len(weight.dims) != 2 or tuple(weight.dims) in {*upsampling, (64, 32)}:
            continue  # no Linear: attention, upsampling, random features
        node.name = f"linear{i}"
        weight.name = node.input[1] = f"linear{i}.weight"
    return model


def int8(model: onnx.ModelProto, feeds: Feeds) -> onnx.ModelProto:
    """``model`` quantized by the ranges that ``feeds`` give."""
    layers = quantizable_layers(model, ONNXRUNTIME_OPS)
    return quantize(model, activation_ranges(model, layers.values(), [feeds]), layers)


def stage_calls(cascade: Cascade, batch: int, threads: int) -> list[dict[str, Call]]:
    """For every stage, what to time under each variant's name."""
    image = np.random.default_rng(0).standard_normal(
        (batch, cascade.config.channels, *[cascade.config.image_size] * 2), dtype=np.float32
    )
    with torch.inference_mode():
        outputs = cascade(torch.from_numpy(image))
    handed: list[Feeds] = [{"image": image}]
    for upstream in outputs[:-1]:
        assert upstream.relations is not None
        reused = {"features": upstream.features, "relations": upstream.relations}
        handed.append({"image": image} | {name: t.numpy() for name, t in reused.items()})
    graphs = [stage_graph_from_cascade(cascade, i) for i in range(len(cascade.stages))]
    native = native_calls(cascade, graphs, handed, threads)
    calls = []
    for i, (stage, feeds) in enumerate(zip(cascade.stages, handed, strict=True)):
        upstream_output = outputs[i - 1] if i else None
        plain = plain_graph(stage, feeds)
        models = (plain, int8(plain, feeds), graphs[i], int8(graphs[i], feeds))
        sessions = [open_session(model.SerializeToString(), threads) for model in models]

        def eager(
            stage: nn.Module = stage, upstream: StageOutput | None = upstream_output
        ) -> object:
            with torch.inference_mode():
                return stage(torch.from_numpy(image), upstream)

        runs: list[Call] = [
            lambda session=session, feeds=feeds: session.run(None, feeds)  # type: ignore[misc]
            for session in sessions
        ]
        calls.append(dict(zip(VARIANTS, [eager, *runs, native[i]], strict=True)))
    return calls


def native_calls(
    cascade: Cascade, graphs: list[onnx.ModelProto], handed: list[Feeds], threads: int
) -> list[Call]:
    """The stages on native operators, which read each other's relations."""
    ranges = []
    for graph, feeds in zip(graphs, handed, strict=True):
        names = quantizable_layers(graph, ONNXRUNTIME_OPS).values()
        ranges.append(activation_ranges(graph, [*names, *native_activations(graph)], [feeds]))
    calls: list[Call] = []
    feeds = handed[0]
    for model in native_stages(graphs, cascade.config, ranges):
        given = run_graph(open_graph(model), feeds)
        session = open_session(model.SerializeToString(), threads, native=True)
        calls.append(lambda session=session, feeds=feeds: session.run(None, feeds))  # type: ignore[misc]
        feeds = {"image": handed[0]["image"]} | handed_on(given)
    return calls


def measure(
    calls: list[dict[str, Call]], rounds: int, clock: Callable[[], float]
) -> dict[str, list[float]]:
    """Median milliseconds of every variant, one number a stage; variants take turns."""
    taken: dict[tuple[int, str], list[float]] = {}
    for turn in range(rounds + 1):  # the first round warms up
        for i, stage in enumerate(calls):
            for variant, call in stage.items():
                start = clock()
                call()
                if turn:
                    elapsed = 1e3 * (clock() - start)
                    taken.setdefault((i, variant), []).append(elapsed)
    return {
        variant: [float(np.median(taken[i, variant])) for i in range(len(calls))]
        for variant in VARIANTS
    }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("names", nargs="*", default=NAMES)
    arguments.add_argument("--rounds", type=int, default=15)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--cpu-time", action="store_true")
    arguments.add_argument("--set", help="native operators' instruction set; the fastest if absent")
    arguments.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/models")
    options = arguments.parse_args()
    if (reason := operator_library.unavailable()) is not None:
        sys.exit(f"error: {reason}")
    operator_library.use(options.set)
    instruction_set = str(operator_library.instruction_set())
    peak = options.threads * peak_gmac_s(instruction_set)
    torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    kind = "cpu" if options.cpu_time else "wall"
    console = Console(width=110)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.names:
        torch.manual_seed(0)
        cascade = create(name).eval()
        calls = {batch: stage_calls(cascade, batch, options.threads) for batch in BATCHES}
        console.print(f"measuring {name}")
        figures = {
            batch: measure(calls[batch], max(2, options.rounds // batch), clock)
            for batch in BATCHES
        }
        macs = [
            count_macs(stage_graph_from_cascade(cascade, i)) for i in range(len(cascade.stages))
        ]
        shares = {}
        for batch, result in figures.items():
            console.print(
                table(f"{name}, batch {batch}, {kind} ms, {options.threads} threads", result)
            )
            if peak:
                rates = [
                    1e-6 * batch * n / ms for n, ms in zip(macs, result["native"], strict=True)
                ]
                shares[str(batch)] = [rate / peak for rate in rates]
                said = ", ".join(f"{share:.2f}" for share in shares[str(batch)])
                console.print(f"native, of peak ({peak:.0f} GMAC/s, {instruction_set}): {said}\n")
        values = {
            "command": f"python benchmarks/models.py {name} --rounds {options.rounds} --threads "
            f"{options.threads}{' --cpu-time' if options.cpu_time else ''}",
            "machine": processor_name(),
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "threads": options.threads,
            "clock": kind,
            "versions": {"torch": torch.__version__, "onnx": onnx.__version__},
            "instruction_set": instruction_set,
            "peak_gmac_s": peak,
            "native_of_peak": shares,
            "stage_ms": {str(batch): result for batch, result in figures.items()},
        }
        only = f"-{options.set}" if options.set else ""
        file = options.out / f"{name}-{kind}-{options.threads}-threads{only}.json"
        file.write_text(json.dumps(values, indent=2) + "\n")


def table(title: str, result: dict[str, list[float]]) -> Table:
    """Variants in rows, stages and their sum in columns."""
    shown = Table(title=title, caption=processor_name())
    stages = [f"stage {i + 1}" for i in range(len(result["eager"]))]
    for column in ("", *stages, "all", "against eager"):
        shown.add_column(column, justify="right")
    whole = sum(result["eager"])
    for variant, ms in result.items():
        total = sum(ms)
        cells = [f"{v:.2f}" for v in (*ms, total)]
        shown.add_row(variant, *cells, f"{whole / total:.2f}x")
    return shown


if __name__ == "__main__":
    main()
