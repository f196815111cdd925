"""From a URI to a camera: what a profile may leave out, and recordings."""

from __future__ import annotations

import os
from pathlib import Path

from dvt_edge.app.frames import OnSourceEvent, OpenSource, Source
from dvt_edge.app.replay import SCHEME, open_replay
from dvt_edge.camera import open_source, redacted

_PATHS = (SCHEME, "file://", "images://")
"""Schemes that a path follows."""


def opener(uri: str, *, every_frame: bool) -> OpenSource:
    """What opens ``uri``: a recording, or whatever :mod:`dvt_edge.camera` knows."""

    def open_it(on_event: OnSourceEvent) -> Source:
        if uri.startswith(SCHEME):
            return open_replay(uri, every_frame=every_frame)
        return open_source(uri, every_frame=every_frame, on_event=on_event)

    return open_it


def camera_name(uri: str) -> str:
    """``uri`` without its password."""
    return uri if uri.startswith(SCHEME) else redacted(uri)


def beside(uri: str, folder: Path) -> str:
    """``uri`` with a relative path in it made one from ``folder``, where the profile is."""
    scheme = next((scheme for scheme in _PATHS if uri.startswith(scheme)), "")
    path = uri.removeprefix(scheme)
    if not scheme and ("://" in path or not (folder / path.partition("?")[0]).exists()):
        return uri  # it is no path, or the number of a camera
    if not path or path.startswith(("/", "~", "${")):
        return uri
    return f"{scheme}{os.path.normpath(folder.absolute())}/{path}"
