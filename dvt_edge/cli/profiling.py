"""``dvt-edge profile``: measure, choose thresholds, and show what came of it."""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.bundle.measurement import DataFigures, Measurement
from dvt_edge.cli.budget import solution_values
from dvt_edge.cli.profile_tables import show_measurement
from dvt_edge.cli.progress import step_progress
from dvt_edge.cli.tables import wide_console
from dvt_edge.energy import open_meter
from dvt_edge.errors import BudgetError, ConfigError
from dvt_edge.evaluation.evaluate import judge
from dvt_edge.files.datasets import FolderDataset, open_folder
from dvt_edge.files.replacing import check_writable, replaced_file
from dvt_edge.policy import Solution
from dvt_edge.profile import Profile
from dvt_edge.runtime.backends.opening import open_loop
from dvt_edge.runtime.measuring.costs import Costs, costs_of, save_costs
from dvt_edge.runtime.measuring.measure import (
    Plan,
    declared_watts,
    measure,
    runs_on,
    save_measurement,
)
from dvt_edge.runtime.runtime import Runtime, open_source

STDOUT = Path("-")
REPORT_NEEDS = ("jinja2", "plotly")
"""Modules of the extra ``report``."""


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


def profile_command(
    profile_file: Path,
    *,
    duration_s: float,
    pace_fps: float | None,
    paced_costs: bool,
    data: Path | None,
    json_file: Path | None,
    report_file: Path | None,
) -> None:
    """Measure, store costs and measurement in the bundle, print and write what was asked for.

    Whatever can be wrong with the arguments is found before the measurement. Raises
    :class:`~dvt_edge.errors.BudgetError`, after everything was shown, for a budget that cannot be
    kept here.
    """
    profile = Profile.from_yaml(profile_file)
    bundle, _ = open_source(profile)
    files = [path for path in (json_file, report_file) if path not in (None, STDOUT)]
    for path in (*files, bundle.folder / COSTS):
        if path is not None:
            check_writable(path)
    report = _report() if report_file else None
    images = open_folder(data, bundle.manifest.class_names) if data else None
    watts = None
    if profile.energy is not None:
        watts = declared_watts(profile.energy.watts, len(bundle.manifest.stages))
    plan = Plan(duration_s, pace_fps, watts)

    quiet = json_file == STDOUT
    outcome = _run(profile, bundle, plan, paced_costs, data, images, quiet)
    if not quiet:
        show_measurement(wide_console(), outcome)
    if json_file is not None:
        text = json.dumps(outcome.values(), allow_nan=False)
        if quiet:
            click.echo(text)
        else:
            _write(json_file, text + "\n")
            click.echo(f"JSON: {json_file}")
    if report is not None and report_file is not None:
        report(report_file, outcome, bundle)
        click.echo(f"Report: {report_file}", err=quiet)
    if outcome.problem:
        raise outcome.problem


def _run(
    profile: Profile,
    bundle: Bundle,
    plan: Plan,
    paced_costs: bool,
    data: Path | None,
    images: FolderDataset | None,
    quiet: bool,
) -> Outcome:
    loop = open_loop(bundle)
    try:
        with step_progress(quiet=quiet) as progress:
            measurement = measure(
                loop,
                bundle,
                open_meter(runs_on=runs_on(bundle.manifest)),
                plan,
                progress=lambda what, share: progress(what, round(100 * share), 100),
            )
            costs = costs_of(measurement, paced=paced_costs)
            save_measurement(bundle, measurement)
            save_costs(bundle, costs)
            try:
                with Runtime(profile, backend=loop.backend) as runtime:
                    solution = runtime.solution
                    if data is not None and images is not None:
                        figures = _judge(runtime, data, images, progress)
                        measurement = measurement.model_copy(update={"data": figures})
                        save_measurement(bundle, measurement)
            except BudgetError as problem:
                return Outcome(profile, measurement, costs, None, problem)
    finally:
        loop.backend.close()
    return Outcome(profile, measurement, costs, solution, None)


def _judge(
    runtime: Runtime, data: Path, images: FolderDataset, progress: Callable[..., None]
) -> DataFigures:
    return judge(
        runtime.bundle,
        runtime.backend,
        images,
        data,
        runtime.solution.thresholds,
        progress=lambda done, total, rate: progress("images", done, total, f"{rate:.1f}/s"),
    )


def _report() -> Callable[[Path, Outcome, Bundle], None]:
    """What writes ``--report``; whether that can work is known before anything is measured."""
    try:
        report = importlib.import_module("dvt_edge.report")
    except ImportError as error:
        raise ConfigError(
            f"--report is not part of this installation ({error}); leave it out, or use --json FILE"
        ) from None
    missing = [name for name in REPORT_NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"--report needs {' and '.join(missing)}; install with pip install 'dvt-edge[report]'"
        )

    def write(path: Path, outcome: Outcome, bundle: Bundle) -> None:
        found = report.collect(bundle, outcome.profile, outcome.costs, outcome.measurement)
        report.write_report(path, found)

    return write


def _write(path: Path, text: str) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
