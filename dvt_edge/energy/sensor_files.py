"""Files of sysfs: small integers that the kernel computes at every read."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dvt_edge.errors import EnergyError
from dvt_edge.machine.board import read_text

I2C = "sys/bus/i2c/devices"
"""Where the kernel lists I2C devices, below the root."""


class UnreadableError(EnergyError):
    """A sensor's file cannot be read."""


class DeniedError(UnreadableError):
    """Rights are all that is missing to read ``files``; names the command that grants them."""

    def __init__(self, *files: Path) -> None:
        names = " ".join(map(str, files))
        super().__init__(
            f"no permission to read {names}; allow it until the next start with: "
            f"sudo chmod o+r {names}"
        )


def read_sensor(path: Path) -> int:
    """The value now.

    Raises :class:`UnreadableError`, and plain EnergyError where the file holds no integer.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            text = os.pread(descriptor, 64, 0)
        finally:
            os.close(descriptor)
    except PermissionError:
        raise DeniedError(path) from None
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read ({error.strerror or error})") from None
    try:
        return int(text)
    except ValueError:
        found = text.decode(errors="replace").strip()
        raise EnergyError(
            f"{path}: expected an integer, found '{found}'; the driver is not one that dvt-edge "
            "knows"
        ) from None


@dataclass(frozen=True)
class Rail:
    """A supply whose power is the product of what its files hold."""

    name: str
    files: tuple[Path, ...]
    """Voltage and current, or the power alone."""
    mw_per_unit: float
    """Milliwatts per unit of the product: 1e-3 for mV and mA, and for a power in uW."""

    def read_mw(self) -> float:
        """The power now; raises EnergyError as :func:`read_sensor` does."""
        return self.mw_per_unit * math.prod(map(read_sensor, self.files))


def i2c_devices(root: Path, chip: str) -> Iterator[Path]:
    """Folders of the I2C devices whose name contains ``chip``, by address."""
    for name in sorted((root / I2C).glob("*/name")):
        if chip in (read_text(name) or ""):
            yield name.parent
