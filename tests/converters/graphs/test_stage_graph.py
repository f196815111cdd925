"""Stage graphs against PyTorch, over a table of architectures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from dvt_edge.converters.graphs.chain import Chain, open_graph, run_graph
from dvt_edge.converters.graphs.stage_graph import set_temperature, stage_graph_from_cascade
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.models.upsampling import relation_matrix
from dvt_edge.policy.confidence import ConfidenceKind
from dvt_edge.profile import ExitsConfig
from tests.confidence_reference import confidence
from tests.conftest import UNEQUAL, stage_graphs

Configs = Callable[..., CascadeConfig]
Cascades = Callable[..., Cascade]
TOLERANCE = 1e-4

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "default": {},
    "one stage": {"stages": UNEQUAL[2:3]},
    "one stage of one layer": {"stages": UNEQUAL[:1]},
    "two stages": {"stages": UNEQUAL[:2]},
    "three stages": {"stages": UNEQUAL[:3]},
    "four stages": {"stages": UNEQUAL},
    "features only": {"stages": UNEQUAL, "relation_reuse": False},
    "relations only": {"stages": UNEQUAL, "feature_reuse": False},
    "no reuse": {"stages": UNEQUAL, "feature_reuse": False, "relation_reuse": False},
    "one stage, no reuse": {
        "stages": UNEQUAL[1:2],
        "feature_reuse": False,
        "relation_reuse": False,
    },
    "convolutions first": {"tokenizer": "conv", "stem_width": 6, "image_size": 20},
    "convolutions first, odd size": {"tokenizer": "conv", "stages": UNEQUAL, "image_size": 27},
    "padded patches": {"image_size": 17, "stages": UNEQUAL},
    "no qkv bias": {"qkv_bias": False},
    "colour": {"channels": 3},
    "two classes": {"classes": 2},
    "coarse epsilon": {"norm_eps": 1e-2},
}
OPERATORS = frozenset(
    (
        *("Add", "ArgMax", "Cast", "Concat", "Conv", "Div", "Erf", "Identity"),
        *("LayerNormalization", "MatMul", "Mul", "Pad", "ReduceMax", "Relu", "Reshape"),
        *("Slice", "Softmax", "Split", "Squeeze", "Transpose"),
    )
)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def cascade(
    request: pytest.FixtureRequest, tiny_config: Configs, random_cascade: Cascades
) -> Cascade:
    """One cascade per architecture."""
    return random_cascade(tiny_config(**ARCHITECTURES[request.param]))


def _images(config: CascadeConfig, count: int) -> np.ndarray:
    shape = (count, config.channels, config.image_size, config.image_size)
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def _signature(values: Any) -> dict[str, tuple[list[int | str], int]]:
    return {
        v.name: (
            [d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim],
            v.type.tensor_type.elem_type,
        )
        for v in values
    }


@pytest.mark.parametrize("count", [1, 5])
def test_graphs_equal_pytorch(cascade: Cascade, count: int) -> None:
    images = _images(cascade.config, count)
    with torch.no_grad():
        expected = cascade(torch.from_numpy(images))
    found = list(Chain(stage_graphs(cascade)).run(images))
    assert len(found) == len(expected)
    for k, (outputs, stage) in enumerate(zip(found, expected, strict=True)):
        last = k + 1 == len(expected)
        probabilities = stage.logits.softmax(-1)
        pairs = {"logits": stage.logits, "confidence": probabilities.amax(-1)}
        if cascade.config.feature_reuse and not last:
            pairs["next_features"] = stage.features
        if cascade.config.relation_reuse and not last:
            assert stage.relations is not None
            pairs["next_relations"] = stage.relations
        assert outputs.keys() == pairs.keys() | {"class_id"}
        for name, tensor in pairs.items():
            assert outputs[name].shape == tensor.shape
            np.testing.assert_allclose(
                outputs[name], tensor.numpy(), atol=TOLERANCE, rtol=TOLERANCE, err_msg=name
            )
        np.testing.assert_array_equal(outputs["class_id"], outputs["logits"].argmax(-1))
        best = np.sort(stage.logits.numpy(), axis=-1)
        clear = best[:, -1] - best[:, -2] > 10 * TOLERANCE
        np.testing.assert_array_equal(
            outputs["class_id"][clear], stage.logits.argmax(-1).numpy()[clear]
        )


def test_queries_and_keys_hand_over_the_same_relations(cascade: Cascade) -> None:
    """Every stage answers the same, and what is handed on multiplies to PyTorch's relations."""
    images = _images(cascade.config, 3)
    with torch.no_grad():
        expected = cascade(torch.from_numpy(images))
    found = list(Chain(stage_graphs(cascade, target="tensorrt")).run(images))
    for k, (outputs, stage) in enumerate(zip(found, expected, strict=True)):
        logits = stage.logits.numpy()
        np.testing.assert_allclose(outputs["logits"], logits, atol=TOLERANCE, rtol=TOLERANCE)
        assert "next_relations" not in outputs
        if not cascade.config.relation_reuse or k + 1 == len(expected):
            assert not {"next_queries", "next_keys"} & outputs.keys()
            continue
        relations = outputs["next_queries"] @ outputs["next_keys"]
        assert ("next_coarse_relations" in outputs) == (k > 0)
        if k:
            matrix = relation_matrix(*(s.grid for s in cascade.config.stages[k - 1 : k + 1]))
            relations += matrix @ outputs["next_coarse_relations"] @ matrix.T
        np.testing.assert_allclose(relations, stage.relations, atol=TOLERANCE, rtol=TOLERANCE)


def test_random_weights_leave_nothing_trivial(cascade: Cascade) -> None:
    """The comparison above means something: no part of the cascade is near zero or constant."""
    with torch.no_grad():
        outputs = cascade(torch.from_numpy(_images(cascade.config, 5)))
    for output in outputs:
        assert output.logits.std(dim=0).max() > 0.01
        assert output.features.std() > 0.1
        if output.relations is not None:
            assert output.relations.std() > 0.05


def test_tensor_names_shapes_and_types(cascade: Cascade) -> None:
    config = cascade.config
    float32, int32 = onnx.TensorProto.FLOAT, onnx.TensorProto.INT32
    size = config.image_size
    for k, (graph, stage) in enumerate(zip(stage_graphs(cascade), config.stages, strict=True)):
        inputs = {"image": (["N", config.channels, size, size], float32)}
        outputs = {
            "logits": (["N", config.classes], float32),
            "confidence": (["N"], float32),
            "class_id": (["N"], int32),
        }
        for side, owner, prefix, there in (
            (inputs, config.stages[k - 1], "", k > 0),
            (outputs, stage, "next_", k + 1 < len(config.stages)),
        ):
            t = owner.tokens
            # A last stage of one layer computes that for the class token, which has no context.
            unread = side is inputs and k + 1 == len(config.stages) and stage.depth == 1
            if there and config.feature_reuse and not unread:
                side[f"{prefix}features"] = (["N", t, owner.width], float32)
            if there and config.relation_reuse:
                side[f"{prefix}relations"] = (["N", owner.relation_channels, t, t], float32)
        assert _signature(graph.graph.input) == inputs
        assert _signature(graph.graph.output) == outputs


def test_operators_are_few_and_plain(cascade: Cascade) -> None:
    """The upsampling is a product with a constant: nothing resizes, pools or loops."""
    for graph in stage_graphs(cascade):
        onnx.checker.check_model(graph, full_check=True)
        assert {node.op_type for node in graph.graph.node} <= OPERATORS
        names = [node.name for node in graph.graph.node]
        assert len(set(names)) == len(names)
        assert graph.opset_import[0].version == 17


def test_graphs_are_the_same_every_time(tiny_config: Configs, random_cascade: Cascades) -> None:
    """A build is reproducible to the byte."""
    cascade = random_cascade(tiny_config())
    first, second = ([g.SerializeToString() for g in stage_graphs(cascade)] for _ in range(2))
    assert first == second


def test_cascade_is_not_changed(tiny_config: Configs, random_cascade: Cascades) -> None:
    cascade = random_cascade(tiny_config(tokenizer="conv"))
    before = {name: tensor.clone() for name, tensor in cascade.state_dict().items()}
    stage_graphs(cascade)
    after = cascade.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


@pytest.mark.parametrize("reuse", ["features", "relations"])
def test_graph_reads_what_it_is_handed(
    tiny_config: Configs, random_cascade: Cascades, reuse: str
) -> None:
    cascade = random_cascade(tiny_config())
    first, second, _ = stage_graphs(cascade)
    feeds = Chain([first]).next_feeds(_images(cascade.config, 2))
    session = open_graph(second)
    answer = run_graph(session, feeds)["logits"]
    changed = run_graph(session, feeds | {reuse: feeds[reuse][:, ::-1].copy()})["logits"]
    assert np.abs(answer - changed).max() > 1e-3


def test_equal_logits_choose_the_first_class(
    tiny_config: Configs, random_cascade: Cascades
) -> None:
    """As ``argmax`` does everywhere else."""
    cascade = random_cascade(tiny_config())
    with torch.no_grad():
        cascade.get_parameter("stages.0.head.weight").zero_()
        cascade.get_parameter("stages.0.head.bias").zero_()
    outputs = next(Chain(stage_graphs(cascade)[:1]).run(_images(cascade.config, 3)))
    assert outputs["class_id"].tolist() == [0, 0, 0]
    np.testing.assert_allclose(outputs["confidence"], 0.2, rtol=1e-6)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("temperature", [None, 0.3, 2.0])
@pytest.mark.parametrize("kind", ["max_softmax", "margin", "entropy"])
def test_confidence_is_what_the_exits_ask_for(
    tiny_config: Configs,
    random_cascade: Cascades,
    kind: ConfidenceKind,
    temperature: float | None,
    classes: int,
) -> None:
    """As the policy defines it, on logits near and far apart; the answers stay the same."""
    cascade = random_cascade(tiny_config(classes=classes))
    images = _images(cascade.config, 5)
    exits = ExitsConfig(confidence=kind, fit_temperature=temperature is not None)
    for gain in (1.0, 300.0):
        with torch.no_grad():
            cascade.get_parameter("stages.0.head.weight").mul_(gain)
        plain = next(Chain([stage_graph_from_cascade(cascade, 0)]).run(images))
        graph = stage_graph_from_cascade(cascade, 0, exits)
        if temperature is not None:
            set_temperature(graph, temperature)
        outputs = next(Chain([graph]).run(images))
        expected = confidence(plain["logits"], kind, temperature or 1.0)
        assert outputs["confidence"].shape == (5,)
        np.testing.assert_allclose(outputs["confidence"], expected, atol=1e-5)
        np.testing.assert_array_equal(outputs["logits"], plain["logits"])
        np.testing.assert_array_equal(outputs["class_id"], plain["class_id"])


def test_temperature_is_one_until_it_is_set(tiny_config: Configs, random_cascade: Cascades) -> None:
    cascade, exits = random_cascade(tiny_config()), ExitsConfig(fit_temperature=True)
    images = _images(cascade.config, 3)
    graphs = [stage_graph_from_cascade(cascade, 0, e) for e in (exits, ExitsConfig())]
    cooled, plain = (next(Chain([graph]).run(images))["confidence"] for graph in graphs)
    np.testing.assert_array_equal(cooled, plain)
