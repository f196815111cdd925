"""Measured costs: kept with the bundle, trusted only where they were measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.engine_records import Engines, PlanRecord
from dvt_edge.bundle.manifest import COSTS
from dvt_edge.errors import BundleError
from dvt_edge.machine.driver import Driver, Gpu
from dvt_edge.machine.platform import Platform
from dvt_edge.profile import ColorOrder, InputConfig
from dvt_edge.runtime.cascade_loop import CascadeLoop
from dvt_edge.runtime.measuring.costs import (
    Costs,
    CostsRefused,
    load_costs,
    machine_name,
    measure_costs,
    save_costs,
)
from dvt_edge.runtime.measuring.measure import runs_on
from dvt_edge.runtime.preprocess import Preprocessor
from dvt_edge.runtime.runtime import Runtime
from dvt_edge.runtime.session import Event

if TYPE_CHECKING:
    from tests.runtime.conftest import FakeBackend


def test_round_trip(own_bundle: Path, known_costs: Callable[..., Costs]) -> None:
    """What is saved is loaded, and the bundle is still whole."""
    bundle = Bundle(own_bundle)
    costs = known_costs(bundle, (3.0, 5.0, 9.0))
    save_costs(bundle, costs)
    assert load_costs(Bundle(own_bundle)) == costs


def test_none_measured(own_bundle: Path) -> None:
    """Without the file there are no costs, and nothing to tell."""
    (own_bundle / COSTS).unlink()
    told: list[str] = []
    assert load_costs(Bundle(own_bundle), told.append) is None
    assert told == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"machine": "x86_64, another processor, 64 cores"},
            "they were measured on 'x86_64, another processor, 64 cores', this is '",
        ),
        (
            {"content_hash": "0" * 64},
            "they were measured for other engines (000000000000, these are ",
        ),
        ({"exits": []}, "they were measured for other engines"),
        ({"exits": "x"}, "they cannot be read"),
        ({"unknown": 1}, "they cannot be read"),
    ],
    ids=["machine", "engines", "exits", "nonsense", "unknown"],
)
def test_others_are_refused(own_bundle: Path, change: dict[str, Any], reason: str) -> None:
    """Costs of another machine, of other stages, or that make no sense; what differs is told."""
    path = own_bundle / COSTS
    assert load_costs(Bundle(own_bundle)) is not None
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | change))
    told: list[str] = []
    assert load_costs(Bundle(own_bundle), told.append) is None
    assert told[0].startswith(f"the costs in {path} are not used: {reason}")
    assert load_costs(Bundle(own_bundle)) is None


def test_a_runtime_tells_what_it_refuses(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an event, once, with what to do; then it measures. Where there are none it is silent."""
    monkeypatch.setattr("dvt_edge.runtime.runtime.QUICK_MEASUREMENT_S", 0.01)
    path = own_bundle / COSTS
    path.write_text(path.read_text(encoding="utf-8").replace(machine_name(), "a board"))
    heard: list[Event] = []
    with Runtime(own_bundle, on_event=heard.append) as runtime:
        assert runtime.costs.machine == machine_name()
        assert list(runtime.events) == heard
    [event] = heard
    assert isinstance(event, CostsRefused)
    assert "measured on 'a board', this is" in event.reason
    assert "dvt-edge profile" in event.reason
    path.unlink()
    with Runtime(own_bundle, on_event=heard.append):
        assert len(heard) == 1


@pytest.mark.parametrize("data", [b"", b"garbage", b"\xff\xfe", b"null"])
def test_damaged_are_ignored(own_bundle: Path, data: bytes) -> None:
    """A damaged file counts as none: costs can be measured again."""
    (own_bundle / COSTS).write_bytes(data)
    assert load_costs(Bundle(own_bundle)) is None


def test_save_failure(
    own_bundle: Path, known_costs: Callable[..., Costs], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that cannot be written is named."""

    def refuse(source: str, target: Path) -> None:
        raise PermissionError("read-only")

    bundle = Bundle(own_bundle)
    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(BundleError, match=r"costs\.json: cannot be written .*make the folder"):
        save_costs(bundle, known_costs(bundle))


@pytest.mark.parametrize(
    "measured", [(1.0, 2.0, 4.0), (2.0, 1.0, 4.0), (3.0, 2.0, 1.0), (1.0, 1.0, 1.0)], ids=str
)
def test_mean_increases(
    own_bundle: Path, known_costs: Callable[..., Costs], measured: tuple[float, ...]
) -> None:
    """Noise may not make a later exit cheaper; where nothing was reversed nothing changes."""
    mean = known_costs(Bundle(own_bundle), measured).mean_ms
    assert (np.diff(mean) > 0).all()
    np.testing.assert_allclose(mean, np.maximum.accumulate(measured), rtol=1e-5)
    if measured == (1.0, 2.0, 4.0):
        assert mean == [1.0, 2.0, 4.0]


def test_machine_name() -> None:
    """One line that does not change from call to call."""
    assert machine_name() == machine_name()
    assert "\n" not in machine_name()
    assert "cores" in machine_name()


def test_machine_name_of_engines(own_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GPU, TensorRT and the power mode in force, which is not the one that they were built in; the
    CPU where there is no driver, which then runs them."""
    manifest = Bundle(own_bundle).manifest
    assert machine_name(manifest) == machine_name()
    platform = Platform(
        backend="tensorrt",
        version="10.3.0.30",
        compute_capabilities=("8.7",),
        device="Orin",
        power_mode="15W",
    )
    plans = (PlanRecord(precision="int8", graph="x", seconds=1, cached=False),)
    engines = Engines(platform=platform, flags=(), workspace_mb=1, plans=plans, built_at="now")
    monkeypatch.setattr("dvt_edge.runtime.measuring.costs.read_power_mode", lambda: "MAXN_SUPER")
    engine = manifest.engine.model_copy(update={"backend": "tensorrt"})
    built = manifest.model_copy(update={"engines": engines, "engine": engine})
    drivers: list[Driver | None] = [Driver("12.6", (Gpu("Orin", "8.7"),)), None]
    for driver, executor in zip(
        drivers, ("Orin, TensorRT 10.3.0.30", "ONNX Runtime "), strict=True
    ):
        for module in ("runtime.measuring.costs", "runtime.backends.opening"):
            monkeypatch.setattr(f"dvt_edge.{module}.read_driver", lambda d=driver: d)
        name = machine_name(built)
        assert f"cores, {executor}" in name
        assert name.endswith(", power mode MAXN_SUPER")
        assert runs_on(built) == ("gpu" if driver else "cpu")


@pytest.mark.parametrize("order", ["bgr", "nv12", "yuyv"])
def test_measures_with_frames_of_the_layout(
    own_bundle: Path, fake_backend: type[FakeBackend], order: ColorOrder
) -> None:
    """The noise that is timed is laid out as the profile says that frames are."""
    bundle = Bundle(own_bundle)
    config = bundle.manifest.input.model_copy(
        update={"color_order": order, "mean": (0.0,), "std": (1.0,)}
    )
    bundle.manifest = bundle.manifest.model_copy(update={"input": config})
    backend = fake_backend(np.zeros((256, 3)))
    small = config.model_copy(update={"resize": 4, "crop": 4})
    loop = CascadeLoop(backend, Preprocessor(small), [str(i) for i in range(10)])
    assert len(measure_costs(loop, bundle, 1e-9).exits) == 3


def test_measuring_forces_every_exit(
    own_bundle: Path,
    fake_backend: type[FakeBackend],
    value_frame: Callable[[int], npt.NDArray[np.uint8]],
) -> None:
    """Each exit is timed as often as the others, whatever the confidences say."""
    bundle = Bundle(own_bundle)
    assert len(bundle.manifest.stages) == 3
    config = InputConfig(resize=4, crop=4, mean=(0,), std=(1,), color_order="gray")
    confidence = np.random.default_rng(0).random((256, 3))
    backend = fake_backend(confidence)
    loop = CascadeLoop(backend, Preprocessor(config), [str(i) for i in range(10)])
    shares: list[float] = []
    costs = measure_costs(loop, bundle, 1e-9, shares.append)
    assert [len(exit_.stage_ms) for exit_ in costs.exits] == [1, 2, 3]
    assert costs.runs_per_exit == 10
    runs = [sum(stage == k for stage, _ in backend.runs) for k in range(3)]
    assert runs == [3 * runs[2], 2 * runs[2], runs[2]]
    assert costs.content_hash == bundle.manifest.content_hash
    assert all(0 <= share <= 1 for share in shares)
    for exit_ in costs.exits:
        assert exit_.p50_ms <= exit_.p95_ms <= exit_.p99_ms <= exit_.max_ms
        assert exit_.preprocess_ms + sum(exit_.stage_ms) <= exit_.mean_ms + 1e-9
