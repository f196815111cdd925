"""``dvt-edge import``: from others' checkpoints to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dvt_edge.errors import ConfigError
from dvt_edge.files import imagenet
from dvt_edge.models.architectures import adapted, architecture
from dvt_edge.models.foreign import import_backbone, import_cascade
from dvt_edge.models.official import FIGURES


def import_and_save(
    file: Path | None,
    stage_from: Path | None,
    name: str | None,
    sizes: tuple[int | None, int | None],
    output: Path,
) -> dict[str, Any]:
    """Import ``file``, or start a cascade of architecture ``name`` from ``stage_from`` with the
    given classes and image size; returns what was done, with ``lines`` for people."""
    if file is not None:
        result = import_cascade(file, name)
    elif stage_from is not None and name is not None:
        config = adapted(architecture(name), *sizes)
        result = import_backbone(stage_from, config, name)
    else:
        raise ConfigError("give a checkpoint, or a backbone and an architecture")
    config = result.cascade.config
    if config.classes == imagenet.CLASSES and config.class_names is None:
        names = {"class_names": imagenet.labels()}  # None where timm is not installed
        result.cascade.config = config.model_copy(update=names)
    result.cascade.save(output, metadata=result.metadata)
    config, found = result.cascade.config, result.metadata["architecture"]
    parameters = sum(p.numel() for p in result.cascade.parameters())
    kept = [key for key in FIGURES if key in result.metadata]
    lines = [
        f"{found or 'a cascade of its own sizes'}: {len(config.stages)} stages, grids "
        f"{', '.join(str(s.grid) for s in config.stages)}, {config.classes} classes, "
        f"{config.image_size} px, {parameters:,} parameters",
        *([f"kept as metadata: {', '.join(kept)}"] if kept else []),
        *([f"not used: {', '.join(result.ignored)}"] if result.ignored else []),
        f"wrote {output}",
    ]
    return {
        "output": str(output),
        "architecture": found,
        "config": config.model_dump(mode="json"),
        "parameters": parameters,
        "metadata": kept,
        "ignored": list(result.ignored),
        "lines": lines,
    }
