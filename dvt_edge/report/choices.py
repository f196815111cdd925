"""Every choice of thresholds that a report compares, replayed on the calibration records."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.costs import Costs
from dvt_edge.errors import DataError
from dvt_edge.policy import (
    Certificate,
    Records,
    frontier,
    replay,
)
from dvt_edge.policy.authors import AUTHORS_BUDGETS, authors_thresholds
from dvt_edge.policy.choose import finite_thresholds
from dvt_edge.policy.records import Floats
from dvt_edge.policy.solver import closed_before
from dvt_edge.report.data import CertificateFigures, CostKind, Point

MANY_RECORDS = 5_000
FEW_POINTS = 17
"""Of a frontier over so many records and more than three exits, where a point takes a second."""


@dataclass(frozen=True)
class Choices:
    """Makes points of thresholds: the records with what leaving at each exit costs."""

    records: Records
    latency_ms: Floats
    """[K]: mean, increasing."""
    energy_mj: Floats | None
    """[K]: mean; None where it was not measured."""

    def point(
        self,
        thresholds: npt.ArrayLike,
        class_of: npt.NDArray[np.integer] | None = None,
        shown: npt.NDArray[np.integer] | None = None,
    ) -> Point:
        """What ``thresholds`` [K] give; with exits by class where ``class_of`` [N] says the class
        of each record and ``shown`` [C] which classes to count."""
        found = replay(self.records, self.latency_ms, thresholds)
        energy = None if self.energy_mj is None else float(found.exit_fraction @ self.energy_mj)
        counts: tuple[tuple[int, ...], ...] = ()
        if class_of is not None and shown is not None:
            at = self.records.exits_taken(found.thresholds)
            table = np.zeros((class_of.max() + 1, self.records.exits), np.int64)
            np.add.at(table, (class_of, at), 1)
            counts = tuple(tuple(row) for row in table[shown].tolist())
        return Point(
            thresholds=finite_thresholds(found.thresholds),
            exit_fraction=tuple(found.exit_fraction.tolist()),
            accuracy=found.accuracy,
            latency_ms=found.cost,
            energy_mj=energy,
            class_exits=counts,
        )

    def frontiers(self) -> dict[CostKind, list[Floats]]:
        """Thresholds [K] of the best solutions for each mean cost, cheapest first.

        Energy is left out where noise makes a later exit look cheaper than an earlier one: then
        there is no order to budget by.
        """
        curves: dict[CostKind, list[Floats]] = {}
        prices: tuple[tuple[CostKind, Floats | None], ...] = (
            ("latency", self.latency_ms),
            ("energy", self.energy_mj),
        )
        for kind, price in prices:
            if price is None or (np.diff(price) <= 0).any() or price[0] <= 0:
                continue
            slow = self.records.exits > 3 and len(self.records) > MANY_RECORDS
            points = FEW_POINTS if slow else None
            curves[kind] = [s.thresholds for s in frontier(self.records, price, points)]
        return curves

    def single_exits(self) -> list[Floats]:
        """[K] thresholds with which all frames leave at one exit, for each exit."""
        exits = self.records.exits
        return [closed_before(exits, k) for k in range(exits)]

    def authors(self) -> list[Floats]:
        """Thresholds of the authors' rule, without repetitions."""
        found = [authors_thresholds(self.records, p) for p in AUTHORS_BUDGETS]
        return list({tuple(thresholds): thresholds for thresholds in found}.values())


def certificate_figures(certificate: Certificate | None, reason: str) -> CertificateFigures:
    """``certificate`` as data; ``reason`` says why there is none."""
    if certificate is None:
        return CertificateFigures(unavailable=reason)
    return CertificateFigures(
        n=certificate.n,
        delta=certificate.delta,
        cost_bound_ms=certificate.cost_bound,
        accuracy_gap_bound=certificate.accuracy_gap_bound,
        accuracy_bound=certificate.accuracy_bound,
        method=certificate.method,
    )


def checked_energy(costs: Costs, measured: tuple[float, ...] | None) -> Floats | None:
    """[K] energy per exit that budgets are solved with, else the measured gross energy.

    Raises :class:`~dvt_edge.errors.DataError` unless there is one figure per exit.
    """
    energy = costs.energy_mj or measured
    if energy is None:
        return None
    if len(energy) != len(costs.exits):
        raise DataError(
            f"energy was measured for {len(energy)} exits, latency for {len(costs.exits)}; "
            "measure again with 'dvt-edge profile'"
        )
    return np.asarray(energy, float)
