"""Which backend runs the stages of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dvt_edge.bundle import Bundle, StageSpec
from dvt_edge.errors import BackendError
from dvt_edge.profile import EngineConfig
from dvt_edge.runtime.backend import Backend
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.onnxruntime_backend import OnnxRuntimeBackend
from dvt_edge.runtime.preprocess import Preprocessor

FINISH = "dvt-edge build --phase device --profile FILE"
"""The command that turns a portable bundle into engines."""


def open_loop(bundle: Bundle, backend: Backend | None = None) -> CascadeLoop:
    """The cascade of ``bundle``, on ``backend`` or on what :func:`open_backend` finds."""
    manifest = bundle.manifest
    return CascadeLoop(
        backend or open_backend(bundle), Preprocessor(manifest.input), manifest.class_names
    )


def open_backend(bundle: Bundle) -> Backend:
    """What executes the stages of ``bundle`` on this machine.

    Raises :class:`~dvt_edge.errors.BackendError` where nothing here can.
    """
    manifest = bundle.manifest
    if manifest.portable:
        raise BackendError(
            f"{bundle.folder}: is the portable half of a build for {manifest.engine.backend}; "
            f"finish it on the device with '{FINISH}'"
        )
    paths = [bundle.stage_path(i) for i in range(len(manifest.stages))]
    return open_stages(
        manifest.engine, paths, manifest.stages, max_batch=max(manifest.engine.batch_sizes)
    )


def open_stages(
    engine: EngineConfig, paths: Sequence[Path], specs: Sequence[StageSpec], *, max_batch: int
) -> Backend:
    """Open the first stages of a cascade from their files; raises as :func:`open_backend`."""
    if engine.backend == "onnxruntime":
        return OnnxRuntimeBackend(paths, specs, max_batch, engine.threads)
    raise BackendError(
        f"{engine.backend} engines cannot be run by this version yet; build with "
        "engine.backend: onnxruntime to run here"
    )
