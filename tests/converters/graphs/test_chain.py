"""Running stage after stage during a build."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch

from dvt_edge.converters.graphs.chain import BATCH, Chain, batches
from dvt_edge.models import Cascade, CascadeConfig
from tests.conftest import stage_graphs

Images = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def cascade(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Cascade:
    """Three stages with both kinds of reuse."""
    return random_cascade(tiny_config())


@pytest.fixture(scope="module")
def graphs(cascade: Cascade) -> list[onnx.ModelProto]:
    """Its FP32 stages."""
    return stage_graphs(cascade)


def _images(count: int) -> Images:
    return np.random.default_rng(2).normal(size=(count, 1, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("count", [1, BATCH, 2 * BATCH + 3])
def test_records_are_every_exits_answers(
    cascade: Cascade, graphs: list[onnx.ModelProto], count: int
) -> None:
    images, label = _images(count), np.arange(count, dtype=np.int32) % 5
    records = Chain(graphs).records(images, label)
    with torch.no_grad():
        answers = [output.logits.softmax(-1) for output in cascade(torch.from_numpy(images))]
    assert records.confidence.shape == (count, 3)
    assert records.confidence.dtype == np.float32
    assert records.prediction.dtype == np.int32
    for k, answer in enumerate(answers):
        np.testing.assert_allclose(records.confidence[:, k], answer.amax(-1).numpy(), atol=1e-5)
        np.testing.assert_array_equal(records.prediction[:, k], answer.argmax(-1).numpy())
    assert records.label is label


def test_records_without_labels(graphs: list[onnx.ModelProto]) -> None:
    assert Chain(graphs[:1]).records(_images(3), None).label is None


@pytest.mark.parametrize("stages", [0, 1, 2, 3])
def test_feeds_of_the_next_stage(
    cascade: Cascade, graphs: list[onnx.ModelProto], stages: int
) -> None:
    images = _images(4)
    feeds = Chain(graphs[:stages]).next_feeds(images)
    reused = {1, 2}
    assert feeds.keys() == {"image"} | ({"features", "relations"} if stages in reused else set())
    assert feeds["image"] is images
    if stages in reused:
        with torch.no_grad():
            output = cascade(torch.from_numpy(images))[stages - 1]
        assert output.relations is not None
        np.testing.assert_allclose(feeds["features"], output.features.numpy(), atol=1e-4)
        np.testing.assert_allclose(feeds["relations"], output.relations.numpy(), atol=1e-4)


@pytest.mark.parametrize(
    ("count", "sizes"), [(0, []), (1, [1]), (BATCH, [BATCH]), (BATCH + 1, [BATCH, 1])]
)
def test_batches_are_consecutive(count: int, sizes: list[int]) -> None:
    parts = list(batches(_images(count)))
    assert [len(part) for part in parts] == sizes
    if parts:
        np.testing.assert_array_equal(np.concatenate(parts), _images(count))
