"""What is public, and which part may import which."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import dvt_edge

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    "dvt_edge.errors",
    "dvt_edge.requirements",
    "dvt_edge.progress",
    "dvt_edge.files",
    "dvt_edge.policy",
    "dvt_edge.machine",
    "dvt_edge.profile",
    "dvt_edge.bundle",
    "dvt_edge.energy",
    "dvt_edge.runtime.native",
    "dvt_edge.runtime.preprocess",
    "dvt_edge.runtime.prediction",
    "dvt_edge.runtime.backends",
    "dvt_edge.runtime.cascade_loop",
    "dvt_edge.runtime.measuring",
    "dvt_edge.runtime",
    "dvt_edge.camera",
    "dvt_edge.app",
    "dvt_edge.serve",
    "dvt_edge.models",
    "dvt_edge.converters",
    "dvt_edge.evaluation",
    "dvt_edge.report",
    "dvt_edge.doctor",
    "dvt_edge.cli",
)
"""From the bottom up, as ``docs/architecture.md`` lists them: each imports only those before it."""


def _modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the product."""
    found = {}
    for folder in ("dvt_edge", "converters", "runtime"):
        package = () if folder == "dvt_edge" else ("dvt_edge",)
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = (*package, *path.relative_to(ROOT).with_suffix("").parts)
            found[".".join(part for part in parts if part != "__init__")] = path
    return found


MODULES = _modules()


def _inside(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _imported(module: str) -> Iterator[str]:
    """Dotted names that a module imports anywhere, with what ``from`` imports take."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports hide what is imported"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _imported_modules(module: str) -> set[str]:
    """The product's modules among those names, less the root package, which holds the version."""
    names = {n if n in MODULES else n.rpartition(".")[0] for n in _imported(module)}
    return {name for name in names if name in MODULES and name not in ("dvt_edge", module)}


def _layer(module: str) -> int:
    """Position of the longest entry of :data:`LAYERS` that ``module`` belongs to."""
    fitting = [layer for layer in LAYERS if _inside(module, (layer,))]
    assert fitting, f"{module} is in no layer; add it to LAYERS and docs/architecture.md"
    return LAYERS.index(max(fitting, key=len))


def test_all_is_pinned() -> None:
    """A public name comes or goes only on purpose."""
    assert dvt_edge.__all__ == [
        "BackendError",
        "BudgetConfig",
        "BudgetError",
        "BuildError",
        "BundleError",
        "CapturedFrame",
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
        "Promise",
        "Runtime",
        "SourceError",
        "__version__",
        "open_source",
        "open_sources",
    ]


@pytest.mark.parametrize("name", dvt_edge.__all__)
def test_all_can_be_had(name: str) -> None:
    """Every public name exists, also those imported on first use."""
    assert getattr(dvt_edge, name) is not None


def test_unknown_attribute() -> None:
    """The lazy attributes do not swallow mistakes."""
    with pytest.raises(AttributeError, match="no attribute 'Runtmie'"):
        _ = dvt_edge.Runtmie


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


INNER = sorted(name for name in MODULES if name != "dvt_edge")


@pytest.mark.parametrize("module", INNER)
def test_no_import_points_upward(module: str) -> None:
    """Nor inside a function. Within a layer see :func:`test_no_import_circle`."""
    for name in _imported_modules(module):
        assert _layer(name) <= _layer(module), f"{module} imports {name}"


def test_no_import_circle() -> None:
    """Of modules, counting imports inside functions."""
    open_: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_, f"circle: {' -> '.join([*open_, module])}"
        if module in done:
            return
        open_.append(module)
        for name in sorted(_imported_modules(module)):
            visit(name)
        done.add(open_.pop())

    for module in INNER:
        visit(module)


def test_layers_are_documented() -> None:
    """``docs/architecture.md`` names the layers in the same order."""
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    names = re.findall(r"^\d+\. `([\w./]+)`", page, flags=re.MULTILINE)
    assert names == [layer.removeprefix("dvt_edge.").replace(".", "/") for layer in LAYERS]


@pytest.mark.parametrize("module", [m for m in INNER if _inside(m, ("dvt_edge.runtime",))])
def test_runtime_never_imports_torch(module: str) -> None:
    """Not even inside a function; nor what imports torch."""
    banned = ("torch", "onnx", "dvt_edge.models", "dvt_edge.converters")
    for name in _imported(module):
        assert not _inside(name, banned), name


@pytest.mark.parametrize("module", [m for m in INNER if _inside(m, ("dvt_edge.policy",))])
def test_policy_is_numpy_only(module: str) -> None:
    """The policy is pure: no I/O libraries, no backend, no configuration models."""
    for name in _imported(module):
        if name.startswith("dvt_edge"):
            assert _inside(name, ("dvt_edge.policy", "dvt_edge.errors")), name
        else:
            top = name.split(".", maxsplit=1)[0]
            assert top == "numpy" or top in sys.stdlib_module_names, name


@pytest.mark.parametrize("module", [m for m in INNER if _inside(m, ("dvt_edge.runtime.backends",))])
def test_backends_know_no_policy(module: str) -> None:
    """A backend executes stages; thresholds and budgets are not its business."""
    for name in _imported(module):
        assert not name.startswith("dvt_edge.policy"), name
        assert "Budget" not in name, name


@pytest.mark.parametrize(
    "module", [m for m in INNER if _inside(m, ("dvt_edge.converters.engines",))]
)
def test_engines_are_built_without_torch_and_onnx(module: str) -> None:
    """On the device there is neither; ``converters/device.py`` is the other half of this rule."""
    for name in (*_imported(module), *_imported("dvt_edge.converters.device")):
        assert not _inside(name, ("torch", "onnx", "dvt_edge.models")), name


@pytest.mark.parametrize(
    ("package", "other", "allowed"),
    [
        ("dvt_edge.files", "dvt_edge.policy", ()),
        ("dvt_edge.policy", "dvt_edge.files", ()),
        ("dvt_edge.machine", "dvt_edge.files", ("dvt_edge.files.documents",)),
        ("dvt_edge.models", "dvt_edge.runtime", ("dvt_edge.runtime.preprocess",)),
    ],
)
def test_what_one_package_uses_of_another(
    package: str, other: str, allowed: tuple[str, ...]
) -> None:
    """No more than ``docs/architecture.md`` says."""
    inside = [module for module in INNER if _inside(module, (package,))]
    assert inside
    for name in set().union(*map(_imported_modules, inside)):
        assert not _inside(name, (other,)) or _inside(name, allowed), name


def test_who_imports_torch() -> None:
    """The model, and what turns it into graphs."""
    users = {m for m in MODULES if any(_inside(name, ("torch",)) for name in _imported(m))}
    outside = {m for m in users if not _inside(m, ("dvt_edge.models",))}
    assert outside == {"dvt_edge.converters.host"}


def test_the_root_imports_little() -> None:
    """``import dvt_edge`` is for everyone; its other names are looked up on first use."""
    tree = ast.parse(MODULES["dvt_edge"].read_text(encoding="utf-8"))
    eager = [node.module for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert {name for name in eager if name and name.startswith("dvt_edge")} == {"dvt_edge.errors"}
