"""How long-running work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Called repeatedly while something long runs."""

    def __call__(self, what: str, done: float, total: float, remark: str = "") -> None:
        """Of ``what``, ``done`` of ``total`` are done; ``remark`` says more, such as a rate."""


def silent(what: str, done: float, total: float, remark: str = "") -> None:
    """A :class:`Progress` that shows nothing."""
