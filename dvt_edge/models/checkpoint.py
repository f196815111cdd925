"""Cascades as safetensors files: weights, with the configuration in the header."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from dvt_edge.errors import CheckpointError
from dvt_edge.files.documents import first_problem
from dvt_edge.files.replacing import replaced_file
from dvt_edge.models.config import CascadeConfig

FORMAT = "dvt-edge/1"
_METADATA = "metadata"
_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # torch.save writes a pickle, or a zip of one


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block succeeds.

    Raises :class:`~dvt_edge.errors.CheckpointError` if the folder cannot be written or the disk is
    full.
    """
    try:
        with replaced_file(path) as temporary:
            yield temporary
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or "writing failed"
        raise CheckpointError(
            f"{path}: cannot be written ({reason}); free some space or choose another place"
        ) from None


def write_checkpoint(
    path: Path,
    config: CascadeConfig,
    tensors: Mapping[str, Tensor],
    *,
    half: bool = False,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write ``tensors``, with the rest in the header; see :meth:`Cascade.save`."""
    stored = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in tensors.items()
    }
    header = {"format": FORMAT, "config": config.model_dump_json()}
    if metadata:
        header[_METADATA] = json.dumps(metadata, allow_nan=False)
    with replaced(path) as temporary:
        safetensors.torch.save_file(stored, temporary, metadata=header)


def read_checkpoint(path: Path) -> tuple[CascadeConfig, dict[str, Tensor]]:
    """Configuration and tensors, which need not fit together; raises as :meth:`Cascade.load`."""
    config = read_config(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError):
        raise CheckpointError(f"{path}: truncated or damaged; copy it again") from None
    refuse_odd_names(path, tensors)
    return config, tensors


def refuse_odd_names(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise :class:`~dvt_edge.errors.CheckpointError` for names that no line of text can show."""
    if not all(name.isprintable() for name in tensors):
        raise CheckpointError(
            f"{path}: names of tensors hold control characters; save the state dict again"
        )


def read_config(path: Path) -> CascadeConfig:
    """The configuration in a checkpoint's header; raises as :meth:`Cascade.load`."""
    try:
        return CascadeConfig.model_validate_json(_read_header(path).get("config", ""))
    except ValidationError as error:
        raise CheckpointError(
            f"{path}: unusable configuration in the header ({first_problem(error)}); write it with "
            "Cascade.save()"
        ) from None


def read_metadata(path: Path) -> dict[str, Any]:
    """What :meth:`Cascade.save` was given as ``metadata``, empty if nothing.

    In an imported checkpoint: ``source``, ``sha256``, ``architecture`` and, from the authors' file,
    ``flops`` (GFLOPs when leaving at each exit), ``anytime_classification`` (top-1 of each exit,
    %), ``dynamic_threshold`` ([points, exits]; infinities as the strings ``inf`` and ``-inf``) and
    ``budgeted_batch_classification`` ([GFLOPs of each point, top-1 of each point]).
    Raises as :meth:`Cascade.load`.
    """
    try:
        return dict(json.loads(_read_header(path).get(_METADATA, "{}")))
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError(
            f"{path}: unusable metadata in the header; import or train it again"
        ) from None


def _read_header(path: Path) -> dict[str, str]:
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise CheckpointError(f"{path}: no readable checkpoint ({error.strerror})") from None
    if start.startswith(_PICKLE_STARTS):
        raise CheckpointError(
            f"{path}: this is a pickle, which can run code when loaded; dvt-edge reads safetensors "
            "written by 'dvt-edge train' or Cascade.save(); 'dvt-edge import' converts a state dict"
        )
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError):
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file; copy or train it again"
        ) from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a dvt-edge checkpoint (format {str(header.get('format'))[:40]!r}, "
            f"expected {FORMAT!r}); write it with Cascade.save()"
        )
    return dict(header)
