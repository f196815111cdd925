"""The device half of a build: portable bundle -> TensorRT engines. Needs neither torch nor onnx."""

from __future__ import annotations

import shutil
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvt_edge.bundle.bundle import Bundle, file_sha256, replaced_folder
from dvt_edge.bundle.engine_records import Engines, PlanRecord, Precision, PrecisionFigures
from dvt_edge.bundle.manifest import MANIFEST, PARITY, Manifest, StageSpec
from dvt_edge.converters.engines.cache import EngineCache, engine_key
from dvt_edge.converters.engines.layer_listing import counts_by_kind, kernels_from_listing
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.converters.selection import Candidate, Parity, choose_precisions
from dvt_edge.errors import BackendError, BuildError, BundleError
from dvt_edge.machine.board import check_jetpack, read_board
from dvt_edge.machine.clock import now_utc
from dvt_edge.machine.driver import read_driver
from dvt_edge.machine.platform import MODULES, Platform, platform_here
from dvt_edge.machine.probes import probe_library
from dvt_edge.profile import EngineConfig
from dvt_edge.progress import Progress
from dvt_edge.requirements import LIBRARIES
from dvt_edge.runtime.backends.opening import open_stages
from dvt_edge.runtime.preprocess import Preprocessor

STRONGLY_TYPED_FROM = 10
"""Major version of TensorRT from which types are taken from the graph."""
MEMORY_PER_GRAPH_BYTE = 6
"""What a build takes beside its workspace: the graph read, parsed, and its weights in new layouts,
in multiples of the ONNX file."""


@dataclass(frozen=True)
class Toolchain:
    """TensorRT and the machine that it builds on."""

    module: str
    platform: Platform
    compute_capabilities: tuple[int, ...]
    """To build for; empty for the GPU here."""

    @property
    def measurable(self) -> bool:
        """Whether engines built here can be run here."""
        return self.platform.device is not None

    def graph_kind(self, precision: Precision) -> str:
        """Which serialisation of a stage this version takes."""
        if precision != "int8":
            return precision
        rtx = self.platform.backend == "tensorrt-rtx"
        typed = rtx or int(self.platform.version.split(".")[0]) >= STRONGLY_TYPED_FROM
        return "int8-fp16" if typed else "int8"


@dataclass(frozen=True)
class _BuiltStage:
    """A built engine, in the cache or the build's own folder."""

    precision: Precision
    path: Path
    record: PlanRecord
    flags: tuple[str, ...]
    spec: StageSpec


def find_toolchain(engine: EngineConfig, root: str | Path = "/") -> Toolchain:
    """The TensorRT that ``engine`` names, and what it would build for on this machine.

    Raises :class:`~dvt_edge.errors.BackendError`, with the remedy, where it is missing or broken,
    where JetPack is too old, and where there is no GPU though one is needed.
    """
    module = MODULES[engine.backend]
    board = read_board(root)
    check_jetpack(board)
    found = probe_library(module)
    if found.state != "ok":
        library = LIBRARIES[module]
        install = (board.is_jetson and library.install_on_jetson) or library.install
        raise BackendError(
            f"engines for {engine.backend} need the Python module '{module}' ({found.detail}); "
            f"{install}"
        )
    assert engine.backend != "onnxruntime"
    platform = platform_here(
        *(engine.backend, found.detail, read_driver(), board), engine.compute_capabilities
    )
    if platform is None:
        remedy = (
            "give engine.compute_capabilities to build ahead of time"
            if engine.backend == "tensorrt-rtx"
            else "run 'dvt-edge build --phase device --profile FILE' on the board"
        )
        raise BackendError(f"no NVIDIA GPU answers here, and engines are built for one; {remedy}")
    return Toolchain(module, platform, engine.compute_capabilities)


def build_engines(
    bundle: Bundle, toolchain: Toolchain, progress: Progress, *, fresh: bool = False
) -> Bundle:
    """Build the engines of ``bundle``, whose folder the finished bundle replaces.

    With ``fresh`` none comes from the cache.

    Raises :class:`~dvt_edge.errors.BuildError` for too little memory or disk and for what the
    builder refuses; the bundle there stays as it was then, and on Ctrl-C.
    """
    manifest = bundle.manifest
    if manifest.portable_stages is not None:
        stages = {"stages": manifest.portable_stages, "portable_stages": None}
        bundle.manifest = manifest = manifest.model_copy(update=stages)
    precisions = _precisions(manifest.engine, toolchain)
    _check_space(bundle, toolchain, precisions)
    cache = EngineCache.default(reads=not fresh)
    with replaced_folder(bundle.folder) as folder:
        options = _build_all(bundle, toolchain, precisions, cache, folder, progress)
        chosen, choices = _choose(bundle, toolchain, options, progress)
        names = {name for stage in manifest.stages for name in stage.graphs.values()}
        names |= {name for name in manifest.files if not name.endswith((".onnx", ".plan"))}
        for name in names:
            shutil.copy2(bundle.folder / name, folder / name)
        finished_stages = []
        for i, plan in enumerate(chosen):
            file = f"stage{i + 1}.plan"
            plan.path.rename(folder / file)
            finished_stages.append(plan.spec.model_copy(update={"file": file}))
        for plans in options:
            for plan in plans:
                plan.path.unlink(missing_ok=True)
        done = Engines(
            platform=toolchain.platform,
            flags=chosen[0].flags,
            workspace_mb=manifest.engine.workspace_mb,
            plans=tuple(plan.record for plan in chosen),
            built_at=now_utc(),
        )
        files = sorted({*names, *(stage.file for stage in finished_stages)})
        finished = manifest.model_copy(
            update={
                "stages": tuple(finished_stages),
                "portable_stages": manifest.stages,
                "engines": done,
                "choices": tuple(choices),
                "files": {name: file_sha256(folder / name) for name in files},
            }
        )
        (folder / MANIFEST).write_text(finished.model_dump_json(indent=2), encoding="utf-8")
    return Bundle(bundle.folder)


def _precisions(engine: EngineConfig, toolchain: Toolchain) -> tuple[Precision, ...]:
    if engine.precision == "auto":
        return ("int8", "fp16") if toolchain.measurable else ("int8",)
    return ("fp16",) if engine.precision == "fp16" else ("int8",)


def _check_space(bundle: Bundle, toolchain: Toolchain, precisions: Sequence[Precision]) -> None:
    """Memory for the largest build and disk for all engines, before anything starts."""
    sizes = [
        (bundle.folder / stage.graphs[toolchain.graph_kind(p)]).stat().st_size
        for stage in bundle.manifest.stages
        for p in precisions
    ]
    workspace = bundle.manifest.engine.workspace_mb << 20
    # Ahead of time nothing runs, so nothing fills the workspace.
    memory = MEMORY_PER_GRAPH_BYTE * max(sizes) + (workspace if toolchain.measurable else 0)
    available = read_board().memory_available_bytes
    if available is not None and available < memory:
        raise BuildError(
            f"building the largest stage takes about {memory >> 20} MiB of memory, "
            f"{available >> 20} MiB are available; close other programs, add swap, or lower "
            "engine.workspace_mb"
        )
    targets = max(1, len(toolchain.compute_capabilities))
    disk = MEMORY_PER_GRAPH_BYTE * targets * sum(sizes)
    free = shutil.disk_usage(bundle.folder).free
    if free < disk:
        raise BuildError(
            f"the engines take up to {disk >> 20} MiB of disk, {free >> 20} MiB are free in "
            f"{bundle.folder.parent}; make room or choose another output"
        )


def _build_all(
    bundle: Bundle,
    toolchain: Toolchain,
    precisions: Sequence[Precision],
    cache: EngineCache,
    folder: Path,
    progress: Progress,
) -> list[list[_BuiltStage]]:
    """Every stage in every precision, one after the other."""
    manifest = bundle.manifest
    total = len(manifest.stages) * len(precisions)
    earlier = _earlier_seconds(manifest)
    plans: list[list[_BuiltStage]] = []
    for i, stage in enumerate(manifest.stages):
        plans.append([])
        for precision in precisions:
            done = sum(len(some) for some in plans)
            what = f"stage {i + 1} {precision}"
            took = earlier.get((i, precision))

            def tell(
                remark: str, what: str = what, done: int = done, took: float | None = took
            ) -> None:
                last = f", {took:.0f} s last time" if took is not None else ""
                progress("engines", done, total, f"{what}: {remark}{last}")

            path = folder / f"stage{i + 1}.{precision}.plan"
            plans[-1].append(_build_one(bundle, stage, toolchain, precision, cache, path, tell))
        progress("engines", sum(len(some) for some in plans), total)
    return plans


def _build_one(
    bundle: Bundle,
    stage: StageSpec,
    toolchain: Toolchain,
    precision: Precision,
    cache: EngineCache,
    path: Path,
    tell: Callable[[str], None],
) -> _BuiltStage:
    engine = bundle.manifest.engine
    graph = stage.graphs[toolchain.graph_kind(precision)]
    request = Request(
        graph=str(bundle.folder / graph),
        plan=str(path),
        largest_batch=max(engine.batch_sizes),
        workspace_bytes=engine.workspace_mb << 20,
        quantized=precision == "int8",
        compute_capabilities=toolchain.compute_capabilities,
    )
    key = engine_key(bundle.manifest.files[graph], request, toolchain.platform)
    built = cache.fetch(key, path)
    cached = built is not None
    if built is None:
        built = run_build(toolchain.module, request, tell)
        cache.store(key, path, built)
    kernels = kernels_from_listing(built.listing or "")
    record = PlanRecord(
        precision=precision,
        graph=graph,
        seconds=built.seconds,
        cached=cached,
        warnings=built.warnings,
        planned=counts_by_kind(kernels) if kernels else None,
    )
    return _BuiltStage(precision, path, record, built.flags, _engine_spec(stage, graph, precision))


def _engine_spec(stage: StageSpec, graph: str, precision: Precision) -> StageSpec:
    """``stage`` with the types that the engine's tensors have."""
    half = "fp16" in graph

    def typed(name: str, dtype: str) -> str:
        inner = dtype == "float32" and name not in ("logits", "confidence")
        return "float16" if half and inner else dtype

    inputs, outputs = (
        tuple(t.model_copy(update={"dtype": typed(t.name, t.dtype)}) for t in tensors)
        for tensors in (stage.inputs, stage.outputs)
    )
    layers = stage.layers
    if half:
        layers = {kind: _as_half(kind, counts, precision) for kind, counts in layers.items()}
    return stage.model_copy(
        update={
            "inputs": inputs,
            "outputs": outputs,
            "precision": precision,
            "layers": layers,
            "float_layers": stage.float_layers if precision == "int8" else (),
        }
    )


def _as_half(kind: str, counts: dict[str, int], precision: Precision) -> dict[str, int]:
    if kind == "head":
        return counts
    half, int8 = counts.get("fp16", 0) + counts.get("fp32", 0), counts.get("int8", 0)
    if precision == "fp16":
        half, int8 = half + int8, 0
    return {name: n for name, n in (("int8", int8), ("fp16", half)) if n}


def _choose(
    bundle: Bundle, toolchain: Toolchain, options: list[list[_BuiltStage]], progress: Progress
) -> tuple[list[_BuiltStage], list[PrecisionFigures]]:
    manifest = bundle.manifest
    if manifest.engine.precision != "auto":
        return [plans[0] for plans in options], []
    if not toolchain.measurable:
        return [plans[0] for plans in options], [
            PrecisionFigures(
                stage=i + 1,
                precision=plans[0].precision,
                latency_ms=None,
                same_class=None,
                same_exit=None,
                chosen=True,
                remark="not measured: no GPU here",
            )
            for i, plans in enumerate(options)
        ]
    candidates = [[Candidate(p.precision, p.path, p.spec) for p in plans] for plans in options]
    chosen, table = choose_precisions(
        candidates,
        read_parity(bundle),
        lambda stages: open_stages(
            manifest.engine, [s.path for s in stages], [s.spec for s in stages], max_batch=1
        ),
        progress,
    )
    return [
        next(p for p in plans if p.precision == c.precision)
        for plans, c in zip(options, chosen, strict=True)
    ], table


def read_parity(bundle: Bundle) -> Parity:
    """What engines of ``bundle`` must answer; raises :class:`~dvt_edge.errors.BundleError`."""
    records = bundle.records()
    try:
        with (
            (bundle.folder / PARITY).open("rb") as file,  # NumPy leaves a damaged one open
            np.load(file, allow_pickle=False) as archive,
        ):
            pixels, rows, thresholds = (archive[n] for n in ("pixels", "rows", "thresholds"))
    except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError(f"{bundle.folder / PARITY}: unusable ({error}); rebuild") from None
    preprocess = Preprocessor(bundle.manifest.input)
    images = np.empty((len(pixels), *preprocess.shape), np.float32)
    for image, levels in zip(images, pixels, strict=True):
        preprocess.normalise(levels, image)
    tolerance = bundle.manifest.quantization.tolerance_points
    return Parity(images, records.take(rows), thresholds, tolerance)


def _earlier_seconds(manifest: Manifest) -> dict[tuple[int, Precision], float]:
    """How long each engine took the last time, where this bundle had engines before."""
    if manifest.engines is None:
        return {}
    return {(i, plan.precision): plan.seconds for i, plan in enumerate(manifest.engines.plans)}
