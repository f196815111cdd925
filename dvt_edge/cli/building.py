"""``dvt-edge build``: progress, and tables of what came of it."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.bundle.engine_records import Engines
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.cli.progress import step_progress
from dvt_edge.cli.tables import choice_table, engine_table
from dvt_edge.converters.build import Phase, build
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
            console.print(engine_table(manifest.engines))
            _show_warnings(console, manifest.engines)
    else:
        console.print(f"{result.bundle.folder}: unchanged inputs, nothing rebuilt")
    console.print(f"Bundle: {result.bundle.folder}")
    if result.unfinished:
        what = "Portable." if manifest.portable else "Engines of other settings."
        console.print(
            f"{what} Copy it and the profile to the device and finish it there with 'dvt-edge "
            f"build --phase device --profile {profile_file}' (not here: {result.unfinished})",
            soft_wrap=True,
        )


def _show_warnings(console: Console, engines: Engines) -> None:
    """What the builder warned of, each text once."""
    stages: dict[str, list[str]] = {}
    for k, plan in enumerate(engines.plans):
        for warning in plan.warnings:
            stages.setdefault(warning, []).append(str(k + 1))
    for warning, where in stages.items():
        console.print(f"builder warning, stage {', '.join(where)}: {warning}")


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
