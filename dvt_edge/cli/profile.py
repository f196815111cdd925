"""``dvt-edge profile``: measure, choose thresholds, and show what came of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dvt_edge.bundle.bundle import Bundle, open_source
from dvt_edge.bundle.costs import Costs, costs_from_measurement
from dvt_edge.bundle.manifest import COSTS, MEASUREMENT
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.cli.options import FILE, PATH, duration_option, profile_option
from dvt_edge.cli.output import open_console, solution_values
from dvt_edge.cli.profile_tables import show_measurement
from dvt_edge.cli.progress import shown_progress
from dvt_edge.energy import open_meter
from dvt_edge.errors import BudgetError
from dvt_edge.evaluation.evaluate import judge
from dvt_edge.files.datasets import FolderDataset, open_folder
from dvt_edge.files.replacing import check_writable, write_text
from dvt_edge.policy import Solution, choose_thresholds
from dvt_edge.profile import Profile
from dvt_edge.report import check_libraries, collect, write_report
from dvt_edge.runtime.backends.opening import open_loop
from dvt_edge.runtime.measuring.measure import HowToMeasure, declared_watts, measure

STDOUT = Path("-")


@dataclass(frozen=True)
class Outcome:
    """All that one run of the command found."""

    profile: Profile
    measurement: Measurement
    costs: Costs
    solution: Solution | None
    """None where no thresholds keep the budget."""
    problem: BudgetError | None

    def values(self) -> dict[str, Any]:
        """For machines."""
        return {
            "measurement": self.measurement.model_dump(mode="json"),
            "costs": self.costs.model_dump(mode="json"),
            "budget": self.profile.budget.model_dump(mode="json"),
            "solution": self.solution and solution_values(self.solution),
            "problem": self.problem and str(self.problem),
        }


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
@click.option("--data", type=PATH, help="Images to try the thresholds on, by class.")
@duration_option(
    "Seconds of timing; where a power sensor can be read, energy takes about twice as long besides."
)
@click.option(
    "--pace",
    type=_Pace(),
    default=30.0,
    show_default=True,
    help="Frames per second of the camera to imitate for half of the time, or none.",
)
@click.option(
    "--solve-for",
    type=click.Choice(["back-to-back", "paced"]),
    default="back-to-back",
    show_default=True,
    help="Which of the two latencies the thresholds shall keep the budget with.",
)
@click.option("--report", "report_file", type=FILE, help="Write a report (HTML) for people.")
@click.option(
    "--json",
    "json_file",
    type=FILE,
    is_flag=False,
    flag_value="-",
    help="Write everything as JSON; '-' or nothing is standard output.",
)
def command(
    profile_file: Path,
    data: Path | None,
    duration_s: float,
    pace: float,
    solve_for: str,
    report_file: Path | None,
    json_file: Path | None,
) -> None:
    """Measure what each exit costs on this machine, and choose thresholds by it."""
    # Whatever can be wrong with the arguments is found before the measurement.
    if solve_for == "paced" and not pace:
        raise click.UsageError("--solve-for paced needs a --pace")
    profile = Profile.from_yaml(profile_file)
    bundle, _ = open_source(profile)
    files = [path for path in (json_file, report_file) if path not in (None, STDOUT)]
    for path in (*files, bundle.folder / COSTS):
        if path is not None:
            check_writable(path)
    if report_file is not None:
        check_libraries()
    images = open_folder(data, bundle.manifest.class_names) if data else None
    watts = None
    if profile.energy is not None:
        watts = declared_watts(profile.energy.watts, len(bundle.manifest.stages))
    how = HowToMeasure(duration_s, pace or None, watts)

    quiet = json_file == STDOUT
    outcome = _run(profile, bundle, how, solve_for == "paced", data, images)
    if not quiet:
        show_measurement(open_console(), outcome)
    if json_file is not None:
        text = json.dumps(outcome.values(), allow_nan=False)
        if quiet:
            click.echo(text)
        else:
            write_text(json_file, text + "\n")
            click.echo(f"JSON: {json_file}")
    if report_file is not None:
        write_report(report_file, collect(bundle, profile, outcome.costs, outcome.measurement))
        click.echo(f"Report: {report_file}", err=quiet)
    if outcome.problem:
        raise outcome.problem


def _run(
    profile: Profile,
    bundle: Bundle,
    how: HowToMeasure,
    paced: bool,
    data: Path | None,
    images: FolderDataset | None,
) -> Outcome:
    loop = open_loop(bundle)
    try:
        with shown_progress() as progress:
            meter = open_meter(runs_on="gpu" if loop.backend.gpu else "cpu")
            measurement = measure(loop, bundle.manifest, meter, how, progress=progress)
            costs = costs_from_measurement(measurement, paced=paced)
            bundle.store(MEASUREMENT, measurement)
            bundle.store(COSTS, costs)
            try:
                solution = choose_thresholds(
                    bundle.records(), costs, profile.budget, bundle.manifest.recorded_thresholds
                ).solution
            except BudgetError as problem:
                return Outcome(profile, measurement, costs, None, problem)
            if data is not None and images is not None:
                figures = judge(
                    *(bundle, loop.backend, images, data, solution.thresholds), progress=progress
                )
                measurement = measurement.model_copy(update={"data": figures})
                bundle.store(MEASUREMENT, measurement)
    finally:
        loop.backend.close()
    return Outcome(profile, measurement, costs, solution, None)
