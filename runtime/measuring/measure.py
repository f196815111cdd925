"""What ``dvt-edge profile`` measures: latency of every exit, energy, memory, conditions."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs, costs_from_timing, load_costs
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.bundle.measurement import EnergyFigures, Measurement, PacedTiming
from dvt_edge.energy import Meter
from dvt_edge.errors import EnergyError
from dvt_edge.machine.clock import Clock, RealClock, now_utc
from dvt_edge.machine.conditions import changes, read_conditions
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.backends.protocol import machine_name
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.exit_energy import EnergyRun, declared_figures
from dvt_edge.runtime.measuring.timing import (
    WARM_UP_LIMIT_S,
    ForcedExits,
    time_back_to_back,
    time_paced,
    warm_up,
)

QUICK_MEASUREMENT_S = 1.0
"""For :func:`measure_costs`, where ``dvt-edge profile`` has not measured here."""
FIRST_ROUNDS = 5
"""Frames that run all stages as a Runtime opens; the first alone takes several times as long as
later ones."""
QUICK_WARM_UP_S = 0.5
"""Most time that the warm-up of :func:`measure_costs` takes."""
SLOWER_PACED = 1.1
"""Ratio of mean latencies from which on the pace is worth a warning."""


@dataclass(frozen=True)
class HowToMeasure:
    """How to measure."""

    duration_s: float = 10.0
    """Of the timing; energy takes its time in addition, where a meter can be read."""
    pace_fps: float | None = 30.0
    """Frames per second of the camera to imitate, for half of the time; None to leave it out."""
    watts: tuple[float, ...] | None = None
    """[K]: declared power per stage, for where no meter can be read."""
    idle_watts: float | None = None
    """Declared power at rest."""


def declared_watts(watts: float | Sequence[float], stages: int) -> tuple[float, ...]:
    """One power per stage; raises :class:`~dvt_edge.errors.EnergyError` for another number."""
    if isinstance(watts, (int, float)):
        return (float(watts),) * stages
    if len(watts) != stages:
        raise EnergyError(
            f"energy.watts needs one figure, or one per stage: expected {stages}, found "
            f"{len(watts)}"
        )
    return tuple(watts)


def measure(
    loop: CascadeLoop,
    manifest: Manifest,
    meter: Meter,
    how: HowToMeasure,
    *,
    clock: Clock | None = None,
    root: str | Path = "/",
    progress: Progress = silent,
) -> Measurement:
    """Measure every exit of ``manifest``'s bundle through ``loop``, as ``how`` says.

    Idle power comes first. Then everything runs until it has settled, at the camera's pace, back
    to back, and, where ``meter`` can be read, in mixes of exits for its energy. What cannot be
    measured has a reason in the result. ``root`` is where conditions are read.
    """
    clock = clock or RealClock()
    exits = ForcedExits(loop, manifest)
    energy = EnergyRun(meter, how.duration_s)
    energy.idle(clock, progress)
    progress("warming up", 0, 1)
    limit_s = max(WARM_UP_LIMIT_S, how.duration_s)
    rounds, settled = warm_up(exits.round_ms, clock, limit_s)
    progress("warming up", 1, 1)
    before = read_conditions(root)  # clocks follow the load: right after it
    spent_s, started = 0.0, clock.now()
    paced = None
    part_s = how.duration_s
    if how.pace_fps is not None:
        part_s = how.duration_s / 2
        paced = time_paced(exits, clock, part_s, how.pace_fps, progress)
        spent_s = clock.now() - started
        again = warm_up(exits.round_ms, clock, limit_s)  # clocks may have fallen between the frames
        rounds, settled = rounds + again[0], settled and again[1]
    started = clock.now()
    back_to_back = time_back_to_back(exits, clock, part_s, progress)
    spent_s += clock.now() - started
    energy.work(exits, clock, progress)
    after = read_conditions(root)
    figures = energy.figures
    if figures.unavailable is not None and how.watts is not None:
        figures = declared_figures(how.watts, back_to_back, figures.unavailable, how.idle_watts)
    remarks = _remarks(back_to_back, paced, figures, settled, limit_s)
    return Measurement(
        machine=machine_name(loop.backend),
        content_hash=manifest.content_hash,
        measured_at=now_utc(),
        seconds=spent_s,
        frame_shape=manifest.measured_shape,
        warm_up_runs=rounds * exits.count,
        settled=settled,
        bytes_resident=loop.backend.bytes_resident,
        process_bytes=_process_bytes(),
        back_to_back=back_to_back,
        paced=paced,
        energy=figures,
        before=before,
        after=after,
        warnings=(*changes(before, after), *remarks),
    )


def _remarks(
    back_to_back: PacedTiming,
    paced: PacedTiming | None,
    energy: EnergyFigures,
    settled: bool,
    limit_s: float,
) -> Iterator[str]:
    """What else to know of the figures."""
    if not settled:
        yield (
            f"the latency had not settled after {limit_s:g} s of warm-up; end other programs, fix "
            "the clocks and measure again"
        )
    if paced is not None:
        frames = sum(exit_.latency.runs for exit_ in paced.exits)
        if paced.missed:
            yield (
                f"{paced.missed} of {frames} frames were not finished before the next was due at "
                f"{paced.fps:g} fps; lower the pace or the budget"
            )
        ratios = [
            slow.latency.mean_ms / fast.latency.mean_ms
            for slow, fast in zip(paced.exits, back_to_back.exits, strict=True)
        ]
        if max(ratios) > SLOWER_PACED:
            yield (
                f"frames at {paced.fps:g} fps take up to {max(ratios):.2f} times as long as back "
                "to back: clocks fall and caches empty between them; raising the lowest clock helps"
            )
    if energy.declared:
        yield "energy is declared, not measured"


def _process_bytes() -> int | None:
    """Resident memory of this process, from ``/proc``."""
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def costs_here(loop: CascadeLoop, bundle: Bundle, refused: Callable[[str], None]) -> Costs:
    """Stored costs of these stages on this machine; without any, measured now, quickly.

    ``refused`` is called with what is wrong with those of another machine or other stages.
    """
    stored = load_costs(bundle, machine_name(loop.backend), refused)
    return stored or measure_costs(loop, bundle.manifest, QUICK_MEASUREMENT_S)


def run_all_stages(loop: CascadeLoop, manifest: Manifest) -> None:
    """Before the first frame that counts: what is made on first use, and caches."""
    exits = ForcedExits(loop, manifest)
    for _ in range(FIRST_ROUNDS):
        exits.run(exits.count - 1)


def measure_costs(
    loop: CascadeLoop, manifest: Manifest, seconds: float, progress: Progress = silent
) -> Costs:
    """Time ``classify`` for every exit in turn at the camera's pace, for about ``seconds`` after a
    short warm-up.

    For a start without stored costs; :func:`measure` takes its time and looks at more.
    """
    exits, clock = ForcedExits(loop, manifest), RealClock()
    warm_up(exits.round_ms, clock, QUICK_WARM_UP_S)
    timing = time_paced(exits, clock, seconds, manifest.camera.fps, progress)
    machine = machine_name(loop.backend)
    return costs_from_timing(
        machine, manifest.content_hash, now_utc(), manifest.measured_shape, timing, EnergyFigures()
    )
