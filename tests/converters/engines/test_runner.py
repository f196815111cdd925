"""Engine builds in their own process, with a TensorRT that plays several releases."""

from __future__ import annotations

import hashlib
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
from tests.converters.conftest import FakeTensorrt

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
            "largest_batch": 4,
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


def test_plan_is_what_the_builder_gave(fake_tensorrt: FakeTensorrt, request_for: Requests) -> None:
    """Not a byte before it: ``trtexec --loadEngine`` opens it."""
    fake_tensorrt.set("10.3.0", "listing")
    request = request_for()
    assert run_build("tensorrt", request, _silent).listing == "Layers:\nName: a"
    expected = b"plan of " + hashlib.sha256(GRAPH).hexdigest().encode()
    assert Path(request.plan).read_bytes() == expected


@pytest.mark.parametrize(("largest", "ranges"), [(1, [(1, 1)]), (2, [(1, 1), (1, 2)])])
def test_profiles(
    fake_tensorrt: FakeTensorrt, request_for: Requests, largest: int, ranges: list[tuple[int, int]]
) -> None:
    """The first is batch 1 alone; every input has its shape in each."""
    fake_tensorrt.set("10.3.0")
    run_build("tensorrt", request_for(largest_batch=largest), _silent)
    expected: list[list[Any]] = []
    for low, high in ranges:
        for name, image in (("image", [1, 16, 16]), ("features", [5, 8])):
            sizes = [[count, *image] for count in (low, high, high)]
            expected.append(["set_shape", [name, *sizes]])
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


def test_compute_capability_that_is_not_known(
    fake_tensorrt: FakeTensorrt, request_for: Requests
) -> None:
    """Only TensorRT-RTX builds for other GPUs; see ``test_engines.py`` for that."""
    fake_tensorrt.set("10.3.0")
    with pytest.raises(BuildError, match="KeyError: 'ComputeCapability'"):
        run_build("tensorrt", request_for(compute_capabilities=(86,)), _silent)


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
        largest_batch=4,
        workspace_bytes=1 << 30,
        compute_capabilities=(86, 89),
    )
    assert Request.model_validate_json(request.model_dump_json()) == request
    built = Built(version="10.3.0", seconds=1.5, warnings=("a", "b"), listing=None)
    assert Built.model_validate(json.loads(json.dumps(built.model_dump()))) == built
