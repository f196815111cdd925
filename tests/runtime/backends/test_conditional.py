"""The cascade as one graph: what is asked of a stand-in for the driver."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Mapping
from math import inf
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.manifest import StageSpec, TensorSpec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.conditional import ConditionalCascade, NodeParameters
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from tests.runtime.backends.fake_cuda import Driver, Libcuda, Node


class Engine:
    """A stage that only notes that it was put on the stream."""

    scratch_bytes = 16

    def __init__(self, driver: Driver, number: int, *, capturable: bool = True) -> None:
        self.driver, self.number, self.capturable = driver, number, capturable

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        return lambda: self.driver.calls.append(f"stage {self.number}")

    def warmed_up(self) -> None:
        pass

    def close(self) -> None:
        pass


def _spec(number: int) -> StageSpec:
    image = TensorSpec(name="image", shape=("N", 1, 4, 4), dtype="float16")
    return StageSpec(
        file="",
        inputs=(image,) if number == 1 else (image, _features("features")),
        outputs=(
            TensorSpec(name="confidence", shape=("N",), dtype="float32"),
            TensorSpec(name="class_id", shape=("N",), dtype="int32"),
            _features("next_features"),
        ),
        parameters=0,
        macs=0,
    )


def _features(name: str) -> TensorSpec:
    return TensorSpec(name=name, shape=("N", 5, 8), dtype="float16")


@pytest.fixture
def open_backend(driver: Driver) -> Iterator[Callable[..., DeviceBackend]]:
    """A function that opens a backend of so many stages."""
    opened: list[DeviceBackend] = []

    def make(stages: int = 3, *, capturable: bool = True) -> DeviceBackend:
        numbers = range(1, stages + 1)
        engines = [Engine(driver, number, capturable=capturable) for number in numbers]
        specs = [_spec(number) for number in numbers]
        opened.append(DeviceBackend("TensorRT 10", CudaDevice(), engines, specs, (1, 4)))
        return opened[-1]

    yield make
    driver.fails.clear()
    for backend in opened:
        backend.close()
    assert not driver.allocated
    assert not driver.graphs
    assert not driver.templates
    assert not driver.modules
    assert not driver.leaked


def _answers(driver: Driver, cascade: ConditionalCascade, stages: int) -> Any:
    """Run it, with the device's part played: ``stages`` of them run."""

    def launch(self: Any, graph: Any, stream: Any) -> int:
        cascade._ran.array[0] = stages
        cascade._ended_ns.array[:stages] = 1_000_000 * np.arange(1, 1 + stages) ** 2
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Libcuda, "cuGraphLaunch", launch)
        return cascade((0.5, 0.6, -inf), 0)


def test_the_structures_are_as_large_as_the_drivers() -> None:
    """``sizeof(CUgraphNodeParams)`` and where its union begins and ends, in CUDA 12.4 to 13."""
    assert ctypes.sizeof(NodeParameters) == 256
    of, last = (getattr(NodeParameters, name).offset for name in ("of", "reserved_too"))
    assert (of, last) == (16, 248)


def test_shape_of_the_graph(driver: Driver, open_backend: Callable[..., DeviceBackend]) -> None:
    """Each stage, its exit behind it, and all the rest in a node that the exit switches on."""
    backend = open_backend()
    cascade = ConditionalCascade(backend, b"code")
    _answers(driver, cascade, 1)
    thresholds, ran, ended = (
        part.address for part in (cascade._thresholds, cascade._ran, cascade._ended_ns)
    )
    top = next(iter(driver.nodes))
    graph: int | None = top
    for number in (1, 2, 3):
        assert graph is not None
        nodes: list[Node] = driver.nodes[graph]
        last = number == 3
        assert [node.kind for node in nodes] == (
            ["graph", "exit"] if last else ["graph", "exit", "if"]
        )
        assert [node.after for node in nodes] == [0, *(node.handle_of for node in nodes[:-1])]
        switch = 0 if last else nodes[2].handle
        confidence = backend.addresses(number - 1)["confidence"]
        assert nodes[1].arguments == [confidence, thresholds, number - 1, switch, ran, ended]
        graph = None if last else nodes[2].body
    assert len(driver.nodes) == 3
    assert len(set(driver.conditions)) == 2


def test_one_launch_answers_for_the_stages_that_ran(
    driver: Driver, open_backend: Callable[..., DeviceBackend]
) -> None:
    backend = open_backend()
    cascade = ConditionalCascade(backend, b"code")
    _answers(driver, cascade, 1)
    driver.calls.clear()
    for stages, later in ((1, []), (2, [3.0]), (3, [3.0, 5.0])):
        answers, times = _answers(driver, cascade, stages)
        assert len(answers) == stages
        assert times == pytest.approx(later)
    assert cascade._thresholds.array.tolist() == [0.5, 0.6, -inf]
    assert driver.calls == ["synchronize"] * 3  # built once; the image lies where it is read
    assert backend.device.transfers.to_host == 8 * (1 + 1 + 2 + 3)


def test_a_graph_for_each_slot_where_memory_is_shared(
    driver: Driver, open_backend: Callable[..., DeviceBackend]
) -> None:
    cascade = ConditionalCascade(open_backend(), b"code")
    for slot in (0, 1, 0, 1):
        cascade((-inf, -inf, -inf), slot)
    # Of each slot three stages as graphs of their own, and the cascade.
    assert len(driver.graphs) == 2 * (3 + 1)


def test_one_stage(driver: Driver, open_backend: Callable[..., DeviceBackend]) -> None:
    """Nothing to decide on."""
    cascade = ConditionalCascade(open_backend(1), b"code")
    cascade((-inf,), 0)
    assert not driver.conditions


def test_refused_by_an_old_driver(
    driver: Driver, open_backend: Callable[..., DeviceBackend]
) -> None:
    driver.cuda = 12020
    with pytest.raises(BackendError, match=r"CUDA 12\.4 or later, this one is for 12\.2; .*stages"):
        ConditionalCascade(open_backend(), b"code")


def test_refused_without_the_kernel(
    driver: Driver, open_backend: Callable[..., DeviceBackend]
) -> None:
    """It was compiled by an nvcc that does not know conditional nodes."""
    driver.fails["dvt_exit_kernel"] = 500
    with pytest.raises(BackendError, match=r"compiled by CUDA 12\.4 or later; .* newer nvcc"):
        ConditionalCascade(open_backend(), b"code")


def test_refused_where_a_stage_cannot_be_captured(
    driver: Driver, open_backend: Callable[..., DeviceBackend]
) -> None:
    cascade = ConditionalCascade(open_backend(capturable=False), b"code")
    with pytest.raises(BackendError, match=r"stage 1 cannot; .*set engine\.graph to stages"):
        cascade((-inf, -inf, -inf), 0)


@pytest.mark.parametrize("call", ["condition", "add graph", "add exit", "add if", "instantiate"])
def test_a_call_that_fails(
    driver: Driver, open_backend: Callable[..., DeviceBackend], call: str
) -> None:
    """The driver's reason, and nothing is left behind."""
    backend = open_backend()
    for stage in range(3):
        backend.run_stage(stage, 1)
    cascade = ConditionalCascade(backend, b"code")
    driver.fails[call] = 901
    with pytest.raises(BackendError, match=r"CUDA failed: .*\(901\)"):
        cascade((-inf, -inf, -inf), 0)
    assert not driver.templates


def test_a_driver_without_the_function(
    driver: Driver, open_backend: Callable[..., DeviceBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    cascade = ConditionalCascade(open_backend(), b"code")
    monkeypatch.delattr(Libcuda, "cuGraphAddNode_v2")
    with pytest.raises(BackendError, match="has no cuGraphAddNode_v2; install a newer one"):
        cascade((-inf, -inf, -inf), 0)
