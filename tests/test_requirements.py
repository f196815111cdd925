"""The table of libraries: the same versions as the package demands, and messages from it."""

from __future__ import annotations

import importlib.metadata
import re
import sys

import pytest

from dvt_edge.errors import BuildError, ConfigError
from dvt_edge.requirements import LIBRARIES, is_older, missing, need

PACKAGES = {
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "paho": "paho-mqtt",
    "pynvml": "nvidia-ml-py",
    "pycuda.driver": "pycuda",
}


def test_minimum_versions_are_those_of_the_package() -> None:
    """What pip demands and what messages say do not drift apart."""
    demanded = {
        found[1].lower(): tuple(map(int, found[2].split(".")))
        for text in importlib.metadata.requires("dvt-edge") or []
        if (found := re.match(r"([\w-]+)>=([0-9.]+)", text))
    }
    for module, library in LIBRARIES.items():
        package = PACKAGES.get(module, module.replace("_", "-"))
        if package not in ("tensorrt", "gi"):  # which no extra brings
            assert library.minimum == demanded[package], package


def test_what_is_there_is_not_needed() -> None:
    assert missing("numpy", "onnxruntime") == []
    need("anything", "numpy")


def test_what_is_missing_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("torch", "onnx", "plotly"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError) as caught:
        need("this", "torch", "numpy", "onnx", "plotly")
    assert str(caught.value) == (
        "this needs torch, onnx, Plotly; install with pip install 'dvt-edge[export]' && "
        "pip install 'dvt-edge[report]'"
    )
    with pytest.raises(BuildError, match="needs torch"):
        need("that", "torch", error=BuildError)


@pytest.mark.parametrize(
    ("version", "older"),
    [
        ("10.3.0.26", False),
        ("10.2.9", True),
        ("9.9.0rc1", True),
        ("11", False),
        ("2.9.0+cpu", True),
        ("nightly", False),
        ("", False),
    ],
)
def test_is_older(version: str, older: bool) -> None:
    """Versions as they are written in the wild; one without a number passes."""
    assert is_older(version, (10, 3)) == older
