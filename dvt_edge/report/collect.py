"""From a bundle and a measurement to what the report shows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.errors import BudgetError, BundleError, DataError
from dvt_edge.files.datasets import open_images, spread_rows
from dvt_edge.policy import Records, choose_thresholds, frontier, replay
from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.policy.records import Floats
from dvt_edge.policy.solver import closed_before
from dvt_edge.profile import BudgetConfig, Profile
from dvt_edge.report.classes import gallery, order_classes
from dvt_edge.report.data import (
    ClassImages,
    ClassRow,
    CostKind,
    OperatingPoint,
    Point,
    ReportData,
)

MANY_RECORDS = 5_000
FEW_POINTS = 17
"""Of a frontier over so many records and more than three exits, where a point takes a second."""


@dataclass(frozen=True)
class Choices:
    """Replays thresholds on the calibration records, with what leaving at each exit costs."""

    records: Records
    latency_ms: Floats
    """[K]: mean, increasing."""
    energy_mj: Floats | None
    """[K]: mean; None where it was not measured."""

    def point(self, thresholds: npt.ArrayLike, classes: Iterable[int] = ()) -> Point:
        """What ``thresholds`` [K] give; exits are counted for each of ``classes`` [C]."""
        found = replay(self.records, self.latency_ms, thresholds)
        at, truth = self.records.exits_taken(found.thresholds), self.records.truth
        counts = (np.bincount(at[truth == c], minlength=self.records.exits) for c in classes)
        return Point(
            thresholds=finite_thresholds(found.thresholds),
            exit_fraction=tuple(found.exit_fraction.tolist()),
            accuracy=found.accuracy,
            latency_ms=found.cost,
            energy_mj=None if self.energy_mj is None else found.exit_fraction @ self.energy_mj,
            class_exits=tuple(tuple(row.tolist()) for row in counts),
        )

    def frontiers(self) -> dict[CostKind, list[Floats]]:
        """Thresholds [K] of the best solutions for each mean cost, cheapest first.

        Energy is left out where noise makes a later exit look cheaper than an earlier one: then
        there is no order to budget by.
        """
        slow = self.records.exits > 3 and len(self.records) > MANY_RECORDS
        points = FEW_POINTS if slow else None
        prices: dict[CostKind, Floats | None] = {
            "latency": self.latency_ms,
            "energy": self.energy_mj,
        }
        return {
            kind: [solution.thresholds for solution in frontier(self.records, price, points)]
            for kind, price in prices.items()
            if price is not None and price[0] > 0 and (np.diff(price) > 0).all()
        }


def collect(bundle: Bundle, profile: Profile, costs: Costs, measurement: Measurement) -> ReportData:
    """All that the report on ``bundle`` shows, with the budget of ``profile``.

    ``costs`` choose the thresholds, ``measurement`` gives the rest; both were measured on this
    bundle's stages. The calibration images are looked for where ``profile`` says; if they are
    missing, as on the board, the report says so and shows none. Nothing is run. A budget that this
    machine cannot keep is reported, not raised.

    Raises :class:`~dvt_edge.errors.BundleError` for costs or a measurement of other stages, and
    :class:`~dvt_edge.errors.DataError` for energy figures that do not fit them.
    """
    manifest, records, budget = bundle.manifest, bundle.records(), profile.budget
    timings = (costs, measurement.back_to_back, measurement.paced)
    if {costs.content_hash, measurement.content_hash} != {manifest.content_hash} or any(
        len(timing.exits) != len(manifest.stages) for timing in timings if timing
    ):
        raise BundleError(
            f"{bundle.folder}: the figures were measured on other stages than these; measure again "
            "with 'dvt-edge profile'"
        )
    # The energy that budgets are solved with, else the measured gross energy.
    energy = costs.energy_mj or measurement.energy.gross_mj
    if energy is not None and len(energy) != len(costs.exits):
        raise DataError(
            f"energy was measured for {len(energy)} exits, latency for {len(costs.exits)}; "
            "measure again with 'dvt-edge profile'"
        )
    no_energy = measurement.energy.unavailable or "it was not measured per exit"
    choices = Choices(
        records, np.asarray(costs.mean_ms), None if energy is None else np.asarray(energy, float)
    )
    curves = choices.frontiers()
    chosen, unavailable = None, None
    try:
        chosen = choose_thresholds(
            records, costs, budget, manifest.recorded_thresholds, bundle.unlabelled_records()
        )
    except BudgetError as error:
        unavailable = str(error)
    # Without thresholds for the budget, easy and hard is what the most accurate ones make of it.
    at = records.exits_taken(chosen.thresholds if chosen else curves["latency"][-1])
    shown = order_classes(records.truth, at)
    point = choices.point(chosen.thresholds, shown) if chosen else None
    pictures: tuple[ClassImages, ...] = ()
    no_pictures = None
    try:
        images = open_images(profile.calibration.data, manifest.class_names)
        rows = spread_rows(len(images), profile.calibration.samples)
        pictures = gallery(images, rows, records, at, shown, manifest.class_names)
    except DataError as error:  # a report without pictures is still a report
        no_pictures = str(error)
    exits = range(records.exits)
    authors = dict.fromkeys(tuple(authors_thresholds(records, p)) for p in AUTHORS_BUDGETS)
    recorded = [[float(t) for t in row] for row in manifest.recorded_thresholds or ()]
    return ReportData(
        title=profile.device.name,
        bundle=bundle.folder.name,
        labelled=records.label is not None,
        records=len(records),
        exits=records.exits,
        energy_unavailable=no_energy if energy is None else None,
        operating=OperatingPoint(
            budget=str(budget), start=_start(budget, point), point=point, unavailable=unavailable
        ),
        frontiers={
            kind: tuple(choices.point(thresholds, shown) for thresholds in curve)
            for kind, curve in curves.items()
        },
        single_exits=tuple(choices.point(closed_before(records.exits, k)) for k in exits),
        authors=tuple(choices.point(thresholds) for thresholds in authors),
        recorded=tuple(choices.point(thresholds) for thresholds in recorded),
        certificate=chosen.certificate if chosen else None,
        classes=tuple(
            ClassRow(name=manifest.class_names[number], images=int((records.truth == number).sum()))
            for number in shown
        ),
        classes_in_all=len(np.unique(records.truth)),
        gallery=pictures,
        gallery_unavailable=no_pictures,
        manifest=manifest,
        measurement=measurement,
    )


def _start(budget: BudgetConfig, point: Point | None) -> dict[CostKind, float]:
    """Where the slider starts for each kind of cost."""
    latency, energy = budget.latency_ms, budget.energy_mj
    if point is not None:
        if latency is None or budget.statistic != "mean":
            latency = point.latency_ms
        energy = point.energy_mj if energy is None else energy
    costs: dict[CostKind, float | None] = {"latency": latency, "energy": energy}
    return {kind: cost for kind, cost in costs.items() if cost is not None}
