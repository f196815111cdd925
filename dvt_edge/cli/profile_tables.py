"""What ``dvt-edge profile`` shows to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, get_args

from rich.console import Console
from rich.table import Table

from dvt_edge.bundle.measurement import (
    DataFigures,
    Distribution,
    EnergyFigures,
    Measurement,
    PacedTiming,
)
from dvt_edge.cli.output import new_table, percent, threshold_list
from dvt_edge.machine.conditions import Conditions
from dvt_edge.policy.statistic import Statistic

if TYPE_CHECKING:
    from dvt_edge.cli.profile import Outcome

FIGURES: tuple[Statistic, ...] = get_args(Statistic)
CLASSES_SHOWN = 20


def show_measurement(console: Console, outcome: Outcome) -> None:
    """Print tables and lines of at most 100 columns."""
    measured, solution = outcome.measurement, outcome.solution
    console.print(_exit_table(measured))
    console.print(_stage_table(measured))
    if measured.energy.gross_mj:
        console.print(_energy_table(measured.energy))
    lines = [*_energy_lines(measured.energy), _memory_line(measured), _warm_up_line(measured)]
    for line in lines:
        console.print(line)
    for line in _conditions_lines(measured.before, measured.after):
        console.print(line)
    for warning in measured.warnings:
        console.print(f"Warning: {warning}", style="yellow")
    if solution is not None:
        fps = outcome.costs.paced_fps
        pace = "" if fps is None else f" at {fps:g} fps"
        console.print(
            f"Budget ({outcome.profile.budget}): expected mean {solution.cost:.3f} ms{pace}, "
            f"accuracy {100 * solution.accuracy:.2f} % on the calibration records; exits "
            f"{percent(solution.exit_fraction)}; thresholds {threshold_list(solution)}"
        )
    if measured.data is not None:
        _show_data(console, measured.data)


def _timings(measured: Measurement) -> list[PacedTiming]:
    return [measured.back_to_back, *filter(None, (measured.paced,))]


def _pace(timing: PacedTiming) -> str:
    return "back to back" if timing.fps is None else f"{timing.fps:g} fps"


def _figures(times: Distribution) -> list[str]:
    return [f"{times.statistic(name):.3f}" for name in FIGURES]


def _exit_table(measured: Measurement) -> Table:
    table = new_table("Latency of classify at batch 1, ms", "exit", "frames", "runs", *FIGURES)
    table.caption = measured.machine
    for timing in _timings(measured):
        for k, exit_ in enumerate(timing.exits):
            last = k + 1 == len(timing.exits)
            runs = str(exit_.latency.runs)
            table.add_row(
                str(k + 1), _pace(timing), runs, *_figures(exit_.latency), end_section=last
            )
    return table


def _stage_table(measured: Measurement) -> Table:
    """The parts of frames that run all stages."""
    table = new_table("Parts of the last exit, ms", "part", "frames", *FIGURES, left=["part"])
    for timing in _timings(measured):
        longest = timing.exits[-1]
        parts: list[tuple[str, Distribution | None]] = [
            ("preprocess", longest.preprocess),
            *((f"stage {k + 1}", stage) for k, stage in enumerate(longest.stages)),
            ("decision", longest.decision),
            ("of stages: transfer", longest.transfer),
        ]
        known = [(name, times) for name, times in parts if times is not None]
        for name, times in known:
            table.add_row(name, _pace(timing), *_figures(times), end_section=name == known[-1][0])
    return table


def _energy_table(energy: EnergyFigures) -> Table:
    title = "Declared energy per frame, mJ" if energy.declared else "Energy, mJ"
    table = new_table(title, "exit", "gross", "net of idle")
    assert energy.gross_mj is not None
    for k in range(len(energy.gross_mj)):
        table.add_row(
            str(k + 1),
            _with_error(energy.gross_mj, energy.gross_error_mj, k),
            _with_error(energy.net_mj, energy.net_error_mj, k),
        )
    return table


def _with_error(values: Sequence[float] | None, errors: Sequence[float] | None, k: int) -> str:
    if values is None:
        return "-"
    return f"{values[k]:.3f}" + (f" ± {errors[k]:.3f}" if errors else "")


def _energy_lines(energy: EnergyFigures) -> Iterator[str]:
    if energy.unavailable is not None:
        yield f"Energy: unavailable: {energy.unavailable}"
        return
    idle = "" if energy.idle_mw is None else f"; idle {energy.idle_mw / 1e3:.3f} W"
    read = "" if energy.seconds is None else f"; {energy.seconds:.0f} s read"
    yield f"Energy: {energy.source}{idle}{read}"


def _memory_line(measured: Measurement) -> str:
    process = measured.process_bytes
    whole = "" if process is None else f"; the process {process / 2**20:.0f} MiB"
    held = f"{measured.bytes_resident / 2**20:.1f} MiB"
    return f"Memory: images and reuse tensors {held} resident{whole}"


def _warm_up_line(measured: Measurement) -> str:
    ended = "settled" if measured.settled else "not settled"
    return f"Warm-up: {measured.warm_up_runs} runs, {ended}; {measured.seconds:.1f} s measured"


def _conditions_lines(before: Conditions, after: Conditions) -> Iterator[str]:
    """Power mode, governor, clocks and temperatures, before and after."""

    def clock(cores: Sequence[float]) -> str | None:
        return f"{sum(cores) / len(cores):.0f} MHz" if cores else None

    def gpu(mhz: float | None) -> str | None:
        return None if mhz is None else f"{mhz:.0f} MHz"

    pairs: list[tuple[str, str | None, str | None]] = [
        ("power mode", before.power_mode, after.power_mode),
        ("governor", before.governor, after.governor),
        ("CPU", clock(before.cpu_mhz), clock(after.cpu_mhz)),
        ("GPU", gpu(before.gpu_mhz), gpu(after.gpu_mhz)),
        *(
            (zone, f"{before.temperatures_c.get(zone, degrees):.0f}", f"{degrees:.0f} degC")
            for zone, degrees in after.temperatures_c.items()
        ),
    ]
    shown = [
        f"{what} {old} -> {new}" if old != new else f"{what} {new}"
        for what, old, new in pairs
        if old is not None or new is not None
    ]
    yield "Conditions before -> after: " + (
        "; ".join(shown) or "this machine tells neither clocks nor temperatures"
    )


def _show_data(console: Console, data: DataFigures) -> None:
    accuracy = "no labels" if data.accuracy is None else f"{100 * data.accuracy:.2f} % right"
    shares = percent(data.exit_fraction)
    images = "1 image" if data.images == 1 else f"{data.images} images"
    console.print(f"{data.folder}: {images}, {accuracy}, exits {shares}")
    if data.unreadable:
        console.print(f"{data.unreadable} images could not be read", style="yellow")
    if data.exit_accuracy is not None:
        console.print(f"Each exit on all of them: {percent(data.exit_accuracy)} right")
    if not data.class_exit_fraction:
        return
    exits = [f"exit {k + 1}" for k in range(len(data.exit_fraction))]
    table = new_table("Exits by class", "class", *exits, left=["class"])
    rows = sorted(data.class_exit_fraction.items(), key=lambda row: -row[1][0])
    for name, fraction in rows[:CLASSES_SHOWN]:
        table.add_row(name, *(f"{100 * share:.1f} %" for share in fraction))
    if len(rows) > CLASSES_SHOWN:
        table.caption = f"the {CLASSES_SHOWN} easiest of {len(rows)} classes; --json has all"
    console.print(table)
