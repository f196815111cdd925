"""Stages run by torch answer as in ONNX Runtime, on memory that they are given."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from gpu_case import change
from gpu_claims import LARGEST_ERROR
from onnx import helper
from torch_stage import OPERATORS, TorchStage

from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from tests.runtime.backends.conftest import HostDevice

Graphs = Callable[..., list[onnx.ModelProto]]
IMAGES = 8


def _backend(graphs: list[onnx.ModelProto]) -> DeviceBackend:
    specs = [stage_spec(graph) for graph in graphs]
    stages = [TorchStage(g, s, "cpu") for g, s in zip(graphs, specs, strict=True)]
    device: Any = HostDevice()
    return DeviceBackend("torch", device, stages, specs, (1, IMAGES))


@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("tokenizer", ["patch", "conv", "t2t"])
def test_stages_and_survivors(tiny_graphs: Graphs, tokenizer: str, precision: str) -> None:
    graphs = tiny_graphs(tokenizer, precision)
    backend = _backend(graphs)
    shape = stage_spec(graphs[0]).inputs[0].shape_at(IMAGES)
    images = np.random.default_rng(1).normal(size=shape).astype(np.float16)
    expected = list(Chain(graphs).run(images))
    for count in (IMAGES, 1, IMAGES):  # warmed up, captured, replayed
        backend.image_buffer(count)[:] = images[:count]
        for k, outputs in enumerate(expected):
            answer = backend.run_stage(k, count)
            found = backend.logits(k, count)
            if count == IMAGES:
                assert change(found, outputs["logits"]) <= LARGEST_ERROR[precision]
            sure = np.exp(found - found.max(axis=1, keepdims=True))
            np.testing.assert_allclose(answer.confidence, 1 / sure.sum(axis=1), rtol=1e-4)
            np.testing.assert_array_equal(answer.class_id, found.argmax(axis=1))
            assert backend.captured(k, count)
    rows = np.array([1, 2, 5, 7])
    backend.run_stage(0, IMAGES)
    backend.keep_rows(0, rows)
    backend.run_stage(1, len(rows))
    found = backend.logits(1, len(rows))
    assert change(found, expected[1]["logits"][rows]) <= LARGEST_ERROR[precision]
    backend.close()


def test_the_demo(prepared: Any) -> None:
    backend = _backend([onnx.load(path) for path in prepared.paths])
    backend.image_buffer(IMAGES)[:] = prepared.images[:IMAGES]
    for k, outputs in enumerate(prepared.expected):
        answer = backend.run_stage(k, IMAGES)
        assert change(backend.logits(k, IMAGES), outputs["logits"][:IMAGES]) <= 0.005
        np.testing.assert_array_equal(answer.class_id, outputs["class_id"][:IMAGES])


def test_an_unknown_operator_is_named(tiny_graphs: Graphs) -> None:
    (graph, *_) = tiny_graphs("patch", "fp16")
    spec = stage_spec(graph, "stage1.onnx")
    graph.graph.node.append(helper.make_node("Einsum", ["image"], ["x"], "mixing", equation="i"))
    with pytest.raises(BackendError, match=r"stage1.onnx: .* operator Einsum, which mixing is"):
        TorchStage(graph, spec, "cpu")


def test_no_operator_is_known_in_vain(tiny_graphs: Graphs) -> None:
    every = [tiny_graphs(t, p) for t in ("patch", "conv", "t2t") for p in ("fp16", "int8")]
    used = {node.op_type for graphs in every for graph in graphs for node in graph.graph.node}
    assert used == set(OPERATORS)


def test_on_a_gpu_it_works_on_the_stream_and_in_a_pool(
    tiny_graphs: Graphs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for what torch has for CUDA; and memory that it does not share is an error."""
    (graph, *_) = tiny_graphs("patch", "fp16")
    spec = stage_spec(graph, "stage1.onnx")
    stage = TorchStage(graph, spec, "cpu")
    stage._device, stage._pool = "cuda", "pool"
    within: list[Any] = []

    @contextlib.contextmanager
    def entered(what: Any) -> Iterator[None]:
        within.append(what)
        yield
        within.remove(what)

    def as_tensor(memory: Any, device: str) -> torch.Tensor:
        about = memory.__cuda_array_interface__
        kind = np.dtype(about["typestr"])
        size = int(np.prod(about["shape"])) * kind.itemsize
        raw = (ctypes.c_char * size).from_address(about["data"][0])
        return torch.from_numpy(np.frombuffer(memoryview(raw), kind).reshape(about["shape"]))

    monkeypatch.setattr(torch.cuda, "ExternalStream", lambda stream: ("stream", stream))
    monkeypatch.setattr(torch.cuda, "stream", entered)
    monkeypatch.setattr(torch.cuda, "use_mem_pool", entered)
    monkeypatch.setattr(torch, "as_tensor", as_tensor)
    softmax = torch.Tensor.softmax

    def watched(self: torch.Tensor, axis: int) -> torch.Tensor:
        assert within == [("stream", 7), "pool"]
        return softmax(self, axis)

    monkeypatch.setattr(torch.Tensor, "softmax", watched)
    arrays = {t.name: np.zeros(t.shape_at(1), t.dtype) for t in (*spec.inputs, *spec.outputs)}
    addresses = {name: array.ctypes.data for name, array in arrays.items()}
    stage.prepare(1, addresses, 0, 7)()
    assert not within
    expected = next(Chain([graph]).run(arrays["image"]))
    np.testing.assert_allclose(arrays["logits"], expected["logits"], atol=0.02)
    monkeypatch.setattr(torch, "as_tensor", lambda m, device: as_tensor(m, device).clone())
    with pytest.raises(BackendError, match="copied a tensor"):
        stage.prepare(1, addresses, 0, 7)
