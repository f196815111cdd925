"""One tree of errors, as its docstring draws it."""

from __future__ import annotations

import re

import pytest

import dvt_edge
from dvt_edge import errors

CLASSES = {
    name: value
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, BaseException)
}


def _drawn() -> dict[str, str | None]:
    """Class -> parent, read off the tree in the module's docstring."""
    parents: dict[str, str | None] = {}
    branch: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│ ]*(?:[├└]── )?)(\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            branch[depth:] = [found[2]]
            parents[found[2]] = branch[depth - 1] if depth else None
    return parents


def test_docstring_draws_every_class() -> None:
    """The drawing holds exactly the classes of the module."""
    assert set(_drawn()) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_parent_is_the_drawn_one(name: str) -> None:
    """The first base of each class is the one that the tree shows."""
    parent = _drawn()[name]
    assert CLASSES[name].__bases__[0].__name__ == (parent or "Exception")


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_exported(name: str) -> None:
    """Every error can be caught without knowing a submodule."""
    assert name in dvt_edge.__all__
    assert getattr(dvt_edge, name) is CLASSES[name]
    assert issubclass(CLASSES[name], dvt_edge.DvtEdgeError)


def test_frame_error_is_a_value_error() -> None:
    """Code that knows nothing of dvt-edge catches a bad frame as a ValueError."""
    assert issubclass(dvt_edge.FrameError, ValueError)
