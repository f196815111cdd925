"""State dicts of the release: recognised, converted, or refused by name."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from dvt_edge.errors import CheckpointError, ConfigError
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.architectures import ARCHITECTURES
from dvt_edge.models.cascade import tensor_shapes
from dvt_edge.models.official import official_name, own_name, recognise

State = dict[str, torch.Tensor]
Configs = Callable[..., CascadeConfig]
RELEASED = ("dvt_deit_small", "dvt_t2t_vit_12", "dvt_t2t_vit_14")


@pytest.fixture
def state(tiny_official: Configs, random_cascade: Callable[..., Cascade]) -> State:
    """A tiny DeiT cascade under the release's names."""
    cascade = random_cascade(tiny_official())
    return {official_name(k): v.clone() for k, v in cascade.state_dict().items()}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("less_less_token.cls_token", "stages.0.cls_token"),
        ("less_token.blocks.3.attn.qkv.weight", "stages.1.blocks.3.attn.qkv.weight"),
        ("normal_token.norm.bias", "stages.2.norm.bias"),
        ("less_token.patch_embed.proj.weight", "stages.1.patch_embed.proj.weight"),
        ("less_token.tokens_to_token.attention1.w", "stages.1.patch_embed.attention1.w"),
        ("less_token.tokens_to_token.project.bias", "stages.1.patch_embed.project.bias"),
        (
            "normal_token.blocks.0.feature_resuse_mlp.0.weight",
            "stages.2.blocks.0.feature_reuse.norm.weight",
        ),
        (
            "normal_token.blocks.0.feature_resuse_mlp.1.fc2.bias",
            "stages.2.blocks.0.feature_reuse.mlp.fc2.bias",
        ),
        ("less_token.relation_reuse_conv.0.weight", "stages.1.relation_reuse.conv1.weight"),
        ("less_token.relation_reuse_conv.2.bias", "stages.1.relation_reuse.conv2.bias"),
    ],
)
def test_names(theirs: str, ours: str) -> None:
    assert own_name(theirs) == ours
    assert official_name(ours) == theirs


@pytest.mark.parametrize("name", RELEASED)
@pytest.mark.parametrize("classes", [1000, 10])
def test_released_architectures_are_recognised(name: str, classes: int) -> None:
    config = ARCHITECTURES[name].model_copy(update={"classes": classes})
    with torch.device("meta"):
        tensors = Cascade(config).state_dict()
    for named in (None, name):
        assert recognise(tensors, named, tensor_shapes)[:2] == (name, config)


@pytest.mark.parametrize("tokenizer", ["patch", "t2t"])
def test_unregistered_sizes_are_inferred(tiny_official: Configs, tokenizer: str) -> None:
    config = tiny_official(tokenizer)
    with torch.device("meta"):
        found = recognise(Cascade(config).state_dict(), None, tensor_shapes)
    assert found.architecture is None
    assert found.config == config


@pytest.mark.parametrize("prefix", ["", "module."])
def test_weights_arrive(state: State, prefix: str) -> None:
    cascade = Cascade.load_official({prefix + k: v for k, v in state.items()})
    assert not cascade.training
    for key, tensor in cascade.state_dict().items():
        assert torch.equal(tensor, state[official_name(key)])


def test_weights_are_copies(state: State) -> None:
    cascade = Cascade.load_official(state)
    bias = cascade.get_parameter("stages.0.head.bias")
    before = bias.clone()
    state["less_less_token.head.bias"].add_(1)
    assert torch.equal(bias, before)


def test_half_weights_become_float32(state: State) -> None:
    cascade = Cascade.load_official({k: v.half() for k, v in state.items()})
    assert {tensor.dtype for tensor in cascade.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize("name", ["dvt_deit_small", "dvt_t2t_vit_12"])
def test_every_misfit_is_named(name: str) -> None:
    with torch.device("meta"):
        tensors = {
            official_name(k): v for k, v in Cascade(ARCHITECTURES[name]).state_dict().items()
        }
        tensors["normal_token.extra"] = torch.zeros(3)
        tensors["less_token.norm.bias"] = torch.zeros(5)
    del tensors["normal_token.blocks.11.mlp.fc1.weight"], tensors["less_less_token.cls_token"]
    with pytest.raises(CheckpointError) as caught:
        Cascade.load_official(tensors)
    message = str(caught.value)
    assert name in message
    width = ARCHITECTURES[name].stages[0].width
    for part in (
        "missing normal_token.blocks.11.mlp.fc1.weight [",
        f"missing less_less_token.cls_token [1, 1, {width}]",
        "unexpected normal_token.extra [3]",
        f"misshapen less_token.norm.bias [5], expected [{width}]",
    ):
        assert part in message
    assert message.startswith("4 of ")


def test_heads_that_disagree(state: State) -> None:
    state["normal_token.head.weight"] = torch.zeros(9, 16)
    with pytest.raises(CheckpointError, match=re.escape("misshapen normal_token.head.weight [9,")):
        Cascade.load_official(state)


def test_wrong_architecture(state: State) -> None:
    with pytest.raises(CheckpointError, match=r"do not fit dvt_t2t_vit_12: missing .*attention1"):
        Cascade.load_official(state, "dvt_t2t_vit_12")


def test_unknown_architecture(state: State) -> None:
    with pytest.raises(ConfigError, match="did you mean 'dvt_deit_small'"):
        Cascade.load_official(state, "dvt_deit_smal")


@pytest.mark.parametrize(
    "tensors", [{}, {"blocks.0.norm1.weight": torch.zeros(3)}, {"conv1.weight": torch.zeros(3)}]
)
def test_no_cascade(tensors: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match="no tensor is called less_less_token"):
        Cascade.load_official(tensors)


def test_hopeless_tensors() -> None:
    with pytest.raises(CheckpointError, match="no architecture can be recognised"):
        Cascade.load_official({"less_token.head.weight": torch.zeros(3)})
