"""What a Runtime reports besides its answers; each event has a ``reason`` for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from dvt_edge.policy.live.audit import AuditEvent
from dvt_edge.policy.live.controller import Change


@dataclass(frozen=True)
class NotFinite:
    """A stage's logits were NaN or infinite; the frame could not leave there."""

    exit_stage: int
    reason: str


@dataclass(frozen=True)
class CostsRefused:
    """Stored costs belong to another machine or to other engines, or are damaged."""

    reason: str


@dataclass(frozen=True)
class OtherConditions:
    """Frames come slower, or are of another size, than those that costs were measured with."""

    reason: str


Event: TypeAlias = Change | AuditEvent | NotFinite | CostsRefused | OtherConditions
"""Other thresholds, an audit that failed, a stage that broke down, costs that are not used, costs
that were measured under other conditions."""
