"""Where this program keeps what is not part of any project."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Folder ``kind`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``), for what can be
    made again; it need not exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dvt-edge" / kind


def data_folder() -> Path:
    """Folder of the user's data (``XDG_DATA_HOME``, else ``~/.local/share``), for what is to stay;
    it need not exist."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(base) / "dvt-edge"
