"""What is refused before anything is opened, and in which words."""

from __future__ import annotations

import logging
import platform
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dvt_edge import Runtime
from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.bundle.signing import signed
from dvt_edge.errors import BackendError, BundleError
from dvt_edge.machine.board import read_board
from dvt_edge.machine.driver import Driver
from dvt_edge.machine.platform import Platform
from dvt_edge.profile import EngineConfig
from dvt_edge.runtime.backends import gpu_opening, opening
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from dvt_edge.runtime.backends.opening import FINISH, open_backend
from tests.conftest import ORIN, edit_manifest, orin_platform


@pytest.fixture
def finished(own_bundle: Path) -> Callable[..., Bundle]:
    """A function giving the demo's bundle as if its stages were engines, of ``platform``, and
    signed here."""

    def make(platform: Platform | None = None, **engine: Any) -> Bundle:
        plan = {"precision": "int8", "graph": "stage1.onnx", "seconds": 1, "cached": False}
        changes: dict[str, Any] = {
            "engine": {"backend": "tensorrt", "batch_sizes": [1, 8]} | engine
        }
        if platform is not None:
            changes["engines"] = {
                "platform": platform.model_dump(),
                "flags": [],
                "workspace_mb": 64,
                "plans": [plan],
                "built_at": "2025-01-01T00:00:00+00:00",
            }
        edit_manifest(own_bundle, lambda m: m.update(changes, stand_ins=m["stages"]))
        if platform is not None:
            _as_plans(own_bundle)
        return Bundle(own_bundle)

    return make


def _signature(manifest: dict[str, Any]) -> str | None:
    engines = signed(Manifest.model_validate(manifest)).engines
    assert engines is not None
    return engines.signature


def _as_plans(folder: Path) -> None:
    """Copies of the stages' graphs, called engines."""

    def change(manifest: dict[str, Any]) -> None:
        stages = []
        for stage in manifest["stages"]:
            plan = stage["file"].replace(".onnx", ".plan")
            shutil.copy(folder / stage["file"], folder / plan)
            manifest["files"][plan] = manifest["files"][stage["file"]]
            stages.append(stage | {"file": plan})
        manifest["stages"] = stages
        manifest["engines"]["signature"] = _signature(manifest)

    edit_manifest(folder, change)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What reached the backends that would open files; they are not called."""
    calls: list[Any] = []
    for name in ("open_tensorrt", "open_onnxruntime_cuda"):

        def note(*given: Any, name: str = name, preprocess: bool) -> None:
            calls.append((name, *given, preprocess))

        monkeypatch.setattr(opening, name, note)
    return calls


@pytest.fixture
def orin(
    board_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, opened: list[Any]
) -> list[Any]:
    """An Orin Nano with TensorRT 10.3; what is opened on it."""
    board = read_board(board_root("orin-nano"))
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="10.3.0"))
    monkeypatch.setattr(opening, "read_driver", lambda: ORIN)
    monkeypatch.setattr(opening, "read_board", lambda: board)
    return opened


@pytest.mark.parametrize("backend", ["tensorrt", "tensorrt-rtx"])
def test_portable_half(finished: Callable[..., Bundle], orin: list[Any], backend: str) -> None:
    bundle = finished(backend=backend)
    with pytest.raises(BackendError, match=f"portable half .* for {backend}; .*'{FINISH}'"):
        open_backend(bundle)
    with pytest.raises(BackendError, match="portable half"):
        Runtime(bundle.folder)
    assert not orin


def test_where_they_were_built(
    finished: Callable[..., Bundle], orin: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    bundle = finished(orin_platform())
    open_backend(bundle)
    ((name, module, paths, specs, engine, preprocess),) = orin
    assert (name, module) == ("open_tensorrt", "tensorrt")
    assert paths == [bundle.stage_path(i) for i in range(3)]
    assert (specs, engine) == (bundle.manifest.stages, bundle.manifest.engine)
    assert not preprocess
    assert not caplog.records


@pytest.mark.parametrize(
    ("built", "words"),
    [
        ({"version": "10.3.1"}, "version: built for 10.3.1, found 10.3.0"),
        ({"version": "8.6.2"}, "version: built for 8.6.2, found 10.3.0"),
        ({"compute_capabilities": ["8.6"]}, "compute capability: built for 8.6, found 8.7"),
        ({"device": "Orin NX"}, "GPU: built for Orin NX, found Orin"),
    ],
)
def test_built_elsewhere(
    finished: Callable[..., Bundle], orin: list[Any], built: dict[str, Any], words: str
) -> None:
    """Refused with both sides and the remedy; TensorRT has not seen the plans."""
    with pytest.raises(BundleError, match=rf"\({words}\); rebuild .* --phase device"):
        open_backend(finished(orin_platform(**built)))
    assert not orin


def test_built_by_a_stranger(
    finished: Callable[..., Bundle],
    orin: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """A machine that looks the same: refused before TensorRT sees a plan, with the command that
    rebuilds. The bundle cannot allow it, the profile can."""
    bundle = finished(orin_platform())
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another machine"))
    message = r"not built by this user on this machine.* --phase device .*trust: foreign-engines"
    for source in (bundle, Bundle(bundle.folder)):
        with pytest.raises(BundleError, match=message):
            open_backend(source)
    with pytest.raises(BundleError, match=message):
        Runtime(bundle.folder)
    assert not orin
    bundle.trusts_foreign_engines = True
    open_backend(bundle)
    assert len(orin) == 1


@pytest.mark.parametrize(
    ("built", "remark"),
    [
        ({"power_mode": "15W"}, "power mode was 15W when the engines were built, now MAXN_SUPER"),
        ({"l4t": "36.3.0"}, "L4T was 36.3.0 when the engines were built, now 36.4.3"),
        ({"cuda": "12.2"}, "CUDA was 12.2 when the engines were built, now 12.6.68"),
        ({"power_mode": None}, None),
    ],
)
def test_remarks(
    finished: Callable[..., Bundle],
    orin: list[Any],
    caplog: pytest.LogCaptureFixture,
    built: dict[str, Any],
    remark: str | None,
) -> None:
    """What changes timing alone is logged, and the engines are opened."""
    bundle = finished(orin_platform(**built))
    with caplog.at_level(logging.WARNING):
        open_backend(bundle)
    told = [record.getMessage() for record in caplog.records]
    assert told == ([] if remark is None else [f"{bundle.folder}: {remark}"])
    assert len(orin) == 1


def test_no_driver_runs_the_graphs_on_the_cpu(
    finished: Callable[..., Bundle],
    orin: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """And says so: its latency is not the device's."""
    monkeypatch.setattr(opening, "read_driver", lambda: None)
    with caplog.at_level(logging.WARNING):
        backend = open_backend(finished())
    assert isinstance(backend, OnnxRuntimeBackend)
    assert "no NVIDIA driver here" in caplog.text
    backend.close()
    assert not orin


def test_no_gpu(
    finished: Callable[..., Bundle], orin: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "read_driver", lambda: Driver("12.6", ()))
    with pytest.raises(BackendError, match=r"none answers here; 'dvt-edge doctor'"):
        open_backend(finished(orin_platform()))
    assert not orin


def test_no_tensorrt(
    finished: Callable[..., Bundle], orin: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(BackendError, match=r"need the Python module 'tensorrt' .*doctor"):
        open_backend(finished(orin_platform()))
    assert not orin


def test_provider_cuda(finished: Callable[..., Bundle], opened: list[Any]) -> None:
    """Graphs, not engines: nothing is compared with the machine."""
    bundle = finished(backend="onnxruntime", provider="cuda")
    open_backend(bundle)
    assert opened == [
        (
            "open_onnxruntime_cuda",
            [bundle.stage_path(i) for i in range(3)],
            bundle.manifest.stages,
            bundle.manifest.engine,
            False,
        )
    ]


@pytest.mark.parametrize(
    ("asked", "measured", "expected"),
    [
        ("auto", "host", False),
        ("auto", "device", True),
        ("host", "device", False),
        ("device", "host", True),
    ],
)
def test_where_frames_become_images(
    finished: Callable[..., Bundle], orin: list[Any], asked: str, measured: str, expected: bool
) -> None:
    """As the profile says, or as was measured when the engines were built."""
    bundle = finished(orin_platform())

    def change(manifest: dict[str, Any]) -> None:
        manifest["input"]["preprocess"] = asked
        manifest["engines"]["preprocess"] = measured
        manifest["engines"]["signature"] = _signature(manifest)

    edit_manifest(bundle.folder, change)
    open_backend(Bundle(bundle.folder))
    assert [given[-1] for given in orin] == [expected]


def test_provider_cuda_without_pycuda(
    finished: Callable[..., Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setattr(gpu_opening, "check_provider", lambda: None)
    with pytest.raises(BackendError, match="needs pycuda"):
        open_backend(finished(backend="onnxruntime", provider="cuda"))


def test_provider_cuda_without_onnxruntime_gpu(
    finished: Callable[..., Bundle], host_device: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before pycuda is asked for and the GPU is opened."""
    device = host_device()
    monkeypatch.setattr(gpu_opening, "CudaDevice", lambda wait: device)
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    with pytest.raises(BackendError, match=r"no CUDA provider here; .*onnxruntime-gpu"):
        open_backend(finished(backend="onnxruntime", provider="cuda"))
    assert not device.closed


def test_refused_plan_gives_the_device_back(
    own_bundle: Path, host_device: type[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second of three is refused: the first is closed, then the device."""
    device, order = host_device(), []

    class Stage:
        def __init__(
            self, trt: Any, runtime: Any, logger: Any, plan: bytes, name: str, spec: Any
        ) -> None:
            if Path(name).name.startswith("stage2"):
                raise BackendError(f"{name}: refused")

        def close(self) -> None:
            assert not device.closed
            order.append("stage")

    monkeypatch.setattr(gpu_opening, "CudaDevice", lambda wait: device)
    monkeypatch.setattr(gpu_opening, "TensorRTStage", Stage)
    trt = SimpleNamespace(__version__="10.3.0")
    monkeypatch.setattr(gpu_opening, "load_module", lambda name: trt)
    monkeypatch.setattr(gpu_opening, "make_logger", lambda trt: None)
    monkeypatch.setattr(gpu_opening, "make_runtime", lambda trt, logger: None)
    bundle = Bundle(own_bundle)
    paths = [bundle.stage_path(i) for i in range(3)]
    with pytest.raises(BackendError, match=r"stage2\S*\.onnx: refused"):
        gpu_opening.open_tensorrt(
            "tensorrt", paths, bundle.manifest.stages, EngineConfig(backend="tensorrt")
        )
    assert order == ["stage"]
    assert device.closed == 1
    assert not device.depth
