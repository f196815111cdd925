"""Engines that were built before, by the hash of everything that decided them."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

import dvt_edge
from dvt_edge.bundle.bundle import file_sha256
from dvt_edge.converters.engines.request import Built, Request
from dvt_edge.errors import BundleError
from dvt_edge.files.replacing import replaced_file
from dvt_edge.machine.platform import Platform

KEPT = 64
"""Engines that stay; the ones used longest ago go."""


def engine_key(graph_sha256: str, request: Request, platform: Platform) -> str:
    """Hash of graph, target and settings; not of where files lie."""
    settings = request.model_dump() | {"graph": graph_sha256, "plan": ""}
    machine = platform.model_dump(mode="json", exclude={"power_mode"})
    # Another version of ours may ask the builder for something else.
    text = json.dumps([settings, machine, dvt_edge.__version__], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class EngineCache:
    """Engines in the user's cache folder (``XDG_CACHE_HOME``, else ``~/.cache``).

    A folder that cannot be written caches nothing, a damaged engine is not used. Without ``reads``
    every engine is built again, and then kept.
    """

    def __init__(self, *, reads: bool = True) -> None:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        self.folder = Path(base) / "dvt-edge" / "engines"
        self._reads = reads

    def fetch(self, key: str, target: Path) -> Built | None:
        """Copy the engine of ``key`` to ``target``; None where there is none."""
        if not self._reads:
            return None
        plan, notes = self._paths(key)
        try:
            values = json.loads(notes.read_text(encoding="utf-8"))
            if file_sha256(plan) != values.pop("sha256"):
                return None
            shutil.copyfile(plan, target)
            built = Built.model_validate(values)
            os.utime(notes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, BundleError):
            return None
        return built

    def store(self, key: str, source: Path, built: Built) -> None:
        """Keep the engine at ``source``, the file first and its notes last."""
        plan, notes = self._paths(key)
        with contextlib.suppress(OSError):  # a cache is no reason to fail
            with replaced_file(plan) as temporary:
                shutil.copyfile(source, temporary)
            with replaced_file(notes) as temporary:
                values = built.model_dump() | {"sha256": file_sha256(plan)}
                temporary.write_text(json.dumps(values), encoding="utf-8")
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        notes = sorted(self.folder.glob("*.json"), key=lambda path: path.stat().st_mtime)
        for path in notes[:-KEPT]:
            path.unlink()
            path.with_suffix(".plan").unlink(missing_ok=True)

    def _paths(self, key: str) -> tuple[Path, Path]:
        return self.folder / f"{key}.plan", self.folder / f"{key}.json"
