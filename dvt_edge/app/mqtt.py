"""Answers and events for an MQTT broker."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from dvt_edge.app.sinks import MakeNote, Note, Seen
from dvt_edge.app.values import answer_values, event_values
from dvt_edge.errors import ConfigError
from dvt_edge.requirements import need

if TYPE_CHECKING:
    from paho.mqtt.client import MQTTMessageInfo

WAITING = 1000
"""Answers that wait for the broker, at most."""
WAITING_EVENTS = 100
"""More places for events: they are few, and say why there are no answers."""
LAST_WORDS_S = 0.3
"""How long closing waits for the broker to answer, and to have taken what waits."""
RECONNECT_S = (1, 30)
"""First and longest pause before another attempt to connect; it doubles in between."""
_FORM = "mqtt://user:password@host:1883/topic (mqtts:// for TLS)"


@dataclass(frozen=True)
class Broker:
    """Where to, from a URL."""

    host: str
    port: int
    topic: str
    user: str | None
    password: str | None = field(repr=False)
    tls: bool

    def __str__(self) -> str:
        """For people, without the password."""
        return f"{'mqtts' if self.tls else 'mqtt'}://{self.host}:{self.port}/{self.topic}"


class Mqtt:
    """Publishes answers as JSON to ``topic/answer`` and events to ``topic/event``.

    ``topic/status`` holds ``online``, and ``offline`` once the process has ended in whatever way.
    The library connects, and connects again, in a thread of its own. Messages are of quality 1:
    what waits for a broker that is away is delivered when it is back, some of it perhaps twice or
    out of order (``seq`` tells). At most :data:`WAITING` wait; answers beyond that are dropped and
    counted. ``note`` is told when the broker comes and goes. Raises
    :class:`~dvt_edge.errors.ConfigError` for a wrong URL, and without paho-mqtt.
    """

    def __init__(self, url: str, note: MakeNote) -> None:
        self.broker = parse_broker(url)
        need("--mqtt", "paho")
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self._note = note
        self._published = self._dropped = 0
        self._waiting = 0
        self._lock = threading.Lock()
        """Held while those counts change."""
        self._statuses: list[MQTTMessageInfo] = []
        """Of those that wait, the ones that are no answers and no events."""
        self._online: bool | None = None
        self._closing = False
        self._client = client = Client(CallbackAPIVersion.VERSION2)
        client.max_queued_messages_set(0)  # counted here
        client.reconnect_delay_set(*RECONNECT_S)
        if self.broker.user is not None:
            client.username_pw_set(self.broker.user, self.broker.password)
        if self.broker.tls:
            client.tls_set()
        client.will_set(self._topic("status"), "offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        client.connect_async(self.broker.host, self.broker.port)
        client.loop_start()

    def take(self, seen: Seen) -> None:
        self._publish("answer", answer_values(seen), WAITING)

    def event(self, event: Note) -> None:
        self._publish("event", event_values(event), WAITING + WAITING_EVENTS)

    def close(self) -> None:
        """Say goodbye to a broker that is there; what one that is not has missed, is dropped.

        A run may end before the broker has answered at all: it has :data:`LAST_WORDS_S` for that.
        """
        self._closing = True
        self._wait_while(lambda: self._online is None)
        if self._online:
            self._publish_status("offline")
            self._wait_while(lambda: self._waiting > 0)
        elif self._online is None:
            self._offline("has not answered")
        self._client.disconnect()
        # Not waited for: it may be connecting, which takes seconds.
        threading.Thread(target=self._client.loop_stop, name="dvt-edge mqtt", daemon=True).start()
        with self._lock:
            lost = self._waiting - sum(not status.is_published() for status in self._statuses)
            self._dropped += lost
            self._published -= lost

    def summary(self) -> dict[str, Any]:
        """What came of it; what waits counts as published until :meth:`close`."""
        return {
            "broker": str(self.broker),
            "published": self._published,
            "dropped": self._dropped,
        }

    @staticmethod
    def _wait_while(unfinished: Callable[[], bool]) -> None:
        until = time.monotonic() + LAST_WORDS_S
        while unfinished() and time.monotonic() < until:
            time.sleep(0.005)

    def _topic(self, name: str) -> str:
        return f"{self.broker.topic}/{name}"

    def _publish(self, name: str, values: dict[str, Any], most: int) -> None:
        with self._lock:
            if self._waiting >= most:
                self._dropped += 1
                return
            self._waiting += 1
            self._published += 1
        self._client.publish(self._topic(name), json.dumps(values, allow_nan=False), qos=1)

    def _publish_status(self, status: str) -> None:
        with self._lock:
            self._waiting += 1
        info = self._client.publish(self._topic("status"), status, qos=1, retain=True)
        self._statuses = [old for old in self._statuses if not old.is_published()] + [info]

    def _on_publish(self, *_: object) -> None:
        """The broker has taken one."""
        with self._lock:
            self._waiting -= 1

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _more: Any) -> None:
        if reason.is_failure:
            self._offline(f"refuses the connection ({reason})")
            return
        self._publish_status("online")
        if self._online is not True:
            self._online = True
            self._note("broker_online", f"{self.broker}: connected")

    def _on_connect_fail(self, *_: object) -> None:
        self._offline("cannot be reached")

    def _on_disconnect(
        self, _client: Any, _data: Any, _flags: Any, reason: Any, _more: Any
    ) -> None:
        if not self._closing:
            self._offline(f"the connection ended ({reason})")

    def _offline(self, why: str) -> None:
        with self._lock:
            known, self._online = self._online is False, False
        if not known:
            then = (
                "what waits is dropped"
                if self._closing
                else f"trying again, up to {WAITING} answers wait meanwhile"
            )
            self._note("broker_offline", f"{self.broker}: {why}; {then}")


def parse_broker(url: str) -> Broker:
    """Raises :class:`~dvt_edge.errors.ConfigError`, without the password."""
    try:
        parts = urlsplit(url)
        port = parts.port
        host = parts.hostname or ""
        host.encode("idna")
    except ValueError:  # a port that is no number, a host that cannot be one
        raise ConfigError(f"the broker's address is not a URL; expected {_FORM}") from None
    topic = unquote(parts.path).strip("/")
    problem = None
    if parts.scheme not in ("mqtt", "mqtts"):
        problem = f"found the scheme '{parts.scheme}'"
    elif not host:
        problem = "found no host"
    elif port == 0:
        problem = "found port 0"
    elif not topic:
        problem = "found no topic"
    elif set(topic) & set("+#\0") or len(topic.encode()) > 60_000:
        problem = "found a topic with +, # or NUL, or one that is too long"
    elif parts.query or parts.fragment:
        problem = "found more after the topic"
    if problem:
        raise ConfigError(f"the broker's address: {problem}; expected {_FORM}")
    user, password = parts.username, parts.password
    tls = parts.scheme == "mqtts"
    return Broker(
        host,
        port or (8883 if tls else 1883),
        topic,
        None if user is None else unquote(user),
        None if password is None else unquote(password),
        tls,
    )
