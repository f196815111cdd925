"""Checkpoints: exact round trips, and a clear refusal of everything that is none."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import numpy as np
import pytest
import safetensors.numpy
import safetensors.torch
import torch

from dvt_edge.errors import CheckpointError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.checkpoint import FORMAT, read_config, read_metadata, replaced
from tests.conftest import largest_file

Cascades = Callable[..., Cascade]


@pytest.fixture
def cascade(tiny_config: Callable[..., CascadeConfig], random_cascade: Cascades) -> Cascade:
    """A cascade with batch norm, so that there are buffers and an integer tensor too."""
    return random_cascade(tiny_config(tokenizer="conv", class_names=("a", "b", "c", "d", "e")))


@pytest.fixture
def saved(cascade: Cascade, tmp_path: Path) -> Path:
    """The cascade as a file."""
    path = tmp_path / "model.safetensors"
    cascade.save(path)
    return path


def _rewrite(path: Path, changes: dict[str, np.ndarray | None]) -> None:
    """Replace tensors of a checkpoint (None removes one), header kept."""
    with safetensors.safe_open(path, "np") as file:
        header = file.metadata()
    tensors: dict[str, np.ndarray | None] = {**safetensors.numpy.load_file(path), **changes}
    kept = {name: value for name, value in tensors.items() if value is not None}
    safetensors.numpy.save_file(kept, path, metadata=header)


def test_round_trip_is_exact(cascade: Cascade, saved: Path) -> None:
    loaded = Cascade.load(saved)
    assert loaded.config == cascade.config
    assert not loaded.training
    expected = cascade.state_dict()
    found = loaded.state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name
    assert read_config(saved) == cascade.config


def test_half_stores_float16_and_loads_as_float32(
    cascade: Cascade, saved: Path, tmp_path: Path
) -> None:
    path = tmp_path / "half.safetensors"
    cascade.save(path, half=True)
    assert path.stat().st_size < 0.75 * saved.stat().st_size
    found = Cascade.load(path).state_dict()
    for name, tensor in cascade.state_dict().items():
        assert found[name].dtype == tensor.dtype
        expected = tensor.half().float() if tensor.is_floating_point() else tensor
        assert torch.equal(found[name], expected), name


def test_saving_makes_the_folder_and_takes_strings(cascade: Cascade, tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "model.safetensors"
    cascade.save(str(path))
    Cascade.load(str(path))
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(path.parent) == [path.name]


def test_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.safetensors"
    with pytest.raises(CheckpointError, match="no readable checkpoint") as caught:
        Cascade.load(path)
    assert str(path) in str(caught.value)


def test_folder_instead_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        Cascade.load(tmp_path)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.5, 0.999])
def test_truncated_file(saved: Path, keep: float) -> None:
    data = saved.read_bytes()
    saved.write_bytes(data[: int(keep if keep > 1 or keep in (0, 1) else keep * len(data))])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        Cascade.load(saved)
    assert str(saved) in str(caught.value)


def test_text_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text("<html>404 not found</html>", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        Cascade.load(path)


@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_is_not_opened(cascade: Cascade, tmp_path: Path, zipped: bool) -> None:
    path = tmp_path / "model.pth"
    torch.save(cascade.state_dict(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match="pickle, which can run code"):
        Cascade.load(path)


@pytest.mark.parametrize("header", [None, {}, {"format": "pt"}, {"format": "dvt-edge/2"}])
def test_foreign_safetensors(tmp_path: Path, header: dict[str, str] | None) -> None:
    path = tmp_path / "other.safetensors"
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="not a dvt-edge checkpoint"):
        Cascade.load(path)


@pytest.mark.parametrize("config", [None, "", "{", "[]", '{"image_size": 16}'])
def test_unusable_configuration_in_the_header(tmp_path: Path, config: str | None) -> None:
    path = tmp_path / "model.safetensors"
    header = {"format": FORMAT} | ({} if config is None else {"config": config})
    safetensors.numpy.save_file({"weight": np.zeros(3, np.float32)}, path, metadata=header)
    with pytest.raises(CheckpointError, match="unusable configuration") as caught:
        Cascade.load(path)
    assert "\n" not in str(caught.value)
    assert "http" not in str(caught.value)


@pytest.mark.parametrize("metadata", ["{", "[1, 2]", "3", "null", "[" * 100_000])
def test_unusable_metadata_in_the_header(cascade: Cascade, tmp_path: Path, metadata: str) -> None:
    path = tmp_path / "model.safetensors"
    header = {"format": FORMAT, "config": cascade.config.model_dump_json(), "metadata": metadata}
    safetensors.torch.save_file(cascade.state_dict(), path, metadata=header)
    with pytest.raises(CheckpointError, match=r"unusable metadata in the header; import or train"):
        read_metadata(path)


def test_integers_are_no_weights(cascade: Cascade, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {name: tensor.to(torch.int8) for name, tensor in cascade.state_dict().items()}
    header = {"format": FORMAT, "config": cascade.config.model_dump_json()}
    safetensors.torch.save_file(tensors, path, metadata=header)
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors: .* no dense floating-point wei"
    ):
        Cascade.load(path)


def test_full_disk(cascade: Cascade, saved: Path) -> None:
    """As a limit on the size of files stands for it; the old file stays."""
    before = saved.read_bytes()
    with largest_file(1000), pytest.raises(CheckpointError, match=r"cannot be written .*free some"):
        cascade.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_configuration_with_an_unknown_field_is_refused(cascade: Cascade, tmp_path: Path) -> None:
    """A field of a later version may change the model, so it is not ignored."""
    path = tmp_path / "model.safetensors"
    config = json.loads(cascade.config.model_dump_json()) | {"distilled": True}
    header = {"format": FORMAT, "config": json.dumps(config)}
    safetensors.torch.save_file(cascade.state_dict(), path, metadata=header)
    with pytest.raises(CheckpointError, match="distilled"):
        Cascade.load(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"stages.1.head.weight": np.zeros((5, 9), np.float32)},
        {"stages.1.head.weight": None},
        {"stages.9.head.weight": np.zeros((5, 8), np.float32)},
    ],
    ids=["misshapen", "missing", "unexpected"],
)
def test_tensors_that_do_not_fit(saved: Path, changes: dict[str, np.ndarray | None]) -> None:
    _rewrite(saved, changes)
    with pytest.raises(
        CheckpointError, match="1 tensors are missing, unexpected or miss"
    ) as caught:
        Cascade.load(saved)
    assert next(iter(changes)) in str(caught.value)


def test_folder_that_cannot_be_written(cascade: Cascade, tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("not a folder", encoding="utf-8")
    with pytest.raises(CheckpointError, match="cannot be written"):
        cascade.save(blocked / "model.safetensors")


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_failed_write_leaves_the_old_file(
    cascade: Cascade, saved: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    before = saved.read_bytes()

    def fail(tensors: object, path: Path, metadata: object) -> NoReturn:
        Path(path).write_bytes(b"half a file")
        raise error

    monkeypatch.setattr(safetensors.torch, "save_file", fail)
    expected = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected):
        cascade.save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]


def test_replaced_is_atomic_for_readers(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old", encoding="utf-8")
    with replaced(path) as temporary:
        temporary.write_text("new", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
    assert path.read_text(encoding="utf-8") == "new"
