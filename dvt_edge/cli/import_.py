"""``dvt-edge import``: from others' checkpoints to ours."""

from __future__ import annotations

from pathlib import Path

import click

from dvt_edge.cli.options import FILE, json_option
from dvt_edge.cli.output import print_json
from dvt_edge.errors import BuildError
from dvt_edge.files import imagenet
from dvt_edge.requirements import HOST_MODULES, need


@click.command("import")
@click.argument("file", type=FILE, required=False)
@click.option("--architecture", "name", help="Its name [default: recognised from the tensors].")
@click.option("-o", "--output", type=FILE, required=True, help="The .safetensors file to write.")
@click.option("--stage-from", type=FILE, help="A ViT or DeiT to start a new cascade from.")
@click.option("--classes", type=click.IntRange(2), help="Classes of the new cascade.")
@click.option(
    "--image-size", type=click.IntRange(4), help="Image side length of the new cascade, in pixels."
)
@json_option
def command(
    file: Path | None,
    name: str | None,
    output: Path,
    stage_from: Path | None,
    classes: int | None,
    image_size: int | None,
    as_json: bool,
) -> None:
    """Import a checkpoint of the authors' release, or start a cascade from one backbone.

    FILE is the authors' .pth.tar, a state dict, or a model fine-tuned from either. With
    --stage-from there is no FILE, and --architecture names what the new cascade is.
    """
    if output.suffix != ".safetensors":
        raise click.UsageError(f"the output is a .safetensors file, found '{output.name}'")
    if (file is None) == (stage_from is None):
        raise click.UsageError("give either FILE or --stage-from FILE")
    if stage_from is None and (classes or image_size):
        raise click.UsageError("--classes and --image-size belong to --stage-from")
    need("'dvt-edge import'", *HOST_MODULES, error=BuildError)
    from dvt_edge.models.architectures import adapted, architecture
    from dvt_edge.models.foreign import import_backbone, import_cascade
    from dvt_edge.models.official import FIGURES

    if stage_from is None:
        assert file is not None
        result = import_cascade(file, name)
    elif name is None:
        raise click.UsageError("--stage-from needs --architecture")
    else:
        wanted = adapted(architecture(name), classes, image_size)
        result = import_backbone(stage_from, wanted, name)
    config = result.cascade.config
    if config.classes == imagenet.CLASSES and config.class_names is None:
        names = {"class_names": imagenet.labels()}  # None where timm is not installed
        result.cascade.config = config = config.model_copy(update=names)
    result.cascade.save(output, metadata=result.metadata)
    found = result.metadata["architecture"]
    parameters = sum(p.numel() for p in result.cascade.parameters())
    kept = [key for key in FIGURES if key in result.metadata]
    if as_json:
        print_json(
            {
                "output": str(output),
                "architecture": found,
                "config": config.model_dump(mode="json"),
                "parameters": parameters,
                "metadata": kept,
                "ignored": list(result.ignored),
            }
        )
        return
    click.echo(
        f"{found or 'a cascade of its own sizes'}: {len(config.stages)} stages, grids "
        f"{', '.join(str(s.grid) for s in config.stages)}, {config.classes} classes, "
        f"{config.image_size} px, {parameters:,} parameters"
    )
    if kept:
        click.echo(f"kept as metadata: {', '.join(kept)}")
    if result.ignored:
        click.echo(f"not used: {', '.join(result.ignored)}")
    click.echo(f"wrote {output}")
