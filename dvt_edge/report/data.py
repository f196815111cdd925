"""What a report shows, as plain data: all figures are final, the page only arranges them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dvt_edge.bundle.manifest import Manifest
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.files.documents import Document
from dvt_edge.policy import Certificate

CostKind = Literal["latency", "energy"]


class Point(Document):
    """One choice of thresholds, and what it gives on the calibration records."""

    thresholds: tuple[float | None, ...]
    """[K]: leave at exit k from this confidence on, 0..1; 0 where all leave, None where none
    does, as JSON has no infinity."""
    exit_fraction: tuple[float, ...]
    """[K]: share of the records that leave at each exit."""
    accuracy: float
    """0..1; agreement with the last exit where labels are missing."""
    latency_ms: float
    """Mean per frame."""
    energy_mj: float | None = None
    """Mean per frame; None where it was not measured."""
    class_exits: tuple[tuple[int, ...], ...] = ()
    """[C, K]: records of each of :attr:`ReportData.classes` that leave at each exit; empty where
    the page has no use for it."""


class OperatingPoint(Document):
    """What the profile's budget comes to."""

    budget: str
    """The limits, for people."""
    start: dict[CostKind, float] = Field(default_factory=dict)
    """The budget as a mean cost, where it is one; else what the point costs."""
    point: Point | None = None
    unavailable: str | None = None
    """Why there are no thresholds for this budget; None where there are."""


class ClassRow(Document):
    """One class among those that the page shows."""

    name: str
    images: int
    """Records of it."""


class Thumbnail(Document):
    """One small image."""

    uri: str
    """``data:image/...``."""
    exit_stage: int
    """Where it leaves at the operating point, from 1."""
    confidence: float
    """Of that exit, 0..1."""
    answer: str
    """Class that this exit names."""
    right: bool | None
    """None where the label is unknown."""


class ClassImages(Document):
    """What is easy and what is hard about one class."""

    name: str
    easiest: tuple[Thumbnail, ...]
    hardest: tuple[Thumbnail, ...]


class ReportData(Document):
    """All of a report."""

    title: str
    """The device that the profile names."""
    bundle: str
    """Name of the bundle's folder."""
    labelled: bool
    """Whether the records have labels."""
    records: int
    exits: int
    energy_unavailable: str | None
    """Why points have no energy; None where they have one."""
    operating: OperatingPoint
    frontiers: dict[CostKind, tuple[Point, ...]]
    """The best thresholds for each mean cost, cheapest first; ``latency`` is always there."""
    single_exits: tuple[Point, ...]
    """[K]: all frames leave at one exit. The last one is all frames through all stages."""
    authors: tuple[Point, ...]
    """The rule of the DVT authors' release, cheapest parameter first."""
    recorded: tuple[Point, ...] = ()
    """Thresholds that came with an imported checkpoint."""
    certificate: Certificate | None
    """Of the operating point, where the budget asks for one."""
    classes: tuple[ClassRow, ...]
    """[C]: easiest first."""
    classes_in_all: int
    """Classes with records, of which :attr:`classes` are the extremes where they are many."""
    gallery: tuple[ClassImages, ...]
    gallery_unavailable: str | None
    """Why there are no images; None where there are."""
    manifest: Manifest
    measurement: Measurement
