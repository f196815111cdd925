"""``dvt-edge profile``: measure, choose thresholds, and show what came of it."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from dvt_edge.bundle.bundle import Bundle, open_source
from dvt_edge.bundle.costs import Costs, costs_from_measurement, load_costs, with_earlier
from dvt_edge.bundle.manifest import COSTS, MEASUREMENT
from dvt_edge.cli.options import FILE, PATH, duration_option, profile_option
from dvt_edge.cli.output import note_skipped, print_json, show, solution_values
from dvt_edge.cli.profile_tables import show_measurement
from dvt_edge.cli.progress import shown_progress
from dvt_edge.energy import open_meter
from dvt_edge.errors import BudgetError
from dvt_edge.evaluation.evaluate import judge
from dvt_edge.files.datasets import open_folder
from dvt_edge.files.replacing import check_writable, write_text
from dvt_edge.policy import Solution, choose_thresholds
from dvt_edge.policy.live.promise import describe, make_terms
from dvt_edge.policy.live.promise_watch import Look
from dvt_edge.policy.targets import find_targets
from dvt_edge.profile import BudgetConfig, Profile
from dvt_edge.report import check_libraries, collect, write_report
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.measuring.measure import HowToMeasure, declared_watts, measure

STDOUT = Path("-")


class _Pace(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from 8.3 on
    """Frames per second; ``none`` and 0 are no pace."""

    name = "fps"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        if str(value).lower() == "none":
            return 0.0
        fps = click.FLOAT.convert(value, param, ctx)
        if not (fps == 0 or 0.1 <= fps <= 10_000):  # NaN too
            self.fail(f"{value} is not in 0.1..10000 frames per second, nor 'none'", param, ctx)
        return float(fps)


@click.command("profile")
@profile_option
@click.option(
    "--data",
    type=PATH,
    help="Images to try the thresholds on; one folder per class gives accuracy.",
)
@duration_option(
    "Seconds of timing; measuring energy, where a power sensor can be read, takes about twice as "
    "long again."
)
@click.option(
    "--pace",
    type=_Pace(),
    help="Frame rate to imitate for half of the time, or none; the profile's camera.fps if left "
    "out.",
)
@click.option(
    "--solve-for",
    type=click.Choice(["back-to-back", "paced"]),
    help="Which of the two latencies the budget limits: at the camera's pace, unless there is "
    "none.",
)
@click.option("--report", "report_file", type=FILE, help="Write an HTML report to this file.")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    is_flag=False,
    flag_value="-",
    help="Write everything as JSON to this file; without one, or with '-', to standard output.",
)
def command(
    profile_file: Path,
    data: Path | None,
    duration_s: float,
    pace: float | None,
    solve_for: str | None,
    report_file: Path | None,
    json_file: Path | None,
) -> None:
    """Measure what each exit costs on this machine, and choose thresholds accordingly."""
    # Whatever can be wrong with the arguments is found before the measurement.
    if solve_for == "paced" and pace == 0:
        raise click.UsageError("--solve-for paced needs a --pace")
    profile = Profile.from_yaml(profile_file)
    pace = profile.camera.fps if pace is None else pace
    paced = bool(pace) and solve_for != "back-to-back"
    bundle, _ = open_source(profile)
    for path in (json_file, report_file, bundle.folder / COSTS):
        if path not in (None, STDOUT):
            check_writable(path)
    if report_file is not None:
        check_libraries()
    images = open_folder(data, bundle.manifest.class_names) if data else None
    note_skipped(data)
    watts = idle_watts = None
    if profile.energy is not None:
        watts = declared_watts(profile.energy.watts, len(bundle.manifest.stages))
        idle_watts = profile.energy.idle_watts
    how = HowToMeasure(duration_s, pace or None, watts, idle_watts)

    loop = open_loop(bundle)
    with closing(loop.backend), shown_progress() as progress:
        meter = open_meter(runs_on="gpu" if loop.backend.gpu else "cpu")
        measurement = measure(loop, bundle.manifest, meter, how, progress=progress)
        before = load_costs(bundle, measurement.machine)
        costs = with_earlier(costs_from_measurement(measurement, paced=paced), before)
        bundle.store(MEASUREMENT, measurement)
        bundle.store(COSTS, costs)
        solution, problem = _solve(bundle, costs, profile.budget)
        if data and images and solution:
            figures = judge(
                *(bundle, loop.backend, images, data, solution.thresholds), progress=progress
            )
            measurement = measurement.model_copy(update={"data": figures})
            bundle.store(MEASUREMENT, measurement)
    values = {
        "measurement": measurement.model_dump(mode="json"),
        "costs": costs.model_dump(mode="json"),
        "budget": profile.budget.model_dump(mode="json"),
        "solution": solution and solution_values(solution),
        "problem": problem and str(problem),
        "promise": solution and _promise(costs, profile.budget, solution),
    }
    if json_file == STDOUT:
        print_json(values)
    else:
        show_measurement(measurement, costs, profile.budget, solution)
        if solution is not None:
            show(_promise(costs, profile.budget, solution))
        if json_file is not None:
            write_text(json_file, json.dumps(values, allow_nan=False) + "\n")
            click.echo(f"JSON: {json_file}")
    if report_file is not None:
        write_report(report_file, collect(bundle, profile, costs, measurement))
        click.echo(f"Report: {report_file}", err=json_file == STDOUT)
    if problem:
        raise problem


def _solve(
    bundle: Bundle, costs: Costs, budget: BudgetConfig
) -> tuple[Solution | None, BudgetError | None]:
    """The thresholds for ``budget``, or why there are none."""
    recorded = bundle.manifest.recorded_thresholds
    try:
        return choose_thresholds(
            bundle.records(), costs, budget, recorded, bundle.unlabelled_records()
        ), None
    except BudgetError as problem:
        return None, problem


def _promise(costs: Costs, budget: BudgetConfig, solution: Solution) -> str:
    """What a Runtime would promise with these costs, before its first frame."""
    targets = find_targets(costs.exit_costs, budget)
    terms = make_terms(
        targets, budget.min_accuracy, solution.certificate, costs.paced_fps, costs.frame_shape
    )
    return describe(Look(), targets, terms).sentence
