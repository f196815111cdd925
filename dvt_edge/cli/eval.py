"""``dvt-edge eval``: every exit on a folder of labelled images, and the budgeted curve."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from dvt_edge.bundle.bundle import open_source
from dvt_edge.cli.options import FOLDER, PATH, json_option, profile_option
from dvt_edge.cli.output import note, note_skipped, percent, print_json, show, show_table
from dvt_edge.cli.progress import shown_progress
from dvt_edge.evaluation.evaluate import FINISHED, WORKERS, Evaluation, evaluate
from dvt_edge.files.replacing import check_writable, write_text
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.policy.curve import CurvePoint, budgeted_curve
from dvt_edge.profile import Profile
from dvt_edge.runtime.cascade_loop import open_loop
from dvt_edge.runtime.measuring.measure import costs_here

CURVE_LINES = 8


@click.command("eval")
@profile_option
@click.option(
    "--data", type=PATH, required=True, help="Folder with one subfolder per class, as in ImageNet."
)
@click.option(
    "-o",
    "--output",
    type=FOLDER,
    help="Folder for the results, and for progress while it runs [default: beside the bundle].",
)
@click.option(
    "--workers",
    type=click.IntRange(1, 256),
    default=WORKERS,
    show_default=True,
    help="Processes that decode images.",
)
@json_option
def command(
    profile_file: Path, data: Path, output: Path | None, workers: int, as_json: bool
) -> int:
    """Evaluate every exit on labelled images: top-1, top-5, the budgeted curve."""
    profile = Profile.from_yaml(profile_file)
    folder = output or profile.output.with_name(f"{profile.output.name}-eval")
    bundle, _ = open_source(profile)
    check_writable(folder / FINISHED)
    note_skipped(data)
    manifest, records = bundle.manifest, bundle.records()
    loop = open_loop(bundle)
    with closing(loop.backend), shown_progress() as progress:
        costs = costs_here(loop, bundle, note)
        result = evaluate(bundle, loop.backend, data, folder, workers=workers, progress=progress)
    curve = budgeted_curve(
        records,
        result.records,
        [stage.macs for stage in manifest.stages],
        costs.mean_ms,
        costs.energy_mj,
        manifest.recorded_thresholds,
    )
    values = _values(result, curve)
    write_text(folder / "evaluation.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    write_text(folder / "curve.csv", _csv(curve))
    if as_json:
        print_json(values)
    else:
        _print(result, curve, folder)
    return 1 if result.unreadable else 0


def _values(result: Evaluation, curve: list[CurvePoint]) -> dict[str, Any]:
    return {
        "images": len(result.records),
        "unreadable": result.unreadable,
        "images_per_second": result.images_per_second,
        "top1": result.records.accuracy.tolist(),
        "top5": result.top5.mean(axis=0).tolist(),
        "curve": [
            asdict(point) | {"thresholds": finite_thresholds(point.thresholds)} for point in curve
        ],
    }


def _print(result: Evaluation, curve: list[CurvePoint], output: Path) -> None:
    tops = zip(result.records.accuracy, result.top5.mean(axis=0), strict=True)
    show_table(
        f"{len(result.records)} images, {result.images_per_second:.1f} a second",
        ["exit", "top-1", "top-5"],
        ([str(k), *(percent(top, digits=2) for top in row)] for k, row in enumerate(tops, start=1)),
    )
    by_rule = [
        [p for p in curve if p.rule == rule] for rule in dict.fromkeys(q.rule for q in curve)
    ]
    show_table(
        "Budgeted: thresholds from the calibration records, judged on these images",
        ["GFLOPs", "ms", "mJ", "top-1", "rule"],
        (
            [
                f"{point.gflops:.4g}",
                f"{point.latency_ms:.3f}",
                "unavailable" if point.energy_mj is None else f"{point.energy_mj:.3f}",
                percent(point.accuracy, digits=2),
                point.rule,
            ]
            for points in by_rule
            for point in points[:: max(1, len(points) // CURVE_LINES)]
        ),
    )
    if result.unreadable:
        show(f"{len(result.unreadable)} images could not be read: {result.unreadable[0]}")
    show(f"All points: {output / 'curve.csv'}, {output / 'evaluation.json'}")


def _csv(curve: Sequence[CurvePoint]) -> str:
    """The curve as comma-separated values with a header line."""
    text = io.StringIO()
    writer = csv.writer(text)
    numbered = range(1, len(curve[0].exit_fraction) + 1)
    writer.writerow(
        ["rule", "point", "gflops", "latency_ms", "energy_mj", "accuracy"]
        + [f"exit_{k}" for k in numbered]
        + [f"threshold_{k}" for k in numbered]
    )
    for p in curve:
        means = (p.gflops, p.latency_ms, p.energy_mj, p.accuracy)
        writer.writerow([p.rule, p.point, *means, *p.exit_fraction, *p.thresholds])
    return text.getvalue()
