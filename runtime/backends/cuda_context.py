"""The primary context of the GPU, and what must be given back inside it."""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
from collections.abc import Callable
from typing import Any

_log = logging.getLogger(__name__)

# The primary context, by the process that retained it. It is never detached: CUDA's runtime, which
# engines use, keeps it until the process ends anyway, and pycuda's detach() leaves it on the stack
# of the thread that retained it, or on another thread unreleased.
_retained: dict[int, Any] = {}
_retaining = threading.Lock()


def primary_context(device: Any) -> Any:
    """The primary context of ``device``, for as long as the process lives.

    One reference is given away on purpose: pycuda's destructor of a primary context calls a virtual
    function of the part that is already destroyed, and the module's dictionary is emptied when the
    interpreter ends.
    """
    with _retaining:
        if not _retained:
            context = device.retain_primary_context()
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(context))
            _retained[os.getpid()] = context
        return _retained[os.getpid()]


def in_a_fork() -> bool:
    """Whether this process was forked from one that retained the context."""
    return bool(_retained) and os.getpid() not in _retained


class Held:
    """All that a device must give back: graphs, then their users, then memory and the rest."""

    def __init__(self, cuda: Any, driver: Any, context: Any) -> None:
        self.cuda, self.driver, self.context = cuda, driver, context
        self.process = os.getpid()
        self.memory: dict[int, Any] = {}
        self.graphs: list[int] = []
        self.users: list[Callable[[], None]] = []
        """Closers of what uses the memory, such as engines."""
        self.modules: list[Any] = []
        self.kernels: dict[str, Any] = {}
        self.stream: Any = None
        self.started: Any = None
        self.stopped: Any = None
        self.done = ctypes.c_void_p()
        """An event that a thread sleeps on; pycuda does not give the handle of its own."""

    def release(self) -> None:
        """Give all of it back, inside the context; nothing in a process forked since."""
        if os.getpid() != self.process:
            return
        try:
            self.context.push()
        except self.cuda.Error as error:  # the driver is gone, and everything on it
            _log.warning("GPU memory may not have been given back: %s", error)
            self._forget()
            return
        try:
            if self.stream is not None:
                with contextlib.suppress(self.cuda.Error):
                    self.stream.synchronize()
            while self.graphs:
                self.driver.cuGraphExecDestroy(ctypes.c_void_p(self.graphs.pop()))
            while self.users:
                self._attempt(self.users.pop(0))
            for memory in self.memory.values():
                with contextlib.suppress(self.cuda.Error):
                    memory.free()
            if self.done:
                self.driver.cuEventDestroy_v2(self.done)
            self._forget()
        finally:
            with contextlib.suppress(self.cuda.Error):
                self.context.pop()

    def _attempt(self, close: Callable[[], None]) -> None:
        try:
            close()
        except Exception as error:  # the rest must be given back all the same
            _log.warning("closing what used the GPU failed: %s", error)

    def _forget(self) -> None:
        self.graphs.clear()
        self.users.clear()
        self.memory.clear()
        self.kernels.clear()
        self.modules.clear()
        self.stream = self.started = self.stopped = None
