"""The demo as the GPU proof prepares it, and stages on a device of host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import gpu_case
import gpu_claims
import numpy as np
import onnx
import pytest
from gpu_cascades import TORCH, Prepared, float16_graphs, prepare
from gpu_case import Case

from dvt_edge.models.cascade import Cascade
from dvt_edge.models.config import CascadeConfig
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.measuring import measure
from tests.runtime.backends.conftest import HostDevice

BATCH = 8


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small batches, and Runtimes that hardly measure their costs as they open."""
    monkeypatch.setattr(gpu_case, "BATCH", BATCH)
    monkeypatch.setattr(gpu_claims, "BATCH", BATCH)
    monkeypatch.setattr(gpu_claims, "BATCHES", (1, BATCH))
    monkeypatch.setattr(measure, "QUICK_MEASUREMENT_S", 0.01)


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """The demo in float16 with one batch of scenes; read-only."""
    return prepare("demo", "fp16", tmp_path_factory.mktemp("proof") / "demo-fp16", BATCH)


@pytest.fixture
def open_on_host(prepared: Prepared) -> Callable[..., DeviceBackend]:
    """A function that opens the demo in the GPU's place; ``engine`` makes other engines."""
    graphs = [onnx.load(path) for path in prepared.paths]

    def open_it(
        engine: Callable[..., Any] | None = None, preprocess: bool = False
    ) -> DeviceBackend:
        device: Any = HostDevice()
        make = engine or device.engine
        stages = [make(g, s) for g, s in zip(graphs, prepared.specs, strict=True)]
        for stage in stages:
            stage.device = device
        backend = DeviceBackend("host", device, stages, prepared.specs, (1, BATCH))
        if preprocess:
            backend.preprocess_here(b"code")
        return backend

    return open_it


@pytest.fixture
def case(prepared: Prepared, open_on_host: Callable[..., DeviceBackend]) -> Case:
    return Case(TORCH, "fp16", prepared, open_on_host, open_on_host())


@pytest.fixture(scope="session")
def tiny_graphs(
    tiny_config: Callable[..., CascadeConfig], random_cascade: Callable[..., Cascade]
) -> Callable[..., list[onnx.ModelProto]]:
    """A function ``(tokenizer, precision)`` giving the three stages of a tiny cascade."""

    def make(tokenizer: str, precision: str) -> list[onnx.ModelProto]:
        changes: dict[str, Any] = {"tokenizer": tokenizer}
        if tokenizer == "t2t":  # which takes grids that halve
            stages = tiny_config().stages
            grids = zip(stages, (1, 2, 4), strict=True)
            changes |= {
                "image_size": 32,
                "stages": tuple(s.model_copy(update={"grid": g}) for s, g in grids),
            }
        cascade = random_cascade(tiny_config(**changes))
        config = cascade.config
        shape = (8, config.channels, config.image_size, config.image_size)
        images = np.random.default_rng(0).normal(size=shape).astype(np.float16)
        return float16_graphs(cascade, precision, images)

    return make
