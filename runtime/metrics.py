"""What a running Runtime does, as Prometheus metrics.

    with dvt_edge.Runtime("demo-cpu.yaml") as runtime, MetricsExporter(runtime) as metrics:
        metrics.serve(9100)  # http://localhost:9100/metrics
        for frame in camera:
            runtime.classify(frame)

| metric | labels | |
| --- | --- | --- |
| `dvt_edge_frames_total` | | answered |
| `dvt_edge_exits_total` | `stage` | answered by each exit |
| `dvt_edge_latency_seconds` | | histogram of ``Prediction.latency_ms`` |
| `dvt_edge_energy_joules_total` | | sum of the estimates ``Prediction.energy_mj`` |
| `dvt_edge_truncated_total` | | cut short by a deadline |
| `dvt_edge_late_total` | | answered after the budget's ``deadline_ms`` |
| `dvt_edge_dropped_total` | | never classified: counted by :meth:`MetricsExporter.dropped` |
| `dvt_edge_events_total` | `kind` | thresholds changed, audits failed, logits not finite |
| `dvt_edge_threshold` | `stage` | in force |
| `dvt_edge_budget` | `limit` | the budget's limits, by their keys |
| `dvt_edge_temperature_celsius` | `zone` | read when Prometheus asks |

Needs the extra ``metrics``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from typing_extensions import Self

from dvt_edge.errors import ConfigError
from dvt_edge.machine.conditions import read_conditions
from dvt_edge.requirements import need
from dvt_edge.runtime.events import Event, kind_of
from dvt_edge.runtime.prediction import Prediction
from dvt_edge.runtime.runtime import Runtime

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry, Counter, Metric

LATENCY_BUCKETS_S = tuple(
    round(step * 10.0**power, 6) for power in range(-4, 1) for step in (1, 2, 5)
)
"""0.1 ms to 5 s."""
_LIMITS = (
    "latency_ms",
    "fps",
    "duty_cycle",
    "energy_mj",
    "min_accuracy",
    "max_stage",
    "deadline_ms",
)


class MetricsExporter:
    """Counts what ``runtime`` answers and reports, from now until :meth:`close`.

    ``registry`` is where the metrics are entered: a new one, unless one is given, so that several
    Runtimes in a process do not meet. ``root`` is where temperatures are read. Raises
    :class:`~dvt_edge.errors.ConfigError` without the extra ``metrics``.
    """

    def __init__(
        self,
        runtime: Runtime,
        registry: CollectorRegistry | None = None,
        *,
        root: str | Path = "/",
    ) -> None:
        need("the MetricsExporter", "prometheus_client")
        import prometheus_client as library

        self.registry: CollectorRegistry = registry or library.CollectorRegistry()
        self._runtime, self._root = runtime, Path(root)
        self._servers: list[tuple[Any, threading.Thread]] = []

        def counter(name: str, text: str, labels: Iterable[str] = ()) -> Counter:
            return library.Counter(f"dvt_edge_{name}", text, labels, registry=self.registry)

        self._frames = counter("frames", "Frames answered")
        exits = counter("exits", "Frames answered by each exit", ["stage"])
        self._exits = [exits.labels(k + 1) for k in range(len(runtime.costs.exits))]
        self._latency = library.Histogram(
            "dvt_edge_latency_seconds",
            "From the start of the work on a frame to its answer",
            buckets=LATENCY_BUCKETS_S,
            registry=self.registry,
        )
        self._energy = counter("energy_joules", "Estimated from the measured table, not read")
        self._truncated = counter("truncated", "Frames cut short by a deadline")
        self._late = counter("late", "Frames answered after the budget's deadline_ms")
        self._dropped = counter("dropped", "Frames that were never classified")
        events = counter("events", "What the Runtime reported", ["kind"])
        self._events = {kind: events.labels(kind_of(kind)) for kind in get_args(Event)}
        self.registry.register(self)
        for event in runtime.events:
            self._count_event(event)
        self._stop_watching = runtime.watch(
            on_answer=self._count_answer, on_event=self._count_event
        )

    def _count_answer(self, prediction: Prediction) -> None:
        self._frames.inc()
        self._exits[prediction.exit_stage - 1].inc()
        self._latency.observe(prediction.latency_ms / 1e3)
        if prediction.energy_mj is not None:
            self._energy.inc(prediction.energy_mj / 1e3)
        if prediction.truncated:
            self._truncated.inc()
        deadline_ms = self._runtime.budget.deadline_ms
        if deadline_ms is not None and prediction.latency_ms > deadline_ms:
            self._late.inc()

    def _count_event(self, event: Event) -> None:
        self._events[type(event)].inc()

    def collect(self) -> list[Metric]:
        """What is looked up when Prometheus asks, so that frames need not wait for it."""
        from prometheus_client.core import GaugeMetricFamily

        thresholds = GaugeMetricFamily("dvt_edge_threshold", "In force", labels=["stage"])
        for k, value in enumerate(self._runtime.thresholds):
            thresholds.add_metric([str(k + 1)], value)
        text = "Limits of the budget in force"
        budget = GaugeMetricFamily("dvt_edge_budget", text, labels=["limit"])
        for name in _LIMITS:
            limit = getattr(self._runtime.budget, name)
            if limit is not None:
                budget.add_metric([name], limit)
        text = "Of a thermal zone"
        heat = GaugeMetricFamily("dvt_edge_temperature_celsius", text, labels=["zone"])
        for zone, degrees in read_conditions(self._root).temperatures_c.items():
            heat.add_metric([zone], degrees)
        return [thresholds, budget, heat]

    def dropped(self, frames: int = 1) -> None:
        """Count frames that a camera loop threw away: the Runtime never sees them."""
        self._dropped.inc(frames)

    def serve(self, port: int, address: str = "127.0.0.1") -> int:
        """Answer HTTP on ``address`` from a thread of its own, until :meth:`close`.

        Only this machine reaches the default address; ``0.0.0.0`` lets others in. Port 0 takes any
        free one; returns the port. Raises :class:`~dvt_edge.errors.ConfigError` for a port that
        cannot be had.
        """
        from prometheus_client import start_http_server

        try:
            server, thread = start_http_server(port, address, self.registry)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"metrics cannot be served on {address}:{port} ({error}); choose another port"
            ) from None
        self._servers.append((server, thread))
        return int(server.server_port)

    def close(self) -> None:
        """Stop counting and serving; closing twice does nothing. The counts stay readable."""
        self._stop_watching()
        while self._servers:
            server, thread = self._servers.pop()
            server.shutdown()
            server.server_close()
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
