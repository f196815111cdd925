"""Every error that dvt-edge raises on purpose.

    DvtEdgeError
    ├── ConfigError        a YAML document or a configuration is not usable
    │   └── BudgetError    no thresholds can meet the budget
    ├── DataError          images, labels or datasets are not usable
    │   └── FrameError     one frame is of the wrong type, shape or layout
    ├── CheckpointError    weights are missing, damaged or do not fit
    ├── BuildError         a stage could not be exported, quantized or built
    ├── BundleError        a bundle is missing, damaged or of another version
    ├── BackendError       an execution backend is missing or failed
    ├── EnergyError        energy cannot be measured or separated by exit
    ├── SourceError        a camera, stream or file gives no frames
    └── ClosedError        the Runtime was used after close()

Each message says what was found, what was expected and how to fix it. The command line prints
the message in one line and exits with 1 (2 for a wrong command line).
"""

from __future__ import annotations


class DvtEdgeError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(DvtEdgeError):
    """A YAML document or a configuration is not usable."""


class BudgetError(ConfigError):
    """No thresholds can meet the budget; the message names the smallest feasible one."""


class DataError(DvtEdgeError):
    """Images, labels or datasets are not usable."""


class FrameError(DataError, ValueError):
    """One frame is of the wrong type, shape or layout."""


class CheckpointError(DvtEdgeError):
    """Weights are missing, damaged or do not fit the model."""


class BuildError(DvtEdgeError):
    """A stage could not be exported, quantized or built."""


class BundleError(DvtEdgeError):
    """A bundle is missing, damaged or of another schema version."""


class BackendError(DvtEdgeError):
    """An execution backend is missing or failed."""


class EnergyError(DvtEdgeError):
    """Energy cannot be measured, or cannot be separated by exit."""


class SourceError(DvtEdgeError):
    """A camera, stream or file gives no frames."""

    def __init__(self, message: str, cause: str | None = None) -> None:
        super().__init__(message)
        self.cause = cause
        """A :class:`~dvt_edge.camera.Cause`; None where a library is missing."""


class ClosedError(DvtEdgeError):
    """The Runtime was used after close()."""
