"""What works on this GPU, and how fast: every claim about the GPU runtime, tried.

    python scripts/gpu_proof.py [--output FOLDER] [--only backends|kernels]

Alone, without a network, in a few minutes: which backends run here, every stage of the demo,
T2T-ViT-12 and DeiT-S cascades against the CPU, bytes between host and device, latency by CUDA
events, and the kernels against their CPU twins and their own floor. Writes proof.json and proof.md
to ``benchmarks/results/<gpu>/``. What fails is a line of the result, not the end of the run.

Needs dvt-edge with torch, onnx and onnxruntime, pycuda (from its source archive), and tensorrt or
tensorrt-rtx-cu13 for engines.
"""

from __future__ import annotations

import argparse
import importlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.converters.graphs.fp16 import fp16_body
from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
from dvt_edge.converters.quantizing.calibration import activation_ranges
from dvt_edge.converters.quantizing.insert_qdq import TENSORRT_OPS, quantizable_layers, quantize
from dvt_edge.errors import DvtEdgeError
from dvt_edge.machine.driver import read_driver
from dvt_edge.models import Cascade
from dvt_edge.models.cascade import create
from dvt_edge.runtime.backends.gpu_backend import (
    DeviceBackend,
    open_onnxruntime_cuda,
    open_tensorrt,
)

sys.path.insert(0, str(Path(__file__).resolve().parent))
from gpu_kernels import prove_kernels

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("demo", "dvt_t2t_vit_12", "dvt_deit_small")
BATCHES = (1, 32)
RUNS = {1: 200, 32: 50}
IMAGES = 32

Values = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--output", type=Path, help="folder for proof.json and proof.md")
    arguments.add_argument("--only", choices=("backends", "kernels"))
    given = arguments.parse_args()
    try:
        driver = read_driver()
    except DvtEdgeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if driver is None or not driver.gpus:
        print("error: no NVIDIA GPU answers here, so there is nothing to prove", file=sys.stderr)
        return 1
    gpu = driver.gpus[0]
    proof: Values = {
        "gpu": gpu.name,
        "compute_capability": gpu.compute_capability,
        "driver_cuda": driver.cuda,
        "versions": _versions(),
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    if given.only != "backends":
        proof["kernels"] = _attempt(prove_kernels)
        if given.only is None:
            proof["compute_sanitizer"] = _attempt(_sanitizer)
    if given.only != "kernels":
        proof["engines"] = {
            name: _attempt(lambda name=name: _accepts(name, gpu.compute_capability))
            for name in ("tensorrt", "tensorrt_rtx")
        }
        proof["cascades"] = _cascades(proof["engines"])
    slug = re.sub(r"[^a-z0-9]+", "-", gpu.name.lower()).strip("-")
    folder = given.output or ROOT / "benchmarks" / "results" / slug
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "proof.json").write_text(json.dumps(proof, indent=1) + "\n", encoding="utf-8")
    text = _markdown(proof)
    (folder / "proof.md").write_text(text, encoding="utf-8")
    print(text)
    return 0


def _attempt(work: Callable[[], Values]) -> Values:
    """What ``work`` gives, or how it failed."""
    started = perf_counter()
    try:
        values = work()
    except Exception as error:
        traceback.print_exc()
        values = {"failed": f"{type(error).__name__}: {error}"}
    return values | {"seconds": round(perf_counter() - started, 1)}


def _versions() -> Values:
    found = {}
    for name in ("torch", "onnx", "onnxruntime", "pycuda", "tensorrt", "tensorrt_rtx"):
        try:
            module = importlib.import_module(name)
        except ImportError as error:
            found[name] = f"missing ({error})"
        else:
            text = getattr(module, "VERSION_TEXT", None)
            found[name] = str(getattr(module, "__version__", None) or text or "version unknown")
    return found


def _accepts(module: str, capability: str) -> Values:
    """Whether ``module`` builds an engine for this GPU, opens it and answers."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        graphs, _ = _graphs("demo", "int8")
        onnx.save(graphs[0], folder / "stage.onnx")
        trt: Any = importlib.import_module(module)
        known = [n for n in getattr(trt, "ComputeCapability", {}).__dict__ if n.startswith("SM")]
        values: Values = {"compute_capabilities": known, "here": capability}
        run_build(module, _request(folder / "stage.onnx", folder / "stage.plan"), lambda _: None)
        values["built"] = True
        plan = (folder / "stage.plan").read_bytes()
        runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        if hasattr(runtime, "get_engine_validity"):
            header = plan[: runtime.engine_header_size]
            values["validity"] = [str(part) for part in runtime.get_engine_validity(header)]
    return values


def _cascades(engines: Values) -> list[Values]:
    rows = []
    backends = [name for name, values in engines.items() if values.get("built")]
    for backend in [*backends, "onnxruntime cuda"]:
        for model in MODELS:
            for precision in ("int8", "fp16"):
                what = {"backend": backend, "model": model, "precision": precision}
                rows.append(what | _attempt(lambda w=what: _cascade(**w)))
    return rows


def _cascade(backend: str, model: str, precision: str) -> Values:
    """One cascade on one backend: agreement with the CPU, bytes, latency."""
    graphs, images = _graphs(model, precision)
    expected = list(Chain(graphs).run(images))
    specs = [stage_spec(graph, "") for graph in graphs]
    with tempfile.TemporaryDirectory() as name:
        paths = []
        for i, graph in enumerate(graphs):
            paths.append(Path(name) / f"stage{i + 1}.onnx")
            onnx.save(graph, paths[-1])
        if backend == "onnxruntime cuda":
            opened = open_onnxruntime_cuda(paths, specs, BATCHES)
        else:
            for path in paths:
                run_build(backend, _request(path, path.with_suffix(".plan")), lambda _: None)
            plans = [path.with_suffix(".plan") for path in paths]
            opened = open_tensorrt(backend, plans, specs, BATCHES)
        with _closing(opened):
            return {
                "stages": _agreement(opened, images, expected),
                "residency": _residency(opened, images, specs),
                "bytes_resident": opened.bytes_resident,
                "latency": [_latency(opened, len(specs), batch) for batch in BATCHES],
            }


@contextmanager
def _closing(backend: DeviceBackend) -> Iterator[None]:
    try:
        yield
    finally:
        backend.close()


def _agreement(
    backend: DeviceBackend, images: npt.NDArray[np.float16], expected: Sequence[Values]
) -> list[Values]:
    count = len(images)
    backend.image_buffer(count)[:] = images
    rows = []
    for k, outputs in enumerate(expected):
        answer = backend.run_stage(k, count)
        threshold = float(np.median(outputs["confidence"]))
        leaves, left = (c >= threshold for c in (answer.confidence, outputs["confidence"]))
        rows.append(
            {
                "largest_logit_difference": float(
                    np.abs(backend.logits(k, count) - outputs["logits"]).max()
                ),
                "largest_logit": float(np.abs(outputs["logits"]).max()),
                "same_class": float((answer.class_id == outputs["class_id"]).mean()),
                "same_exit": float((leaves == left).mean()),
            }
        )
    return rows


def _residency(
    backend: DeviceBackend, images: npt.NDArray[np.float16], specs: Sequence[StageSpec]
) -> Values:
    """Bytes that cross for one image through all stages."""
    moved = backend.device.transfers
    before = (moved.to_device, moved.to_host)
    backend.image_buffer(1)[:] = images[:1]
    for k in range(len(specs)):
        backend.run_stage(k, 1)
    return {
        "to_device": moved.to_device - before[0],
        "to_host": moved.to_host - before[1],
        "image": images[:1].nbytes,
        "expected_to_host": 8 * len(specs),
    }


def _latency(backend: DeviceBackend, stages: int, batch: int) -> Values:
    """Each stage by events, the cascade by the clock, and the gap between them."""
    runs = RUNS[batch]
    events, wall = np.zeros((runs, stages)), np.zeros(runs)
    for run in range(-10, runs):  # the first ones bind, capture and warm up
        started = perf_counter()
        for k in range(stages):
            backend.run_stage(k, batch)
            if run >= 0:
                events[run, k] = backend.stage_ms
        if run >= 0:
            wall[run] = 1e3 * (perf_counter() - started)
    total = events.sum(axis=1)
    return {
        "batch": batch,
        "stage_ms": [_two(events[:, k]) for k in range(stages)],
        "stages_ms": _two(total),
        "cascade_ms": _two(wall),
        "gap_us": float(1e3 * np.median(wall - total)),
    }


def _two(values: npt.NDArray[np.float64]) -> Values:
    return {"median": float(np.median(values)), "p95": float(np.percentile(values, 95))}


def _graphs(model: str, precision: str) -> tuple[list[onnx.ModelProto], npt.NDArray[np.float16]]:
    """Float16 stages as a portable bundle holds them, and images of noise to run them on."""
    torch.manual_seed(0)
    demo = ROOT / "samples/demo/model.safetensors"
    cascade = Cascade.load(demo) if model == "demo" else create(model)
    config = cascade.config
    shape = (IMAGES, config.channels, config.image_size, config.image_size)
    images = np.random.default_rng(0).normal(size=shape).astype(np.float16)
    stages: list[onnx.ModelProto] = []
    for i in range(len(config.stages)):
        graph = stage_graph_from_cascade(cascade, i, target="tensorrt")
        if precision == "int8":
            layers = quantizable_layers(graph, TENSORRT_OPS)
            feeds = Chain(stages).next_feeds(images[:4].astype(np.float32))
            graph = quantize(graph, activation_ranges(graph, layers.values(), [feeds]), layers)
        stages.append(graph)
    return [fp16_body(stage) for stage in stages], images


def _request(graph: Path, plan: Path) -> Request:
    return Request(
        graph=str(graph),
        plan=str(plan),
        largest_batch=max(BATCHES),
        workspace_bytes=1 << 30,
    )


def _sanitizer() -> Values:
    """The kernels once more under compute-sanitizer's memcheck."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"failed": "compute-sanitizer is not installed"}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--only", "kernels", "--output", folder]
        done = subprocess.run(
            [tool, "--tool", "memcheck", *command],
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
    summary = [line for line in done.stdout.splitlines() if "ERROR SUMMARY" in line]
    return {"summary": summary[-1:] or done.stdout[-500:], "exit_code": done.returncode}


def _markdown(proof: Values) -> str:
    lines = [
        f"# {proof['gpu']}, compute capability {proof['compute_capability']}",
        "",
        f"`{proof['command']}`, {proof['date']}, driver for CUDA {proof['driver_cuda']}; "
        + ", ".join(f"{name} {version}" for name, version in proof["versions"].items()),
        "",
    ]
    for name, values in proof.get("engines", {}).items():
        lines.append(f"- {name}: {values.get('failed') or 'builds and opens engines here'}")
    if proof.get("cascades"):
        lines += [
            "",
            "| backend, model, precision | same class, per stage | to host, B | batch 1: stages, "
            "cascade, ms | gap, us | batch 32: cascade, ms |",
            "| --- | --- | --- | --- | --- | --- |",
        ]
    for row in proof.get("cascades", []):
        what = f"{row['backend']}, {row['model']}, {row['precision']}"
        if "failed" in row:
            lines.append(f"| {what} | failed: {row['failed'][:200]} | | | | |")
            continue
        one, many = row["latency"]
        same = ", ".join(f"{stage['same_class']:.3f}" for stage in row["stages"])
        lines.append(
            f"| {what} | {same} | {row['residency']['to_host']} of "
            f"{row['residency']['expected_to_host']} | {one['stages_ms']['median']:.3f}, "
            f"{one['cascade_ms']['median']:.3f} (p95 {one['cascade_ms']['p95']:.3f}) | "
            f"{one['gap_us']:.0f} | {many['cascade_ms']['median']:.3f} |"
        )
    found = proof.get("kernels", {})
    if "failed" in found:
        lines += ["", f"Kernels: {found['failed']}"]
    elif found:
        lines += ["", "| kernel | equals its CPU twin | median, us | floor, us |"]
        lines.append("| --- | --- | --- | --- |")
        for row in found["preprocess"]:
            lines.append(_kernel_line(f"preprocess 1080p {row['layout']}", row))
        for row in found["gather"]:
            lines.append(_kernel_line(f"gather rows of {row['row_bytes']} B", row))
        lines.append(_kernel_line("decide, 1024 rows", found["decide"]))
        lines += ["", f"Copy within the device: {found['bandwidth_gb_s']:.0f} GB/s."]
    if "compute_sanitizer" in proof:
        lines += ["", f"compute-sanitizer: {proof['compute_sanitizer']}"]
    return "\n".join(lines) + "\n"


def _kernel_line(what: str, row: Values) -> str:
    floor = f"{row['floor_us']:.1f}" if "floor_us" in row else "-"
    return f"| {what} | {'yes' if row['equal'] else 'NO'} | {row['median_us']:.1f} | {floor} |"


if __name__ == "__main__":
    sys.exit(main())
