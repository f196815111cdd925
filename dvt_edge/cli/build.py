"""``dvt-edge build``."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console

from dvt_edge.bundle.engine_records import Engines
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.cli.options import json_option, profile_option
from dvt_edge.cli.output import choice_table, engine_table, new_table, open_console, print_json
from dvt_edge.cli.progress import shown_progress
from dvt_edge.converters.build import Phase, build
from dvt_edge.profile import Profile


@click.command("build")
@profile_option
@click.option(
    "--phase",
    type=click.Choice(["auto", "host", "device"]),
    default="auto",
    show_default=True,
    help="host: checkpoint to portable bundle; device: from there to engines.",
)
@click.option("--force", is_flag=True, help="Build everything, even if nothing changed.")
@json_option
def command(profile_file: Path, phase: Phase, force: bool, as_json: bool) -> None:
    """Build the bundle: one quantized graph or engine per stage, records, manifest."""
    profile = Profile.from_yaml(profile_file)
    with shown_progress() as progress:
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
        print_json(values)
        return
    console = open_console()
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
    table = new_table(
        f"{manifest.device}: top-1 on the calibration images",
        *("exit", "FP32 graph", f"{figures.precision} stage", "MMACs", "file"),
    )
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
