"""``dvt-edge build``: progress, and tables of what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.bundle import Manifest
from dvt_edge.cli.progress import step_progress
from dvt_edge.converters.build import Phase, build
from dvt_edge.engines import Engines, PrecisionFigures
from dvt_edge.profile import Profile


def build_with_progress(profile_file: Path, phase: Phase, *, force: bool, as_json: bool) -> None:
    """Build what the profile describes and print what came of it."""
    profile = Profile.from_yaml(profile_file)
    with step_progress(quiet=as_json) as progress:
        result = build(profile, progress, phase=phase, force=force)
    manifest = result.bundle.manifest
    if as_json:
        values = {
            "bundle": str(result.bundle.folder),
            "rebuilt": result.rebuilt,
            "unfinished": result.unfinished,
            **manifest.quantization.model_dump(mode="json"),
            "float_layers": [list(stage.float_layers) for stage in manifest.stages],
            "choices": [choice.model_dump(mode="json") for choice in manifest.choices],
            "engines": manifest.engines and manifest.engines.model_dump(mode="json"),
        }
        click.echo(json.dumps(values, allow_nan=False))
        return
    console = Console(markup=False)
    if result.rebuilt:
        _show_quantization(console, manifest)
        if manifest.choices:
            console.print(choice_table(manifest.choices))
        if manifest.engines:
            console.print(engine_table(manifest, manifest.engines))
    else:
        console.print(f"{result.bundle.folder}: unchanged inputs, nothing rebuilt")
    console.print(f"Bundle: {result.bundle.folder}")
    if result.unfinished:
        what = "Portable, no engines yet" if manifest.portable else "Engines of other settings"
        console.print(f"{what}: {result.unfinished}", soft_wrap=True)


def _show_quantization(console: Console, manifest: Manifest) -> None:
    figures = manifest.quantization
    table = Table(title=f"{manifest.device}: top-1 on the calibration images")
    for column in ("exit", "FP32 graph", f"{figures.precision} stage", "MMACs", "file"):
        table.add_column(column, justify="right")
    for k, (exit_, stage) in enumerate(zip(figures.exits, manifest.stages, strict=True)):
        table.add_row(
            str(k + 1),
            f"{100 * exit_.accuracy_before:.2f} %",
            f"{100 * exit_.accuracy_after:.2f} %",
            f"{stage.macs / 1e6:.1f}",
            stage.file,
        )
    console.print(table)
    console.print(
        f"{100 * figures.changed_decisions:.2f} % of the images leave at another exit than before "
        "quantization."
    )
    for k, stage in enumerate(manifest.stages):
        if stage.float_layers:
            layers = ", ".join(stage.float_layers)
            console.print(f"Stage {k + 1} keeps its most sensitive layers in float: {layers}")


def choice_table(choices: tuple[PrecisionFigures, ...]) -> Table:
    """Every precision that was tried."""
    table = Table(title="Precision per stage, measured here")
    for column in ("stage", "precision", "median ms", "same class", "same decision", ""):
        table.add_column(column, justify="right" if column else "left")
    for row in choices:
        table.add_row(
            str(row.stage),
            row.precision,
            *(
                "-" if value is None else text.format(value)
                for value, text in (
                    (row.latency_ms, "{:.3f}"),
                    (row.same_class, "{:.1%}"),
                    (row.same_exit, "{:.1%}"),
                )
            ),
            f"{'kept: ' if row.chosen else ''}{row.remark}",
        )
    return table


def engine_table(manifest: Manifest, engines: Engines) -> Table:
    """How the engines were built."""
    platform = engines.platform
    targets = ", ".join(platform.compute_capabilities)
    table = Table(
        title=f"{platform.backend} {platform.version} for compute capability {targets}",
        caption=f"{', '.join(engines.flags)}; workspace {engines.workspace_mb} MiB; "
        f"{platform.device or 'built ahead of time, without a GPU'}",
    )
    for column in ("stage", "precision", "built in", "kernels at batch 1", "warnings"):
        table.add_column(column, justify="left" if column.startswith("kernels") else "right")
    for k, (stage, plan) in enumerate(zip(manifest.stages, engines.plans, strict=True)):
        kernels = ", ".join(f"{n} {kind}" for kind, n in (plan.planned or {}).items())
        table.add_row(
            f"{k + 1}: {stage.file}",
            plan.precision,
            f"{plan.seconds:.1f} s{' (cached)' if plan.cached else ''}",
            kernels or "not listed",
            str(len(plan.warnings)),
        )
    return table
