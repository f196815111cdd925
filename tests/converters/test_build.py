"""The two halves of a build: which one runs where, and what it says of the other."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.signing import built_here
from dvt_edge.converters import device
from dvt_edge.converters.build import build
from dvt_edge.errors import BackendError, BuildError, BundleError, CheckpointError
from dvt_edge.profile import BudgetConfig, ExitsConfig, Profile
from dvt_edge.requirements import HOST_MODULES
from tests.converters.conftest import FakeTensorrt, changed, files_in

Portable = Callable[..., Profile]


@pytest.fixture
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """None of the export extra is installed."""
    for module in HOST_MODULES:
        monkeypatch.setitem(sys.modules, module, None)


def test_host_phase_leaves_a_portable_bundle(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    """Also where engines could be built; the line says so."""
    profile = tiny_profile(engine={"backend": "tensorrt", "precision": "auto"})
    result = build(profile, phase="host")
    assert result.rebuilt
    assert result.bundle.manifest.portable
    assert result.unfinished == "only the host phase was asked for"
    assert jetson.calls() == []
    names = [f"stage{i}.{kind}.onnx" for i in (1, 2, 3) for kind in ("fp16", "int8")]
    names += [f"stage{i}.onnx" for i in (1, 2, 3)]
    names += ["manifest.json", "parity.npz", "records.npz"]
    assert sorted(path.name for path in profile.output.iterdir()) == sorted(names)
    again = build(profile, phase="host")
    assert (again.rebuilt, again.unfinished) == (False, result.unfinished)


@pytest.mark.parametrize(
    ("precision", "kinds"), [("int8", ["int8"]), ("fp16", ["fp16"]), ("auto", ["int8", "fp16"])]
)
def test_graphs(portable: Portable, precision: str, kinds: list[str]) -> None:
    """Those that the profile leaves open, all in float16 but for what is quantized."""
    manifest = Bundle(portable(precision=precision).output).manifest
    assert manifest.stages == manifest.stand_ins
    assert {tensor.dtype for spec in manifest.stages for tensor in spec.inputs} == {"float32"}
    for i, specs in enumerate(manifest.graphs):
        assert [spec.precision for spec in specs] == kinds
        assert [spec.file for spec in specs] == [f"stage{i + 1}.{kind}.onnx" for kind in kinds]
        assert {tensor.dtype for spec in specs for tensor in spec.inputs} == {"float16"}
    assert manifest.quantization.fp16_same_class is not None
    assert min(manifest.quantization.fp16_same_class) > 0.9


def test_auto_does_both_halves_where_it_can(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    profile = tiny_profile(engine={"backend": "tensorrt"})
    result = build(profile)
    assert (result.rebuilt, result.unfinished) == (True, None)
    assert result.bundle.manifest.engines is not None
    before = files_in(profile.output)
    for phase in ("auto", "device", "host"):
        again = build(profile, phase=phase)
        assert (again.rebuilt, again.unfinished) == (False, None)
    assert files_in(profile.output) == before


def test_engines_of_another_machine_are_built_again(
    portable: Portable, jetson: FakeTensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it looks the same: that is what the command of the refusal is for. Not where the
    profile trusts them."""
    profile = portable()
    build(profile, phase="device")
    assert not build(profile, phase="device").rebuilt
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "another machine"))
    trusting = profile.model_copy(update={"trust": "foreign-engines"})
    assert not build(trusting, phase="device").rebuilt
    result = build(profile, phase="device")
    assert result.rebuilt
    assert built_here(result.bundle.manifest)
    assert not build(profile, phase="device").rebuilt


def test_a_key_that_cannot_be_kept(
    portable: Portable, jetson: FakeTensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said before the engines are built."""
    profile = portable()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "file"))
    with pytest.raises(BuildError, match="set XDG_DATA_HOME to a folder that can be written"):
        build(profile, phase="device")
    assert jetson.calls() == []


@pytest.mark.usefixtures("no_gpu")
def test_auto_stops_at_the_portable_bundle_elsewhere(
    tiny_profile: Callable[..., Profile], fake_tensorrt: FakeTensorrt
) -> None:
    """Which is no error: the line says why. There is a TensorRT, but nothing to run it on."""
    fake_tensorrt.set("10.3.0")
    profile = tiny_profile(engine={"backend": "tensorrt"})
    result = build(profile)
    assert result.rebuilt
    assert result.bundle.manifest.portable
    assert result.unfinished is not None
    assert result.unfinished.startswith("no NVIDIA GPU answers here")
    assert "\n" not in result.unfinished
    with pytest.raises(BackendError, match="no NVIDIA GPU answers here"):
        build(profile, phase="device")


def test_finished_bundle_is_not_called_portable(
    portable: Portable, jetson: FakeTensorrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copied back to a host without a GPU it is still finished."""
    profile = portable()
    build(profile, phase="device")
    monkeypatch.setattr(device, "read_driver", lambda: None)
    result = build(profile)
    assert (result.rebuilt, result.unfinished) == (False, None)
    assert not result.bundle.manifest.portable


def test_device_phase_without_portable_bundle(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    profile = tiny_profile(engine={"backend": "tensorrt"})
    with pytest.raises(
        BundleError, match=r"no bundle here.*starts from the portable bundle.*copy that folder"
    ):
        build(profile, phase="device")
    assert not profile.output.exists()


@pytest.mark.parametrize(
    ("what", "change"),
    [
        ("engine.backend", lambda p: changed(p, "engine", backend="tensorrt-rtx")),
        ("engine.precision", lambda p: changed(p, "engine", precision="fp16")),
        (
            "input",
            lambda p: changed(p, "input", resize=20),
        ),
        ("exits", lambda p: p.model_copy(update={"exits": ExitsConfig(confidence="margin")})),
    ],
)
def test_device_phase_with_another_profile(
    portable: Portable, jetson: FakeTensorrt, what: str, change: Callable[[Profile], Profile]
) -> None:
    """What decides the host half must be that of the bundle."""
    profile = portable()
    with pytest.raises(BundleError, match=rf"built with another '{what}' .*--phase host"):
        build(change(profile), phase="device")
    assert Bundle(profile.output).manifest.portable


def test_device_phase_stores_another_budget(portable: Portable, jetson: FakeTensorrt) -> None:
    profile = portable()
    other = profile.model_copy(update={"budget": BudgetConfig(latency_ms=7.5)})
    assert build(other, phase="device").bundle.manifest.budget.latency_ms == 7.5
    result = build(profile, phase="device")
    assert not result.rebuilt
    assert Bundle(profile.output).manifest.budget == profile.budget


@pytest.mark.slow
def test_another_batch_size_rebuilds_the_engines_only(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    profile = tiny_profile(engine={"backend": "tensorrt"})
    first = build(profile).bundle.manifest
    said: list[str] = []
    other = changed(profile, "engine", batch_sizes=(1, 8), workspace_mb=512)
    result = build(other, lambda what, *rest: said.append(what))
    manifest = result.bundle.manifest
    assert result.rebuilt
    assert set(said) == {"calibration images", "engines"}
    assert manifest.engine == other.engine
    assert manifest.graphs == first.graphs
    assert manifest.build_key == first.build_key
    assert ["set_shape", ["image", *[[8, 1, 16, 16]] * 3]] in jetson.calls()
    assert not build(other).rebuilt


@pytest.mark.slow
def test_force_builds_everything(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    profile = tiny_profile(engine={"backend": "tensorrt"})
    build(profile)
    said: list[str] = []
    assert build(profile, lambda what, *rest: said.append(what), force=True).rebuilt
    assert {"quantization", "engines"} <= set(said)


@pytest.mark.parametrize("absent", ["torch", "checkpoint"])
def test_auto_on_a_board(
    portable: Portable, jetson: FakeTensorrt, request: pytest.FixtureRequest, absent: str
) -> None:
    """Where the host half cannot be done and was done elsewhere, engines are built from it."""
    profile = portable()
    if absent == "torch":
        request.getfixturevalue("no_torch")
    else:
        profile.model.unlink()
    profile.calibration.data.unlink()
    result = build(profile)
    assert (result.rebuilt, result.unfinished) == (True, None)
    assert result.bundle.manifest.engines is not None
    assert not build(profile).rebuilt


def test_auto_on_a_board_without_bundle(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt, no_torch: None
) -> None:
    with pytest.raises(BuildError, match=r"needs torch, onnx, safetensors; .*--phase device"):
        build(tiny_profile(engine={"backend": "tensorrt"}))


def test_missing_checkpoint_without_bundle(
    tiny_profile: Callable[..., Profile], jetson: FakeTensorrt
) -> None:
    profile = tiny_profile(engine={"backend": "tensorrt"})
    profile.model.unlink()
    with pytest.raises(CheckpointError, match="no readable checkpoint"):
        build(profile)


def test_onnxruntime_has_no_device_phase(tiny_profile: Callable[..., Profile]) -> None:
    with pytest.raises(BuildError, match="onnxruntime has no device phase: 'dvt-edge build"):
        build(tiny_profile(), phase="device")
    result = build(tiny_profile(), phase="host")  # which is the whole build
    assert (result.rebuilt, result.unfinished) == (True, None)
