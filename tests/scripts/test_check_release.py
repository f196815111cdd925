"""What ``make release`` finds wrong with a wheel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from check_release import problems

ENVIRONMENT = Path("/env")
GOOD: dict[str, Any] = {
    "version": "1.0",
    "package": "/env/lib/dvt_edge/__init__.py",
    "native": None,
    "there": [],
    "answers": ["cat", "dog"],
}
HERE = GOOD | {"package": "/checkout/dvt_edge/__init__.py", "there": ["torch"]}


def test_a_good_wheel() -> None:
    assert problems(GOOD, HERE, ENVIRONMENT) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "/checkout/dvt_edge/__init__.py"}, "another package"),
        ({"there": ["torch"]}, "was not alone"),
        ({"native": "no compiler"}, "no native library: no compiler"),
        ({"version": "0.9"}, "is version 0.9"),
        ({"answers": ["cat", "cat"]}, "answers"),
        ({"answers": []}, "answers"),
    ],
)
def test_a_bad_wheel(change: dict[str, Any], message: str) -> None:
    (found,) = problems(GOOD | change, HERE, ENVIRONMENT)
    assert message in found
