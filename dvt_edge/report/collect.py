"""From a bundle and a measurement to what the report shows."""

from __future__ import annotations

import numpy as np

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs
from dvt_edge.bundle.measurement import Measurement
from dvt_edge.errors import BudgetError, BundleError, DataError
from dvt_edge.files.datasets import ImageDataset, open_images, spread_rows
from dvt_edge.policy import Records
from dvt_edge.policy.choose import choose_thresholds
from dvt_edge.policy.records import Floats
from dvt_edge.profile import BudgetConfig, Profile
from dvt_edge.report.choices import (
    Choices,
    certificate_figures,
    checked_energy,
)
from dvt_edge.report.classes import Rows, gallery, order_classes
from dvt_edge.report.data import (
    CertificateFigures,
    ClassImages,
    ClassRow,
    CostKind,
    OperatingPoint,
    ReportData,
    StageFacts,
)


def collect(
    bundle: Bundle,
    profile: Profile,
    costs: Costs,
    measurement: Measurement,
    images: ImageDataset | None = None,
) -> ReportData:
    """All that the report on ``bundle`` shows, with the budget of ``profile``.

    ``costs`` choose the thresholds, ``measurement`` tells the rest; both were measured on this
    bundle's stages. ``images`` are the calibration images; where None, they are looked for where
    ``profile`` says, and where they are not (as on the board) the report says so and shows none.
    Nothing is run. A budget that this machine cannot keep is reported, not raised.

    Raises :class:`~dvt_edge.errors.BundleError` for costs or a measurement of other stages, and
    :class:`~dvt_edge.errors.DataError` for energy figures that do not fit them.
    """
    manifest, records = bundle.manifest, bundle.records()
    _check_measured_here(bundle, costs, measurement)
    energy = checked_energy(costs, measurement.energy.gross_mj)
    choices = Choices(records, np.asarray(costs.mean_ms), energy)
    curves = choices.frontiers()
    operating, certificate, chosen = _operating(choices, costs, bundle, profile.budget)
    # Without thresholds for the budget, easy and hard is what the most accurate ones make of it.
    at = records.exits_taken(curves["latency"][-1] if chosen is None else chosen)
    class_of = records.truth
    shown = order_classes(class_of, at)
    pictures, no_pictures = _gallery(bundle, profile, images, records, at, shown)
    if operating.point is not None and chosen is not None:
        point = choices.point(chosen, class_of, shown)
        operating = operating.model_copy(update={"point": point})
    table = manifest.recorded_thresholds or ()
    return ReportData(
        title=profile.device.name,
        bundle=bundle.folder.name,
        labelled=records.label is not None,
        records=len(records),
        exits=records.exits,
        energy_unavailable=None if energy is not None else _no_energy(measurement),
        operating=operating,
        frontiers={
            kind: tuple(choices.point(thresholds, class_of, shown) for thresholds in curve)
            for kind, curve in curves.items()
        },
        single_exits=tuple(choices.point(t) for t in choices.single_exits()),
        authors=tuple(choices.point(t) for t in choices.authors()),
        recorded=tuple(choices.point([float(t) for t in row]) for row in table),
        certificate=certificate,
        classes=tuple(
            ClassRow(name=manifest.class_names[number], images=int((class_of == number).sum()))
            for number in shown
        ),
        classes_in_all=len(np.unique(class_of)),
        gallery=pictures,
        gallery_unavailable=no_pictures,
        backend=manifest.engine.backend,
        stages=tuple(
            StageFacts(precision=stage.precision, parameters=stage.parameters, macs=stage.macs)
            for stage in manifest.stages
        ),
        versions=dict(manifest.versions),
        measurement=measurement,
    )


def _check_measured_here(bundle: Bundle, costs: Costs, measurement: Measurement) -> None:
    stages, expected = len(bundle.manifest.stages), bundle.manifest.content_hash
    timings = [measurement.back_to_back, *([measurement.paced] if measurement.paced else [])]
    if (
        costs.content_hash != expected
        or measurement.content_hash != expected
        or len(costs.exits) != stages
        or any(len(timing.exits) != stages for timing in timings)
    ):
        raise BundleError(
            f"{bundle.folder}: the figures were measured on other stages than these; measure again "
            "with 'dvt-edge profile'"
        )


def _no_energy(measurement: Measurement) -> str:
    return measurement.energy.unavailable or "it was not measured per exit"


def _operating(
    choices: Choices, costs: Costs, bundle: Bundle, budget: BudgetConfig
) -> tuple[OperatingPoint, CertificateFigures, Floats | None]:
    """The budget's point, what is certified of it, and its thresholds [K] where there are some."""
    try:
        chosen = choose_thresholds(
            choices.records, costs, budget, bundle.manifest.recorded_thresholds
        )
    except BudgetError as error:
        start: dict[CostKind, float] = {}
        if budget.latency_ms is not None:
            start["latency"] = budget.latency_ms
        if budget.energy_mj is not None:
            start["energy"] = budget.energy_mj
        return (
            OperatingPoint(budget=str(budget), start=start, unavailable=str(error)),
            certificate_figures(None, str(error)),
            None,
        )
    point = choices.point(chosen.thresholds)
    mean = budget.latency_ms if budget.statistic == "mean" else None
    start = {"latency": point.latency_ms if mean is None else mean}
    if point.energy_mj is not None:
        start["energy"] = point.energy_mj if budget.energy_mj is None else budget.energy_mj
    reason = "the budget has no confidence_level; set it, to 0.95 say, to have one"
    return (
        OperatingPoint(budget=str(budget), start=start, point=point),
        certificate_figures(chosen.certificate, reason),
        chosen.solution.thresholds,
    )


def _gallery(
    bundle: Bundle,
    profile: Profile,
    images: ImageDataset | None,
    records: Records,
    at: Rows,
    shown: Rows,
) -> tuple[tuple[ClassImages, ...], str | None]:
    """Thumbnails, or why there are none: a report without pictures is still a report."""
    names = bundle.manifest.class_names
    try:
        if images is None:
            images = open_images(profile.calibration.data, names)
        rows = spread_rows(len(images), profile.calibration.samples)
        return gallery(images, rows, records, at, shown, names), None
    except DataError as error:
        return (), str(error)
