"""Where frames become images is found out when engines are built, on a Jetson that is played."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.converters import device
from dvt_edge.converters.device import build_engines, find_platform
from dvt_edge.errors import BackendError
from dvt_edge.profile import Profile
from dvt_edge.progress import silent
from tests.conftest import edit_manifest
from tests.converters.conftest import FakeTensorrt

pytestmark = pytest.mark.skipif(os.name != "posix", reason="processes and boards of Linux")

Portable = Callable[..., Profile]


@pytest.mark.parametrize(
    ("asked", "kernels", "recorded"),
    [
        ("auto", b"code", ("device", {"host": 2.0, "device": 1.0})),
        ("auto", None, ("host", None)),
        ("host", b"code", ("host", None)),
        ("device", b"code", ("host", None)),
    ],
)
def test_where_frames_become_images_is_recorded(
    portable: Portable,
    jetson: FakeTensorrt,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    kernels: bytes | None,
    recorded: tuple[str, dict[str, float] | None],
) -> None:
    """With ``auto``, on a GPU with kernels; what the profile says needs no measurement."""
    profile = portable()
    edit_manifest(profile.output, lambda m: m["input"].update(preprocess=asked))
    seen: list[str] = []

    def choose(first: Any, manifest: Any, progress: Any) -> Any:
        assert first.path.is_file()
        seen.append(first.spec.precision)
        return "device", {"host": 2.0, "device": 1.0}

    monkeypatch.setattr(device, "kernels", lambda: kernels)
    monkeypatch.setattr(device, "choose_preprocessing", choose)
    platform = find_platform(profile.engine)
    engines = build_engines(Bundle(profile.output), platform, silent).manifest.engines
    assert engines is not None
    assert (engines.preprocess, engines.preprocess_ms) == recorded
    assert seen == (["int8"] if recorded[1] else [])


def test_a_gpu_that_cannot_make_images(
    portable: Portable,
    jetson: FakeTensorrt,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The build goes on, with a warning."""

    def choose(*_: Any) -> Any:
        raise BackendError("the kernels are for other GPUs")

    monkeypatch.setattr(device, "kernels", lambda: b"code")
    monkeypatch.setattr(device, "choose_preprocessing", choose)
    profile = portable()
    platform = find_platform(profile.engine)
    engines = build_engines(Bundle(profile.output), platform, silent).manifest.engines
    assert engines is not None
    assert engines.preprocess == "host"
    assert "frames become images on the host: the kernels are for other GPUs" in caplog.text
