"""What the builder is told beyond the graph, by stand-ins for TensorRT's versions."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from dvt_edge.converters.engines.request import MODULE_VARIABLE

PROCESS = "dvt_edge.converters.engines.process"


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module, imported over an empty TensorRT."""
    trt = ModuleType("no_tensorrt")
    trt.ILogger = object  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "no_tensorrt", trt)
    monkeypatch.setenv(MODULE_VARIABLE, "no_tensorrt")
    monkeypatch.delitem(sys.modules, PROCESS, raising=False)
    yield importlib.import_module(PROCESS)
    sys.modules.pop(PROCESS, None)


@pytest.mark.parametrize(
    ("preview", "flags", "set_"),
    [
        ({"PROFILE_SHARING_0806": 7}, ["EXPLICIT_BATCH", "FP16"], [(7, True)]),  # 8.6
        ({"PROFILE_SHARING_0806": 7}, ["STRONGLY_TYPED"], []),  # 10: on, and deprecated to touch
        ({"ALIASED_PLUGIN_IO_10_03": 1}, ["STRONGLY_TYPED"], []),  # TensorRT-RTX
        (None, ["EXPLICIT_BATCH"], []),
    ],
)
def test_contexts_of_several_batch_sizes_share_a_profile(
    process: Any, preview: dict[str, int] | None, flags: list[str], set_: list[tuple[int, bool]]
) -> None:
    """Without it 8.6 refuses the second context over the profile of larger batches."""
    calls: list[tuple[int, bool]] = []
    config = SimpleNamespace(set_preview_feature=lambda *given: calls.append(given))
    if preview is not None:
        process.trt.PreviewFeature = SimpleNamespace(__members__=preview)
    before = list(flags)
    process._share_profiles(config, flags)
    assert calls == set_
    assert flags == [*before, *["PROFILE_SHARING_0806"] * len(set_)]
