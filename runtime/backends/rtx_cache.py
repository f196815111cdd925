"""TensorRT-RTX's kernels, compiled for this machine once and not once per process."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

from dvt_edge.files.cache import cache_folder
from dvt_edge.files.replacing import replaced_file

_log = logging.getLogger(__name__)


class RtxCache:
    """The runtime cache of one engine, in the user's cache folder.

    ``config`` is the engine's runtime configuration, to which the cache belongs from now on;
    ``plan`` is the engine. Where TensorRT-RTX rejects what is stored, such as another machine's, it
    starts empty. Where it cannot be written, a warning says so, and the next process compiles
    again.
    """

    def __init__(self, config: Any, plan: bytes, version: str) -> None:
        self._cache: Any = config.create_runtime_cache()
        name = hashlib.sha256(plan).hexdigest()
        self.path: Path = cache_folder("tensorrt-rtx") / f"{name}-{version}.cache"
        self._stored = b""
        self._warned = False
        try:
            stored = self.path.read_bytes()
        except OSError:
            stored = b""
        if stored:
            if self._cache.deserialize(stored):
                self._stored = stored
            else:
                _log.info("%s: is of another machine; kernels are compiled again", self.path)
        config.set_runtime_cache(self._cache)

    def store(self) -> None:
        """Write what was compiled since, whole or not at all."""
        made = bytes(self._cache.serialize() or b"")
        if not made or made == self._stored:
            return
        try:
            with replaced_file(self.path) as temporary:
                temporary.write_bytes(made)
        except OSError as error:
            if not self._warned:
                _log.warning(
                    "%s: cannot be written (%s); kernels are compiled again in every process",
                    self.path,
                    error.strerror or error,
                )
                self._warned = True
            return
        self._stored = made
