"""``dvt-edge inspect``: tables of what bundles and checkpoints hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import load_costs
from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.cli.options import PATH, json_option
from dvt_edge.cli.output import (
    certificate_line,
    numbered,
    print_json,
    show,
    show_choices,
    show_engines,
    show_table,
)
from dvt_edge.errors import BudgetError, BuildError
from dvt_edge.policy import choose_thresholds
from dvt_edge.requirements import HOST_MODULES, need


@click.command("inspect")
@click.argument("path", type=PATH)
@click.option("--onnx-ops", is_flag=True, help="Count the operators of a bundle's graphs.")
@json_option
def command(path: Path, onnx_ops: bool, as_json: bool) -> None:
    """Show what is inside a bundle or a .safetensors checkpoint."""
    if path.is_file():
        _inspect_checkpoint(path, as_json)
    else:
        _inspect_bundle(Bundle(path), onnx_ops, as_json)


def _inspect_bundle(bundle: Bundle, onnx_ops: bool, as_json: bool) -> None:
    """Print a bundle's stages, layers, engines and certificate; ``onnx_ops`` counts operators."""
    manifest = bundle.manifest
    stages = manifest.stages
    operators = _operators(bundle) if onnx_ops else None
    if as_json:
        values = manifest.model_dump(mode="json") | {
            "bytes_resident": manifest.bytes_resident,
            "certificate": _certificate(bundle),
            **({"onnx_ops": operators} if operators else {}),
        }
        print_json(values)
        return
    sizes = [bundle.stage_path(k).stat().st_size for k in range(len(stages))]
    _show_stages(f"{bundle.folder} for {manifest.device}", stages, sizes)
    show(
        f"resident, images and reuse tensors at batch {max(manifest.engine.batch_sizes)}, kB: "
        f"{manifest.bytes_resident / 1000:,.0f}"
    )
    layers = {
        kind: [
            ", ".join(f"{n} {precision}" for precision, n in stage.layers.get(kind, {}).items())
            for stage in stages
        ]
        for kind in dict.fromkeys(kind for stage in stages for kind in stage.layers)
    }
    if any(stage.float_layers for stage in stages):
        layers["left in float"] = ["\n".join(stage.float_layers) or "none" for stage in stages]
    show_table(
        "Matrix products and convolutions by the precision they compute in",
        ["layers", *numbered("stage", len(stages))],
        ([kind, *cells] for kind, cells in layers.items()),
        left=["layers"],
    )
    show_choices(manifest.choices)
    if manifest.native:
        show("its stages need the native operators; where those are missing, stand-ins run")
    if manifest.engines:
        show_engines(manifest.engines)
    elif manifest.portable:
        show("portable: engines are yet to be built, with 'dvt-edge build --phase device'")
    if operators:
        names = sorted({name for counts in operators for name in counts})
        show_table(
            "ONNX operators",
            ["operator", *numbered("stage", len(operators))],
            ([name, *(str(counts.get(name, "")) for counts in operators)] for name in names),
            left=["operator"],
        )
    show(
        f"{manifest.engine.backend}, {manifest.engine.precision}, budget: "
        f"{manifest.budget}; {len(manifest.class_names)} classes; built with "
        + ", ".join(f"{name} {version}" for name, version in manifest.versions.items())
    )
    show(f"certificate: {_certificate(bundle)}")


def _certificate(bundle: Bundle) -> str:
    """What is certified for unseen frames with the costs that are stored."""
    manifest = bundle.manifest
    if manifest.budget.confidence_level is None:
        return "none; the budget has no confidence_level"
    costs = load_costs(bundle)
    if costs is None:
        return "none yet; it needs what the exits cost, from 'dvt-edge profile'"
    try:
        solution = choose_thresholds(
            bundle.records(),
            costs,
            manifest.budget,
            manifest.recorded_thresholds,
            bundle.unlabelled_records(),
        )
    except BudgetError as error:
        return f"none; {error}"
    assert solution.certificate is not None
    return f"{certificate_line(solution.certificate, manifest.budget)} (costs of {costs.machine})"


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


def _inspect_checkpoint(path: Path, as_json: bool) -> None:
    """Print a checkpoint's stages as their FP32 graphs would be, counted on those graphs."""
    need("'dvt-edge inspect' of a checkpoint", *HOST_MODULES, error=BuildError)
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
    _show_stages(str(path), specs)
    show(
        f"{metadata.get('architecture') or 'cascade'}, tokenizer {config.tokenizer}, "
        f"{config.channels}x{config.image_size}x{config.image_size} px, {config.classes} classes"
    )
    if metadata:
        show(f"metadata: {', '.join(metadata)}")


def _show_stages(title: str, stages: Sequence[StageSpec], sizes: Sequence[int] = ()) -> None:
    """Tensors and cost of every stage; ``sizes`` are those of the files, in bytes."""
    rows = [
        [
            str(k),
            *(
                "\n".join(f"{t.name} {list(t.shape)}" for t in tensors)
                for tensors in (stage.inputs, stage.outputs)
            ),
            f"{stage.parameters:,}",
            f"{stage.macs / 1e6:,.1f}",
        ]
        for k, stage in enumerate(stages, start=1)
    ]
    for row, size in zip(rows, sizes, strict=False):
        row.append(f"{size / 1000:,.0f}")
    columns = ["stage", "inputs", "outputs", "parameters", "MMACs", *(["kB"] if sizes else [])]
    show_table(title, columns, rows, left=["inputs", "outputs"])
    handed_on = ", ".join(f"{stage.handed_on_bytes / 1000:,.0f}" for stage in stages[:-1])
    show(f"handed on per image, kB: {handed_on or 'nothing'}")
