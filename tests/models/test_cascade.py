"""The cascade in PyTorch: shapes, reuse, gradients, shared start."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from dvt_edge.models import Cascade, CascadeConfig, StageConfig
from dvt_edge.models.cascade import StageOutput
from tests.conftest import UNEQUAL

Configs = Callable[..., CascadeConfig]
Cascades = Callable[..., Cascade]


def _images(config: CascadeConfig, count: int = 2) -> Tensor:
    shape = (count, config.channels, config.image_size, config.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def _run_second(cascade: Cascade, images: Tensor, upstream: StageOutput) -> Tensor:
    """Logits of the second stage."""
    with torch.no_grad():
        return cascade.stages[1](images, upstream).logits


@pytest.mark.parametrize("tokenizer", ["patch", "conv"])
@pytest.mark.parametrize("features", [True, False])
@pytest.mark.parametrize("relations", [True, False])
@pytest.mark.parametrize("stages", [1, 2, 3, 4])
def test_shapes_of_every_stage(
    tiny_config: Configs, stages: int, relations: bool, features: bool, tokenizer: str
) -> None:
    config = tiny_config(
        channels=3,
        image_size=14,
        stages=UNEQUAL[:stages],
        feature_reuse=features,
        relation_reuse=relations,
        tokenizer=tokenizer,
        stem_width=4,
    )
    outputs = Cascade(config).eval()(_images(config))
    assert len(outputs) == stages
    for i, (output, stage) in enumerate(zip(outputs, config.stages, strict=True)):
        tokens = stage.grid**2 + 1
        assert output.logits.shape == (2, 5)
        assert output.features.shape == (2, tokens, stage.width)
        if relations and i + 1 < stages:
            assert output.relations is not None
            assert output.relations.shape == (2, stage.depth * stage.heads, tokens, tokens)
        else:
            assert output.relations is None


def test_answers_do_not_depend_on_the_rest_of_the_batch(
    tiny_config: Configs, random_cascade: Cascades
) -> None:
    cascade = random_cascade(tiny_config(tokenizer="conv"))
    images = _images(cascade.config, 4)
    with torch.no_grad():
        together, alone = cascade(images), cascade(images[2:3])
    for a, b in zip(together, alone, strict=True):
        torch.testing.assert_close(a.logits[2:3], b.logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("features", "relations"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_each_reuse_is_read_exactly_when_it_is_on(
    tiny_config: Configs, random_cascade: Cascades, features: bool, relations: bool
) -> None:
    config = tiny_config(feature_reuse=features, relation_reuse=relations)
    cascade = random_cascade(config)
    images = _images(config)
    with torch.no_grad():
        first = cascade(images)[0]
    tokens = config.stages[0].tokens
    shape = (2, config.stages[0].relation_channels, tokens, tokens)
    given = first.relations if first.relations is not None else torch.zeros(shape)
    upstream = first._replace(relations=given)
    answer = _run_second(cascade, images, upstream)
    other = torch.randn(first.features.shape, generator=torch.Generator().manual_seed(1))
    for change, read in (
        ({"features": other}, features),
        ({"relations": torch.randn(shape, generator=torch.Generator().manual_seed(2))}, relations),
        ({"logits": first.logits + 1}, False),
    ):
        changed = _run_second(cascade, images, upstream._replace(**change))
        assert (not torch.equal(changed, answer)) == read, change.keys()


def test_class_token_of_upstream_features_is_not_reused(
    tiny_config: Configs, random_cascade: Cascades
) -> None:
    cascade = random_cascade(tiny_config(relation_reuse=False))
    images = _images(cascade.config)
    with torch.no_grad():
        first = cascade(images)[0]
    other = first.features.clone()
    other[:, 0] += 1
    answer = _run_second(cascade, images, first)
    changed = _run_second(cascade, images, first._replace(features=other))
    torch.testing.assert_close(changed, answer)


def test_relations_include_what_was_reused(tiny_config: Configs, random_cascade: Cascades) -> None:
    """A bias on the reused relations shows in what the stage hands on, and reaches stage three."""
    cascade = random_cascade(tiny_config(feature_reuse=False))
    images = _images(cascade.config)
    with torch.no_grad():
        before = cascade(images)
        cascade.get_parameter("stages.1.relation_reuse.conv2.bias")[0] += (
            1.0  # first layer, first head
        )
        after = cascade(images)
    difference = after[1].relations - before[1].relations
    torch.testing.assert_close(difference[:, 0], torch.ones_like(difference[:, 0]))
    assert torch.equal(difference[:, 1], torch.zeros_like(difference[:, 1]))
    # A constant leaves the stage's own softmax alone; the next stage reads the logits.
    torch.testing.assert_close(after[1].logits, before[1].logits, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(after[2].logits, before[2].logits, atol=1e-3)


def test_later_exits_depend_on_the_first_stage_through_the_middle_one(
    tiny_config: Configs, random_cascade: Cascades
) -> None:
    cascade = random_cascade(tiny_config())
    images = _images(cascade.config)
    with torch.no_grad():
        before = cascade(images)
        cascade.get_parameter("stages.0.patch_embed.proj.weight").mul_(2)
        after = cascade(images)
    moved = [float((a.logits - b.logits).abs().max()) for a, b in zip(before, after, strict=True)]
    assert min(moved) > 1e-2


@pytest.mark.parametrize("tokenizer", ["patch", "conv"])
def test_gradients_reach_every_parameter(
    tiny_config: Configs, random_cascade: Cascades, tokenizer: str
) -> None:
    cascade = random_cascade(tiny_config(tokenizer=tokenizer, image_size=20))
    cascade.train()
    sum(output.logits.square().sum() for output in cascade(_images(cascade.config))).backward()
    without = [
        name
        for name, parameter in cascade.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().sum() > 0
    ]
    # Reused features never join the class token, so the very last layer cannot use them.
    assert without
    assert all(name.startswith("stages.2.blocks.1.feature_reuse.") for name in without)


@pytest.mark.parametrize(
    ("features", "relations"), [(True, True), (True, False), (False, True), (False, False)]
)
def test_first_stage_learns_from_the_last_exit_through_either_reuse(
    tiny_config: Configs, random_cascade: Cascades, features: bool, relations: bool
) -> None:
    cascade = random_cascade(tiny_config(feature_reuse=features, relation_reuse=relations))
    cascade(_images(cascade.config))[-1].logits.square().sum().backward()
    gradient = cascade.get_parameter("stages.0.patch_embed.proj.weight").grad
    learns = gradient is not None and bool(gradient.abs().sum() > 0)
    assert learns == (features or relations)


def test_share_start_copies_what_has_the_same_shape(
    tiny_config: Configs, random_cascade: Cascades
) -> None:
    cascade = random_cascade(tiny_config())
    own = {name: tensor.clone() for name, tensor in cascade.stages[2].state_dict().items()}
    cascade.share_start()
    first = cascade.stages[0].state_dict()
    for stage in cascade.stages:
        state = stage.state_dict()
        for name in first:
            if state[name].shape == first[name].shape:
                assert torch.equal(state[name], first[name]), name
    last = cascade.stages[2].state_dict()
    assert torch.equal(last["pos_embed"], own["pos_embed"])  # another grid
    assert torch.equal(last["blocks.0.mlp.fc1.weight"], own["blocks.0.mlp.fc1.weight"])  # + reuse
    assert torch.equal(last["blocks.0.attn.qkv.weight"], first["blocks.0.attn.qkv.weight"])
    assert not torch.equal(own["blocks.0.attn.qkv.weight"], first["blocks.0.attn.qkv.weight"])


def test_share_start_leaves_the_stages_independent(tiny_config: Configs) -> None:
    cascade = Cascade(tiny_config())
    cascade.share_start()
    with torch.no_grad():
        cascade.get_parameter("stages.1.head.weight").add_(1)
    first, second = (cascade.get_parameter(f"stages.{i}.head.weight") for i in (0, 1))
    assert not torch.equal(first, second)


def test_share_start_with_unequal_depths(tiny_config: Configs) -> None:
    config = tiny_config(
        stages=(
            StageConfig(grid=2, width=8, depth=3, heads=2),
            StageConfig(grid=4, width=8, depth=1, heads=2),
            StageConfig(grid=5, width=16, depth=4, heads=2),
        )
    )
    cascade = Cascade(config)
    cascade.share_start()
    key = "blocks.0.attn.qkv.weight"
    first, second = (cascade.get_parameter(f"stages.{i}.{key}") for i in (0, 1))
    assert torch.equal(first, second)
