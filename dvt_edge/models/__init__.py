"""The cascade as a PyTorch model: configuration, weights, training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dvt_edge.models.config import CascadeConfig, StageConfig

if TYPE_CHECKING:
    from dvt_edge.models.cascade import Cascade, StageOutput, create

__all__ = ["Cascade", "CascadeConfig", "StageConfig", "StageOutput", "create"]


def __getattr__(name: str) -> Any:
    """Import what needs torch only when it is asked for."""
    if name in ("Cascade", "StageOutput", "create"):
        from dvt_edge.models import cascade

        return getattr(cascade, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
