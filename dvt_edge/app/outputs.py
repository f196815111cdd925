"""The outputs of a run: sinks that know in the end what came of them."""

from __future__ import annotations

from typing import Any, Protocol

from typing_extensions import Self

from dvt_edge.app.background import Background
from dvt_edge.app.sinks import Sink, Sinks

HURRY_S = 0.4
"""How long slow outputs may go on once a person waits for the end."""


class Output(Sink, Protocol):
    """A sink that knows what came of it."""

    def summary(self) -> dict[str, Any]:
        """For people and programs, once closed."""


class Outputs:
    """Closes its outputs at the end of the block, and says whether anything was lost."""

    def __init__(self, *, every_frame: bool) -> None:
        self.sinks = Sinks()
        self._every_frame = every_frame
        self._outputs: dict[str, Output] = {}

    def add(self, name: str, output: Output, source: str | None = None) -> None:
        """One that is quick, or has a thread of its own; with a ``source`` it gets that camera's
        answers only."""
        self._outputs[name] = output
        self.sinks.add(name, output, source)

    def add_slow(self, name: str, output: Output, source: str | None = None) -> None:
        """One that the camera's loop should not wait for, unless no frame may be left out."""
        slow = Background(name, output, self.sinks.note, every_frame=self._every_frame)
        self.add(name, slow, source)

    def hurry(self) -> None:
        """Close within a second, even if frames are left that wait."""
        for output in self._outputs.values():
            if isinstance(output, Background):
                output.patience_s = HURRY_S

    @property
    def reader_gone(self) -> bool:
        """Whether nobody reads standard output any more."""
        return any(getattr(output, "reader_gone", False) for output in self._outputs.values())

    def summary(self) -> dict[str, dict[str, Any]]:
        """Of each output; ``failures`` counts what it raised."""
        found = {}
        for name, output in self._outputs.items():
            values = output.summary()
            values["failures"] = values.get("failures", 0) + self.sinks.failures[name]
            found[name] = values
        return found

    @property
    def complete(self) -> bool:
        """Whether every output holds all that it should."""
        return not any(
            values["failures"] or values.get("lost", 0) for values in self.summary().values()
        )

    def close(self) -> None:
        """Twice does nothing."""
        self.sinks.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
