"""``dvt-edge inspect``: tables of what bundles and checkpoints hold."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from dvt_edge.bundle import Bundle, StageSpec


def inspect_bundle(folder: Path, *, as_json: bool) -> None:
    """Print a bundle's stages and settings."""
    bundle = Bundle(folder)
    manifest = bundle.manifest
    if as_json:
        click.echo(json.dumps(manifest.model_dump(mode="json"), allow_nan=False))
        return
    sizes = [bundle.stage_path(k).stat().st_size for k in range(len(manifest.stages))]
    console = Console(markup=False)
    console.print(_stage_table(f"{folder} for {manifest.device}", manifest.stages, sizes))
    console.print(_handed_on(manifest.stages))
    console.print(
        f"{manifest.engine.backend}, {manifest.engine.precision}, budget: "
        f"{manifest.budget}; {len(manifest.class_names)} classes; built with "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    )


def inspect_checkpoint(path: Path, *, as_json: bool) -> None:
    """Print a checkpoint's stages as their FP32 graphs would be, counted on those graphs."""
    from dvt_edge.converters.graph_facts import stage_spec
    from dvt_edge.converters.stage_graph import stage_graph_from_cascade
    from dvt_edge.models.cascade import Cascade
    from dvt_edge.models.checkpoint import read_metadata

    metadata = read_metadata(path)
    cascade = Cascade.load(path)
    config = cascade.config
    specs = [  # the model's parameters, not the graph's with its folded products and constants
        stage_spec(stage_graph_from_cascade(cascade, i), f"stage{i + 1}").model_copy(
            update={"parameters": sum(p.numel() for p in stage.parameters())}
        )
        for i, stage in enumerate(cascade.stages)
    ]
    if as_json:
        values = {
            "config": config.model_dump(mode="json"),
            "stages": [
                spec.model_dump(mode="json") | {"handed_on_bytes": spec.handed_on_bytes}
                for spec in specs
            ],
            "metadata": metadata,
        }
        click.echo(json.dumps(values, allow_nan=False))
        return
    console = Console(markup=False)
    console.print(_stage_table(str(path), specs))
    console.print(_handed_on(specs))
    console.print(
        f"{metadata.get('architecture') or 'cascade'}, tokenizer {config.tokenizer}, "
        f"{config.channels}x{config.image_size}x{config.image_size} px, {config.classes} classes"
    )
    if metadata:
        console.print(f"metadata: {', '.join(metadata)}")


def _handed_on(stages: Sequence[StageSpec]) -> str:
    sizes = ", ".join(f"{stage.handed_on_bytes / 1000:,.0f}" for stage in stages[:-1])
    return f"handed on per image, kB: {sizes or 'nothing'}"


def _stage_table(title: str, stages: Sequence[StageSpec], sizes: Sequence[int] = ()) -> Table:
    table = Table(title=title)
    for column in ("stage", "inputs", "outputs", "parameters", "MMACs"):
        table.add_column(column, justify="left" if column.endswith("puts") else "right")
    if sizes:
        table.add_column("kB", justify="right")
    for k, stage in enumerate(stages):
        inputs, outputs = (
            "\n".join(f"{t.name} {list(t.shape)}" for t in tensors)
            for tensors in (stage.inputs, stage.outputs)
        )
        table.add_row(
            str(k + 1),
            inputs,
            outputs,
            f"{stage.parameters:,}",
            f"{stage.macs / 1e6:,.1f}",
            *([f"{sizes[k] / 1000:,.0f}"] if sizes else []),
        )
    return table
