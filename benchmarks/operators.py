"""The native operators one by one, against the nodes of ONNX Runtime that they replace.

    python benchmarks/operators.py [--model dvt_deit_small] [--stage 3] [--batch 1] [--threads 1]
        [--rounds 200] [--set avx2] [--out FILE.json]

Shapes are those of a layer in a stage of the model. Both sides read floats, and quantize them where
they multiply codes: without its QuantizeLinear, ONNX Runtime would not see an INT8 product. ONNX
Runtime's side is what the Q/DQ graph holds today. The two take turns; the times are the fastest of
all rounds, the ratio is the median over rounds. GMAC/s count products only, without upsampling.
`of peak` compares them with what the processor's INT8 instruction does in registers, measured here
on one thread, times the threads; attention multiplies bfloat16 or floats. Prints the machine;
--out writes JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

from dvt_edge.machine.board import processor_name
from dvt_edge.models.cascade import create
from dvt_edge.models.upsampling import feature_matrix, relation_matrix, upsampling_1d
from dvt_edge.runtime.native import operator_library

Array = npt.NDArray[Any]
CODES, FLOATS = TensorProto.INT8, TensorProto.FLOAT


@dataclass
class Graph:
    """One side: nodes, the constants that they read, and the name of the output."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    constants: dict[str, Array] = field(default_factory=dict)

    def add(
        self, op: str, inputs: Sequence[str | Array], domain: str = "", **attributes: Any
    ) -> str:
        """A node; arrays among the inputs become constants. Its output's name."""
        names = []
        for value in inputs:
            if isinstance(value, str):
                names.append(value)
            else:
                names.append(f"c{len(self.constants)}")
                self.constants[names[-1]] = value
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, names, [out], domain=domain, **attributes))
        return out

    def native(self, op: str, inputs: Sequence[str | Array], **attributes: Any) -> str:
        return self.add(op, inputs, domain="dvt_edge", **attributes)

    def gelu(self, x: str) -> str:
        one, half, root = (np.float32(v) for v in (1, 0.5, math.sqrt(2)))
        y = self.add("Erf", [self.add("Div", [x, np.asarray(root)])])
        y = self.add("Mul", [x, self.add("Add", [y, np.asarray(one)])])
        return self.add("Mul", [y, np.asarray(half)])

    def quantized(self, x: str, scale: float) -> str:
        return self.add(
            "QuantizeLinear", [x, np.asarray(scale, np.float32), np.asarray(0, np.int8)]
        )

    def linear(self, x: str, w: Array, scale: Array, bias: Array, x_scale: float) -> str:
        """As converters/quantizing writes it."""
        exact = np.asarray(x_scale, np.float32)
        x = self.add(
            "DequantizeLinear", [self.quantized(x, x_scale), exact, np.asarray(0, np.int8)]
        )
        zeros = np.zeros(len(scale), np.int8)
        weights = self.add("DequantizeLinear", [w, scale, zeros], axis=1)
        return self.add("Add", [self.add("MatMul", [x, weights]), bias])

    def session(self, feeds: dict[str, Array], out: str, dtype: int, threads: int) -> Any:
        types = {np.dtype(np.int8): CODES, np.dtype(np.float32): FLOATS}
        graph = helper.make_graph(
            self.nodes,
            "operator",
            [
                # With a fixed batch ONNX Runtime would make Gemm, in float, of MatMul and Add.
                helper.make_tensor_value_info(n, types[a.dtype], ["N", *a.shape[1:]])
                for n, a in feeds.items()
            ],
            [helper.make_tensor_value_info(out, dtype, None)],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("dvt_edge", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = threads
        # Threads that spin after one side's turn would slow the other's.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.register_custom_ops_library(str(operator_library.path()))
        return ort.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


@dataclass
class Pair:
    """An operator and what it replaces, over the same feeds."""

    name: str
    macs: int
    feeds: dict[str, Array]
    dtype: int
    native: Callable[[Graph], str]
    nodes: Callable[[Graph], str]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="dvt_deit_small")
    parser.add_argument("--stage", type=int, action="append", help="from 1; all by default")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--set", help="an instruction set; the fastest by default")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    if operator_library.path() is None:
        sys.exit(f"error: {operator_library.unavailable()}")
    operator_library.use(given.set)
    name = given.set or operator_library.instruction_sets()[0]
    machine = f"{processor_name()}, {name}, threads {given.threads}, batch {given.batch}"
    peak = peak_gmac_s(name)
    stages = create(given.model).config.stages
    rows: list[dict[str, Any]] = []
    for stage in given.stage or range(1, len(stages) + 1):
        for pair in pairs(given.model, stage - 1, given.batch):
            rows.append({"stage": stage, "operator": pair.name, "mmac": pair.macs / 1e6})
            rows[-1] |= _measure(pair, given.threads, given.rounds)
            if pair.macs:
                rows[-1]["gmac_s"] = pair.macs / rows[-1]["native_us"] / 1e3
                rows[-1]["of_peak"] = rows[-1]["gmac_s"] / peak / given.threads if peak else None
    command = " ".join(["python benchmarks/operators.py", *sys.argv[1:]])
    _print(rows, f"{command}\n{machine}\nINT8 peak of one thread: {peak:.0f} GMAC/s")
    if given.out:
        document = {
            "command": command,
            "machine": machine,
            "onnxruntime": ort.__version__,
            "measured_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "model": given.model,
            "peak_gmac_s": peak,
            "rows": rows,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def pairs(model: str, index: int, batch: int) -> list[Pair]:
    """The operators of one layer of stage ``index``, and the relation MLP before it."""
    config = create(model).config
    stage, up = config.stages[index], config.stages[index - 1] if index else None
    rng = np.random.default_rng(0)
    tokens, width, heads = stage.tokens, stage.width, stage.heads
    wide = width + (config.reuse_width if up else 0)
    before = up.grid if up else None
    hidden = int(width * stage.mlp_ratio)
    found = [
        _linear("qkv", rng, batch, tokens, width, 3 * width),
        _linear("proj + residual", rng, batch, tokens, width, width, residual=True),
        _linear("fc1 + GELU", rng, batch, tokens, wide, hidden, gelu=True),
        _linear("fc2 + residual", rng, batch, tokens, hidden, width, residual=True),
        _norm("norm1", rng, batch, tokens, width),
        _norm("norm2 + context", rng, batch, tokens, width, wide - width, before, stage.grid)
        if up
        else _norm("norm2", rng, batch, tokens, width),
        _attention(rng, batch, tokens, heads, width // heads, before, stage.grid),
    ]
    if up:
        channels = (up.relation_channels, 3 * stage.relation_channels, stage.relation_channels)
        found.append(_relation_mlp(rng, batch, channels, up.tokens))
    return found


def _codes(rng: np.random.Generator, *shape: int) -> Array:
    return rng.integers(-127, 128, shape).astype(np.int8)


def _floats(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _linear(
    name: str,
    rng: np.random.Generator,
    batch: int,
    tokens: int,
    depth: int,
    columns: int,
    gelu: bool = False,
    residual: bool = False,
) -> Pair:
    x_scale, step = 0.02, 0.05
    w, bias = _codes(rng, depth, columns), _floats(rng, columns)
    scale = (rng.random(columns) * 1e-3 + 1e-4).astype(np.float32)
    feeds = {"x": _floats(rng, batch, tokens, depth)}
    if residual:
        feeds["residual"] = _floats(rng, batch, tokens, columns)

    def native(g: Graph) -> str:
        x = g.native("Quantize", ["x"], scale=1 / x_scale)
        both = (scale * np.float32(x_scale)).astype(np.float32)
        if gelu:
            steps = np.float32(step)
            return g.native("LinearTable", [x, w, both / steps, bias / steps, gelu_table(step)])
        return g.native("Linear", [x, w, both, bias, *(["residual"] if residual else [])])

    def nodes(g: Graph) -> str:
        y = g.linear("x", w, scale, bias, x_scale)
        if gelu:
            return g.quantized(g.gelu(y), step)
        return g.add("Add", [y, "residual"]) if residual else y

    macs = batch * tokens * depth * columns
    return Pair(name, macs, feeds, CODES if gelu else FLOATS, native, nodes)


def gelu_table(step: float) -> Array:
    """Codes of GELU's input, of ``step`` each, to those of its output, of the same."""
    x = np.arange(-128, 128) * step
    erf = np.asarray([math.erf(v / math.sqrt(2)) for v in x])
    codes: Array = np.clip(np.rint(x * (1 + erf) / 2 / step), -127, 127).astype(np.int8)
    return codes


def _norm(
    name: str,
    rng: np.random.Generator,
    batch: int,
    tokens: int,
    width: int,
    wide: int = 0,
    source: int | None = None,
    target: int = 0,
) -> Pair:
    feeds = {"x": _floats(rng, batch, tokens, width)}
    gamma, beta, step = _floats(rng, width + wide), _floats(rng, width + wide), np.float32(0.03)
    if source:
        feeds["context"] = _floats(rng, batch, 1 + source * source, wide)

    def native(g: Graph) -> str:
        inputs: list[str | Array] = ["x", gamma / step, beta / step]
        if source:
            inputs += ["", "context", upsampling_1d(source, target)]
        return g.native("NormQuantize", inputs, epsilon=1e-6)

    def nodes(g: Graph) -> str:
        x = "x"
        if source:
            finer = g.add("MatMul", [feature_matrix(source, target), "context"])
            x = g.add("Concat", [x, finer], axis=-1)
        y = g.add("LayerNormalization", [x, gamma, beta], axis=-1, epsilon=1e-6)
        return g.quantized(y, float(step))

    return Pair(name, 0, feeds, CODES, native, nodes)


def _attention(
    rng: np.random.Generator,
    batch: int,
    tokens: int,
    heads: int,
    head: int,
    source: int | None,
    target: int,
) -> Pair:
    feeds = {"qkv": _floats(rng, batch, tokens, 3 * heads * head)}
    feeds["qkv"][..., : heads * head] /= math.sqrt(head)
    if source:
        coarse = 1 + source * source
        feeds["relations"] = _floats(rng, batch, heads, coarse, coarse)

    def native(g: Graph) -> str:
        inputs: list[str | Array] = ["qkv", "qkv"]
        if source:
            inputs += ["relations", upsampling_1d(source, target)]
        return g.native("Attention", inputs, heads=heads, head_width=head, scale=50.0)

    def nodes(g: Graph) -> str:
        x = g.add("Reshape", ["qkv", np.asarray([0, 0, 3, heads, head])])
        x = g.add("Transpose", [x], perm=[2, 0, 3, 1, 4])
        q, k, v = (g.add("Gather", [x, np.asarray(i)], axis=0) for i in range(3))
        logits = g.add("MatMul", [q, g.add("Transpose", [k], perm=[0, 1, 3, 2])])
        if source:
            matrix = relation_matrix(source, target)
            finer = g.add("MatMul", [matrix, "relations"])
            finer = g.add("MatMul", [finer, np.ascontiguousarray(matrix.T)])
            logits = g.add("Add", [logits, finer])
        mixed = g.add("MatMul", [g.add("Softmax", [logits], axis=-1), v])
        mixed = g.add("Transpose", [mixed], perm=[0, 2, 1, 3])
        mixed = g.add("Reshape", [mixed, np.asarray([0, 0, heads * head])])
        return g.quantized(mixed, 0.02)

    macs = 2 * batch * heads * tokens * tokens * head
    name = "attention + relations" if source else "attention"
    return Pair(name, macs, feeds, CODES, native, nodes)


def _relation_mlp(
    rng: np.random.Generator, batch: int, channels: tuple[int, int, int], tokens: int
) -> Pair:
    inputs, hidden, outputs = channels
    feeds = {"x": _floats(rng, batch, inputs, tokens, tokens)}
    first, second = _codes(rng, hidden, inputs), _codes(rng, outputs, hidden)
    scale1 = (rng.random(hidden) * 1e-3).astype(np.float32)
    scale2 = (rng.random(outputs) * 1e-3).astype(np.float32)
    bias1, bias2, step = _floats(rng, hidden), _floats(rng, outputs), np.float32(0.05)

    def native(g: Graph) -> str:
        x = g.native("Quantize", ["x"], scale=40.0)
        layer1 = [first, scale1 / step / 40, bias1 / step, gelu_table(float(step))]
        return g.native("RelationMlp", [x, *layer1, second, scale2 * step, bias2])

    def nodes(g: Graph) -> str:
        w1 = (first * scale1[:, None]).astype(np.float32).reshape(hidden, inputs, 1, 1)
        w2 = (second * scale2[:, None]).astype(np.float32).reshape(outputs, hidden, 1, 1)
        return g.add("Conv", [g.gelu(g.add("Conv", ["x", w1, bias1])), w2, bias2])

    macs = batch * tokens * tokens * hidden * (inputs + outputs)
    return Pair("relation MLP", macs, feeds, FLOATS, native, nodes)


def _measure(pair: Pair, threads: int, rounds: int) -> dict[str, Any]:
    sessions = []
    for write in (pair.native, pair.nodes):
        graph = Graph()
        out = write(graph)
        sessions.append(graph.session(pair.feeds, out, pair.dtype, threads))
    bindings = []
    for session in sessions:
        binding = session.io_binding()
        for name, value in pair.feeds.items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value))
        binding.bind_output(session.get_outputs()[0].name)
        bindings.append(binding)
    us = np.zeros((rounds, 2))
    for r in range(-5, rounds):  # the first ones warm up
        for i, (session, binding) in enumerate(zip(sessions, bindings, strict=True)):
            started = perf_counter()
            session.run_with_iobinding(binding)
            if r >= 0:
                us[r, i] = 1e6 * (perf_counter() - started)
    best = us.min(axis=0)
    ratio = float(np.median(us[:, 1] / us[:, 0]))
    return {"native_us": float(best[0]), "nodes_us": float(best[1]), "ratio": ratio}


PEAK = """
#if defined(__x86_64__)
#include <immintrin.h>
#define ANY "+x"
#else
#include <arm_neon.h>
#define ANY "+w"
#endif
#include <stdint.h>
long long peak(long long rounds) {
    VECTOR sum[12] = {}, codes = {};
    for (long long i = 0; i < rounds; ++i)
        _Pragma("GCC unroll 12") for (int s = 0; s < 12; ++s) {
            asm("" : ANY(codes));  /* or the compiler keeps the product, the same for all */
            PRODUCT;
        }
    VECTOR all = {};
    _Pragma("GCC unroll 12") for (int s = 0; s < 12; ++s) all |= sum[s];
    return rounds * 12 * sizeof(VECTOR) + (((int32_t*)&all)[0] == -1);
}
"""
"""Multiply-accumulates of INT8 codes in registers alone; returns how many there were."""
VNNI = 'asm("%s vpdpbusd %%1, %%1, %%0" : ANY(sum[s]) : "x"(codes))'
MADD = (
    "sum[s] = _mm256_add_epi32(sum[s], _mm256_madd_epi16(_mm256_maddubs_epi16(codes, codes), "
    "_mm256_set1_epi16(1)))"
)
PRODUCTS = {
    "avx512": ("__m512i", VNNI % "", ["-mavx512f", "-mavx512vnni"]),
    "avx_vnni": ("__m256i", VNNI % "%{vex%}", ["-mavx2", "-mavxvnni"]),
    "avx2": ("__m256i", MADD, ["-mavx2"]),
    "neon_dot": ("int32x4_t", "sum[s] = vdotq_s32(sum[s], (int8x16_t)codes, (int8x16_t)codes)", []),
}
"""Vector, product and the compiler's options for each instruction set; without AVX-512's extras."""


def peak_gmac_s(instruction_set: str) -> float:
    """GMAC/s of the set's INT8 product on one thread; 0 without gcc or such a product."""
    key = "avx512" if instruction_set.startswith("avx512") else instruction_set
    if key not in PRODUCTS or not shutil.which("gcc"):
        return 0.0
    vector, product, options = PRODUCTS[key]
    options = options or ["-march=armv8.2-a+dotprod"]
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "peak.c"), Path(folder, "peak.so")
        source.write_text(PEAK.replace("VECTOR", vector).replace("PRODUCT", product))
        command = ["gcc", "-O3", "-shared", "-fPIC", *options, str(source), "-o", str(library)]
        subprocess.run(command, check=True)
        peak = ctypes.CDLL(str(library)).peak
    peak.restype, peak.argtypes = ctypes.c_longlong, [ctypes.c_longlong]
    best = 0.0
    for _ in range(100):
        started = perf_counter()
        macs = peak(100_000)
        best = max(best, macs / (perf_counter() - started) / 1e9)
    return best


def _print(rows: list[dict[str, Any]], caption: str) -> None:
    table = Table(title="Native operators against ONNX Runtime's nodes", caption=caption)
    for column in (
        "stage",
        "operator",
        "MMAC",
        "native, us",
        "nodes, us",
        "ratio",
        "GMAC/s",
        "of peak",
    ):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for row in rows:
        speed, share = row.get("gmac_s"), row.get("of_peak")
        table.add_row(
            str(row["stage"]),
            row["operator"],
            f"{row['mmac']:.1f}" if row["mmac"] else "",
            f"{row['native_us']:.0f}",
            f"{row['nodes_us']:.0f}",
            f"{row['ratio']:.2f}",
            f"{speed:.0f}" if speed else "",
            f"{share:.2f}" if share else "",
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
