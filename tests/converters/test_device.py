"""The device half of a build on a Jetson that is played: its board, driver and TensorRT."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST, PARITY
from dvt_edge.converters import device, selection
from dvt_edge.converters.build import build
from dvt_edge.converters.device import find_platform, read_parity
from dvt_edge.converters.selection import Parity
from dvt_edge.errors import BackendError, BuildError, BundleError
from dvt_edge.machine.board import read_board
from dvt_edge.machine.driver import Driver, Gpu
from dvt_edge.machine.platform import Platform
from dvt_edge.profile import EngineConfig, Profile
from dvt_edge.runtime.backends.protocol import StageAnswer
from tests.converters.conftest import FakeTensorrt, changed, files_in

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes and boards of Linux")

Portable = Callable[..., Profile]
COMPUTES = {"int8": {"int8", "fp16", "fp32"}, "fp16": {"fp16", "fp32"}}
"""What a stage's layers compute in, by its precision; the head stays in float32."""


def _finish(profile: Profile, **arguments: Any) -> Bundle:
    return build(profile, phase="device", **arguments).bundle


def _plan_of(bundle: Bundle, graph: str) -> bytes:
    """What the fake builder makes of ``graph``."""
    return b"plan of " + hashlib.sha256((bundle.folder / graph).read_bytes()).hexdigest().encode()


@pytest.mark.parametrize(
    ("version", "precision"), [("10.3.0", "int8"), ("10.3.0", "fp16"), ("11.0.0", "int8")]
)
def test_engines_of_every_release(
    portable: Portable, jetson: FakeTensorrt, version: str, precision: str
) -> None:
    """The manifest tells all about them."""
    jetson.set(version)
    profile = portable(precision=precision)
    before = Bundle(profile.output).manifest
    assert before.portable
    bundle = _finish(profile)
    manifest = bundle.manifest
    assert not manifest.portable
    assert os.listdir(profile.output.parent) == ["bundle"]
    for i, stage in enumerate(manifest.stages):
        assert stage.file == f"stage{i + 1}.plan"
        assert bundle.stage_path(i).read_bytes() == _plan_of(
            bundle, f"stage{i + 1}.{precision}.onnx"
        )
        assert stage.precision == precision
        image = next(t for t in stage.inputs if t.name == "image")
        assert image.dtype == "float16"
        dtypes = {t.name: t.dtype for t in stage.outputs}
        assert (dtypes["logits"], dtypes["confidence"]) == ("float32", "float32")
        assert dtypes["class_id"] == "int32"
        products = {name for counts in stage.layers.values() for name in counts}
        assert products == COMPUTES[precision]
    assert manifest.graphs == before.graphs
    done = manifest.engines
    assert done is not None
    assert done.flags == ("STRONGLY_TYPED",)
    assert done.workspace_mb == 1024
    assert done.platform == Platform(
        backend="tensorrt",
        version=version,
        compute_capabilities=("8.7",),
        device="Orin",
        cuda="12.6.68",
        l4t="36.4.3",
        power_mode="MAXN_SUPER",
    )
    for i, plan in enumerate(done.plans):
        assert plan.graph == f"stage{i + 1}.{precision}.onnx"
        assert (plan.precision, plan.cached, plan.planned) == (precision, False, None)
        assert plan.warnings == ("tactic skipped",)
    names = set(os.listdir(bundle.folder)) - {MANIFEST}
    assert set(manifest.files) == names
    assert {n for n in names if n.endswith(".onnx")} == {
        n for n in before.files if n.endswith(".onnx")
    }
    unchanged = {"budget", "input", "exits", "build_key", "quantization", "class_names", "versions"}
    for name in unchanged:
        assert getattr(manifest, name) == getattr(before, name)


def test_a_static_profile_per_batch_size(portable: Portable, jetson: FakeTensorrt) -> None:
    """Ascending and each once, however the profile lists them: batch 1 is profile 0."""
    _finish(portable(batch_sizes=(8, 1, 4, 8)))
    shapes = [value for name, value in jetson.calls() if name == "set_shape"]
    images = [sizes for name, *sizes in shapes if name == "image"]
    assert [[size[0] for size in sizes] for sizes in images] == [[1] * 3, [4] * 3, [8] * 3] * 3


def test_tensorrt_rtx_builds_for_the_gpu_here(
    portable: Portable, fake_tensorrt: FakeTensorrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the manifest says: a plan for other GPUs would be refused where it runs."""
    fake_tensorrt.set("1.7.1")
    monkeypatch.setattr(device, "read_driver", lambda: Driver("13.0", (Gpu("RTX 3060", "8.6"),)))
    done = _finish(portable(backend="tensorrt-rtx")).manifest.engines
    assert done is not None
    assert done.platform.compute_capabilities == ("8.6",)
    targets = [value for name, value in fake_tensorrt.calls() if name == "target"]
    assert targets == ["CURRENT"] * 3


@pytest.mark.slow
def test_cache_is_used_the_second_time(portable: Portable, jetson: FakeTensorrt) -> None:
    """Not for another TensorRT, workspace or batch, and not for a graph that changed."""

    def builds(profile: Profile, force: bool = False) -> tuple[int, list[bool]]:
        before = len(jetson.calls())
        if not force:  # the portable bundle again, so that there is something to build
            manifest = Bundle(profile.output).manifest
            undone = {"stages": manifest.stand_ins, "engines": None}
            text = manifest.model_copy(update=undone)
            (profile.output / MANIFEST).write_text(text.model_dump_json(), encoding="utf-8")
        done = _finish(profile, force=force).manifest.engines
        assert done is not None
        calls = jetson.calls()[before:]
        return sum(name == "build" for name, _ in calls), [plan.cached for plan in done.plans]

    profile = portable()
    assert builds(profile) == (3, [False] * 3)
    assert builds(profile) == (0, [True] * 3)
    assert builds(profile, force=True) == (3, [False] * 3)
    for change in ({"workspace_mb": 512}, {"batch_sizes": (1, 2)}):
        assert builds(changed(profile, "engine", **change)) == (3, [False] * 3)
    jetson.set("10.4.0")
    assert builds(profile) == (3, [False] * 3)
    jetson.set("10.3.0")
    assert builds(profile) == (0, [True] * 3)


@pytest.mark.slow
def test_finished_bundle_can_be_built_again(portable: Portable, jetson: FakeTensorrt) -> None:
    """On a board that was upgraded, say: the portable half is still in it."""
    profile = portable()
    graphs = Bundle(profile.output).manifest.graphs
    first = _finish(profile)
    (first.folder / "costs.json").write_text("{}", encoding="utf-8")
    jetson.set("11.0.0")
    again = build(profile, phase="device")
    assert again.rebuilt
    manifest = again.bundle.manifest
    assert manifest.engines is not None
    assert manifest.engines.platform.version == "11.0.0"
    assert manifest.graphs == graphs
    assert set(os.listdir(first.folder)) == set(manifest.files) | {MANIFEST}  # no old costs
    assert not build(profile, phase="device").rebuilt


def test_the_last_duration_is_reported(portable: Portable, jetson: FakeTensorrt) -> None:
    profile = portable()
    told: list[tuple[str, float, float, str]] = []

    def progress(what: str, done: float, total: float, remark: str = "") -> None:
        told.append((what, done, total, remark))

    _finish(profile, progress=progress)
    assert {what for what, *_ in told} == {"engines"}
    assert [(done, total) for _, done, total, remark in told if not remark] == [
        (1, 3),
        (2, 3),
        (3, 3),
    ]
    assert re.match(r"stage 1 int8: \d+ s so far", told[0][3])
    assert "last time" not in told[0][3]
    told.clear()
    jetson.set("11.0.0")
    _finish(profile, progress=progress)
    assert re.search(r", \d+ s last time$", told[0][3])


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("act", ["refuse", "SIGSEGV", "interrupt"])
def test_failing_build_leaves_everything(
    portable: Portable, jetson: FakeTensorrt, act: str, finished: bool
) -> None:
    """Portable or finished, the old bundle is whole, and nothing lies beside it."""
    profile = portable()
    if finished:
        _finish(profile)
    before = files_in(profile.output)

    def progress(what: str, done: float, total: float, remark: str = "") -> None:
        if act == "interrupt" and done == 1:
            raise KeyboardInterrupt

    jetson.set("11.0.0", "" if act == "interrupt" else act)
    with pytest.raises((BuildError, KeyboardInterrupt)):
        _finish(profile, progress=progress)
    assert files_in(profile.output) == before
    assert os.listdir(profile.output.parent) == ["bundle"]
    assert Bundle(profile.output).manifest.portable == (not finished)


def test_too_little_memory(
    portable: Portable,
    jetson: FakeTensorrt,
    board_root: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Said before anything is built; a board that does not tell is believed."""
    profile = portable()
    texts = {"proc/meminfo": "MemTotal: 7802272 kB\nMemAvailable:    1048576 kB\n"}
    root = board_root("orin-nano", texts)
    monkeypatch.setattr(device, "read_board", lambda _=None: read_board(root))
    with pytest.raises(
        BuildError, match=r"takes about 1024 MiB of memory, 1024 MiB are .*engine\.workspace_mb"
    ):
        _finish(profile)
    assert jetson.calls() == []
    (root / "proc/meminfo").unlink()
    _finish(profile)


def test_too_little_disk(
    portable: Portable, jetson: FakeTensorrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = portable()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(BuildError, match=r"engines take up to \d+ MiB of disk, 0 MiB are free"):
        _finish(profile)
    assert jetson.calls() == []


def test_where_engines_are_built(jetson: FakeTensorrt) -> None:
    platform = find_platform(EngineConfig(backend="tensorrt"))
    assert (platform.backend, platform.version) == ("tensorrt", "10.3.0")
    assert platform.device == "Orin"


@pytest.mark.parametrize(
    ("driver", "message"),
    [
        (None, "no NVIDIA GPU answers here.*run 'dvt-edge build --phase device"),
        (Driver("12.6", ()), "no NVIDIA GPU answers here"),
    ],
)
def test_no_gpu(
    jetson: FakeTensorrt, monkeypatch: pytest.MonkeyPatch, driver: Driver | None, message: str
) -> None:
    monkeypatch.setattr(device, "read_driver", lambda: driver)
    with pytest.raises(BackendError, match=message):
        find_platform(EngineConfig(backend="tensorrt"))


@pytest.mark.parametrize(
    ("kind", "message"),
    [("orin-jetpack-5", "JetPack 5.1 .*flash it"), ("xavier", "use such a board")],
)
def test_old_board(
    jetson: FakeTensorrt,
    board_root: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    message: str,
) -> None:
    root = board_root(kind)
    monkeypatch.setattr(device, "read_board", lambda _=None: read_board(root))
    with pytest.raises(BackendError, match=message):
        find_platform(EngineConfig(backend="tensorrt"))


def test_no_tensorrt(jetson: FakeTensorrt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing, or there but broken: the remedy is the same."""
    jetson.set("10.3.0", "not importable")
    with pytest.raises(BackendError, match=r"module 'tensorrt' \(ImportError: libnv.*apt install"):
        find_platform(EngineConfig(backend="tensorrt"))


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [("orin-nano", "install JetPack 6.1 or later"), ("pc", "pip install tensorrt -U")],
)
def test_old_tensorrt(
    jetson: FakeTensorrt,
    board_root: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    remedy: str,
) -> None:
    """Those that know no strongly typed network."""
    root = board_root(kind)
    monkeypatch.setattr(device, "read_board", lambda _=None: read_board(root))
    jetson.set("8.6.2")
    with pytest.raises(BackendError, match=rf"TensorRT 8\.6\.2 is .*10\.3 or later: {remedy}$"):
        find_platform(EngineConfig(backend="tensorrt"))


class Echo:
    """:class:`~dvt_edge.runtime.backends.protocol.Backend` that answers as the records do."""

    max_batch = 1
    bytes_resident = 0
    time_stages = False
    take_frame = None
    run_whole = None

    def __init__(self, parity: Parity, spoilt: bool) -> None:
        self.parity, self.spoilt, self.image = parity, spoilt, -1
        self.buffer = np.zeros((1, *parity.images.shape[1:]), np.float32)

    def image_buffer(self, count: int, slot: int = 0) -> Any:
        self.image += 1
        return self.buffer

    def run_stage(self, stage: int, count: int, slot: int = 0) -> StageAnswer:
        records, row = self.parity.records, slice(self.image, self.image + 1)
        np.testing.assert_array_equal(self.buffer[0], self.parity.images[self.image])
        sure = np.float32(np.nan) if self.spoilt else records.confidence[row, stage]
        return StageAnswer(np.broadcast_to(sure, 1), records.prediction[row, stage])

    def logits(self, stage: int, count: int) -> Any:
        raise NotImplementedError

    def keep_rows(self, stage: int, rows: Any, slot: int = 0) -> None:
        raise NotImplementedError

    def set_aside(self, stage: int, row_at: int, slot: int) -> None:
        raise NotImplementedError

    def close(self) -> None:
        pass


def test_auto_keeps_the_faster_precision(
    portable: Portable, jetson: FakeTensorrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Float16 is faster in stage 2, and INT8 fails in stage 3; the rest is INT8."""
    profile = portable(precision="auto")
    parity = read_parity(Bundle(profile.output))
    opened: list[list[str]] = []

    def open_stages(engine: Any, paths: Sequence[Path], specs: Any, *, max_batch: int) -> Echo:
        assert all(path.exists() for path in paths)
        assert max_batch == 1
        opened.append([path.name for path in paths])
        return Echo(parity, opened[-1][-1] == "stage3.int8.plan")

    times = {0: [1.0, 2.0], 1: [2.0, 1.0], 2: [1.0, 2.0]}
    monkeypatch.setattr(selection, "open_stages", open_stages)
    monkeypatch.setattr(selection, "_median_ms", lambda backends, stage: times[stage])
    bundle = _finish(profile)
    manifest = bundle.manifest
    assert [stage.precision for stage in manifest.stages] == ["int8", "fp16", "fp16"]
    assert [c.precision for c in manifest.choices if c.chosen] == ["int8", "fp16", "fp16"]
    assert manifest.choices[4].remark == "confidence is not finite"
    for i, kind in enumerate(("int8", "fp16", "fp16")):
        assert bundle.stage_path(i).read_bytes() == _plan_of(bundle, f"stage{i + 1}.{kind}.onnx")
    assert opened[-1] == ["stage1.int8.plan", "stage2.fp16.plan", "stage3.fp16.plan"]
    assert {p.name for p in bundle.folder.glob("*.plan")} == {f"stage{i}.plan" for i in (1, 2, 3)}
    assert manifest.engines is not None
    assert [plan.precision for plan in manifest.engines.plans] == ["int8", "fp16", "fp16"]


def test_parity_images_are_the_calibration_images(portable: Portable) -> None:
    profile = portable()
    parity = read_parity(Bundle(profile.output))
    with np.load(profile.calibration.data) as archive:
        pixels = archive["images"].astype(np.float32)[:, None]
    expected = (pixels / 255 - np.float32(0.5)) / np.float32(0.25)
    np.testing.assert_allclose(parity.images, expected, atol=1e-6)
    assert parity.records.confidence.shape == (60, 3)
    assert parity.thresholds.shape == (3,)
    assert parity.tolerance_points == 100


def test_damaged_parity_images(portable: Portable, tmp_path: Path) -> None:
    bundle = Bundle(portable().output)
    np.savez(bundle.folder / PARITY, pixels=np.zeros(3))
    with pytest.raises(BundleError, match=r"parity\.npz: unusable .*rebuild"):
        read_parity(bundle)
    (bundle.folder / PARITY).write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(BundleError, match=r"parity\.npz: unusable .*rebuild"):
        read_parity(bundle)


def test_gpu_of_another_capability_is_not_measured(
    jetson: FakeTensorrt, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With engine.compute_capabilities this machine's GPU counts only if it is among them."""
    monkeypatch.setattr(device, "MODULES", {"tensorrt-rtx": "tensorrt"})
    for capabilities, device_name in (((86, 89), None), ((86, 87), "Orin"), ((), "Orin")):
        engine = EngineConfig(backend="tensorrt-rtx", compute_capabilities=capabilities)
        platform = find_platform(engine)
        assert platform.device == device_name
        expected = tuple(f"{c / 10:.1f}" for c in capabilities) or ("8.7",)
        assert platform.compute_capabilities == expected
    monkeypatch.setattr(device, "read_driver", lambda: Driver("13.0", (Gpu("Thor", "11.0"),)))
    engine = EngineConfig(backend="tensorrt-rtx", compute_capabilities=(110,))
    assert find_platform(engine).device == "Thor"
