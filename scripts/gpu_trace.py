"""What crossed between host and device, by CUPTI's record instead of our own counters."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

COPY, KERNEL = "gpu_memcpy", "kernel"
"""Categories of a Chrome trace as torch's profiler writes it."""


@dataclass
class Crossed:
    """Copies of one profiled piece of work."""

    bytes: dict[str, int] = field(default_factory=lambda: {"HtoD": 0, "DtoH": 0, "DtoD": 0})
    """By direction, as CUPTI names it."""
    copies: int = 0
    kernels: int = 0

    @property
    def saw_the_gpu(self) -> bool:
        """Whether anything was recorded at all: else zero bytes mean nothing."""
        return bool(self.copies or self.kernels)


def read_trace(trace: Mapping[str, Any]) -> Crossed:
    """The copies in a Chrome trace.

    A copy between other places, such as ``PtoP``, is counted under its own name. Raises
    :class:`ValueError` for a copy without direction or size: what cannot be read must not count as
    nothing.
    """
    found = Crossed()
    for event in trace["traceEvents"]:
        category = event.get("cat")
        if category == KERNEL:
            found.kernels += 1
        if category != COPY:
            continue
        words = str(event.get("name", "")).split()
        size = event.get("args", {}).get("bytes")
        if len(words) < 2 or words[0] != "Memcpy" or size is None:
            raise ValueError(f"a copy in the trace cannot be read: {event}")
        found.bytes[words[1]] = found.bytes.get(words[1], 0) + int(size)
        found.copies += 1
    return found


def unavailable() -> str | None:
    """Why nothing can be profiled here; None where it can."""
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} has no CUDA here, and so no CUPTI"
    supported = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]
    if torch.profiler.ProfilerActivity.CUDA not in supported:
        return f"torch {torch.__version__} was built without CUPTI"
    return None


def profiled(work: Callable[[], None]) -> Crossed:
    """Do ``work`` and read what CUPTI recorded of it; all of the process's work counts."""
    import torch

    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        work()
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return read_trace(json.loads(path.read_text(encoding="utf-8")))
