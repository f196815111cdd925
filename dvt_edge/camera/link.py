"""The decoder's process, as seen by the one that wants frames."""

from __future__ import annotations

import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from dvt_edge.camera.address import Address, scrubbed
from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.frame import Pixels
from dvt_edge.camera.plan import Plan, Transport
from dvt_edge.camera.slots import TALLY, Counters, Slots, map_tally, new_tally

START_S = 60.0
"""Until the process says something: imports from a cold SD card take tens of seconds."""
FIRST_BACKOFF_S = 0.2
LONGEST_BACKOFF_S = 3.0
SILENT_S = 2.0
"""Longer than this a process that is asked is never silent, unless it hangs."""

# What is importable here is there, whatever the current folder holds.
_CODE = """
import os, sys
sys.path[:] = [folder for folder in sys.argv[1].split(os.pathsep) if folder]
from dvt_edge.camera.worker import main
main()
"""


@dataclass(frozen=True)
class Filled:
    """A picture that was handed over."""

    pixels: Pixels
    seq: int
    captured_at: float
    damage: str
    """What was wrong with pictures before it, if something was."""


def backoff_s(attempt: int, chance: float) -> float:
    """Seconds before the ``attempt``-th try in a row after the first, which is made at once.

    ``chance`` in 0..1 spreads them, so that many viewers of one server do not come together.
    """
    if attempt == 0:
        return 0.0
    longest = min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * math.pow(2, min(attempt, 32) - 1))
    return longest * (0.5 + 0.5 * chance)


class Link:
    """One process that reads ``address``; it ends with this one, however this one ends.

    Only one thread at a time may use it, but any may :meth:`kill` it.
    """

    def __init__(
        self,
        address: Address,
        *,
        every_frame: bool,
        stall_s: float,
        open_s: float,
        transport: Transport,
        base: int,
    ) -> None:
        self._address, self._stall_s = address, stall_s
        self._slots = Slots()
        tally = new_tally()
        self._counters: Counters | None = map_tally(tally)
        self._last_counts: list[int] = [0] * len(TALLY)
        self._asked: int | None = None
        self._unread = b""
        self._heard = False
        plan = Plan(
            address,
            every_frame=every_frame,
            stall_s=stall_s,
            open_s=open_s,
            transport=transport,
            base=base,
            tally=tally,
            slots=tuple(self._slots.descriptors),
            parent=os.getpid(),
        )
        self._errors = os.memfd_create("dvt-edge-errors")
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _CODE, os.pathsep.join(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                pass_fds=[tally, *self._slots.descriptors],
                start_new_session=True,  # Ctrl-C is for us
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
        except OSError:
            self._slots.close()
            os.close(self._errors)
            raise
        finally:
            os.close(tally)
        self._write(plan.to_json())

    @property
    def pid(self) -> int:
        return self._process.pid

    def counts(self) -> dict[str, int]:
        """What the process counted, also after its end."""
        counters = self._counters
        values = self._last_counts if counters is None else counters.tolist()
        return dict(zip(TALLY, values, strict=True))

    def wait_opened(self) -> None:
        """Until a whole picture is there; raises :class:`ReadingError`."""
        while self._message()["type"] != "opened":
            pass

    def next(self) -> Filled:
        """The newest picture, or the next in turn; raises :class:`ReadingError`."""
        if self._asked is None:
            self._asked = self._slots.next_free()
            self._write(str(self._asked))
        while (message := self._message())["type"] != "frame":
            pass
        slot, self._asked = self._asked, None
        pixels = self._slots.take(slot, message["shape"])
        return Filled(
            pixels, message["seq"], message["captured_at"], self._shown(message.get("damage", ""))
        )

    def kill(self) -> None:
        """End the process at once; a thread that waits for it gets a :class:`ReadingError`."""
        self._process.kill()

    def close(self) -> None:
        """End the process and give everything back; arrays handed out stay valid."""
        if not self._slots.descriptors:
            return
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        os.close(self._errors)
        self._slots.close()
        if self._counters is not None:
            self._last_counts, self._counters = self._counters.tolist(), None

    def _write(self, line: str) -> None:
        data = line.encode() + b"\n"
        assert self._process.stdin is not None
        try:
            while data:
                data = data[os.write(self._process.stdin.fileno(), data) :]
        except BrokenPipeError:
            pass  # what it said before it ended is still to be read

    def _message(self) -> dict[str, Any]:
        """The next but for beats; raises :class:`ReadingError` at the end and after silence."""
        assert self._process.stdout is not None
        source = self._process.stdout.fileno()
        while True:
            patience_s = max(self._stall_s, SILENT_S) if self._heard else START_S
            until = time.monotonic() + patience_s
            while b"\n" not in self._unread:
                ready, _, _ = select.select([source], [], [], max(0.0, until - time.monotonic()))
                if not ready:
                    raise ReadingError(
                        Cause.STALLED if self._heard else Cause.NO_FRAMES,
                        f"the decoder has not moved for {patience_s:g} s",
                    )
                data = os.read(source, 65536)
                if not data:
                    raise self._died()
                self._unread += data
            line, _, self._unread = self._unread.partition(b"\n")
            self._heard = True
            message: dict[str, Any] = json.loads(line)
            if message["type"] == "lost":
                damage = self._shown(message.get("damage", ""))
                detail, final = self._shown(message["detail"]), message["final"]
                raise LostError(Cause(message["cause"]), detail, damage, final=final)
            if message["type"] != "beat":
                return message

    def _died(self) -> ReadingError:
        """How the process ended, where it had no time to say so."""
        code = self._process.wait()
        if code < 0:
            how = f"crashed ({signal.strsignal(-code) or -code})"
        else:
            last = os.pread(self._errors, 1 << 20, 0).decode(errors="replace").strip().splitlines()
            how = f"ended with exit code {code}" + "".join(f": {line}" for line in last[-1:])
        return ReadingError(Cause.UNDECODABLE, self._shown(f"the decoder {how}"))

    def _shown(self, text: str) -> str:
        return scrubbed(text, self._address)


class LostError(ReadingError):
    """The process's own word for its end."""

    def __init__(self, cause: Cause, detail: str, damage: str, *, final: bool) -> None:
        super().__init__(cause, detail, final=final)
        self.damage = damage
