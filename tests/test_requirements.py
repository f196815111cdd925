"""The table of libraries: the same versions as the package demands, and messages from it."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator

import pytest

from dvt_edge.errors import BuildError, ConfigError
from dvt_edge.requirements import LIBRARIES, is_older, missing, need
from tests.conftest import REPOSITORY

PACKAGES = {
    "tensorrt_rtx": "tensorrt-rtx-cu13",
    "paho": "paho-mqtt",
    "OpenSSL": "pyopenssl",
    "pynvml": "nvidia-ml-py",
    "pycuda.driver": "pycuda",
}


def _demanded() -> dict[str, tuple[int, ...]]:
    """Package -> lowest version, as ``pyproject.toml`` has it for this Python."""
    found = re.findall(
        r"""["]([\w-]+)>=([0-9.]+)(?:; python_version (<|>=) '3\.11')?["]""",
        (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"),
    )
    new = sys.version_info >= (3, 11)
    return {
        name.lower(): tuple(map(int, version.split(".")))
        for name, version, marker in found
        if not marker or (marker == ">=") == new
    }


def test_minimum_versions_are_those_of_the_package() -> None:
    """What pip demands and what messages say do not drift apart."""
    demanded = _demanded()
    for module, library in LIBRARIES.items():
        package = PACKAGES.get(module, module.replace("_", "-"))
        if package not in ("tensorrt", "gi"):  # which no extra brings
            assert library.minimum == demanded[package], package


@pytest.mark.parametrize(
    ("package", "least", "hole"),
    [
        ("torch", (2, 10), "CVE-2026-24747: code runs despite weights_only"),
        ("torch", (2, 11), "CVE-2026-4538: pt2 archives"),
        (
            "onnx",
            (1, 21),
            "CVE-2026-27489, -34445, -34446, -34447: external data leaves the folder",
        ),
        ("pillow", (12, 3), "CVE-2026-25990, -54058: writing and reading beyond a buffer"),
        ("starlette", (1, 0, 1), "CVE-2026-48710: the Host header gets past checks of the path"),
        ("starlette", (1, 3, 1), "limits of forms that were not kept"),
        ("h11", (0, 16), "CVE-2025-43859: requests in requests"),
        ("jinja2", (3, 1, 6), "CVE-2025-27516: out of the sandbox"),
    ],
)
def test_known_holes_are_shut(package: str, least: tuple[int, ...], hole: str) -> None:
    """No release that pip may choose has them."""
    assert _demanded()[package] >= least, hole


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no such release for Python 3.10")
def test_onnxruntime_stays_in_the_models_folder() -> None:
    """1.27 and 1.28 refuse external data elsewhere in every kind of tensor, 1.30.1 graphs that
    overflow a buffer."""
    assert _demanded()["onnxruntime"] >= (1, 30, 1)


def test_lock_file() -> None:
    """It has a hash for everything, names all that is demanded in releases that are allowed, and
    no place to get them from."""
    text = (REPOSITORY / "requirements" / "ci.txt").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    locked: dict[str, list[str]] = {}
    for entry in re.split(r"\n(?=\S)", re.sub(r"(?m)^\s*#.*\n?", "", text)):
        found = re.match(r"([a-z0-9-]+)==(\S+)", entry)
        assert found is not None, entry
        assert "--hash=sha256:" in entry, entry
        locked.setdefault(found[1], []).append(found[2])
    # Built on the device, by hand, or for models of elsewhere.
    left_out = {"pycuda", "nvidia-ml-py", "timm"}
    for name, minimum in _demanded().items():
        if name not in left_out and name != "scikit-build-core":
            versions = locked[name.replace("_", "-")]
            assert not all(is_older(version, minimum) for version in versions), name


def _unpickling(tree: ast.AST) -> Iterator[int]:
    """Lines that could run code in a file that is read."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            if names & {"torch.load", "torch.serialization.load", "pickle.load", "pickle.loads"}:
                yield node.lineno
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if (
            (called == "torch.load" and given.get("weights_only") != "True")
            or (called == "np.load" and given.get("allow_pickle", "False") != "False")
            or called in ("torch.serialization.load", "pickle.load", "pickle.loads")
        ):
            yield node.lineno


@pytest.mark.parametrize(
    "folder", ["dvt_edge", "runtime", "converters", "benchmarks", "scripts", "samples", "tests"]
)
def test_pickles_run_no_code(folder: str) -> None:
    """``torch.load`` is always told to build tensors only, NumPy's archives hold no objects, and
    nothing else unpickles."""
    found = [
        f"{path.relative_to(REPOSITORY)}:{line}"
        for path in sorted((REPOSITORY / folder).rglob("*.py"))
        for line in _unpickling(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert found == []


@pytest.mark.parametrize(
    ("code", "lines"),
    [
        ("torch.load(path)", [1]),
        ("torch.load(path, weights_only=False)", [1]),
        ("x = 1\ntorch.load(path, map_location=where(), weights_only=True)", []),
        ("np.load(path, allow_pickle=True)", [1]),
        ("np.load(path)", []),
        ("from torch import load, save", [1]),
        ("pickle.loads(data)", [1]),
    ],
)
def test_unpickling_is_found(code: str, lines: list[int]) -> None:
    assert list(_unpickling(ast.parse(code))) == lines


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
