"""What is public, and which part may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dvt_edge

ROOT = Path(__file__).resolve().parents[1]
RUNTIME = sorted((ROOT / "runtime").rglob("*.py"))
POLICY = sorted((ROOT / "dvt_edge" / "policy").rglob("*.py"))
BACKENDS = [*(ROOT / "runtime" / "backends").glob("*.py")]


def _ids(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def _imported(path: Path) -> Iterator[str]:
    """Dotted names that a source file imports anywhere, with what ``from`` imports take."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_all_is_pinned() -> None:
    """A public name comes or goes only on purpose."""
    assert dvt_edge.__all__ == [
        "BackendError",
        "BudgetConfig",
        "BudgetError",
        "BuildError",
        "BundleError",
        "CheckpointError",
        "ClosedError",
        "ConfigError",
        "DataError",
        "DvtEdgeError",
        "EnergyError",
        "Event",
        "FrameError",
        "Prediction",
        "Profile",
        "Runtime",
        "__version__",
    ]


@pytest.mark.parametrize("name", dvt_edge.__all__)
def test_all_can_be_had(name: str) -> None:
    """Every public name exists, also those imported on first use."""
    assert getattr(dvt_edge, name) is not None


def test_unknown_attribute() -> None:
    """The lazy attributes do not swallow mistakes."""
    with pytest.raises(AttributeError, match="no attribute 'Runtmie'"):
        _ = dvt_edge.Runtmie  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "module",
    [
        "dvt_edge",
        "dvt_edge.runtime.runtime",
        "dvt_edge.cli",
        "dvt_edge.files.datasets",
        "dvt_edge.report",
    ],
)
def test_import_pulls_in_neither_torch_nor_cuda(module: str) -> None:
    """What a device imports runs without torch, ONNX tools and CUDA."""
    code = (
        f"import sys, {module}\n"
        "print(sorted({'torch', 'pycuda', 'cuda', 'tensorrt', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor
    )
    assert done.stdout.strip() == "[]"


def test_bare_import_is_light() -> None:
    """Neither the engine nor the validation library is imported before it is needed."""
    code = (
        "import sys, dvt_edge\n"
        "print(sorted({'onnxruntime', 'pydantic', 'PIL', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT.anchor
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("path", RUNTIME, ids=_ids(RUNTIME))
def test_runtime_never_imports_torch(path: Path) -> None:
    """Not even inside a function; nor what imports torch."""
    banned = ("torch", "onnx", "dvt_edge.models", "dvt_edge.converters")
    for name in _imported(path):
        assert not any(name == b or name.startswith(f"{b}.") for b in banned), name


@pytest.mark.parametrize("path", POLICY, ids=_ids(POLICY))
def test_policy_is_numpy_only(path: Path) -> None:
    """The policy is pure: no I/O libraries, no backend, no configuration models."""
    for name in _imported(path):
        ours = ("dvt_edge.policy", "dvt_edge.errors")
        if name.startswith("dvt_edge"):
            assert any(name == o or name.startswith(f"{o}.") for o in ours), name
        else:
            top = name.split(".", maxsplit=1)[0]
            assert top == "numpy" or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("path", BACKENDS, ids=_ids(BACKENDS))
def test_backends_know_no_policy(path: Path) -> None:
    """A backend executes stages; thresholds and budgets are not its business."""
    for name in _imported(path):
        assert not name.startswith("dvt_edge.policy"), name
        assert "Budget" not in name, name
