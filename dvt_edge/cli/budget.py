"""``dvt-edge budget``: what a budget gives, from stored records and costs; nothing is run."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import click

from dvt_edge.bundle.bundle import open_source
from dvt_edge.bundle.costs import Costs, stored_costs
from dvt_edge.cli.options import FILE, json_option, profile_option
from dvt_edge.cli.output import (
    certificate_line,
    note,
    percent,
    print_json,
    show,
    show_table,
    solution_values,
    threshold_list,
)
from dvt_edge.errors import ConfigError
from dvt_edge.files.datasets import spread_rows
from dvt_edge.machine.board import processor_name
from dvt_edge.policy import Records, Solution, choose_thresholds, frontier
from dvt_edge.policy.binding import find_binding
from dvt_edge.policy.statistic import Statistic
from dvt_edge.profile import Profile
from dvt_edge.requirements import need

FRONTIER_LINES = 12


@click.command("budget")
@profile_option
@click.option("--latency-ms", type=float, help="Limit on the latency per frame.")
@click.option(
    "--statistic",
    type=click.Choice(get_args(Statistic)),
    help="Which statistic of the latency is limited.",
)
@click.option("--fps", type=float, help="Frames per second that must be classified.")
@click.option(
    "--utilisation", type=float, help="Share of the time between frames that may be used, 0..1."
)
@click.option("--energy-mj", type=float, help="Limit on the mean energy per frame.")
@click.option(
    "--min-accuracy", type=float, help="Find the cheapest thresholds with this accuracy, 0..1."
)
@click.option("--max-stage", type=int, help="Last stage that may run, from 1.")
@click.option(
    "--confidence-level", type=float, help="Certify the budget with this probability, such as 0.95."
)
@click.option("--deadline-ms", type=float, help="Limit on a single frame.")
@click.option("--audit", type=float, help="Share of frames that run all exits, 0..0.5.")
@click.option(
    "--adapt", is_flag=True, default=None, help="Move the thresholds to keep the mean latency."
)
@click.option("--plot", type=FILE, help="Write the frontier as a picture (PNG, SVG or PDF).")
@json_option
def command(profile_file: Path, plot: Path | None, as_json: bool, **changes: Any) -> None:
    """Show what a budget gives on the stored records; options override the profile's keys."""
    profile = Profile.from_yaml(profile_file)
    bundle, own_budget = open_source(profile)
    given = {key: value for key, value in changes.items() if value is not None}
    budget = own_budget.changed(**given)
    records, costs = bundle.records(), stored_costs(bundle)
    if not costs.machine.startswith(processor_name()):
        note(f"latencies are those measured on '{costs.machine}', not this machine's")
    solution = choose_thresholds(
        records,
        costs,
        budget,
        bundle.manifest.recorded_thresholds,
        bundle.unlabelled_records(),
    )
    certificate = solution.certificate
    binding = find_binding(records, costs.exit_costs, budget, solution)
    curve = frontier(records, costs.mean_ms)
    if plot is not None:
        _plot(records, costs, solution, curve, plot)
    if as_json:
        print_json(
            {
                "budget": budget.model_dump(mode="json"),
                "solution": solution_values(solution),
                "certificate": asdict(certificate) if certificate else None,
                "binding": asdict(binding) if binding else None,
                "frontier": [solution_values(point) for point in curve],
            }
        )
        return
    statistic = budget.statistic
    tail = ""
    if budget.latency_ms is not None and statistic != "mean":
        tail = f"{statistic} {costs.latency.at(solution.exit_fraction, statistic):.3f} ms, "
    show(
        f"Thresholds {threshold_list(solution)}: {tail}mean {solution.cost:.3f} ms, accuracy "
        f"{percent(solution.accuracy, digits=2)} on {len(records)} records, exits "
        f"{percent(*solution.exit_fraction)}"
    )
    if binding:
        show(f"Price: {binding}")
    elif budget.point is None:
        show("Price: no limit binds; these are the most accurate thresholds for the records")
    if certificate:
        show(f"Certificate: {certificate_line(certificate, budget)}")
    points = (curve[i] for i in spread_rows(len(curve), FRONTIER_LINES))
    show_table(
        "Frontier: the highest accuracy for each mean latency",
        ["mean ms", "accuracy", "exits"],
        (
            [f"{p.cost:.3f}", percent(p.accuracy, digits=2), percent(*p.exit_fraction)]
            for p in points
        ),
    )


def _plot(
    records: Records, costs: Costs, chosen: Solution, curve: tuple[Solution, ...], path: Path
) -> None:
    need("--plot", "matplotlib")
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    axes.plot(
        [point.cost for point in curve],
        [100 * point.accuracy for point in curve],
        label="best thresholds for each mean latency",
    )
    for k, (cost, accuracy) in enumerate(zip(costs.mean_ms, records.accuracy, strict=True)):
        axes.plot(cost, 100 * accuracy, "s", color="0.4")
        axes.annotate(
            f"all at exit {k + 1}", (cost, 100 * accuracy), (6, -12), textcoords="offset points"
        )
    axes.plot(chosen.cost, 100 * chosen.accuracy, "o", ms=9, label="this budget")
    axes.set(
        xlabel="mean latency per frame, ms",
        ylabel=f"accuracy on {len(records)} calibration records, %",
    )
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: the picture cannot be written ({error})") from None
    finally:
        plt.close(figure)
