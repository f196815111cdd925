"""The device half with NVIDIA's own builder: TensorRT-RTX for other GPUs, on any machine."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.converters import device
from dvt_edge.converters.build import build
from dvt_edge.converters.device import find_platform
from dvt_edge.errors import BackendError, BuildError
from dvt_edge.profile import EngineConfig, Profile

pytest.importorskip("tensorrt_rtx")

pytestmark = pytest.mark.usefixtures("no_gpu")  # engines are built ahead of time

Portable = Callable[..., Profile]
# Imports of what a board does not have fail there; so they do here.
WITHOUT_TORCH = """
import sys
for name in ("torch", "onnx", "safetensors"):
    sys.modules[name] = None
from dvt_edge.converters.build import build
from dvt_edge.profile import Profile
profile = Profile.model_validate_json(sys.stdin.read())
result = build(profile, phase=sys.argv[1])
assert result.rebuilt
print([plan.precision for plan in result.bundle.manifest.engines.plans])
"""


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["int8", "fp16", "auto"])
def test_engines(portable: Portable, precision: str) -> None:
    """NVIDIA's parser and planner take every stage; what they planned is in the manifest."""
    profile = portable(backend="tensorrt-rtx", precision=precision, compute_capabilities=(86, 120))
    bundle = build(profile, phase="device").bundle
    manifest = bundle.manifest
    done = manifest.engines
    assert done is not None
    assert done.platform.backend == "tensorrt-rtx"
    assert done.platform.compute_capabilities == ("8.6", "12.0")
    assert done.platform.device is None
    assert done.flags == ("STRONGLY_TYPED",)
    chosen = "fp16" if precision == "fp16" else "int8"
    for i, (stage, plan) in enumerate(zip(manifest.stages, done.plans, strict=True)):
        assert (stage.precision, plan.precision) == (chosen, chosen)
        assert plan.graph == f"stage{i + 1}.{chosen}.onnx"
        assert plan.planned is not None
        linears = plan.planned.get("int8 gemm", 0)
        assert (linears >= 8) == (chosen == "int8")  # qkv, proj, fc1 and fc2 of two layers
        assert bundle.stage_path(i).stat().st_size > 10_000
    assert len(manifest.choices) == (3 if precision == "auto" else 0)
    for choice in manifest.choices:
        assert choice.chosen
        assert (choice.latency_ms, choice.same_class, choice.same_exit) == (None, None, None)
        assert choice.remark.startswith("not measured: no GPU")


def test_unknown_compute_capability(portable: Portable) -> None:
    """Orin is not an RTX: the message names what there is."""
    profile = portable(backend="tensorrt-rtx", compute_capabilities=(86, 87))
    with pytest.raises(
        BuildError,
        match=r"compute capability 87 is not known to tensorrt_rtx [\d.]+, which builds for 75.*86",
    ) as caught:
        build(profile, phase="device")
    assert "change engine.compute_capabilities" in str(caught.value)
    assert Bundle(profile.output).manifest.portable


def test_no_gpu_and_no_compute_capability() -> None:
    with pytest.raises(BackendError, match=r"no NVIDIA GPU .*give engine\.compute_capabilities"):
        find_platform(EngineConfig(backend="tensorrt-rtx"))


def test_graph_that_is_refused(portable: Portable) -> None:
    """With the parser's own words, and the file."""
    profile = portable(backend="tensorrt-rtx", compute_capabilities=(86,))
    bundle = Bundle(profile.output)
    bundle.manifest = bundle.manifest.model_copy(update={"engine": profile.engine})
    (profile.output / "stage2.int8.onnx").write_bytes(b"no graph")
    platform = find_platform(profile.engine)
    with pytest.raises(BuildError, match=r"tensorrt_rtx refused .*stage2\.int8\.onnx: ."):
        device.build_engines(bundle, platform, lambda *call: None)


@pytest.mark.slow
@pytest.mark.parametrize("phase", ["device", "auto"])
def test_neither_torch_nor_onnx_is_needed(portable: Portable, tmp_path: Path, phase: str) -> None:
    """As on a board to which the portable bundle was copied: no checkpoint, no images."""
    profile = portable(backend="tensorrt-rtx", compute_capabilities=(86,))
    profile.model.unlink()
    profile.calibration.data.unlink()
    environment: dict[str, Any] = {**os.environ, "PYTHONWARNINGS": "error"}
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, phase],
        input=profile.model_dump_json(),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['int8', 'int8', 'int8']"
    assert not Bundle(profile.output).manifest.portable
