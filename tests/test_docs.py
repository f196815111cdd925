"""The documentation says what the code does."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import click
import pytest
import yaml

from dvt_edge.cli import cli

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


PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Relative links in Markdown pages name files that exist."""
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name}: {target}"


def _blocks(page: Path, language: str) -> list[str]:
    """Fenced code of one language, in order."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


class Commands(NamedTuple):
    """A block of commands."""

    line: int
    """Of the page, from 1, where it begins."""
    script: str
    needs: str
    """Why tests do not run it, such as ``needs a board``; empty where they do."""


def _commands(page: Path) -> list[Commands]:
    """The blocks of languages ``sh``, ``bash`` and ``console``, in order.

    In a ``console`` block lines with a prompt are commands, and others their output.
    """
    text = page.read_text(encoding="utf-8")
    found = []
    for block in re.finditer(r"^```(sh|bash|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        language, body = block.groups()
        marked = re.match(r"# ((?:needs|takes) \w.*)\n", body)
        if language == "console":
            body = "".join(re.findall(r"^\$ ((?:.*\\\n)*.*\n)", body, re.MULTILINE))
        line = text.count("\n", 0, block.start()) + 1
        found.append(Commands(line, body, marked[1] if marked else ""))
    return found


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


RUNNABLE = [
    page
    for page in PAGES
    if _blocks(page, "python") or not all(block.needs for block in _commands(page))
]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_say_what_they_need(page: Path) -> None:
    """What changes the machine, or needs another, is marked; all else runs everywhere."""
    for block in _commands(page):
        elsewhere = re.search(r"\b(sudo|apt|pip|make|rsync|torchrun)\b", block.script)
        assert block.needs or not elsewhere, f"{page.name}:{block.line}: begin it with # needs ..."


NOT_RUN = [
    pytest.param(block.script, id=f"{page.name}:{block.line}: {block.needs}")
    for page in PAGES
    for block in _commands(page)
    if block.needs
]


@pytest.mark.parametrize("script", NOT_RUN)
def test_commands_that_are_not_run_are_understood(script: str) -> None:
    """Their options exist, and so do the repository's files that they name; see the reasons in the
    tests' names."""
    assert script
    for line in script.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "dvt-edge" in words:
            name, *arguments = words[words.index("dvt-edge") + 1 :]
            command = cli.get_command(click.Context(cli), name)
            assert command is not None, name
            command.make_context(name, arguments)
        for word in words:
            if word.startswith(("samples/", "scripts/")):
                assert (ROOT / word).exists(), word


@pytest.mark.slow
@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: page.name)
def test_commands_run_as_printed(page: Path, checkout: Path) -> None:
    """From the repository's root: a page's commands in order, then its Python code.

    Blocks whose first line says ``# needs ...`` or ``# takes ...`` are left out.
    """
    test_commands_say_what_they_need(page)
    for block in _commands(page):
        if not block.needs:
            _run(block.script, checkout)
    for code in _blocks(page, "python"):
        _run(f"python -W error - <<'END'\n{code}END\n", checkout)


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


@cache
def _texts() -> list[str]:
    """Every text in the product's code but docstrings, a NUL in place of values put into it."""
    return [
        text
        for folder in ("dvt_edge", "converters", "runtime")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for text in _literals(ast.parse(path.read_text(encoding="utf-8")))
    ]


def _literals(tree: ast.AST) -> Iterator[str]:
    nodes = list(ast.walk(tree))
    docstrings = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.JoinedStr):
            parts = (part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            yield "".join(str(part) for part in parts)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield "" if id(node) in docstrings else node.value


MESSAGES = re.findall(
    r"^\| `([^`]+)` \|", (ROOT / "docs/troubleshooting.md").read_text(), flags=re.MULTILINE
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_are_those_of_the_code(message: str) -> None:
    """Each message that the troubleshooting page explains is still printed by something."""
    pieces = [piece.strip() for piece in message.split("…")]
    wanted = re.compile(".*".join(re.escape(piece) for piece in pieces), re.DOTALL)
    assert any(wanted.match(text) for text in _texts())
