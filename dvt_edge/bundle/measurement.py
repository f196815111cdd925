"""What ``dvt-edge profile`` measured: plain data that is stored, compared and reported."""

from __future__ import annotations

from pydantic import Field

from dvt_edge.files.documents import Document
from dvt_edge.machine.conditions import Conditions
from dvt_edge.policy.statistic import Statistic


class Spread(Document):
    """Times of one thing, in milliseconds: the statistics that a budget can be about."""

    mean_ms: float = Field(ge=0)
    p50_ms: float = Field(ge=0)
    p95_ms: float = Field(ge=0)
    p99_ms: float = Field(ge=0)
    max_ms: float = Field(ge=0)

    def statistic(self, name: Statistic) -> float:
        """One of them, by the name that budgets use."""
        return float(getattr(self, f"{name}_ms"))


class Bounds(Document):
    """Upper confidence bounds, each wrong with probability
    :data:`~dvt_edge.policy.statistic.BOUND_ERROR` at most; None where there were too few runs."""

    mean_ms: float
    p50_ms: float | None
    p95_ms: float | None
    p99_ms: float | None
    independent_runs: int = Field(ge=1)
    """Runs that would tell as much if they did not resemble each other."""


class Distribution(Spread):
    """The same with the number of runs and, where they were kept, bounds and a histogram."""

    runs: int = Field(ge=1)
    at_most: Bounds | None = None
    """None where there were too few runs for any, and where none were asked for."""
    edges_ms: tuple[float, ...] = ()
    """[B + 1]: edges of a histogram; empty where none was kept."""
    counts: tuple[int, ...] = ()
    """[B]."""


class ExitTiming(Document):
    """``classify`` of frames that leave at one exit, at batch 1."""

    latency: Distribution
    """The whole call."""
    preprocess: Distribution
    stages: tuple[Distribution, ...]
    """Every stage that ran."""
    decision: Distribution
    """What is left: thresholds, bookkeeping, the call itself."""
    transfer: Distribution | None = None
    """Part of ``stages``: what they took beyond the device's own work, that is copies to and from
    it, launches and waiting; None where the stages run on the CPU."""


class PacedTiming(Document):
    """All exits at one pace."""

    fps: float | None
    """Frames per second that the camera would give; None for back to back."""
    exits: tuple[ExitTiming, ...]
    missed: int = 0
    """Frames that were not finished before the next was due."""


class EnergyFigures(Document):
    """Energy of leaving at each exit, in millijoules per frame."""

    unavailable: str | None = None
    """Why there are no figures; None where there are."""
    source: str = ""
    """Sensor and rails, or ``declared``."""
    declared: bool = False
    idle_mw: float | None = None
    gross_mj: tuple[float, ...] | None = None
    """[K]: with the power that the machine draws anyway."""
    net_mj: tuple[float, ...] | None = None
    """[K]: above idle."""
    gross_error_mj: tuple[float, ...] | None = None
    """[K]: standard errors."""
    net_error_mj: tuple[float, ...] | None = None
    seconds: float | None = None
    """That the sensors were read for."""


class DataFigures(Document):
    """The budget's thresholds on a folder of images."""

    folder: str
    images: int
    """That were judged."""
    unreadable: int = 0
    """Images besides that could not be decoded."""
    labelled: bool
    exit_fraction: tuple[float, ...]
    """[K]: share of the images that left at each exit."""
    accuracy: float | None
    """Of the answers given, 0..1; None without labels."""
    exit_accuracy: tuple[float, ...] | None
    """[K]: of each exit on all images."""
    class_exit_fraction: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    """Class name -> share of its images that left at each exit."""


class Measurement(Document):
    """One run of ``dvt-edge profile``, on one machine, of one bundle."""

    machine: str
    content_hash: str
    """The bundle's :attr:`~dvt_edge.bundle.manifest.Manifest.content_hash`."""
    measured_at: str
    """UTC, ISO 8601."""
    seconds: float
    """Spent measuring, without the warm-up."""
    frame_shape: tuple[int, int]
    """Height and width of the frames that were timed, in pixels."""
    warm_up_runs: int
    """Until the latency had settled."""
    settled: bool
    """Whether it did; False if the warm-up reached its limit first."""
    bytes_resident: int
    """Images, reuse tensors and answers that the backend holds, without weights."""
    process_bytes: int | None = None
    """Memory of the whole process that is in use, libraries and weights included; None where the
    system does not report it."""
    back_to_back: PacedTiming
    paced: PacedTiming | None
    energy: EnergyFigures
    data: DataFigures | None = None
    before: Conditions
    after: Conditions
    warnings: tuple[str, ...] = ()
    """What moved between ``before`` and ``after``, and what else to know of the figures."""
