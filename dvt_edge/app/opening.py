"""From a URI to a camera: what a profile may leave out, and recordings."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from dvt_edge.app.frames import OnSourceEvent, OpenSource, Source
from dvt_edge.app.replay import SCHEME, open_replay, parse_replay
from dvt_edge.camera import open_source, redacted
from dvt_edge.camera.address import parse

_PATHS = (SCHEME, "file://", "images://")
"""Schemes that a path follows."""


def opener(uri: str, *, every_frame: bool) -> OpenSource:
    """What opens ``uri``: a recording, or whatever :mod:`dvt_edge.camera` knows."""

    def open_it(on_event: OnSourceEvent) -> Source:
        if uri.startswith(SCHEME):
            return open_replay(uri, every_frame=every_frame)
        return open_source(uri, every_frame=every_frame, on_event=on_event)

    return open_it


def check_uri(uri: str) -> None:
    """Raises :class:`~dvt_edge.errors.ConfigError` for one that means nothing; opens nothing."""
    if uri.startswith(SCHEME):
        parse_replay(uri)
    else:
        parse(uri)


def camera_name(uri: str) -> str:
    """``uri`` without its password."""
    return uri if uri.startswith(SCHEME) else redacted(uri)


def camera_names(uris: Sequence[str]) -> list[str]:
    """Of several; those that differ in their passwords only are numbered."""
    names: list[str] = []
    for name in map(camera_name, uris):
        at = 1 + sum(camera_name(uri) == name for uri in uris[: len(names)])
        names.append(name if at == 1 else f"{name} ({at})")
    return names


def beside(uri: str, folder: Path) -> str:
    """``uri`` with a relative path in it made one from ``folder``, where the profile is."""
    scheme = next((scheme for scheme in _PATHS if uri.startswith(scheme)), "")
    path = uri.removeprefix(scheme)
    if not scheme and ("://" in path or not (folder / path.partition("?")[0]).exists()):
        return uri  # it is no path, or the number of a camera
    if not path or path.startswith(("/", "~", "${")):
        return uri
    return f"{scheme}{os.path.normpath(folder.absolute())}/{path}"
