"""Which backend runs the stages of a bundle."""

from __future__ import annotations

import logging
from collections.abc import Sequence
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

FINISH = "dvt-edge build --phase device --profile FILE"
"""The command that turns a portable bundle into engines."""


def open_backend(bundle: Bundle) -> Backend:
    """What executes the stages of ``bundle`` on this machine.

    A bundle for TensorRT runs in ONNX Runtime where no NVIDIA driver is installed, from the graphs
    that its engines are built from; a warning is logged. Raises
    :class:`~dvt_edge.errors.BackendError` where nothing here can run it, and
    :class:`~dvt_edge.errors.BundleError` for engines of another machine, or of a stranger.
    """
    manifest = bundle.manifest
    if manifest.engine.builds_engines and read_driver() is None:
        return _stand_in(bundle)
    if manifest.portable:
        raise BackendError(
            f"{bundle.folder}: is the portable half of a build for {manifest.engine.backend}; "
            f"finish it on the device with '{FINISH}'"
        )
    if manifest.engines is not None:
        _check_engines(manifest.engines.platform, bundle.folder)
        check_built_here(bundle)
    paths = [bundle.stage_path(i) for i in range(len(manifest.stages))]
    return open_stages(
        manifest.engine,
        paths,
        manifest.stages,
        max_batch=max(manifest.engine.batch_sizes),
        preprocess=_preprocesses(manifest),
    )


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
    if engine.backend == "onnxruntime" and engine.provider == "cpu":
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


def _stand_in(bundle: Bundle) -> Backend:
    """The graphs of a bundle for TensorRT on the CPU: the same answers, at the CPU's speed."""
    manifest = bundle.manifest
    logging.getLogger(__name__).warning(
        "%s: no NVIDIA driver here, so its stages run on the CPU; answers are those of the bundle, "
        "latency and energy are not the device's",
        bundle.folder,
    )
    specs = manifest.stand_ins
    paths = [bundle.folder / spec.file for spec in specs]
    return OnnxRuntimeBackend(paths, specs, max(manifest.engine.batch_sizes), threads=0)


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
        logging.getLogger(__name__).warning("%s: %s", folder, remark)
