"""One viewer: pictures, each after the one before was acknowledged, and budgets the other way.

From the server, a text message (JSON), followed by the picture (JPEG) where ``picture`` is true:

    {"now": 93, "picture": true, "frame": {...}, "seconds": [...], "events": [...], "state": {...},
     "steps": {...}, "settled": true, "refused": "..."}

with what has changed since the last one; ``settled`` says that what the viewer asked for is in
force or was refused. From the viewer, each as a text message:

    {"type": "next"}                        the last one was shown; send another
    {"type": "budget", "latency_ms": 1.2}   put it in force
    {"type": "source", "name": "..."}       show this camera

Whoever sends anything else is closed with a code, and nobody else notices.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from math import isfinite
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from dvt_edge.app.sinks import Note, Seen
from dvt_edge.serve.hub import Hub, Newest
from dvt_edge.serve.pictures import Pictures

LONGEST_MESSAGE = 4096
"""Bytes that a viewer may send at once."""
MESSAGES_PER_S = 200
"""More would take time from the stages."""
PICTURES_PER_S = 15.0
"""At most, to each viewer: encoding takes time from the stages, too."""
LOOK_S = 0.02
"""Between two looks for a frame."""
TICK_S = 1.0
"""Without a frame, figures are sent at this pace."""
PATIENCE_S = 30.0
"""A viewer who acknowledges nothing for so long makes room for another one."""
CLOSING_S = 0.2
"""How long saying goodbye may take."""
GOING_AWAY, UNSUPPORTED, POLICY, TRY_LATER = 1001, 1003, 1008, 1013
"""Codes with which a socket is closed; 1009, too long, is sent by the library."""

SetBudget = Callable[[float | None], Awaitable[None]]
"""Puts a budget in force; raises what ``Runtime.set_budget`` raises."""


class Leave(Exception):  # noqa: N818  # no error of ours
    """The viewer is to be closed."""

    def __init__(self, code: int, reason: str) -> None:
        self.code, self.reason = code, reason
        super().__init__(reason)


class Viewer:
    """Serves one accepted ``socket`` until either side ends it."""

    def __init__(
        self, socket: WebSocket, hub: Hub, pictures: Pictures, set_budget: SetBudget
    ) -> None:
        self._socket, self._hub, self._pictures = socket, hub, pictures
        self._set_budget = set_budget
        self._acknowledged = asyncio.Event()
        self._acknowledged.set()
        self._source: str | None = None
        self._budget_task: asyncio.Task[None] | None = None
        self._next_budget: list[float | None] = []
        """The last one that was asked for while another one was being put in force."""
        # What the viewer knows already.
        self._frame = self._second = self._event = 0
        self._state: dict[str, Any] | None = None
        self._steps: dict[str, Any] | None = None
        self._settled: dict[str, Any] = {}
        """What came of the viewer's budget, still to be said."""

    async def run(self, hello: dict[str, Any]) -> None:
        """Until the viewer leaves, does wrong or the run ends; ``hello`` is said first."""
        self._hub.viewers += 1
        work = (self._send_all(hello), self._listen(), self._wait_for_the_end())
        tasks = [asyncio.create_task(each) for each in work]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except Leave as leave:
            await self._close(leave.code, leave.reason)
        except WebSocketDisconnect:
            return
        finally:
            self._hub.viewers -= 1
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait_for_the_end(self) -> None:
        await self._hub.ended.wait()
        raise Leave(GOING_AWAY, "the run has ended")

    async def _close(self, code: int, reason: str) -> None:
        try:
            await asyncio.wait_for(self._socket.close(code, reason), CLOSING_S)
        except (asyncio.TimeoutError, WebSocketDisconnect, RuntimeError):
            return  # it does not listen, or has left

    # To the viewer --------------------------------------------------------------------------------

    async def _send_all(self, hello: dict[str, Any]) -> None:
        pace_s = 1 / PICTURES_PER_S
        while True:
            try:
                await asyncio.wait_for(self._send_one(hello), PATIENCE_S)
                hello = {}
                await asyncio.wait_for(self._acknowledged.wait(), PATIENCE_S)
            except asyncio.TimeoutError:
                reason = f"nothing was acknowledged for {PATIENCE_S:g} s"
                raise Leave(POLICY, reason) from None
            await asyncio.sleep(pace_s)

    async def _send_one(self, hello: dict[str, Any]) -> None:
        message, picture = await self._compose(hello)
        self._acknowledged.clear()
        await self._socket.send_text(json.dumps(message, allow_nan=False))
        if picture is not None:
            await self._socket.send_bytes(picture)

    async def _compose(self, hello: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
        newest = None if hello else await self._wait_for_news()
        picture = None if newest is None else await self._pictures.of(newest)
        return hello | self._news(newest and newest.seen), picture

    async def _wait_for_news(self) -> Newest | None:
        """A frame that the viewer has not seen; None where something else is new, or after
        :data:`TICK_S`."""
        until = time.monotonic() + TICK_S
        while True:
            newest = self._hub.newest(self._source)
            if newest is not None and newest.number != self._frame:
                self._frame = newest.number
                return newest
            if self._has_other_news() or time.monotonic() > until:
                return None
            await asyncio.sleep(LOOK_S)

    def _has_other_news(self) -> bool:
        state = self._hub.state
        return (
            bool(self._settled) or state.values is not self._state or state.steps is not self._steps
        )

    def _news(self, seen: Seen | None) -> dict[str, Any]:
        """What changed since the last message."""
        hub, now = self._hub, self._hub.seconds.now
        message: dict[str, Any] = {"now": now, "picture": seen is not None}
        if seen is not None:
            message["frame"] = frame_values(seen)
        message["sources"] = hub.sources
        if rows := hub.seconds.rows(self._second, now):
            message["seconds"] = rows
            self._second = now - 1
        if hub.events and hub.events[-1][0] > self._event:
            new = [(number, note) for number, note in hub.events if number > self._event]
            message["events"] = [event_values(note) for _, note in new]
            self._event = new[-1][0]
        state = hub.state
        if state.values is not self._state:
            message["state"] = self._state = state.values
        if state.steps is not self._steps:
            message["steps"] = self._steps = state.steps
        settled, self._settled = self._settled, {}
        return message | settled

    # From the viewer ------------------------------------------------------------------------------

    async def _listen(self) -> None:
        allowed, since = MESSAGES_PER_S, time.monotonic()
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                raise WebSocketDisconnect
            if time.monotonic() - since > 1:
                allowed, since = MESSAGES_PER_S, time.monotonic()
            allowed -= 1
            if allowed < 0:
                raise Leave(POLICY, f"more than {MESSAGES_PER_S} messages in a second")
            text = message.get("text")
            if text is None:
                raise Leave(UNSUPPORTED, "only text is understood")
            self._act(parse(text))

    def _act(self, message: dict[str, Any]) -> None:
        if message["type"] == "next":
            self._acknowledged.set()
        elif message["type"] == "source":
            self._source, self._frame = message["name"], 0
        else:
            self._next_budget = [message["latency_ms"]]
            if self._budget_task is None or self._budget_task.done():
                self._budget_task = asyncio.create_task(self._put_in_force())

    async def _put_in_force(self) -> None:
        """Goes on if the viewer leaves: what was asked for is done."""
        while self._next_budget:
            settled: dict[str, Any] = {"settled": True}
            try:
                await self._set_budget(self._next_budget.pop())
            except Exception as error:  # whatever it is: the viewer is told
                settled["refused"] = str(error) or type(error).__name__
            if not self._next_budget:
                self._settled = settled


def parse(text: str) -> dict[str, Any]:
    """A viewer's message; raises :class:`Leave` for what is none."""
    try:
        message = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise Leave(POLICY, "not JSON") from None
    kind = message.get("type") if isinstance(message, dict) else None
    if kind == "next" and len(message) == 1:
        return {"type": "next"}
    if kind == "source" and len(message) == 2 and isinstance(message.get("name"), str):
        return {"type": "source", "name": message["name"]}
    if kind == "budget" and len(message) == 2 and "latency_ms" in message:
        limit = message["latency_ms"]
        if limit is None:
            return {"type": "budget", "latency_ms": None}
        if isinstance(limit, (int, float)) and not isinstance(limit, bool) and abs(limit) < 1e9:
            return {"type": "budget", "latency_ms": float(limit)}
    raise Leave(POLICY, "not a message that is understood")


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no JSON")


def frame_values(seen: Seen) -> dict[str, Any]:
    """A frame and its answer."""
    frame, answer = seen.frame, seen.prediction
    return {
        "source": seen.source,
        "seq": frame.seq,
        "age_ms": frame.age_ms,
        "dropped_before": frame.dropped_before,
        "label": answer.label,
        "confidence": answer.confidence if isfinite(answer.confidence) else None,
        "exit_stage": answer.exit_stage,
        "latency_ms": answer.latency_ms,
        "energy_mj": answer.energy_mj,
        "truncated": answer.truncated,
        "reason": answer.reason,
    }


def event_values(note: Note) -> dict[str, Any]:
    """``time`` is in seconds since 1970."""
    return {"kind": note.kind, "reason": note.reason, "source": note.source, "time": note.time}
