"""GStreamer elements: which ones a source needs, and which of them are not installed."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys

from dvt_edge.camera.address import parse
from dvt_edge.camera.readers import LIBRARIES, MODULES
from dvt_edge.camera.readers.descriptions import SINK, description

PROBE_S = 60.0
# In a process of its own: GStreamer loads every plugin there is, and some of them crash.
_PROBE = """
import json, os, sys
sys.path[:] = [folder for folder in sys.argv[1].split(os.pathsep) if folder]
try:
    import gi
    gi.require_version("Gst", "1.0")
    from gi.repository import Gst
except (ImportError, ValueError):
    print(json.dumps(["gi"]))
else:
    Gst.init(None)
    print(json.dumps([name for name in sys.argv[2:] if Gst.ElementFactory.find(name) is None]))
"""


def needed_library(uri: str) -> str | None:
    """Module that reading ``uri`` takes beyond what is always installed: ``av``, ``gi`` or None.

    Raises :class:`~dvt_edge.errors.ConfigError` for a URI that means nothing.
    """
    return LIBRARIES.get(MODULES[parse(uri).kind])


def needed_elements(uri: str) -> list[str]:
    """GStreamer elements that ``uri`` is made of; none for what PyAV reads.

    Raises :class:`~dvt_edge.errors.ConfigError` for a URI that means nothing.
    """
    address = parse(uri)
    if address.kind not in ("csi", "gst"):
        return []
    text = f"{description(address)} ! {SINK}"
    try:
        words = shlex.split(text.replace("!", " ! "))
    except ValueError:  # a quote is left open; GStreamer will say so
        words = text.split()
    named = (word for word in words if re.fullmatch(r"[A-Za-z][\w-]*", word))
    return list(dict.fromkeys(named))


def missing_elements(uri: str) -> list[str]:
    """Those of :func:`needed_elements` that are not installed; ``["gi"]`` where GStreamer's Python
    module itself cannot be imported, or crashes."""
    needed = needed_elements(uri)
    if not needed:
        return []
    command = [sys.executable, "-c", _PROBE, os.pathsep.join(sys.path), *needed]
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=PROBE_S,
            check=True,
        )
        found: list[str] = json.loads(done.stdout.splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError):
        return ["gi"]
    return found
