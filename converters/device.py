"""The device half of a build: portable bundle -> TensorRT engines. Needs neither torch nor onnx."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dvt_edge.bundle.bundle import Bundle, file_sha256
from dvt_edge.bundle.engine_records import Engines, PlanRecord, PrecisionFigures
from dvt_edge.bundle.manifest import MANIFEST, PARITY, StageSpec
from dvt_edge.bundle.members import read_arrays
from dvt_edge.bundle.output import replaced_folder
from dvt_edge.bundle.signing import make_key, signed
from dvt_edge.converters.engines.cache import EngineCache, engine_key
from dvt_edge.converters.engines.layer_listing import counts_by_kind, kernels_from_listing
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.converters.selection import (
    Candidate,
    Parity,
    Place,
    choose_precisions,
    choose_preprocessing,
)
from dvt_edge.errors import BackendError, BuildError, BundleError
from dvt_edge.machine.board import check_jetpack, read_board
from dvt_edge.machine.clock import now_utc
from dvt_edge.machine.driver import read_driver
from dvt_edge.machine.platform import MODULES, Platform, platform_here
from dvt_edge.machine.probes import probe_library
from dvt_edge.profile import EngineConfig
from dvt_edge.progress import Progress
from dvt_edge.requirements import LIBRARIES, is_older
from dvt_edge.runtime.native.library import kernels
from dvt_edge.runtime.preprocess import Preprocessor

MEMORY_PER_GRAPH_BYTE = 6
"""What a build takes beside its workspace: the graph read, parsed, and its weights in new layouts,
in multiples of the ONNX file."""

MOST_PARITY_BYTES = 2 << 30
"""Of the images that engines are compared on, unpacked: 200 in colour of 1,800 pixels a side."""


@dataclass(frozen=True)
class _BuiltStage(Candidate):
    """A built engine in the new bundle's folder."""

    record: PlanRecord


def find_platform(engine: EngineConfig, root: str | Path = "/") -> Platform:
    """The TensorRT that ``engine`` names, and what it would build for on this machine.

    Raises :class:`~dvt_edge.errors.BackendError`, with the remedy, where it is missing, broken or
    too old, where JetPack is too old, and where there is no GPU though one is needed.
    """
    assert engine.backend != "onnxruntime"
    library = LIBRARIES[MODULES[engine.backend]]
    board = read_board(root)
    check_jetpack(board)
    found = probe_library(library.module)
    if found.state != "ok":
        install = (board.is_jetson and library.install_on_jetson) or library.install
        raise BackendError(
            f"engines for {engine.backend} need the Python module '{library.module}' "
            f"({found.detail}); {install}"
        )
    if is_older(found.detail, library.minimum):
        oldest = ".".join(map(str, library.minimum))
        remedy = "install JetPack 6.1 or later" if board.is_jetson else f"{library.install} -U"
        raise BackendError(
            f"{library.name} {found.detail} is too old; dvt-edge needs {library.name} {oldest} or "
            f"later: {remedy}"
        )
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
    return platform


def build_engines(
    bundle: Bundle, platform: Platform, progress: Progress, *, fresh: bool = False
) -> Bundle:
    """Build the engines of ``bundle``, whose folder the finished bundle replaces.

    With ``fresh`` none comes from the cache.

    Raises :class:`~dvt_edge.errors.BuildError` for too little memory or disk and for what the
    builder refuses; the bundle there stays as it was then, and on Ctrl-C.
    """
    manifest = bundle.manifest
    # Where engines cannot be run, and so not compared, the first precision has to do.
    graphs = manifest.graphs if platform.device else tuple(specs[:1] for specs in manifest.graphs)
    _check_space(bundle, platform, graphs)
    make_key()  # without one, what takes minutes would be for nothing
    cache = EngineCache(reads=not fresh)
    with replaced_folder(bundle.folder) as folder:
        built = _build_all(bundle, platform, graphs, cache, folder, progress)
        chosen, choices = _choose(bundle, platform, built, progress)
        preprocess, preprocess_ms = _choose_preprocessing(bundle, platform, chosen[0], progress)
        names = [name for name in manifest.files if not name.endswith(".plan")]
        for name in names:
            shutil.copy2(bundle.folder / name, folder / name)
        stages = []
        for i, plan in enumerate(chosen):
            file = f"stage{i + 1}.plan"
            plan.path.rename(folder / file)
            stages.append(plan.spec.model_copy(update={"file": file}))
        for plan in (plan for plans in built for plan in plans):
            plan.path.unlink(missing_ok=True)
        done = Engines(
            platform=platform,
            workspace_mb=manifest.engine.workspace_mb,
            plans=tuple(plan.record for plan in chosen),
            built_at=now_utc(),
            preprocess=preprocess,
            preprocess_ms=preprocess_ms,
        )
        files = sorted([*names, *(stage.file for stage in stages)])
        finished = manifest.model_copy(
            update={
                "stages": tuple(stages),
                "engines": done,
                "choices": tuple(choices),
                "files": {name: file_sha256(folder / name) for name in files},
            }
        )
        text = signed(finished).model_dump_json(indent=2)
        (folder / MANIFEST).write_text(text, encoding="utf-8")
    return Bundle(bundle.folder)


def _check_space(bundle: Bundle, platform: Platform, graphs: Sequence[Sequence[StageSpec]]) -> None:
    """Memory for the largest build and disk for all engines, before anything starts."""
    engine = bundle.manifest.engine
    sizes = [(bundle.folder / spec.file).stat().st_size for specs in graphs for spec in specs]
    # Ahead of time nothing runs, so nothing fills the workspace.
    workspace = engine.workspace_mb << 20 if platform.device else 0
    memory = MEMORY_PER_GRAPH_BYTE * max(sizes) + workspace
    available = read_board().memory_available_bytes
    if available is not None and available < memory:
        raise BuildError(
            f"building the largest stage takes about {memory >> 20} MiB of memory, "
            f"{available >> 20} MiB are available; close other programs, add swap, or lower "
            "engine.workspace_mb"
        )
    targets = max(1, len(engine.compute_capabilities))
    disk = MEMORY_PER_GRAPH_BYTE * targets * sum(sizes)
    free = shutil.disk_usage(bundle.folder).free
    if free < disk:
        raise BuildError(
            f"the engines take up to {disk >> 20} MiB of disk, {free >> 20} MiB are free in "
            f"{bundle.folder.parent}; make room or choose another output"
        )


def _build_all(
    bundle: Bundle,
    platform: Platform,
    graphs: Sequence[Sequence[StageSpec]],
    cache: EngineCache,
    folder: Path,
    progress: Progress,
) -> list[list[_BuiltStage]]:
    """Every stage in every precision, one after the other."""
    before = bundle.manifest.engines.plans if bundle.manifest.engines else ()
    seconds = {(i, plan.precision): plan.seconds for i, plan in enumerate(before)}
    done, total = 0, sum(len(specs) for specs in graphs)
    built: list[list[_BuiltStage]] = []
    for i, specs in enumerate(graphs):
        built.append([])
        for spec in specs:
            what = f"stage {i + 1} {spec.precision}: "
            took = seconds.get((i, spec.precision))
            last = "" if took is None else f", {took:.0f} s last time"

            def report(remark: str, what: str = what, done: int = done, last: str = last) -> None:
                progress("engines", done, total, what + remark + last)

            path = folder / f"stage{i + 1}.{spec.precision}.plan"
            built[-1].append(_build_one(bundle, spec, platform, cache, path, report))
            done += 1
        progress("engines", done, total)
    return built


def _build_one(
    bundle: Bundle,
    spec: StageSpec,
    platform: Platform,
    cache: EngineCache,
    path: Path,
    report: Callable[[str], None],
) -> _BuiltStage:
    engine = bundle.manifest.engine
    request = Request(
        graph=str(bundle.folder / spec.file),
        plan=str(path),
        batch_sizes=tuple(sorted(set(engine.batch_sizes))),
        workspace_bytes=engine.workspace_mb << 20,
        compute_capabilities=engine.compute_capabilities,
    )
    key = engine_key(bundle.manifest.files[spec.file], request, platform)
    built = cache.fetch(key, path)
    cached = built is not None
    if built is None:
        built = run_build(MODULES[platform.backend], request, report)
        cache.store(key, path, built)
    kernels = kernels_from_listing(built.listing or "")
    record = PlanRecord(
        precision=spec.precision,
        graph=spec.file,
        seconds=built.seconds,
        cached=cached,
        warnings=built.warnings,
        planned=counts_by_kind(kernels) if kernels else None,
    )
    return _BuiltStage(path, spec, record)


def _choose(
    bundle: Bundle, platform: Platform, built: list[list[_BuiltStage]], progress: Progress
) -> tuple[list[_BuiltStage], list[PrecisionFigures]]:
    engine = bundle.manifest.engine
    if engine.precision == "auto" and platform.device:
        return choose_precisions(built, read_parity(bundle), engine, progress)
    chosen = [plans[0] for plans in built]
    if engine.precision != "auto":
        return chosen, []
    return chosen, [
        PrecisionFigures(
            stage=i + 1,
            precision=plan.spec.precision,
            chosen=True,
            remark="not measured: no GPU here",
        )
        for i, plan in enumerate(chosen)
    ]


def _choose_preprocessing(
    bundle: Bundle, platform: Platform, first: _BuiltStage, progress: Progress
) -> tuple[Place, dict[str, float] | None]:
    """Where frames become images, with ``input.preprocess: auto``; the host where the GPU cannot do
    it or cannot be asked."""
    if bundle.manifest.input.preprocess != "auto" or not platform.device:
        return "host", None
    if kernels() is None:
        return "host", None
    try:
        return choose_preprocessing(first, bundle.manifest, progress)
    except BackendError as error:
        logging.getLogger(__name__).warning("frames become images on the host: %s", error)
        return "host", None


def read_parity(bundle: Bundle) -> Parity:
    """What engines of ``bundle`` must answer; raises :class:`~dvt_edge.errors.BundleError`."""
    records = bundle.records()
    try:
        arrays = read_arrays(bundle.folder, PARITY, MOST_PARITY_BYTES)
        pixels, rows, thresholds = (arrays[name] for name in ("pixels", "rows", "thresholds"))
    except KeyError as error:
        raise BundleError(f"{bundle.folder / PARITY}: unusable ({error}); rebuild") from None
    preprocess = Preprocessor(bundle.manifest.input)
    images = np.empty((len(pixels), *preprocess.shape), np.float32)
    for image, levels in zip(images, pixels, strict=True):
        preprocess.normalise(levels, image)
    tolerance = bundle.manifest.quantization.tolerance_points
    return Parity(images, records.take(rows), thresholds, tolerance)
