"""``dvt-edge inspect``: tables of what bundles and checkpoints hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.table import Table

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import load_costs
from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.cli.options import PATH, json_option
from dvt_edge.cli.output import (
    certificate_line,
    choice_table,
    engine_table,
    new_table,
    open_console,
    print_json,
)
from dvt_edge.errors import BudgetError, BuildError
from dvt_edge.machine.platform import Platform
from dvt_edge.policy import choose_thresholds
from dvt_edge.requirements import HOST_MODULES, need


@click.command("inspect")
@click.argument("path", type=PATH)
@click.option("--onnx-ops", is_flag=True, help="Count the operators of a bundle's graphs.")
@json_option
def command(path: Path, onnx_ops: bool, as_json: bool) -> None:
    """Show what is inside a bundle or a .safetensors checkpoint."""
    if path.is_file():
        need("'dvt-edge inspect' of a checkpoint", *HOST_MODULES, error=BuildError)
        inspect_checkpoint(path, as_json=as_json)
    else:
        inspect_bundle(path, as_json=as_json, onnx_ops=onnx_ops)


def inspect_bundle(folder: Path, *, as_json: bool, onnx_ops: bool = False) -> None:
    """Print a bundle's stages, layers, engines and certificate; ``onnx_ops`` counts operators."""
    bundle = Bundle(folder)
    manifest = bundle.manifest
    operators = _operators(bundle) if onnx_ops else None
    if as_json:
        values = manifest.model_dump(mode="json") | {
            "bytes_resident": manifest.bytes_resident,
            "certificate": _certificate(bundle),
            **({"onnx_ops": operators} if operators else {}),
        }
        print_json(values)
        return
    sizes = [bundle.stage_path(k).stat().st_size for k in range(len(manifest.stages))]
    console = open_console()
    console.print(_stage_table(f"{folder} for {manifest.device}", manifest.stages, sizes))
    console.print(_handed_on(manifest.stages))
    console.print(
        f"resident, images and reuse tensors at batch {max(manifest.engine.batch_sizes)}, kB: "
        f"{manifest.bytes_resident / 1000:,.0f}"
    )
    console.print(_layer_table(manifest.stages))
    if manifest.choices:
        console.print(choice_table(manifest.choices))
    if manifest.engines:
        console.print(engine_table(manifest.engines))
        console.print(_platform(manifest.engines.platform))
    elif manifest.portable:
        console.print("portable: engines are yet to be built, with 'dvt-edge build --phase device'")
    if operators:
        console.print(_operator_table(operators))
    console.print(
        f"{manifest.engine.backend}, {manifest.engine.precision}, budget: "
        f"{manifest.budget}; {len(manifest.class_names)} classes; built with "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    )
    console.print(f"certificate: {_certificate(bundle)}")


def _certificate(bundle: Bundle) -> str:
    """What is certified for unseen frames with the costs that are stored."""
    budget = bundle.manifest.budget
    if budget.confidence_level is None:
        return "none; the budget has no confidence_level"
    costs = load_costs(bundle)
    if costs is None:
        return "none yet; it needs what the exits cost, from 'dvt-edge profile'"
    try:
        chosen = choose_thresholds(
            bundle.records(), costs, budget, bundle.manifest.recorded_thresholds
        )
    except BudgetError as error:
        return f"none; {error}"
    assert chosen.certificate is not None
    return f"{certificate_line(chosen.certificate)} (costs of {costs.machine})"


def _operators(bundle: Bundle) -> list[dict[str, int]]:
    """Operators of the ONNX graph that each stage is, or was built from."""
    need("--onnx-ops", "onnx")
    import onnx

    from dvt_edge.converters.graphs.facts import operator_counts

    manifest = bundle.manifest
    files = [stage.file for stage in manifest.stages]
    if manifest.engines:
        files = [plan.graph for plan in manifest.engines.plans]
    return [operator_counts(onnx.load(bundle.folder / file)) for file in files]


def _operator_table(operators: Sequence[dict[str, int]]) -> Table:
    stages = [f"stage {k + 1}" for k in range(len(operators))]
    table = new_table("ONNX operators", "operator", *stages, left=["operator"])
    for name in sorted({name for counts in operators for name in counts}):
        table.add_row(name, *(str(counts.get(name, "")) for counts in operators))
    return table


def _layer_table(stages: Sequence[StageSpec]) -> Table:
    table = new_table(
        "Matrix products and convolutions by the precision they compute in",
        *("layers", *(f"stage {k + 1}" for k in range(len(stages)))),
        left=["layers"],
    )
    for kind in dict.fromkeys(kind for stage in stages for kind in stage.layers):
        cells = [
            ", ".join(f"{n} {precision}" for precision, n in stage.layers.get(kind, {}).items())
            for stage in stages
        ]
        table.add_row(kind, *cells)
    if any(stage.float_layers for stage in stages):
        table.add_row("left in float", *("\n".join(s.float_layers) or "none" for s in stages))
    return table


def _platform(platform: Platform) -> str:
    parts = {
        "GPU": platform.device,
        "CUDA": platform.cuda,
        "L4T": platform.l4t,
        "power mode": platform.power_mode,
    }
    known = ", ".join(f"{name} {value}" for name, value in parts.items() if value)
    return f"engines built with {platform.backend} {platform.version}" + (known and f" on {known}")


def inspect_checkpoint(path: Path, *, as_json: bool) -> None:
    """Print a checkpoint's stages as their FP32 graphs would be, counted on those graphs."""
    from dvt_edge.converters.graphs.facts import stage_spec
    from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
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
        print_json(values)
        return
    console = open_console()
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
    columns = ["stage", "inputs", "outputs", "parameters", "MMACs", *(["kB"] if sizes else [])]
    table = new_table(title, *columns, left=["inputs", "outputs"])
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
