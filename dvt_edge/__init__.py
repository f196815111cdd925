"""Dynamic Vision Transformers on edge devices, within a latency budget.

    import dvt_edge

    with dvt_edge.Runtime("demo-cpu.yaml") as runtime:
        prediction = runtime.classify(frame)  # uint8 [H, W, 3] BGR, or [H, W]

Importing this package imports neither torch nor CUDA.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dvt_edge.errors import (
    BackendError,
    BudgetError,
    BuildError,
    BundleError,
    CheckpointError,
    ClosedError,
    ConfigError,
    DataError,
    DvtEdgeError,
    EnergyError,
    FrameError,
    SourceError,
)

if TYPE_CHECKING:
    from dvt_edge.camera import CapturedFrame, open_source, open_sources
    from dvt_edge.policy.live.promise import Promise
    from dvt_edge.profile import BudgetConfig, Profile
    from dvt_edge.runtime.events import Event
    from dvt_edge.runtime.prediction import Prediction
    from dvt_edge.runtime.runtime import Runtime

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "BudgetConfig",
    "BudgetError",
    "BuildError",
    "BundleError",
    "CapturedFrame",
    "CheckpointError",
    "ClosedError",
    "ConfigError",
    "DataError",
    "DvtEdgeError",
    "EnergyError",
    "Event",
    "FrameError",
    "Prediction",
    "Profile",
    "Promise",
    "Runtime",
    "SourceError",
    "__version__",
    "open_source",
    "open_sources",
]

_HOMES = {
    "BudgetConfig": "dvt_edge.profile",
    "CapturedFrame": "dvt_edge.camera",
    "Event": "dvt_edge.runtime.events",
    "Prediction": "dvt_edge.runtime.prediction",
    "Profile": "dvt_edge.profile",
    "Promise": "dvt_edge.policy.live.promise",
    "Runtime": "dvt_edge.runtime.runtime",
    "open_source": "dvt_edge.camera",
    "open_sources": "dvt_edge.camera",
}


def __getattr__(name: str) -> Any:
    """Import the engine and the validation library only when they are needed."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
