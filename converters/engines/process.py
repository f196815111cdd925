"""ONNX -> TensorRT engine, in a process of its own.

A graph that a builder cannot take may crash it, and on small boards a build needs the memory that
torch would hold: so this process imports ``tensorrt`` or ``tensorrt_rtx`` and little else. The
request comes as JSON on standard input; events leave as JSON lines on standard output, the last one
being ``{"done": ...}`` or ``{"error": ...}``.

Serves TensorRT from 10.3 on and TensorRT-RTX. Networks are strongly typed: the graph says in which
precision each layer computes.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvt_edge.converters.engines.request import MODULE_VARIABLE, Built, Request

if __name__ == "__main__":  # whatever TensorRT prints, also on import, must not mix with events
    _EVENTS = os.dup(1)
    os.dup2(2, 1)

if TYPE_CHECKING:
    import tensorrt as trt
else:
    trt = importlib.import_module(os.environ[MODULE_VARIABLE])

Emit = Callable[[dict[str, Any]], None]

LISTING = "Layers:"
"""How the message with the planned kernels starts."""
PROGRESS_SECONDS = 0.2
NOISE = ("cudaError 35", "CUDA initialization failure", "CUDA lazy loading")
"""Messages about the missing driver of a machine that builds ahead of time; no news unless they are
all that a builder says."""


class BuilderError(Exception):
    """The builder did not make an engine; the message holds what it said."""


class _Logger(trt.ILogger):
    """Keeps what the builder says; it returns None on failure and gives its reasons only here."""

    def __init__(self) -> None:
        super().__init__()
        self._errors: list[str] = []
        self._noise: list[str] = []
        self.warnings: list[str] = []
        self.listing: str | None = None

    @property
    def errors(self) -> list[str]:
        return self._errors or self._noise

    def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
        if msg.startswith(LISTING):
            self.listing = msg
            return
        noise = any(noise in msg for noise in NOISE)
        if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
            (self._noise if noise else self._errors).append(msg)
        elif severity == trt.ILogger.Severity.WARNING and not noise and msg not in self.warnings:
            self.warnings.append(msg)


class _Monitor(trt.IProgressMonitor):
    """Emits the builder's phases, a few times a second."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit
        self._steps: dict[str, int] = {}
        self._emitted = 0.0

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
        self._steps[phase_name] = num_steps
        self._report(phase_name, 0)

    def step_complete(self, phase_name: str, step: int) -> bool:
        self._report(phase_name, step + 1)
        return True

    def phase_finish(self, phase_name: str) -> None:
        self._steps.pop(phase_name, None)

    def _report(self, phase: str, step: int) -> None:
        now = time.monotonic()
        if now - self._emitted >= PROGRESS_SECONDS:
            self._emitted = now
            self._emit({"phase": phase, "step": step, "steps": self._steps.get(phase, 0)})


def build_engine(request: Request, emit: Emit) -> Built:
    """Build the engine and write it; raises :class:`BuilderError`."""
    logger = _Logger()
    started = time.monotonic()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(Path(request.graph).read_bytes()):
        errors = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BuilderError("; ".join(errors or logger.errors) or "the parser gave no reason")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, request.workspace_bytes)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.clear_flag(trt.BuilderFlag.TF32)  # the exit is float32 because its confidence must be
    if hasattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # TensorRT-RTX: ensures that what an engine does can be captured as a graph.
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    config.progress_monitor = _Monitor(emit)
    _set_targets(config, request.compute_capabilities)
    _add_profiles(builder, network, config, request.batch_sizes)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuilderError("; ".join(logger.errors) or "the builder gave no reason")
    with open(request.plan, "wb") as file:
        file.write(plan)
    return Built(
        version=trt.__version__,
        seconds=time.monotonic() - started,
        warnings=tuple(logger.warnings),
        listing=logger.listing,
    )


def _set_targets(config: Any, capabilities: tuple[int, ...]) -> None:
    """GPUs to build for. TensorRT builds for the one here; TensorRT-RTX has to be told."""
    enum = getattr(trt, "ComputeCapability", None)
    if enum is None and capabilities:
        raise BuilderError(
            f"{trt.__name__} builds for the GPU of this machine alone; remove "
            "engine.compute_capabilities"
        )
    if enum is None:
        return
    if not capabilities:  # without this it builds for a selection of NVIDIA's
        config.num_compute_capabilities = 1
        config.set_compute_capability(enum.CURRENT, 0)
        return
    members = enum.__members__.items()
    known = {name.removeprefix("SM"): it for name, it in members if name.startswith("SM")}
    unknown = [str(c) for c in capabilities if str(c) not in known]
    if unknown:
        raise BuilderError(
            f"compute capability {', '.join(unknown)} is not known to {trt.__name__} "
            f"{trt.__version__}, which builds for {', '.join(known)}; change "
            "engine.compute_capabilities"
        )
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(known[str(capability)], index)


def _add_profiles(
    builder: trt.Builder,
    network: trt.INetworkDefinition,
    config: trt.IBuilderConfig,
    batch_sizes: tuple[int, ...],
) -> None:
    """One per batch size, for exactly that many images: each is planned as a static network."""
    for size in batch_sizes:
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            image = [tensor.shape[i] for i in range(1, len(tensor.shape))]
            shape = trt.Dims([size, *image])
            profile.set_shape(tensor.name, shape, shape, shape)
        config.add_optimization_profile(profile)


def main() -> int:
    """Serve one request."""
    events = os.fdopen(_EVENTS, "w", encoding="utf-8")

    def emit(event: dict[str, Any]) -> None:
        print(json.dumps(event), file=events, flush=True)

    try:
        built = build_engine(Request.model_validate_json(sys.stdin.read()), emit)
    except BuilderError as error:
        emit({"error": str(error)})
        return 1
    emit({"done": built.model_dump()})
    return 0


if __name__ == "__main__":
    sys.exit(main())
