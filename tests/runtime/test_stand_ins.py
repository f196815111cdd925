"""Native stages that cannot run, and what runs in their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import file_sha256
from dvt_edge.runtime.events import StandInsRun
from dvt_edge.runtime.native import operator_library
from tests.conftest import edit_manifest
from tests.runtime.conftest import spoil, spread_scenes

pytestmark = pytest.mark.skipif(
    operator_library.unavailable() is not None, reason=str(operator_library.unavailable())
)


def test_no_library(
    own_bundle: Path,
    samples: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The stand-ins answer, which is said once; costs with the operators are not theirs."""
    frames = spread_scenes(samples, 40)
    with Runtime(own_bundle) as runtime:
        expected = [runtime.classify(frame) for frame in frames]
    monkeypatch.setattr(operator_library, "_load", lambda: (None, None, "was not built; build"))
    with Runtime(own_bundle) as runtime:
        found = [runtime.classify(frame) for frame in frames]
        kinds = [type(event).__name__ for event in runtime.events]
        assert kinds[:2] == ["StandInsRun", "CostsRefused"]
        assert "native operators: was not built" in runtime.events[0].reason
        assert "native" not in runtime.backend.name
    assert len(caplog.records) == 1
    same = np.mean([a.class_id == b.class_id for a, b in zip(expected, found, strict=True)])
    assert same > 0.9


def test_a_processor_without_any_of_the_sets(
    own_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Plain C++ would be slower than ONNX Runtime's own operators."""
    monkeypatch.setattr(operator_library, "instruction_sets", lambda: [operator_library.PLAIN])
    with Runtime(own_bundle) as runtime:
        assert isinstance(runtime.events[0], StandInsRun)
        assert "this processor has none of the instructions" in runtime.events[0].reason
        assert "native" not in runtime.backend.name


def test_a_graph_that_is_refused(own_bundle: Path) -> None:
    """As of another interface."""
    spoil(own_bundle, "stage2.native.onnx")
    with Runtime(own_bundle) as runtime:
        assert isinstance(runtime.events[0], StandInsRun)
        assert "refused a stage" in runtime.events[0].reason


def test_shapes_that_operators_were_not_made_for(own_bundle: Path) -> None:
    """Seen when the session opens."""
    path = own_bundle / "stage1.native.onnx"
    onnx = pytest.importorskip("onnx")
    model = onnx.load(path)
    node = next(n for n in model.graph.node if n.op_type == "Attention")
    next(a for a in node.attribute if a.name == "head_width").i = 24
    onnx.save(model, path)
    digest = {path.name: file_sha256(path)}
    edit_manifest(own_bundle, lambda manifest: manifest["files"].update(digest))
    with Runtime(own_bundle) as runtime:
        assert isinstance(runtime.events[0], StandInsRun)
        assert "head_width is 24, expected 32 to 256" in runtime.events[0].reason
