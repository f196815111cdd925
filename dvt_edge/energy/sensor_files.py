"""Files of sysfs: small integers that the kernel works out anew at every read."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from dvt_edge.errors import EnergyError


class SensorFile:
    """One open sensor file; reading it again costs no path lookup.

    Raises :class:`OSError` when it cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> int:
        """The value now; raises OSError, or EnergyError where it is not an integer."""
        text = os.pread(self._descriptor, 64, 0)
        try:
            return int(text)
        except ValueError:
            found = text.decode(errors="replace").strip()
            raise EnergyError(
                f"{self.path}: expected an integer, found '{found}'; the driver is not one that "
                "dvt-edge knows"
            ) from None

    def close(self) -> None:
        os.close(self._descriptor)


def read_once(path: Path) -> int:
    """The value of a file that is read only now; raises as :class:`SensorFile` does."""
    file = SensorFile(path)
    try:
        return file.read()
    finally:
        file.close()


def read_text(path: Path) -> str | None:
    """Content without surrounding space; None where the file cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return None


def denied(error: OSError) -> bool:
    """Whether rights are all that is missing."""
    return error.errno in (errno.EACCES, errno.EPERM)


def explain(path: Path, error: OSError) -> str:
    """Why ``path`` cannot be read and how to mend that."""
    if denied(error):
        return (
            f"no permission to read {path}; allow it until the next start with: "
            f"sudo chmod o+r {path}"
        )
    return f"{path} cannot be read ({error.strerror or error})"


def open_file(path: Path, opened: ExitStack) -> SensorFile:
    """A sensor that answered before, closed with ``opened``; raises EnergyError."""
    try:
        file = SensorFile(path)
    except OSError as error:
        raise _vanished(path, error) from None
    opened.callback(file.close)
    return file


def read_file(file: SensorFile) -> int:
    """The value now of a sensor that answered before; raises EnergyError."""
    try:
        return file.read()
    except OSError as error:
        raise _vanished(file.path, error) from None


def _vanished(path: Path, error: OSError) -> EnergyError:
    return EnergyError(
        f"the sensor vanished while measuring: {explain(path, error)}; measure again, and if it "
        "happens again look for its driver in the kernel's log (sudo dmesg)"
    )


def i2c_folder(root: Path) -> Path:
    """Where the kernel lists I2C devices."""
    return root / "sys/bus/i2c/devices"


def i2c_devices(root: Path, chip: str) -> Iterator[Path]:
    """Folders of the I2C devices whose name contains ``chip``, by address."""
    for name in sorted(i2c_folder(root).glob("*/name")):
        if chip in (read_text(name) or ""):
            yield name.parent
