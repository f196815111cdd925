"""``dvt-edge build``."""

from __future__ import annotations

from pathlib import Path

import click

from dvt_edge.bundle.manifest import SIGNATURE, Manifest
from dvt_edge.cli.options import json_option, profile_option
from dvt_edge.cli.output import (
    note_skipped,
    percent,
    print_json,
    show,
    show_choices,
    show_engines,
    show_table,
)
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
    help="host: from the checkpoint to a portable bundle; device: from there to engines.",
)
@click.option("--force", is_flag=True, help="Build everything, even if nothing has changed.")
@json_option
def command(profile_file: Path, phase: Phase, force: bool, as_json: bool) -> None:
    """Build the bundle: one quantized graph or engine per stage, records, manifest."""
    profile = Profile.from_yaml(profile_file)
    if phase != "device":
        note_skipped(profile.calibration.data, profile.calibration.unlabelled)
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
    if result.rebuilt:
        _show_quantization(manifest)
        show_choices(manifest.choices)
        if manifest.engines:
            show_engines(manifest.engines)
            stages: dict[str, list[str]] = {}  # that the builder gave each warning for
            for k, plan in enumerate(manifest.engines.plans, start=1):
                for warning in plan.warnings:
                    stages.setdefault(warning, []).append(str(k))
            for warning, where in stages.items():
                show(f"builder warning, stage {', '.join(where)}: {warning}")
    else:
        show(f"{result.bundle.folder}: unchanged inputs, nothing rebuilt")
    show(f"Bundle: {result.bundle.folder}")
    if profile.trusted_keys and not (result.bundle.folder / SIGNATURE).exists():
        show(
            "Not signed yet, and this profile opens only what its bundle.trusted_keys signed: "
            f"'dvt-edge sign {result.bundle.folder} --key FILE'",
            soft_wrap=True,
        )
    if result.unfinished:
        what = "Portable." if manifest.portable else "Engines of other settings."
        show(
            f"{what} Copy it and the profile to the device and finish it there with 'dvt-edge "
            f"build --phase device --profile {profile_file}' (not here: {result.unfinished})",
            soft_wrap=True,
        )


def _show_quantization(manifest: Manifest) -> None:
    figures = manifest.quantization
    show_table(
        f"{manifest.device}: top-1 on the calibration images",
        ["exit", "FP32 graph", f"{figures.precision} stage", "MMACs", "file"],
        (
            [
                str(k),
                percent(exit_.accuracy_before, digits=2),
                percent(exit_.accuracy_after, digits=2),
                f"{stage.macs / 1e6:.1f}",
                stage.file,
            ]
            for k, (exit_, stage) in enumerate(
                zip(figures.exits, manifest.stages, strict=True), start=1
            )
        ),
    )
    show(
        f"{percent(figures.changed_decisions, digits=2)} of the images leave at another exit than "
        "before quantization."
    )
    for k, stage in enumerate(manifest.stages, start=1):
        if stage.float_layers:
            layers = ", ".join(stage.float_layers)
            show(f"Stage {k} keeps its most sensitive layers in float: {layers}")
