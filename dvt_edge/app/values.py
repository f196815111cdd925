"""Answers and events as JSON: what goes into files and to brokers."""

from __future__ import annotations

from datetime import datetime, timezone
from math import isfinite
from typing import Any

from dvt_edge.app.sinks import Note, Seen
from dvt_edge.runtime.events import kind_of


def answer_values(seen: Seen) -> dict[str, Any]:
    """One answer; what is not a finite number is null."""
    frame, p = seen.frame, seen.prediction
    return {
        "time": iso_time(seen.time),
        "source": seen.source,
        "seq": frame.seq,
        "dropped_before": frame.dropped_before,
        "class_id": p.class_id,
        "label": p.label,
        "confidence": _finite(p.confidence),
        "exit_stage": p.exit_stage,
        "latency_ms": p.latency_ms,
        "preprocess_ms": p.preprocess_ms,
        "stage_latency_ms": p.stage_latency_ms,
        "age_ms": seen.age_ms,
        "confidences": [_finite(value) for value in p.confidences],
        "classes": p.classes,
        "truncated": p.truncated,
        "reason": p.reason,
        "energy_mj": p.energy_mj,
    }


def event_values(event: Note) -> dict[str, Any]:
    """One event; ``event`` is its kind."""
    return {
        "time": iso_time(event.time),
        "event": event.kind,
        "cause": event.cause,
        "reason": event.reason,
        "source": event.source,
    }


def note_of(event: Any, source: str | None = None) -> Note:
    """What a Runtime reports, an object with a ``reason``, or a camera, which has ``kind`` and
    ``cause`` as well."""
    cause = getattr(event, "cause", None)
    kind = getattr(event, "kind", None) or kind_of(type(event))
    return Note(str(kind), event.reason, source, None if cause is None else str(cause))


def iso_time(seconds: float) -> str:
    """Of seconds since 1970, ISO 8601 in UTC, to the millisecond."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None
