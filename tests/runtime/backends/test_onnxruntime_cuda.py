"""ONNX Runtime on a GPU: how its sessions are asked for, and stages told that host memory is the
device's. The ONNX Runtime here has the CPU only."""

from __future__ import annotations

import gc
import platform
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest

from dvt_edge.bundle.manifest import StageSpec
from dvt_edge.converters.graphs.facts import stage_spec
from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.onnxruntime_cpu import open_session
from dvt_edge.runtime.backends.onnxruntime_cuda import (
    PROVIDER,
    OnnxRuntimeCudaStage,
    check_provider,
    open_cuda_session,
)

STREAM = 0x7F001234
Asked = list[tuple[str, ort.SessionOptions, dict[str, Any]]]
Arrays = dict[str, npt.NDArray[Any]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What sessions were asked for, on an x86-64 machine whose ONNX Runtime has a CUDA provider."""
    calls: Asked = []

    def session(path: str, options: ort.SessionOptions, **keywords: Any) -> object:
        calls.append((path, options, keywords))
        return calls

    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(ort, "get_available_providers", lambda: [PROVIDER, "CPUExecutionProvider"])
    monkeypatch.setattr(ort, "InferenceSession", session)
    return calls


def test_float32_is_float32_on_our_stream(asked: Asked) -> None:
    assert open_cuda_session(Path("stage1.onnx"), STREAM) is asked
    ((path, _, keywords),) = asked
    assert path == "stage1.onnx"
    ((provider, settings),) = keywords["providers"]
    assert provider == PROVIDER
    assert settings["use_tf32"] == "0"
    assert settings["user_compute_stream"] == str(STREAM)


def test_no_node_goes_to_the_cpu(
    asked: Asked, monkeypatch: pytest.MonkeyPatch, models: list[onnx.ModelProto]
) -> None:
    """The real ONNX Runtime understands what it was asked; and no second try hides the reason."""
    open_cuda_session(Path("stage1.onnx"), STREAM)
    ((_, options, keywords),) = asked
    assert keywords["enable_fallback"] == 0
    monkeypatch.undo()
    with pytest.raises(Exception, match="also disabled fallback to the CPU EP"):
        ort.InferenceSession(
            models[0].SerializeToString(), options, providers=["CPUExecutionProvider"]
        )


def test_jetson_is_sent_to_tensorrt(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even one that has a CUDA provider: packages are compiled for other GPUs than its own."""
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    with pytest.raises(
        BackendError, match=r"for x86-64; on aarch64, .* set engine\.backend to tensorrt and build"
    ):
        check_provider()


def test_no_cuda_provider(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(BackendError, match=r"no CUDA provider here; .*pip install onnxruntime-gpu"):
        check_provider()


def test_release_that_lacks_an_operator(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before 1.21 ArgMax was the CPU's."""
    monkeypatch.setattr(ort, "__version__", "1.20.2")
    with pytest.raises(
        BackendError, match=r"1\.20\.2 is too old .*needs 1\.21 .*-U onnxruntime-gpu"
    ):
        check_provider()


def test_refused_graph(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line with ONNX Runtime's words, the file and what to do."""

    def refuse(*arguments: Any, **keywords: Any) -> None:
        raise RuntimeError("fallback to CPU EP has been explicitly disabled by the user")

    monkeypatch.setattr(ort, "InferenceSession", refuse)
    with pytest.raises(
        BackendError,
        match=r"refused stage1\.onnx on the GPU: fallback to CPU EP .*cuDNN, or set engine\.provid",
    ):
        open_cuda_session(Path("stage1.onnx"), STREAM)


@pytest.fixture
def spec(models: list[onnx.ModelProto]) -> StageSpec:
    return stage_spec(models[0], "stage1.onnx")


@pytest.fixture
def memory(spec: StageSpec) -> Callable[[int, int], Arrays]:
    """A function giving every tensor of a batch; the image is noise of a seed."""

    def make(batch: int, seed: int) -> Arrays:
        noise = np.random.default_rng(seed)
        tensors = {t.name: np.zeros(t.shape_at(batch), t.dtype) for t in spec.outputs}
        for t in spec.inputs:
            tensors[t.name] = noise.normal(size=t.shape_at(batch)).astype(t.dtype)
        return tensors

    return make


def _addresses(arrays: Arrays) -> dict[str, int]:
    return {name: array.ctypes.data for name, array in arrays.items()}


def test_one_batch_may_be_bound_to_several_images(
    models: list[onnx.ModelProto], spec: StageSpec, memory: Callable[[int, int], Arrays]
) -> None:
    """Each run reads and writes what it was prepared for."""
    session = open_session(models[0].SerializeToString(), 1)
    stage = OnnxRuntimeCudaStage(session, spec, "cpu")
    bound = [memory(2, 0), memory(2, 1), memory(1, 2)]
    runs = [
        stage.prepare(batch, _addresses(arrays), 0, STREAM)
        for batch, arrays in zip((2, 2, 1), bound, strict=True)
    ]
    for run, arrays in reversed(list(zip(runs, bound, strict=True))):
        run()
        stage.warmed_up()
        names = [t.name for t in spec.outputs]
        expected = session.run(names, {t.name: arrays[t.name] for t in spec.inputs})
        for name, value in zip(names, expected, strict=True):
            np.testing.assert_array_equal(arrays[name], value)
    assert not np.array_equal(bound[0]["logits"], bound[1]["logits"])


def test_close_frees_the_session(
    models: list[onnx.ModelProto], spec: StageSpec, memory: Callable[[int, int], Arrays]
) -> None:
    """Whoever still holds what was prepared does not keep it alive."""
    stage = OnnxRuntimeCudaStage(open_session(models[0].SerializeToString(), 1), spec, "cpu")
    session = weakref.ref(stage._session)
    run = stage.prepare(1, _addresses(memory(1, 0)), 0, STREAM)
    run()
    stage.close()
    stage.close()
    gc.collect()
    assert session() is None
    assert callable(run)


def test_failing_run(spec: StageSpec) -> None:
    class Session:
        def io_binding(self) -> Any:
            return self

        def bind_input(self, *arguments: Any) -> None:
            pass

        bind_output = bind_input

        def run_with_iobinding(self, binding: Any) -> None:
            raise RuntimeError("CUDA failure 700")

    stage = OnnxRuntimeCudaStage(Session(), spec)
    addresses = dict.fromkeys((t.name for t in (*spec.inputs, *spec.outputs)), 1)
    run = stage.prepare(1, addresses, 0, STREAM)
    with pytest.raises(BackendError, match=r"stage1\.onnx: failed in ONNX Runtime: CUDA failure"):
        run()
