"""Builds that are killed; ``make faults`` does it more often."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill_builds import kill_builds


@pytest.mark.slow
def test_killed_builds(tmp_path: Path) -> None:
    """The old bundle or the new one works, and the next build needs no help."""
    seen = kill_builds(tmp_path, 20)
    assert seen["old"] + seen["new"] == 20
