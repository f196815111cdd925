"""``dvt-edge eval``: every exit on a folder of labelled images, and the budgeted curve."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.cli.progress import rate_progress
from dvt_edge.evaluation.evaluate import Evaluation, evaluate
from dvt_edge.files.replacing import replaced_file
from dvt_edge.policy.curve import CurvePoint, as_csv, budgeted_curve, recorded_thresholds
from dvt_edge.runtime.backends.opening import open_backend
from dvt_edge.runtime.runtime import Runtime

CURVE_LINES = 8


def evaluate_folder(
    runtime: Runtime, data: Path, output: Path, *, workers: int, as_json: bool
) -> int:
    """Evaluate, print, write ``evaluation.json`` and ``curve.csv``; the exit code is 1 where
    images could not be read."""
    bundle = runtime.bundle
    backend = open_backend(bundle)
    try:
        with rate_progress(quiet=as_json) as progress:
            result = evaluate(bundle, backend, data, output, workers=workers, progress=progress)
    finally:
        backend.close()
    recorded = bundle.manifest.recorded_thresholds
    curve = budgeted_curve(
        runtime.records,
        result.records,
        [stage.macs for stage in bundle.manifest.stages],
        runtime.costs.mean_ms,
        runtime.costs.energy_mj,
        None if recorded is None else recorded_thresholds(recorded),
    )
    values = _values(result, curve)
    _write(output / "evaluation.json", json.dumps(values, indent=2, allow_nan=False) + "\n")
    _write(output / "curve.csv", as_csv(curve))
    if as_json:
        click.echo(json.dumps(values, allow_nan=False))
    else:
        _print(result, curve, output)
    return 1 if result.unreadable else 0


def _values(result: Evaluation, curve: list[CurvePoint]) -> dict[str, Any]:
    def finite(point: CurvePoint) -> dict[str, Any]:
        thresholds = [None if t == float("inf") else max(t, 0.0) for t in point.thresholds]
        return asdict(point) | {"thresholds": thresholds}

    return {
        "images": len(result.records),
        "unreadable": list(result.unreadable),
        "images_per_second": result.images_per_second,
        "top1": result.records.accuracy.tolist(),
        "top5": result.top5.mean(axis=0).tolist(),
        "curve": [finite(point) for point in curve],
    }


def _print(result: Evaluation, curve: list[CurvePoint], output: Path) -> None:
    console = Console(markup=False)
    table = Table(title=f"{len(result.records)} images, {result.images_per_second:.1f} a second")
    for column in ("exit", "top-1", "top-5"):
        table.add_column(column, justify="right")
    rows = zip(result.records.accuracy, result.top5.mean(axis=0), strict=True)
    for k, (top1, top5) in enumerate(rows, start=1):
        table.add_row(str(k), f"{100 * top1:.2f} %", f"{100 * top5:.2f} %")
    console.print(table)
    by_rule: dict[str, list[CurvePoint]] = {}
    for point in curve:
        by_rule.setdefault(point.rule, []).append(point)
    table = Table(title="Budgeted: thresholds from the calibration records, judged on these images")
    for column in ("GFLOPs", "ms", "mJ", "top-1", "rule"):
        table.add_column(column, justify="right")
    for rule, points in by_rule.items():
        for point in points[:: max(1, len(points) // CURVE_LINES)]:
            table.add_row(
                f"{point.gflops:.4g}",
                f"{point.latency_ms:.3f}",
                "unavailable" if point.energy_mj is None else f"{point.energy_mj:.3f}",
                f"{100 * point.accuracy:.2f} %",
                rule,
            )
    console.print(table)
    if result.unreadable:
        console.print(f"{len(result.unreadable)} images could not be read: {result.unreadable[0]}")
    console.print(f"All points: {output / 'curve.csv'}, {output / 'evaluation.json'}")


def _write(path: Path, text: str) -> None:
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
