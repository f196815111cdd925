"""What ``dvt-edge profile`` shows to people."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import fmean
from typing import get_args

from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.measurement import DataFigures, Distribution, EnergyFigures, Measurement
from dvt_edge.cli.output import counted, figure, numbered, percent, show, show_table, threshold_list
from dvt_edge.machine.conditions import Conditions
from dvt_edge.policy import Solution
from dvt_edge.policy.statistic import BOUND_ERROR, Statistic
from dvt_edge.profile import BudgetConfig

FIGURES: tuple[Statistic, ...] = get_args(Statistic)
BOUNDED: tuple[Statistic, ...] = ("mean", "p50", "p95", "p99")
CLASSES_SHOWN = 20


def show_measurement(
    measured: Measurement, costs: Costs, budget: BudgetConfig, solution: Solution | None
) -> None:
    """Print tables and lines of at most 100 columns."""
    show_table(
        "Latency of classify at batch 1, ms",
        ["exit", "frames", "runs", *FIGURES],
        _exit_rows(measured),
        caption=measured.machine,
    )
    _show_bounds(measured, costs)
    show_table(
        "Parts of the last exit, ms",
        ["part", "frames", *FIGURES],
        _part_rows(measured),
        left=["part"],
    )
    _show_energy(measured.energy)
    process = measured.process_bytes
    whole = "" if process is None else f"; the process {process / 2**20:.0f} MiB"
    held = f"{measured.bytes_resident / 2**20:.1f} MiB"
    show(f"Memory: images and reuse tensors {held} resident{whole}")
    ended = "settled" if measured.settled else "not settled"
    show(f"Warm-up: {measured.warm_up_runs} runs, {ended}; {measured.seconds:.1f} s measured")
    show(f"Conditions before -> after: {_conditions(measured.before, measured.after)}")
    for warning in measured.warnings:
        show(f"Warning: {warning}", style="yellow")
    if solution is not None:
        pace = "" if costs.paced_fps is None else f" at {costs.paced_fps:g} fps"
        show(
            f"Budget ({budget}): expected mean {solution.cost:.3f} ms{pace}, "
            f"accuracy {percent(solution.accuracy, digits=2)} on the calibration records; exits "
            f"{percent(*solution.exit_fraction)}; thresholds {threshold_list(solution)}"
        )
    if measured.data is not None:
        _show_data(measured.data)


def _exit_rows(measured: Measurement) -> Iterator[list[str]]:
    for timing in filter(None, (measured.back_to_back, measured.paced)):
        for k, exit_ in enumerate(timing.exits, start=1):
            runs = str(exit_.latency.runs)
            yield [str(k), _pace(timing.fps), runs, *_figures(exit_.latency)]
        yield []


def _show_bounds(measured: Measurement, costs: Costs) -> None:
    """How large the true figures may be, as far as the runs tell."""
    rows: list[list[str]] = []
    missing: set[Statistic] = set()
    for timing in filter(None, (measured.back_to_back, measured.paced)):
        for k, exit_ in enumerate(timing.exits, start=1):
            found = exit_.latency.at_most
            bounds: dict[Statistic, float | None] = {
                name: getattr(found, f"{name}_ms", None) for name in BOUNDED
            }
            if timing.fps == costs.paced_fps:
                missing |= {name for name, bound in bounds.items() if bound is None}
            like = figure(None if found is None else found.independent_runs, "d")
            rows.append([str(k), _pace(timing.fps), like, *map(figure, bounds.values())])
        rows.append([])
    show_table(
        f"The true figures are at most, each with {100 * (1 - BOUND_ERROR):g} % certainty, ms",
        ["exit", "frames", "independent", *BOUNDED],
        rows,
    )
    longer = [
        f"{name} takes --duration {costs.seconds_needed(name):.0f}"
        for name in BOUNDED
        if name in missing
    ]
    if longer:
        show(f"Too few independent runs for a bound: {', '.join(longer)}")
    show(
        f"Certificates add {percent(costs.session_allowance)} for what sessions differ by: "
        f"{counted(len(costs.earlier_mean_ms), 'earlier session')} known"
    )


def _part_rows(measured: Measurement) -> Iterator[list[str]]:
    """The parts of frames that run all stages."""
    for timing in filter(None, (measured.back_to_back, measured.paced)):
        longest = timing.exits[-1]
        parts = {
            "preprocess": longest.preprocess,
            **dict(zip(numbered("stage", len(longest.stages)), longest.stages, strict=True)),
            "decision": longest.decision,
            "of stages: transfer": longest.transfer,
        }
        for name, times in parts.items():
            if times is not None:
                yield [name, _pace(timing.fps), *_figures(times)]
        yield []


def _pace(fps: float | None) -> str:
    return "back to back" if fps is None else f"{fps:g} fps"


def _figures(times: Distribution) -> list[str]:
    return [f"{times.statistic(name):.3f}" for name in FIGURES]


def _show_energy(energy: EnergyFigures) -> None:
    if energy.gross_mj:
        columns = [
            _with_errors(energy.gross_mj, energy.gross_error_mj),
            _with_errors(energy.net_mj or [None] * len(energy.gross_mj), energy.net_error_mj),
        ]
        show_table(
            "Declared energy per frame, mJ" if energy.declared else "Energy, mJ",
            ["exit", "gross", "net of idle"],
            ([str(k), *row] for k, row in enumerate(zip(*columns, strict=True), start=1)),
        )
    if energy.unavailable is not None:
        show(f"Energy: unavailable: {energy.unavailable}")
        return
    idle = "" if energy.idle_mw is None else f"; idle {energy.idle_mw / 1e3:.3f} W"
    read = "" if energy.seconds is None else f"; {energy.seconds:.0f} s read"
    show(f"Energy: {energy.source}{idle}{read}")


def _with_errors(values: Sequence[float | None], errors: Sequence[float] | None) -> list[str]:
    shown = [figure(value) for value in values]
    return [f"{v} ± {e:.3f}" for v, e in zip(shown, errors, strict=True)] if errors else shown


def _conditions(before: Conditions, after: Conditions) -> str:
    """Power mode, governor, clocks and temperatures, before and after."""

    def read(found: Conditions) -> dict[str, str | None]:
        cpu_mhz = fmean(found.cpu_mhz) if found.cpu_mhz else None
        return {
            "power mode": found.power_mode,
            "governor": found.governor,
            "CPU": None if cpu_mhz is None else f"{cpu_mhz:.0f} MHz",
            "GPU": None if found.gpu_mhz is None else f"{found.gpu_mhz:.0f} MHz",
            **{zone: f"{degrees:.0f} degC" for zone, degrees in found.temperatures_c.items()},
        }

    old, new = read(before), read(after)
    shown = [
        f"{what} {old.get(what) or 'unknown'} -> {value or 'unknown'}"
        if old.get(what) != value
        else f"{what} {value}"
        for what, value in new.items()
        if value or old.get(what)
    ]
    return "; ".join(shown) or "this machine reports neither clocks nor temperatures"


def _show_data(data: DataFigures) -> None:
    right = "no labels" if data.accuracy is None else f"{percent(data.accuracy, digits=2)} right"
    images = counted(data.images, "image")
    show(f"{data.folder}: {images}, {right}, exits {percent(*data.exit_fraction)}")
    if data.unreadable:
        show(f"{counted(data.unreadable, 'image')} could not be read", style="yellow")
    if data.exit_accuracy is not None:
        show(f"Each exit on all of them: {percent(*data.exit_accuracy)} right")
    rows = sorted(data.class_exit_fraction.items(), key=lambda row: -row[1][0])
    caption = f"the {CLASSES_SHOWN} easiest of {len(rows)} classes; --json has all"
    if rows:
        show_table(
            "Exits by class",
            ["class", *numbered("exit", len(data.exit_fraction))],
            ([name, *map(percent, shares)] for name, shares in rows[:CLASSES_SHOWN]),
            left=["class"],
            caption=caption if len(rows) > CLASSES_SHOWN else None,
        )
