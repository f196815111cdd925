"""Files of others: read without running code, refused with a reason."""

from __future__ import annotations

import argparse
import io
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

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
    "content",
    [
        b"",
        b"PK\x03\x04" + bytes(40),
        b"hello, this is no pickle",
        b"\x80\x02.",  # IndexError in torch, as those below
        b"\x80\x02h\x00.",  # KeyError
        b"\x80\x02}(K\x01u.",
        b"\x80\x02U\x01\xff.",
        b"\x80\x02X\x05\x00\x00\x00ab.",
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n)R.",  # TypeError
        b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00.",  # a protocol that torch warns of
        b"\x10\x00\x00\x00\x00\x00\x00\x00{" + b" " * 40,  # as safetensors begin
    ],
)
def test_damaged_files(tmp_path: Path, content: bytes) -> None:
    """One line, whatever torch raises, and none of its words."""
    (tmp_path / "a.pth").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"a\.pth: damaged.*; copy it again") as caught:
        read_foreign(tmp_path / "a.pth")
    assert "\n" not in str(caught.value)
    assert "weights_only" not in str(caught.value)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 800), value=st.integers(0, 255), cut=st.booleans())
def test_damaged_legacy_pickles(tmp_path: Path, at: int, value: int, cut: bool) -> None:
    """A byte that flipped, or an end that is missing: read, or refused in one line."""
    buffer = io.BytesIO()
    state = {"a": torch.ones(3), "b": {"c": [1, 2.0, None, "text"]}}
    torch.save(state, buffer, _use_new_zipfile_serialization=False)
    content = bytearray(buffer.getvalue())
    at %= len(content)
    content[at] = value
    (tmp_path / "a.pth").write_bytes(content[:at] if cut else content)
    try:
        read_foreign(tmp_path / "a.pth")
    except CheckpointError as error:
        assert "\n" not in str(error)  # noqa: PT017
        assert "weights_only" not in str(error)  # noqa: PT017


def test_pickle_of_another_kind_is_no_code(tmp_path: Path) -> None:
    """Torch's advice, whose words are in backquotes, is not what the pickle wants to run."""
    (tmp_path / "a.pth").write_bytes(b"\x80\x02]q\x00K\x01s.")
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint"):
        read_foreign(tmp_path / "a.pth")


def test_blocked_module_is_named(tmp_path: Path) -> None:
    """Of those that torch never allows."""
    (tmp_path / "a.pth").write_bytes(b"\x80\x02cos\nsystem\n(U\x04trueR.")
    with pytest.raises(CheckpointError, match=r"wants to run os\.system; only tensors"):
        read_foreign(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int64, torch.bool, torch.complex64])
def test_integers_are_no_weights(state: State, tmp_path: Path, dtype: torch.dtype) -> None:
    """Of a quantized model."""
    state["less_token.norm.bias"] = state["less_token.norm.bias"].to(dtype)
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: 1 tensors are no .*less_token\.norm\.bias"):
        import_cascade(tmp_path / "a.pth")


def test_sparse_weights(state: State, tmp_path: Path) -> None:
    """Refused as integers are."""
    name = "less_token.head.weight"
    state[name] = state[name].to_sparse()
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"no dense floating-point weights: less_token"):
        import_cascade(tmp_path / "a.pth")


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


def test_figures_without_end(tmp_path: Path) -> None:
    """A few hundred bytes can stand for 2^40 numbers, for lists as deep, or for a huge tensor."""
    repeated: list[Any] = [1.0, 2.0]
    for _ in range(40):
        repeated = [repeated, repeated]
    endless: list[Any] = []
    endless.append(endless)
    wide = torch.zeros(1).expand(10**10)
    for figures in (repeated, endless, wide):
        torch.save({"model": {"a": torch.zeros(1)}, "flops": figures}, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=r"a\.pth: 'flops' holds (too many|a Tensor)"):
            read_foreign(tmp_path / "a.pth")


def test_few_values_for_many_weights(state: State, tmp_path: Path) -> None:
    """Taking them over would fill the memory."""
    name = next(key for key in state if key.endswith("head.weight"))
    torch.save(state | {name: torch.zeros(1).expand(state[name].shape)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"1 tensors are no dense .*head\.weight"):
        import_cascade(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["stages.0.a\nb", "module.normal_token.\x1b[31m"])
def test_names_that_no_line_can_show(tmp_path: Path, name: str) -> None:
    safetensors.torch.save_file({name: torch.zeros(1)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="names of tensors hold control characters"):
        read_foreign(tmp_path / "a.safetensors")


def test_odd_numbers_and_shapes(tmp_path: Path) -> None:
    """Of stages and of what they hold: nothing of a cascade is recognised."""
    shapes: dict[str, tuple[int, ...]] = {
        "stages.0.cls_token": (1, 1, 8),
        "stages.0.pos_embed": (1, 0, 8),
        "stages.0.blocks.0.mlp.fc1.weight": (8,),
        "stages.0.patch_embed.proj.weight": (8, 1),
        "stages.0.head.weight": (2, 8),
    }
    for changed in ({}, {"stages.0.pos_embed": (1, 5, 8)}, {f"stages.{'9' * 5000}.a": (1,)}):
        tensors = {key: torch.zeros(shape) for key, shape in (shapes | changed).items()}
        torch.save(tensors, tmp_path / "a.pth")
        with pytest.raises(CheckpointError) as error:
            import_cascade(tmp_path / "a.pth")
        assert "\n" not in str(error.value)


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
