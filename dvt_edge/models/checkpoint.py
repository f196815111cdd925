"""Cascades as safetensors files: weights, with the configuration in the header."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from dvt_edge.errors import CheckpointError
from dvt_edge.files.replacing import replaced_file
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import CascadeConfig

FORMAT = "dvt-edge/1"
_METADATA = "metadata"
_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")  # torch.save writes a pickle, or a zip of one


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` that takes its place when the block succeeds.

    Raises :class:`~dvt_edge.errors.CheckpointError` if the folder cannot be written.
    """
    with contextlib.ExitStack() as stack:
        try:
            temporary = stack.enter_context(replaced_file(path))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be written ({error})") from None
        yield temporary


def save_cascade(
    cascade: Cascade, path: Path, *, half: bool, metadata: Mapping[str, Any] | None = None
) -> None:
    """Write ``cascade`` to ``path``; see :meth:`Cascade.save`."""
    tensors = {
        name: (tensor.half() if half and tensor.is_floating_point() else tensor).cpu().contiguous()
        for name, tensor in cascade.state_dict().items()
    }
    header = {"format": FORMAT, "config": cascade.config.model_dump_json()}
    if metadata:
        header[_METADATA] = json.dumps(metadata, allow_nan=False)
    with replaced(path) as temporary:
        safetensors.torch.save_file(tensors, temporary, metadata=header)


def read_config(path: Path) -> CascadeConfig:
    """The configuration in a checkpoint's header; raises as :meth:`Cascade.load`."""
    try:
        return CascadeConfig.model_validate_json(_read_header(path).get("config", ""))
    except ValidationError as error:
        raise CheckpointError(f"{path}: unusable configuration in the header: {error}") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """What :meth:`Cascade.save` was given as ``metadata``, empty if nothing.

    In an imported checkpoint: ``source``, ``sha256``, ``architecture`` and, from the authors' file,
    ``flops`` (GFLOPs when leaving at each exit), ``anytime_classification`` (top-1 of each exit,
    %), ``dynamic_threshold`` ([points, exits]; infinities as the strings ``inf`` and ``-inf``) and
    ``budgeted_batch_classification`` ([GFLOPs of each point, top-1 of each point]).
    Raises as :meth:`Cascade.load`.
    """
    try:
        values = json.loads(_read_header(path).get(_METADATA, "{}"))
    except json.JSONDecodeError as error:
        raise CheckpointError(f"{path}: unusable metadata in the header: {error}") from None
    return dict(values)


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
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: truncated or not a safetensors file ({error}); copy or train it again"
        ) from None
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a dvt-edge checkpoint (format {header.get('format')!r}, expected "
            f"{FORMAT!r}); write it with Cascade.save()"
        )
    return dict(header)


def load_cascade(path: Path) -> Cascade:
    """Read a cascade; see :meth:`Cascade.load`."""
    config = read_config(path)
    try:
        tensors = safetensors.torch.load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: truncated or damaged ({error}); copy it again") from None
    with torch.device("meta"):
        expected = Cascade(config).state_dict()
    wrong = [name for name in expected if name not in tensors]
    wrong += [name for name in tensors if name not in expected]
    wrong += [n for n, t in tensors.items() if n in expected and t.shape != expected[n].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: {len(wrong)} tensors are missing, unexpected or misshapen: "
            f"{', '.join(sorted(wrong)[:8])}"
        )
    return cascade_from_tensors(config, tensors)


def cascade_from_tensors(config: CascadeConfig, tensors: Mapping[str, torch.Tensor]) -> Cascade:
    """A cascade in float32 and eval mode that takes over ``tensors``, which fit ``config``."""
    with torch.device("meta"):  # no draws for weights that are replaced at once
        cascade = Cascade(config)
    own = {k: t.float() if t.is_floating_point() else t for k, t in tensors.items()}
    cascade.load_state_dict(own, assign=True)
    return cascade.eval()
