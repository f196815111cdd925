"""What a Runtime reports besides its answers; each event has a ``reason`` for people."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TypeAlias

from dvt_edge.policy.live.audit import AuditEvent
from dvt_edge.policy.live.controller import Change
from dvt_edge.policy.live.promise_watch import BudgetBroken, BudgetKept

__all__ = [
    "AuditEvent",
    "BudgetBroken",
    "BudgetKept",
    "Change",
    "CostsRefused",
    "Event",
    "FramesStopped",
    "NotFinite",
    "OtherConditions",
    "Regrouping",
    "SameConditions",
    "SolvingFailed",
    "StandInsRun",
    "kind_of",
]


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


@dataclass(frozen=True)
class SameConditions:
    """What an :class:`OtherConditions` said is over."""

    reason: str


@dataclass(frozen=True)
class FramesStopped:
    """No frame came for a while; reported with the one that came then."""

    seconds: float
    reason: str


@dataclass(frozen=True)
class SolvingFailed:
    """Thresholds could not be solved again while frames came; it will be tried again."""

    reason: str


@dataclass(frozen=True)
class Regrouping:
    """Whether frames of several cameras wait for one another, as measured when a Runtime opened
    with ``regroup_ms``."""

    most: int
    """Frames that the later stages run on together, at most; 1 where nothing waits."""
    reason: str


@dataclass(frozen=True)
class StandInsRun:
    """The bundle's stages cannot run here; those that run anywhere do, which takes longer."""

    reason: str


Event: TypeAlias = (
    Change
    | AuditEvent
    | BudgetBroken
    | BudgetKept
    | NotFinite
    | CostsRefused
    | OtherConditions
    | SameConditions
    | FramesStopped
    | SolvingFailed
    | Regrouping
    | StandInsRun
)
"""Other thresholds, an audit that failed, a limit that is broken and one that is kept again, a
stage that broke down, costs that are not used, costs that were measured under other conditions and
conditions that are back, a camera that stopped, solving again that failed, whether frames wait for
one another, stages that stand in for the bundle's."""

_NAMED = {"Change": "thresholds_changed", "AuditEvent": "audit_failed"}
"""Where the name of the class says too little."""


def kind_of(event: type) -> str:
    """What programs call an event of this class: ``budget_broken``."""
    name = event.__name__
    return _NAMED.get(name) or re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
