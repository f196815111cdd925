"""Where this program keeps what it can make again."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(kind: str) -> Path:
    """Folder ``kind`` in the user's cache (``XDG_CACHE_HOME``, else ``~/.cache``); it need not
    exist."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "dvt-edge" / kind
