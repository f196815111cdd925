"""What the decoder's process is told, once, before it opens a source."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dvt_edge.camera.address import Address

Transport = Literal["tcp", "udp"]


@dataclass(frozen=True)
class Plan:
    """Goes through a pipe, not through the command line, which everyone on the machine can read."""

    address: Address
    every_frame: bool
    stall_s: float
    open_s: float
    transport: Transport
    base: int
    """Pictures received before, by other processes for the same source."""
    tally: int
    """Descriptor of the counters."""
    slots: tuple[int, ...]
    """Descriptors."""
    parent: int
    """Process to end with."""

    @property
    def is_paced(self) -> bool:
        """Whether pictures of a file come when they are due, as those of a camera do."""
        return not self.every_frame

    @property
    def keep_all(self) -> bool:
        """Whether no picture may be left out."""
        address = self.address
        return self.every_frame or (address.kind == "images" and address.fps is None)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str | bytes) -> Plan:
        values: dict[str, Any] = json.loads(text)
        address = values.pop("address")
        size = address.pop("size")
        slots = tuple(values.pop("slots"))
        return cls(Address(**address, size=size and tuple(size)), slots=slots, **values)
