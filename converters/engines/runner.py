"""Runs one engine build in its own process and reports how it goes."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from time import monotonic
from typing import IO, Any

from dvt_edge.converters.engines.request import MODULE_VARIABLE, Built, Request
from dvt_edge.errors import BuildError

TICK_SECONDS = 1.0
"""How often the elapsed time is reported while the builder says nothing."""


def run_build(module: str, request: Request, report: Callable[[str], None]) -> Built:
    """Build ``request`` with ``module``; ``report`` gets a line of progress about every second.

    The process ends with this call, also on Ctrl-C. Raises
    :class:`~dvt_edge.errors.BuildError` with what the builder said, or how it died.
    """
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as words:
        process = subprocess.Popen(
            [sys.executable, "-m", "dvt_edge.converters.engines.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=words,
            text=True,
            env=os.environ | {MODULE_VARIABLE: module},
            start_new_session=True,  # Ctrl-C reaches this process alone, which then ends that one
        )
        assert process.stdin is not None
        assert process.stdout is not None
        lines: queue.Queue[str | None] = queue.Queue()
        reader = threading.Thread(target=_read, args=(process.stdout, lines), daemon=True)
        reader.start()
        try:
            process.stdin.write(request.model_dump_json())
            process.stdin.close()
            last = _follow(lines, report)
            process.wait()
        except BrokenPipeError:  # it died before it had read the request
            process.wait()
            last = {}
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stdout.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()
        if "done" in last:
            return Built.model_validate(last["done"])
        if "error" in last:
            raise BuildError(f"{module} refused {request.graph}: {last['error']}")
        words.seek(0)
        raise BuildError(_death(module, request, process.returncode, words.read()))


def _read(stream: IO[str], lines: queue.Queue[str | None]) -> None:
    """Put every line into ``lines``, and None at the end of the stream."""
    for line in stream:
        lines.put(line)
    lines.put(None)


def _follow(lines: queue.Queue[str | None], report: Callable[[str], None]) -> dict[str, Any]:
    """Take events from ``lines`` until None; the last one."""
    started = monotonic()
    last: dict[str, Any] = {}
    phase = ""
    while True:
        with contextlib.suppress(queue.Empty):
            line = lines.get(timeout=TICK_SECONDS)
            if line is None:
                return last
            last = json.loads(line)
            if "phase" not in last:
                continue
            phase = f", {last['phase']} {last['step']}/{last['steps']}"
        report(f"{monotonic() - started:.0f} s so far{phase}")


def _death(module: str, request: Request, code: int, words: str) -> str:
    if code < 0:
        end = f"crashed ({signal.strsignal(-code)})"
        if -code == signal.SIGKILL:
            end += "; if the system ran out of memory, lower engine.workspace_mb or add swap"
    else:
        end = f"ended with exit code {code}"
    tail = " | ".join(words.strip().splitlines()[-3:])
    return f"{module} {end} while it built {request.graph}" + (f": {tail}" if tail else "")
