"""What reads each kind of source, in the decoder's process.

``read(plan, mailbox)`` puts pictures until nothing more comes; then, or where it cannot begin, it
raises :class:`~dvt_edge.camera.causes.ReadingError`.
"""

from __future__ import annotations

import importlib

from dvt_edge.camera.address import Kind
from dvt_edge.camera.mailbox import Mailbox
from dvt_edge.camera.plan import Plan

MODULES: dict[Kind, str] = {
    "v4l2": "video",
    "rtsp": "video",
    "http": "video",
    "file": "video",
    "csi": "pipeline",
    "gst": "pipeline",
    "images": "images",
    "test": "scenes",
}
LIBRARIES = {"video": "av", "pipeline": "gi"}
"""What each needs beyond what is always installed."""


def read(plan: Plan, mailbox: Mailbox) -> None:
    """Put the pictures of ``plan.address`` into ``mailbox``; ends with a ``ReadingError``."""
    module = importlib.import_module(f"{__name__}.{MODULES[plan.address.kind]}")
    module.read(plan, mailbox)
