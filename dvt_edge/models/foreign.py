"""Files that others wrote: state dicts read without running code, and what becomes of them."""

from __future__ import annotations

import hashlib
import itertools
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from dvt_edge.errors import CheckpointError
from dvt_edge.files.one_line import one_line
from dvt_edge.models.backbone import start_from_backbone
from dvt_edge.models.cascade import Cascade, tensor_shapes
from dvt_edge.models.checkpoint import refuse_odd_names
from dvt_edge.models.config import CascadeConfig
from dvt_edge.models.official import FIGURES, is_official, recognise, without_prefix

_NEEDED = re.compile(
    r"GLOBAL ([\w.]{1,200}) (?:was not an allowed|whose module)"
    r"|``([\w.]{1,200})``.* must be imported"
)
"""What a pickle wants to run, in the messages of ``torch.load``."""
_MOST_FIGURES = 100_000
"""Numbers in the figures of a checkpoint; a pickle can repeat few bytes without end."""
_STATE_KEYS = ("model_state_dict", "state_dict", "model", "model_ema", "net")


class ForeignCheckpoint(NamedTuple):
    """A state dict and what lay beside it."""

    state: dict[str, Tensor]
    """Names as in the file, without ``module.``."""
    metadata: dict[str, Any]
    """``source``, ``sha256`` and the release's figures
    (:data:`~dvt_edge.models.official.FIGURES`) as numbers and lists."""
    ignored: tuple[str, ...]
    """Other entries of the file."""


class Imported(NamedTuple):
    """An imported cascade."""

    cascade: Cascade
    metadata: dict[str, Any]
    """For :meth:`Cascade.save`: the file's and ``architecture``."""
    ignored: tuple[str, ...]
    """Entries of the file that were not used."""


def import_cascade(path: Path, name: str | None = None) -> Imported:
    """Read a cascade that the authors' code wrote, or was fine-tuned from theirs.

    ``name`` is an architecture of the registry; without it the tensors' names and shapes decide.

    Raises :class:`~dvt_edge.errors.CheckpointError` for a file that cannot be read without running
    code and for tensors that do not fit, each by name; :class:`~dvt_edge.errors.ConfigError` for an
    unknown ``name``.
    """
    file = read_foreign(path)
    try:
        found = recognise(file.state, name, tensor_shapes)
        cascade = Cascade.from_tensors(found.config, found.tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return Imported(cascade, file.metadata | {"architecture": found.architecture}, file.ignored)


def import_backbone(path: Path, config: CascadeConfig, name: str | None = None) -> Imported:
    """A new cascade of ``config`` all of whose stages start from one public ViT or DeiT.

    Raises as :func:`import_cascade`.
    """
    file = read_foreign(path)
    if is_official(file.state):
        raise CheckpointError(
            f"{path}: this is a whole cascade, not a single backbone; import it without "
            "--stage-from"
        )
    cascade = Cascade(config).eval()
    try:
        start_from_backbone(cascade, file.state)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    metadata = file.metadata | {"architecture": name, "started_from": path.name}
    return Imported(cascade, metadata, file.ignored)


def read_foreign(path: Path) -> ForeignCheckpoint:
    """Read a ``.pth``, ``.pth.tar`` or ``.safetensors`` file without running any code in it.

    Raises :class:`~dvt_edge.errors.CheckpointError` for a missing or damaged file, one without
    tensors, and a pickle that needs more than tensors and numbers; the message says what it needs.
    """
    try:
        with path.open("rb") as file:
            start = file.read(10)
    except OSError as error:
        raise CheckpointError(f"{path}: no readable checkpoint ({error.strerror})") from None
    content: Any
    if start[8:9] == b"{" and not start.startswith((b"\x80", b"PK")):
        try:
            content = safetensors.torch.load_file(path)
        except (SafetensorError, OSError):
            raise CheckpointError(f"{path}: damaged; copy it again") from None
    else:
        content = _load_pickle(path)
    return _taken_apart(path, content)


def _load_pickle(path: Path) -> Any:
    """The file's content, built from tensors, NumPy arrays, numbers and containers only."""
    with torch.serialization.safe_globals(_numpy_globals()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of protocols and storages, for programmers
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # of a damaged pickle, whatever its bytes stand for
            needed = _NEEDED.search(str(error))
            if needed is None or not isinstance(error, pickle.UnpicklingError):
                raise CheckpointError(
                    f"{path}: damaged, or no checkpoint; copy it again, or give a state dict that "
                    "torch.save() wrote"
                ) from None
            raise CheckpointError(
                f"{path}: refused, because the pickle wants to run {needed[1] or needed[2]}; only "
                "tensors, arrays, numbers and containers are read. Where you trust the file, save "
                "its state dict alone: torch.save(checkpoint['model'], 'weights.pth')"
            ) from None


def _numpy_globals() -> list[Any]:
    """What a pickle of NumPy arrays and scalars names, under NumPy 1's and 2's module names."""
    functions: dict[str, Any] = {
        "_reconstruct": np.zeros(1).__reduce__()[0],
        "scalar": np.float64(0).__reduce__()[0],
    }
    aliases = [
        (function, f"{module}.multiarray.{name}")
        for name, function in functions.items()
        for module in ("numpy.core", "numpy._core")
    ]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    return [*aliases, np.ndarray, np.dtype, *kinds]


def _taken_apart(path: Path, content: Any) -> ForeignCheckpoint:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    inside = next((k for k in _STATE_KEYS if isinstance(content.get(k), Mapping)), None)
    state = content if inside is None else content[inside]
    tensors = {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if not tensors:
        raise CheckpointError(
            f"{path}: no tensors; expected a state dict, alone or under one of "
            f"{', '.join(_STATE_KEYS)}"
        )
    refuse_odd_names(path, tensors)
    around = {} if inside is None else {k: v for k, v in content.items() if k != inside}
    metadata = {"source": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    for key in FIGURES:
        if key in around:
            metadata[key] = _plain(path, key, around[key], itertools.count())
    others = [k for k in around if k not in FIGURES] + [k for k in state if k not in tensors]
    ignored = [one_line(k) if isinstance(k, str) else type(k).__name__ for k in others]
    return ForeignCheckpoint(without_prefix(tensors), metadata, tuple(ignored))


def _plain(path: Path, key: str, value: Any, taken: Iterator[int], depth: int = 0) -> Any:
    """``value`` as numbers and nested lists; ``taken`` counts them."""
    if isinstance(value, Tensor | np.ndarray | np.generic):
        size = value.numel() if isinstance(value, Tensor) else value.size
        value = value.tolist() if size <= _MOST_FIGURES else value
    if next(taken) >= _MOST_FIGURES or depth > 16:
        raise CheckpointError(
            f"{path}: '{key}' holds too many numbers, or lists in lists; save the state dict alone"
        )
    if isinstance(value, list | tuple):
        return [_plain(path, key, item, taken, depth + 1) for item in value]
    if isinstance(value, Mapping):
        plain = {k: v for k, v in value.items() if isinstance(k, str | int | float)}
        return {str(k): _plain(path, key, v, taken, depth + 1) for k, v in plain.items()}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):  # the last threshold is minus infinity, which JSON does not know
        return value if np.isfinite(value) else str(value)
    raise CheckpointError(f"{path}: '{key}' holds a {type(value).__name__}, expected numbers")
