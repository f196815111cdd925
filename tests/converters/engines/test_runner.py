"""Engine builds in their own process, with a TensorRT that plays several releases."""

from __future__ import annotations

import enum
import hashlib
import importlib.util
import json
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.converters.engines import runner
from dvt_edge.converters.engines.request import Built, Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.errors import BuildError
from tests.converters.conftest import FAKES, FakeTensorrt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals and sessions of Linux")

GRAPH = b"not read by the fake"
Requests = Callable[..., Request]


@pytest.fixture
def request_for(tmp_path: Path) -> Requests:
    """A function giving a request for a graph of a few bytes; keywords replace fields."""
    (tmp_path / "stage1.onnx").write_bytes(GRAPH)

    def make(**changes: Any) -> Request:
        values: dict[str, Any] = {
            "graph": str(tmp_path / "stage1.onnx"),
            "plan": str(tmp_path / "stage1.plan"),
            "batch_sizes": (1, 4),
            "workspace_bytes": 1 << 28,
        }
        return Request(**(values | changes))

    return make


def _silent(remark: str) -> None:
    pass


@pytest.mark.parametrize("version", ["10.3.0", "11.0.0"])
def test_how_the_builder_is_asked(
    fake_tensorrt: FakeTensorrt, request_for: Requests, version: str
) -> None:
    """Types are the graph's, and float32 is float32."""
    fake_tensorrt.set(version)
    built = run_build("tensorrt", request_for(), _silent)
    assert built.version == version
    assert built.warnings == ("tactic skipped",)
    assert built.listing is None
    assert built.seconds > 0
    calls = fake_tensorrt.calls()
    assert ["create_network", ["STRONGLY_TYPED"]] in calls
    assert ["clear_flag", "TF32"] in calls
    assert ["workspace", ["WORKSPACE", 1 << 28]] in calls
    assert ["build", "DETAILED"] in calls


@pytest.mark.parametrize("module", ["tensorrt", "tensorrt_rtx"])
def test_what_ensures_capture(
    fake_tensorrt: FakeTensorrt, request_for: Requests, module: str
) -> None:
    """TensorRT-RTX is asked to leave all memory to the caller; TensorRT has no such flag."""
    fake_tensorrt.set("10.3.0")
    run_build(module, request_for(), _silent)
    asked = ["set_flag", "REQUIRE_USER_ALLOCATION"] in fake_tensorrt.calls()
    assert asked == (module == "tensorrt_rtx")


def test_plan_is_what_the_builder_gave(fake_tensorrt: FakeTensorrt, request_for: Requests) -> None:
    """Not a byte before it: ``trtexec --loadEngine`` opens it."""
    fake_tensorrt.set("10.3.0", "listing")
    request = request_for()
    assert run_build("tensorrt", request, _silent).listing == "Layers:\nName: a"
    expected = b"plan of " + hashlib.sha256(GRAPH).hexdigest().encode()
    assert Path(request.plan).read_bytes() == expected


@pytest.mark.parametrize("sizes", [(1,), (1, 8, 32)])
def test_profiles(
    fake_tensorrt: FakeTensorrt, request_for: Requests, sizes: tuple[int, ...]
) -> None:
    """One per batch size, in order and for that size alone; every input has its shape in each."""
    fake_tensorrt.set("10.3.0")
    run_build("tensorrt", request_for(batch_sizes=sizes), _silent)
    expected: list[list[Any]] = []
    for size in sizes:
        for name, image in (("image", [1, 16, 16]), ("features", [5, 8])):
            expected.append(["set_shape", [name, *[[size, *image]] * 3]])
        expected.append(["add_profile", []])
    calls = fake_tensorrt.calls()
    assert [c for c in calls if c[0] in ("set_shape", "add_profile")] == expected


@pytest.mark.parametrize(
    ("act", "message"),
    [
        ("parser error", "tensorrt refused .*stage1.onnx: No importer registered for op: Attent"),
        ("parser says nothing", "stage1.onnx: the parser gave no reason"),
        ("refuse", "stage1.onnx: Non-zero zero point is not supported; Assertion failed$"),
        ("refuse without a word", "stage1.onnx: the builder gave no reason"),
        ("no driver", r"stage1.onnx: In generateForCurrent \(cudaError 35: no driver\)$"),
        ("raise", "ended with exit code 1 while it built .*RuntimeError: pybind11 lost"),
        ("not importable", "ended with exit code 1 .*ImportError: libnvinfer.so.10: cannot open"),
        ("SIGSEGV", r"crashed \(Segmentation fault\) while it built .*stage1.onnx: last words"),
        ("SIGKILL", r"crashed \(Killed\); if the system ran out of memory, lower engine.workspace"),
    ],
)
def test_failures(
    fake_tensorrt: FakeTensorrt, request_for: Requests, act: str, message: str
) -> None:
    fake_tensorrt.set("10.3.0", act)
    with pytest.raises(BuildError, match=message):
        run_build("tensorrt", request_for(), _silent)
    assert not Path(request_for().plan).exists()


def test_request_is_longer_than_a_pipe(fake_tensorrt: FakeTensorrt, request_for: Requests) -> None:
    """A process that dies before it has read its request is no broken pipe of ours."""
    fake_tensorrt.set("10.3.0", "not importable")
    with pytest.raises(BuildError, match=r"libnvinfer\.so\.10"):
        run_build("tensorrt", request_for(graph="x" * 1_000_000), _silent)


def test_missing_module(request_for: Requests) -> None:
    with pytest.raises(BuildError, match="No module named 'tensorrt_nowhere'"):
        run_build("tensorrt_nowhere", request_for(), _silent)


def test_words_of_the_library_do_not_disturb(
    fake_tensorrt: FakeTensorrt, request_for: Requests
) -> None:
    """Nor do those that it writes while it is imported."""
    fake_tensorrt.set("10.3.0", "garbage")
    assert run_build("tensorrt", request_for(), _silent).version == "10.3.0"


def _targets(fake: FakeTensorrt) -> list[str]:
    return [value for name, value in fake.calls() if name == "target"]


@pytest.mark.parametrize(
    ("capabilities", "targets"), [((), ["CURRENT"]), ((86, 120), ["SM86", "SM120"])]
)
def test_gpus_that_tensorrt_rtx_builds_for(
    fake_tensorrt: FakeTensorrt,
    request_for: Requests,
    capabilities: tuple[int, ...],
    targets: list[str],
) -> None:
    """Without compute capabilities it is this machine's, not what NVIDIA builds for by default."""
    fake_tensorrt.set("1.7.1")
    run_build("tensorrt_rtx", request_for(compute_capabilities=capabilities), _silent)
    assert _targets(fake_tensorrt) == targets


def test_tensorrt_builds_for_the_gpu_here(
    fake_tensorrt: FakeTensorrt, request_for: Requests
) -> None:
    """It has no word for others, and none is used."""
    fake_tensorrt.set("10.3.0")
    run_build("tensorrt", request_for(), _silent)
    assert _targets(fake_tensorrt) == []
    with pytest.raises(
        BuildError, match=r"tensorrt builds for the GPU of this machine alone; remove engine\.comp"
    ):
        run_build("tensorrt", request_for(compute_capabilities=(86,)), _silent)


def test_the_stand_in_has_the_names_of_tensorrt_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the module, of its enumerations and of its classes' methods."""
    real = pytest.importorskip("tensorrt_rtx")
    monkeypatch.setenv("FAKE_TENSORRT", json.dumps({"version": real.__version__}))
    path = FAKES / "tensorrt_rtx.py"
    spec = importlib.util.spec_from_file_location("tensorrt_rtx", path)
    assert spec is not None
    assert spec.loader is not None
    fake = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fake)
    pairs = [
        (getattr(fake, name), getattr(real, renamed))
        for name, renamed in {
            "_Tensor": "ITensor",
            "_Network": "INetworkDefinition",
            "_ParserError": "ParserError",
            "_Profile": "IOptimizationProfile",
            "_RtxConfig": "IBuilderConfig",
        }.items()
    ]
    for name, value in vars(fake).items():
        if isinstance(value, type) and value.__module__ == fake.__name__ and name[0] != "_":
            pairs.append((value, getattr(real, name)))
    assert len(pairs) > 10
    for ours, theirs in pairs:
        bases = [c for c in ours.__mro__ if c.__module__ == fake.__name__]
        names = {name for c in bases for name in vars(c) if name[0] != "_"}
        if issubclass(ours, enum.Enum):
            names = set(ours.__members__)
        names -= {"graph"}  # which the stand-in keeps there
        assert names <= set(dir(theirs)), ours
    assert list(fake.ComputeCapability.__members__) == list(real.ComputeCapability.__members__)


def test_progress(fake_tensorrt: FakeTensorrt, request_for: Requests) -> None:
    fake_tensorrt.set("10.3.0", "slow")
    reports: list[str] = []
    run_build("tensorrt", request_for(), reports.append)
    assert [remark.split(", ")[1] for remark in reports] == [
        "Building engine 0/6",
        "Building engine 1/6",
    ]
    assert all(remark.split(", ")[0].endswith(" s so far") for remark in reports)


def test_time_is_reported_where_the_builder_is_silent(
    fake_tensorrt: FakeTensorrt, request_for: Requests, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And Ctrl-C ends a build that hangs, with its process."""
    fake_tensorrt.set("10.3.0", "hang")
    monkeypatch.setattr(runner, "TICK_SECONDS", 0.01)
    started: list[Any] = []
    popen = subprocess.Popen

    def spy(*arguments: Any, **keywords: Any) -> Any:
        started.append(popen(*arguments, **keywords))
        return started[-1]

    monkeypatch.setattr(subprocess, "Popen", spy)
    reports: list[str] = []

    def report(remark: str) -> None:
        reports.append(remark)
        if reports.count(remark) > 1 and remark.endswith("Building engine 0/6"):
            raise KeyboardInterrupt

    before = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        run_build("tensorrt", request_for(), report)
    assert reports[0].endswith(" s so far")
    assert started[0].returncode == -9
    assert threading.active_count() == before
    assert not Path(request_for().plan).exists()


def test_request_and_answer_survive_json() -> None:
    request = Request(
        graph="a.onnx",
        plan="a.plan",
        batch_sizes=(1, 4),
        workspace_bytes=1 << 30,
        compute_capabilities=(86, 89),
    )
    assert Request.model_validate_json(request.model_dump_json()) == request
    built = Built(version="10.3.0", seconds=1.5, warnings=("a", "b"), listing=None)
    assert Built.model_validate(json.loads(json.dumps(built.model_dump()))) == built
