"""The decoder's process: opens a source, keeps the newest picture, hands it over when asked.

It is a process of its own because decoders hang and crash: it can be killed. Standard input gets
one line, the :class:`~dvt_edge.camera.plan.Plan`, then one for each picture that is asked for: the
number of the slot to fill. Each message on standard output is a line of JSON.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import threading
import time
from typing import Any, NoReturn

from dvt_edge.camera import readers
from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.mailbox import Mailbox
from dvt_edge.camera.plan import Plan
from dvt_edge.camera.slots import FilledSlots, map_tally

BEAT_S = 0.2
"""How often somebody who waits hears that this process is alive."""
PATIENCE = 6
"""A stream that sends, but nothing whole, gets so many times as long as one that sends nothing: key
frames may be ten seconds apart."""


def main() -> NoReturn:
    """Until the source ends, or the process that asks does."""
    messages = os.dup(1)
    os.dup2(2, 1)  # what libraries print is no message
    line = b""
    while not line.endswith(b"\n"):
        more = os.read(0, 65536)
        if not more:
            os._exit(0)
        line += more
    plan = Plan.from_json(line)
    mailbox = Mailbox(
        map_tally(plan.tally),
        plan.base,
        keep_all=plan.keep_all,
        camera=plan.address.is_camera and not plan.keep_all,
    )
    threading.Thread(target=_read, args=(plan, mailbox), daemon=True).start()
    with contextlib.suppress(BrokenPipeError):
        _Desk(plan, mailbox, messages).serve()
    # Without waiting for a library that hangs.
    os._exit(0)


def _read(plan: Plan, mailbox: Mailbox) -> None:
    try:
        readers.read(plan, mailbox)
    except ReadingError as failure:
        mailbox.end(failure)
    except Exception as error:  # whatever a library raises
        mailbox.end(ReadingError(Cause.UNDECODABLE, f"{type(error).__name__}: {error}"))


class _Desk:
    """Answers requests."""

    def __init__(self, plan: Plan, mailbox: Mailbox, messages: int) -> None:
        self._plan, self._mailbox, self._messages = plan, mailbox, messages
        self._slots = FilledSlots(plan.slots)
        self._slot: int | None = None
        """To fill, while somebody waits for it."""
        self._opened = False
        self._started = time.monotonic()

    def serve(self) -> None:
        beat_at = 0.0
        while os.getppid() == self._plan.parent:
            ready, _, _ = select.select([0, self._mailbox.wake], [], [], BEAT_S)
            if 0 in ready:
                request = os.read(0, 4096)
                if not request:
                    return
                self._slot = int(request)
            self._mailbox.drain_wake()
            if self._answered():
                return
            waited_for = self._slot is not None or not self._opened
            if waited_for and time.monotonic() >= beat_at:
                self._send(type="beat")
                beat_at = time.monotonic() + BEAT_S

    def _answered(self) -> bool:
        """Say what there is to say; whether that was the last."""
        mailbox = self._mailbox
        if not self._opened and mailbox.opened:
            self._opened = True
            self._send(type="opened")
            # From now on nobody reads what a library prints.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        if self._slot is not None and self._opened:
            failure = mailbox.failure  # looked at first: what was put before it is given before it
            found = mailbox.take()
            if found is not None:
                picture, pixels = found
                self._slots.fill(self._slot, pixels)
                self._slot = None
                self._send(
                    type="frame",
                    seq=picture.seq,
                    captured_at=picture.captured_at,
                    shape=pixels.shape,
                )
                return False
        else:
            failure = mailbox.failure
        failure = failure or self._hang()
        # While nobody asks, a file's last pictures still wait here.
        if failure is None or (self._opened and self._slot is None and not mailbox.is_empty):
            return False
        self._send(type="lost", cause=failure.cause, detail=failure.detail, final=failure.final)
        return True

    def _hang(self) -> ReadingError | None:
        """What is wrong with a source that reports nothing."""
        mailbox, plan, now = self._mailbox, self._plan, time.monotonic()
        if mailbox.pausing:
            return None
        quiet_s = now - mailbox.heard_at
        if mailbox.heard_at <= self._started:
            if quiet_s > plan.open_s + 1:  # a library's own time-out says more
                return ReadingError(Cause.NO_FRAMES, f"nothing came within {plan.open_s:g} s")
            return None
        if quiet_s > plan.stall_s:
            cause = Cause.STALLED if mailbox.opened else Cause.NO_FRAMES
            return ReadingError(cause, f"nothing came for {plan.stall_s:g} s")
        hopeless_s = PATIENCE * plan.stall_s
        if mailbox.bad_since is not None and now - mailbox.bad_since > hopeless_s:
            why = f": {mailbox.damage}" if mailbox.damage else ""
            return ReadingError(Cause.UNDECODABLE, f"nothing whole came for {hopeless_s:g} s{why}")
        return None

    def _send(self, **message: Any) -> None:
        if self._mailbox.damage and message["type"] in ("frame", "lost"):
            message["damage"], self._mailbox.damage = self._mailbox.damage, ""
        data = (json.dumps(message) + "\n").encode()
        while data:
            data = data[os.write(self._messages, data) :]


if __name__ == "__main__":
    main()
