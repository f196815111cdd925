"""Files of others: read without running code, refused with a reason."""

from __future__ import annotations

import argparse
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from dvt_edge.errors import CheckpointError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.checkpoint import read_metadata
from dvt_edge.models.foreign import import_backbone, import_cascade, read_foreign
from dvt_edge.models.official import official_name

State = dict[str, torch.Tensor]


@pytest.fixture
def cascade(
    tiny_official: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Cascade:
    return random_cascade(tiny_official("t2t"))


@pytest.fixture
def state(cascade: Cascade) -> State:
    return OrderedDict((official_name(k), v) for k, v in cascade.state_dict().items())


def _official_file(state: State, **changes: Any) -> dict[str, Any]:
    """As the authors lay their files out."""
    return {
        "model_state_dict": state,
        "flops": [1.1, np.float64(2.2), 3.3],
        "anytime_classification": torch.tensor([60.0, 70.0, 80.0]),
        "dynamic_threshold": np.array([[0.5, 0.25, -np.inf]]),
        "budgeted_batch_classification": [[1.0, 2.0], [61.0, 71.0]],
    } | changes


def test_official_file(state: State, cascade: Cascade, tmp_path: Path) -> None:
    torch.save(_official_file(state, epoch=3), tmp_path / "a.pth.tar")
    result = import_cascade(tmp_path / "a.pth.tar")
    assert result.ignored == ("epoch",)
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        for mine, theirs in zip(result.cascade(images), cascade(images), strict=True):
            assert torch.equal(mine.logits, theirs.logits)
    result.cascade.save(tmp_path / "b.safetensors", metadata=result.metadata)
    metadata = read_metadata(tmp_path / "b.safetensors")
    assert metadata["flops"] == [1.1, 2.2, 3.3]
    assert metadata["anytime_classification"] == [60.0, 70.0, 80.0]
    assert metadata["dynamic_threshold"] == [[0.5, 0.25, "-inf"]]
    assert metadata["budgeted_batch_classification"] == [[1.0, 2.0], [61.0, 71.0]]
    assert (metadata["source"], metadata["architecture"]) == ("a.pth.tar", None)
    assert len(metadata["sha256"]) == 64


def test_no_metadata(cascade: Cascade, tmp_path: Path) -> None:
    cascade.save(tmp_path / "a.safetensors")
    assert read_metadata(tmp_path / "a.safetensors") == {}


@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_state_dicts(state: State, tmp_path: Path, key: str | None) -> None:
    content = {f"module.{k}": v for k, v in state.items()}
    torch.save(content if key is None else {key: content}, tmp_path / "a.pth")
    assert import_cascade(tmp_path / "a.pth").cascade.config.classes == 7


def test_safetensors(state: State, tmp_path: Path) -> None:
    tensors = {k: v.clone() for k, v in state.items()}
    safetensors.torch.save_file(tensors, tmp_path / "a.safetensors")
    assert set(read_foreign(tmp_path / "a.safetensors").state) == set(state)


def test_code_is_refused(state: State, tmp_path: Path) -> None:
    torch.save(_official_file(state, args=argparse.Namespace(lr=1)), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: refused.* run argparse\.Namespace"):
        import_cascade(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no checkpoint"),
        (b"PK\x03\x04" + bytes(40), "damaged or no checkpoint"),
        (b"hello, this is no pickle", "damaged"),
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_foreign(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "holds a list"),
        ({"flops": [1.0]}, "no tensors"),
        ({"model_state_dict": {"a": torch.zeros(1)}, "flops": [{1}]}, "'flops' holds a set"),
    ],
)
def test_unusable_content(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=message):
        read_foreign(tmp_path / "a.pth")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        read_foreign(tmp_path / "a.pth")


def test_misfits_name_the_file(state: State, tmp_path: Path) -> None:
    del state["less_token.norm.bias"]
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: .*missing less_token\.norm\.bias \[16\]"):
        import_cascade(tmp_path / "a.pth")


def test_cascade_is_no_backbone(state: State, cascade: Cascade, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="whole cascade"):
        import_backbone(tmp_path / "a.pth", cascade.config)
