"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def test_reference_is_up_to_date() -> None:
    """``docs/reference.md`` is what its generator writes."""
    file = ROOT / "docs/generate_reference.py"
    spec = importlib.util.spec_from_file_location("generate_reference", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs/reference.md").read_text(encoding="utf-8") == module.reference(), (
        "run python docs/generate_reference.py"
    )


PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links in Markdown pages name files that exist."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def _blocks(page: Path, language: str) -> list[str]:
    """Fenced code of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands need of a checkout, after ``make demo``."""
    root = tmp_path_factory.mktemp("checkout")
    for name in ("samples", "docs", "benchmarks", "scripts"):
        shutil.copytree(ROOT / name, root / name)
    (root / ".venv").symlink_to(sys.prefix)
    demo = re.search(r"^demo:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert demo is not None
    profile = "samples/profiles/demo-cpu.yaml"
    _run(demo[1].replace("$(BIN)/", "").replace("$(PROFILE)", profile), root)
    return root


def _run(script: str, root: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euxo", "pipefail", "-c", script],
        cwd=root,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{script}\n{done.stderr[-2000:]}"


RUNNABLE = [page for page in PAGES if _blocks(page, "sh") or _blocks(page, "python")]


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_commands_run_as_printed(page: Path, checkout: Path) -> None:
    """From the repository's root: a page's shell commands in order, then its Python code.

    Blocks of language ``console`` are for what this machine has not: a board, a network, an hour.
    """
    for block in _blocks(page, "sh"):
        _run(block, checkout)
    for block in _blocks(page, "python"):
        _run(f"python -W error - <<'END'\n{block}END\n", checkout)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_yaml_is_yaml(page: Path) -> None:
    """Excerpts of profiles and training files can be pasted."""
    for block in _blocks(page, "yaml"):
        assert yaml.safe_load(block), block


def test_make_targets_exist() -> None:
    """Whatever ``make`` a page names."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    for page in PAGES:
        named = set(re.findall(r"(?:^\$ |`)make ([\w-]+)", page.read_text(), flags=re.MULTILINE))
        assert named <= targets, page.name
