"""The fastest instruction set again after each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dvt_edge.runtime.native import operator_library


@pytest.fixture(autouse=True)
def _fastest_again() -> Iterator[None]:
    yield
    operator_library.use(None)
