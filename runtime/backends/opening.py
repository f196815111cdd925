"""Which backend runs the stages of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import Manifest, StageSpec
from dvt_edge.bundle.signing import check_built_here
from dvt_edge.errors import BackendError
from dvt_edge.machine.board import read_board
from dvt_edge.machine.driver import read_driver
from dvt_edge.machine.platform import MODULES, Platform, check_platform, platform_here
from dvt_edge.profile import EngineConfig
from dvt_edge.runtime.backends.gpu_opening import open_onnxruntime_cuda, open_tensorrt
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.backends.tensorrt_stage import load_module

_LOG = logging.getLogger(__name__)
FINISH = "dvt-edge build --phase device --profile FILE"
"""The command that turns a portable bundle into engines."""


def open_backend(bundle: Bundle, tell: Callable[[str], object] | None = None) -> Backend:
    """What executes the stages of ``bundle`` on this machine.

    Where its stages cannot run but their stand-ins can, those do: of a bundle for TensorRT without
    an NVIDIA driver, and of one that needs the native operators without them. Why is logged, and
    ``tell`` is called with it.
    Raises :class:`~dvt_edge.errors.BackendError` where nothing here can run it, and
    :class:`~dvt_edge.errors.BundleError` for engines of another machine, or of a stranger.
    """
    manifest = bundle.manifest
    if manifest.engine.builds_engines and read_driver() is None:
        reason = (
            f"{bundle.folder}: no NVIDIA driver here, so its stages run on the CPU; answers are "
            "those of the bundle, latency and energy are not the device's"
        )
        return _stand_in(bundle, 0, reason, tell)
    if manifest.portable:
        raise BackendError(
            f"{bundle.folder}: is the portable half of a build for {manifest.engine.backend}; "
            f"finish it on the device with '{FINISH}'"
        )
    if manifest.engines is not None:
        _check_engines(manifest.engines.platform, bundle.folder)
        check_built_here(bundle)
    try:
        return open_stages(
            manifest.engine,
            [bundle.stage_path(i) for i in range(len(manifest.stages))],
            manifest.stages,
            max_batch=max(manifest.engine.batch_sizes),
            preprocess=_preprocesses(manifest),
        )
    except BackendError as error:
        if not (manifest.native and manifest.engine.runs_on_cpu):
            raise
        reason = (
            f"{bundle.folder}: its stages run without the native operators, slower and seldom with "
            f"another answer: {error}"
        )
        return _stand_in(bundle, manifest.engine.threads, reason, tell)


def open_stages(
    engine: EngineConfig,
    paths: Sequence[Path],
    specs: Sequence[StageSpec],
    *,
    max_batch: int,
    preprocess: bool = False,
) -> Backend:
    """Open the first stages of a cascade from their files; raises as :func:`open_backend`.

    ``preprocess``: on a GPU, single frames become images there.
    """
    if engine.runs_on_cpu:
        return OnnxRuntimeBackend(paths, specs, max_batch, engine.threads)
    sizes = tuple(size for size in engine.batch_sizes if size <= max_batch)
    engine = engine.model_copy(update={"batch_sizes": sizes})
    if engine.backend == "onnxruntime":
        return open_onnxruntime_cuda(paths, specs, engine, preprocess=preprocess)
    module = MODULES[engine.backend]
    return open_tensorrt(module, paths, specs, engine, preprocess=preprocess)


def _preprocesses(manifest: Manifest) -> bool:
    """Whether a GPU makes images of frames: as the profile says, or as was measured."""
    asked = manifest.input.preprocess
    if asked != "auto":
        return asked == "device"
    return manifest.engines is not None and manifest.engines.preprocess == "device"


def _stand_in(
    bundle: Bundle, threads: int, reason: str, tell: Callable[[str], object] | None
) -> Backend:
    """The stages that ONNX Runtime runs on any CPU."""
    specs = bundle.manifest.stand_ins
    paths = [bundle.folder / spec.file for spec in specs]
    batch = max(bundle.manifest.engine.batch_sizes)
    backend = OnnxRuntimeBackend(paths, specs, batch, threads)
    _LOG.warning("%s", reason)
    if tell is not None:
        tell(reason)
    return backend


def _check_engines(built: Platform, folder: Path) -> None:
    """Compare with this machine before any plan is opened; what only shifts timing is logged."""
    version = str(load_module(MODULES[built.backend]).__version__)
    found = platform_here(built.backend, version, read_driver(), read_board())
    if found is None:
        raise BackendError(
            f"{folder}: holds engines for an NVIDIA GPU, and none answers here; 'dvt-edge doctor' "
            "says what is missing"
        )
    for remark in check_platform(built, found, folder):
        _LOG.warning("%s: %s", folder, remark)
