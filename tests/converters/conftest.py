"""A cascade, calibration images and a profile that build in a second."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
import torch

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import MANIFEST
from dvt_edge.converters import device
from dvt_edge.converters.build import BuildResult, build
from dvt_edge.machine.board import read_board
from dvt_edge.models import Cascade, CascadeConfig
from dvt_edge.profile import Profile
from tests.conftest import ORIN


def _profile(folder: Path, **changes: Any) -> Profile:
    values: dict[str, Any] = {
        "device": {"name": "any"},
        "model": folder / "model.safetensors",
        "input": {
            "resize": 16,
            "crop": 16,
            "mean": (0.5,),
            "std": (0.25,),
            "color_order": "gray",
        },
        "engine": {"backend": "onnxruntime", "precision": "int8", "threads": 1},
        "calibration": {"data": folder / "calibration.npz", "tolerance_points": 100},
        "budget": {"latency_ms": 1000},
        "output": folder / "out" / "bundle",
    }
    return Profile.model_validate(values | changes)


def _balance_heads(cascade: Cascade, images: torch.Tensor) -> None:
    """Scale and shift the heads so that all classes and many confidences occur."""
    with torch.no_grad():
        for stage, output in zip(cascade.stages, cascade(images), strict=True):
            gain = 2 / output.logits.std(dim=0)
            stage.get_parameter("head.weight").mul_(gain[:, None])
            bias = stage.get_parameter("head.bias")
            bias.copy_((bias - output.logits.mean(dim=0)) * gain)


def changed(profile: Profile, section: str, **values: Any) -> Profile:
    """``profile`` with other values in one of its sections."""
    part = getattr(profile, section).model_copy(update=values)
    return profile.model_copy(update={section: part})


def files_in(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Contents and identity of every file."""
    return {p.name: (p.read_bytes(), p.stat().st_ino) for p in sorted(folder.iterdir())}


def calibration_pixels(profile: Profile) -> npt.NDArray[np.uint8]:
    """[N, H, W]: the images of :func:`tiny_profile`."""
    with np.load(profile.calibration.data) as archive:
        return np.asarray(archive["images"])


def calibration_images(profile: Profile) -> npt.NDArray[np.float32]:
    """[N, 1, H, W]: the same as stages take them."""
    pixels = calibration_pixels(profile).astype(np.float32)[:, None]
    return (pixels / np.float32(255) - np.float32(0.5)) / np.float32(0.25)


@pytest.fixture(scope="session")
def tiny_build(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_config: Callable[..., CascadeConfig],
    random_cascade: Callable[..., Cascade],
) -> Path:
    """A folder with checkpoint, 60 labelled calibration images and, in ``out``, their bundle."""
    folder = tmp_path_factory.mktemp("tiny")
    blocks = np.random.default_rng(0).integers(0, 2, (60, 4, 4), np.uint8) * 255
    images = blocks.repeat(4, axis=1).repeat(4, axis=2)
    cascade = random_cascade(tiny_config())
    _balance_heads(cascade, (torch.from_numpy(images)[:, None] / 255 - 0.5) / 0.25)
    cascade.save(folder / "model.safetensors")
    np.savez(folder / "calibration.npz", images=images, labels=np.arange(60) % 5)
    build(_profile(folder))
    return folder


@pytest.fixture
def tiny_profile(tiny_build: Path, tmp_path: Path) -> Callable[..., Profile]:
    """A function giving a profile of :func:`tiny_build`'s checkpoint and images, copied to
    ``tmp_path``; keywords replace top-level keys. Its output, ``out/bundle``, is not there yet."""
    for name in ("model.safetensors", "calibration.npz"):
        shutil.copy(tiny_build / name, tmp_path / name)
    return lambda **changes: _profile(tmp_path, **changes)


@pytest.fixture
def built(tiny_build: Path, tiny_profile: Callable[..., Profile]) -> BuildResult:
    """What building :func:`tiny_profile` gives, at its output."""
    shutil.copytree(tiny_build / "out" / "bundle", tiny_profile().output)
    return build(tiny_profile())


FAKES = Path(__file__).parent / "fake_tensorrt"


class FakeTensorrt(NamedTuple):
    """``tensorrt`` and ``tensorrt_rtx`` of ``fake_tensorrt`` in place of the real ones, in
    processes that are started."""

    log: Path
    patch: pytest.MonkeyPatch

    def set(self, version: str, act: str = "") -> None:
        """Which release it plays, and how builds go."""
        settings = {"version": version, "act": act, "log": str(self.log)}
        self.patch.setenv("FAKE_TENSORRT", json.dumps(settings))

    def calls(self) -> list[list[Any]]:
        """[name, argument, or list of them where there are more or none] of every call so far."""
        if not self.log.exists():
            return []
        calls = [json.loads(line) for line in self.log.read_text(encoding="utf-8").splitlines()]
        return [[name, values[0] if len(values) == 1 else values] for name, *values in calls]


@pytest.fixture
def fake_tensorrt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeTensorrt:
    """A TensorRT or TensorRT-RTX of any release; set one before anything imports it."""
    folder = str(FAKES)
    monkeypatch.setenv("PYTHONPATH", folder)
    monkeypatch.setattr(sys, "path", [folder, *sys.path])  # which probes hand on
    return FakeTensorrt(tmp_path / "calls.jsonl", monkeypatch)


@pytest.fixture(scope="session")
def portable_builds(tiny_build: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the portable bundles of :func:`tiny_build`, one per precision."""
    folder = tmp_path_factory.mktemp("portable")
    for precision in ("int8", "fp16", "auto"):
        engine = {"backend": "tensorrt", "precision": precision}
        profile = _profile(tiny_build, engine=engine, output=folder / precision)
        build(profile, phase="host")
    return folder


@pytest.fixture
def portable(portable_builds: Path, tiny_profile: Callable[..., Profile]) -> Callable[..., Profile]:
    """A function giving a profile for TensorRT, or the ``backend`` and other keys of ``engine``
    given, at whose output the portable half lies already."""

    def make(**engine: Any) -> Profile:
        profile = tiny_profile(engine={"backend": "tensorrt", "batch_sizes": (1, 4)} | engine)
        shutil.copytree(portable_builds / profile.engine.precision, profile.output)
        bundle = Bundle(profile.output)
        settings = bundle.manifest.engine.model_copy(update={"backend": profile.engine.backend})
        manifest = bundle.manifest.model_copy(update={"engine": settings})
        (profile.output / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
        return profile

    return make


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing to run engines on, whatever this machine has."""
    monkeypatch.setattr(device, "read_driver", lambda: None)


@pytest.fixture
def jetson(
    fake_tensorrt: FakeTensorrt, board_root: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> FakeTensorrt:
    """A Jetson Orin Nano with JetPack 6.2 and an engine cache of its own; TensorRT 10.3."""
    root = board_root("orin-nano")
    monkeypatch.setattr(device, "read_driver", lambda: ORIN)
    monkeypatch.setattr(device, "read_board", lambda _=None: read_board(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(root / "cache"))
    monkeypatch.setattr(device, "kernels", lambda: None)  # else its GPU would be asked to run them
    fake_tensorrt.set("10.3.0")
    return fake_tensorrt
