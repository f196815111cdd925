"""What a run came to, as values and as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from dvt_edge.app.loop import CameraLoop
from dvt_edge.app.outputs import Outputs
from dvt_edge.app.supervise import Ended

ENDED_BY = {
    "source": "the camera's end",
    "frames": "--max-frames",
    "duration": "--duration",
    "error": "an error",
    "reader": "nobody reading its output",
    "SIGINT": "Ctrl-C",
    "SIGTERM": "SIGTERM",
}
_COUNTED = ("captured", "answered", "dropped", "failed")


def summary_values(loops: Sequence[CameraLoop], ended: Ended, outputs: Outputs) -> dict[str, Any]:
    """Everything, for JSON; ``captured`` is the sum of ``answered``, ``dropped`` and ``failed``."""
    cameras = [_camera_values(loop, ended) for loop in loops]
    return {
        **{name: sum(camera[name] for camera in cameras) for name in _COUNTED},
        "seconds": round(ended.seconds, 3),
        "ended_by": ended.by,
        "cameras": cameras,
        "promise": ended.promise,
        "events": outputs.sinks.events,
        "outputs": outputs.summary(),
    }


def _camera_values(loop: CameraLoop, ended: Ended) -> dict[str, Any]:
    counts, lately, figures = loop.counts, loop.figures.lately(), loop.figures
    by, seconds = ended.by, ended.seconds
    if loop.error is not None:
        by = "error"
    elif loop.ended_itself:
        by = "frames" if loop.enough else "source"
    spread = {} if lately is None else {"p50": lately.latency_ms.p50, "p99": lately.latency_ms.p99}
    return {
        "source": loop.name,
        **{name: getattr(counts, name) for name in _COUNTED},
        "fps": counts.answered / seconds if seconds else 0.0,
        "latency_ms": None
        if not counts.answered
        else {"mean": figures.latency_ms / counts.answered, **spread},
        "age_ms": None if lately is None else {"p50": lately.age_ms.p50, "p99": lately.age_ms.p99},
        "exits": figures.exits,
        "pictures": None if loop.pictures is None else asdict(loop.pictures),
        "ended_by": by,
        "error": None if loop.error is None else str(loop.error),
    }


def summary_lines(values: dict[str, Any]) -> list[str]:
    """The same for people."""
    lines = []
    several = len(values["cameras"]) > 1
    for camera in values["cameras"]:
        lines.append(
            f"{camera['source']}: {camera['captured']} frames in {values['seconds']:.1f} s: "
            f"{camera['answered']} answered, {camera['dropped']} dropped, {camera['failed']} "
            f"failed; ended by {ENDED_BY[camera['ended_by']]}"
        )
        if camera["error"] and several:
            lines.append(camera["error"])
        if camera["pictures"] and camera["pictures"]["reconnects"]:
            lines.append(f"opened again: {camera['pictures']['reconnects']} times")
        latency, age, answered = camera["latency_ms"], camera["age_ms"], camera["answered"]
        if latency and age:
            lines.append(
                f"{camera['fps']:.1f} fps; latency mean {latency['mean']:.2f} ms, p50 / p99 "
                f"{latency['p50']:.2f} / {latency['p99']:.2f} ms; age at the answer, p50 / p99 "
                f"{age['p50']:.1f} / {age['p99']:.1f} ms (percentiles of the last 2 minutes)"
            )
            shares = (
                f"exit {k} {100 * count / answered:.1f} %"
                for k, count in enumerate(camera["exits"], start=1)
            )
            lines.append(", ".join(shares))
    if values["promise"]:
        lines.append(values["promise"]["sentence"])
    for name, output in values["outputs"].items():
        parts = (f"{key} {value}" for key, value in output.items() if value not in (0, None))
        lines.append(f"{name}: {', '.join(parts)}")
    return lines
