"""Two or more classifiers on the same images, in turns, so that the machine treats them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Protocol

import numpy as np
import numpy.typing as npt
from pydantic import Field

from dvt_edge.bundle.measurement import Distribution
from dvt_edge.evaluation.plain_classifier import Answer
from dvt_edge.files.datasets import ImageDataset, Pixels, spread_rows
from dvt_edge.files.documents import Document
from dvt_edge.machine.clock import Clock
from dvt_edge.profile import ColorOrder
from dvt_edge.progress import Progress, silent
from dvt_edge.runtime.measuring.timing import distribution, warm_up
from dvt_edge.runtime.runtime import Runtime

WARM_UP_IMAGES = 8
BLOCKS = 30
"""A stretch of frames shares its luck (clocks, other programs); so many stretches are taken as
independent."""
TWO_SIDED_95 = 2.045
"""Student's t at 97.5 % with BLOCKS - 1 degrees of freedom."""
KEPT_BYTES = 256e6
"""Images up to so many bytes in all are decoded once."""

Right = npt.NDArray[np.bool_] | str
"""[images]: whether each answer is right, or why that cannot be said."""


class Contender(Protocol):
    """One of those that are compared."""

    name: str
    engine: str
    precision: str
    size_bytes: int
    exits: int
    classes: Sequence[str] | int
    """Their names, or their number where names are not known."""

    def classify(self, image: Pixels, order: ColorOrder | None, /) -> Answer:
        """Answer and time one image."""


class Cascade:
    """A bundle within its budget."""

    def __init__(self, name: str, runtime: Runtime) -> None:
        manifest = runtime.bundle.manifest
        self.name = name
        self._runtime = runtime
        backend = runtime.backend
        self.engine = f"{backend.name}, {'GPU' if backend.gpu else 'CPU'}"
        self.precision = " / ".join(stage.precision for stage in manifest.stages)
        paths = (runtime.bundle.stage_path(k) for k in range(len(manifest.stages)))
        self.size_bytes = sum(path.stat().st_size for path in paths)
        self.exits = len(manifest.stages)
        self.classes: Sequence[str] | int = manifest.class_names

    def classify(self, image: Pixels, order: ColorOrder | None) -> Answer:
        answer = self._runtime.classify(image, color_order=order)
        return Answer(answer.class_id, answer.latency_ms, answer.exit_stage, answer.energy_mj)


class Side(Document):
    """What was found of one contender."""

    name: str
    engine: str
    precision: str
    size_bytes: int
    """Of the files that are executed."""
    latency: Distribution
    exit_fraction: tuple[float, ...]
    """[K]."""
    accuracy: float | None
    """On all images, once each, 0..1; None where ``accuracy_unavailable`` says why."""
    accuracy_unavailable: str | None
    energy_mj: float | None
    """Mean of the estimates; None where nothing was measured."""


class Interval(Document):
    """An estimate and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Difference(Document):
    """A later contender against the first one, paired by image."""

    name: str
    to: str
    latency_ratio: Interval
    """Of the means: 2 is twice as long."""
    accuracy_points: Interval | None
    """Percentage points more; None without both accuracies."""


class Comparison(Document):
    """All that was found."""

    images: int = Field(ge=1)
    frames: int = Field(ge=1)
    """Every contender was given so many: the images, several times where there was time."""
    labelled: bool
    settled: bool
    """Whether the latencies had settled before."""
    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]


def compare(
    contenders: Sequence[Contender],
    images: ImageDataset,
    seconds: float,
    clock: Clock,
    *,
    order: ColorOrder | None = "rgb",
    progress: Progress = silent,
) -> Comparison:
    """Give every image to every contender, then again until ``seconds`` are over.

    Who comes first changes from image to image. Each is timed by its own clock around its own work;
    decoding is not counted. ``images`` are labelled by the classes of the first contender, where
    they are; that one knows their names.
    """
    some = [images.image(int(i)) for i in spread_rows(len(images), WARM_UP_IMAGES)]

    def round_ms() -> float:
        return sum(c.classify(image, order).latency_ms for image in some for c in contenders)

    _, settled = warm_up(round_ms, clock, max(1.0, seconds))
    get: Callable[[int], Pixels] = images.image
    if images.image(0).nbytes * len(images) <= KEPT_BYTES:  # then no decoder runs between frames
        get = [images.image(i) for i in range(len(images))].__getitem__
    answers: list[list[Answer]] = [[] for _ in contenders]
    started, frames = clock.now(), 0
    while frames < max(len(images), BLOCKS) or clock.now() - started < seconds:
        image = get(frames % len(images))
        turn = range(len(contenders)) if frames % 2 else range(len(contenders) - 1, -1, -1)
        for k in turn:
            answers[k].append(contenders[k].classify(image, order))
        frames += 1
        progress("images", min(frames, len(images)), len(images))
    first = contenders[0]
    assert not isinstance(first.classes, int)
    rights = [_right(c, a, images, first.classes) for c, a in zip(contenders, answers, strict=True)]
    latency_ms = [[answer.latency_ms for answer in given] for given in answers]
    return Comparison(
        images=len(images),
        frames=frames,
        labelled=images.labels is not None,
        settled=settled,
        sides=tuple(map(_side, contenders, answers, rights)),
        differences=tuple(
            Difference(
                name=contenders[k].name,
                to=first.name,
                latency_ratio=ratio_of_means(latency_ms[k], latency_ms[0]),
                accuracy_points=_points(rights[k], rights[0]),
            )
            for k in range(1, len(contenders))
        ),
    )


def _right(
    contender: Contender, given: list[Answer], images: ImageDataset, names: Sequence[str]
) -> Right:
    if images.labels is None:
        return "the images have no labels"
    answers = np.asarray([answer.class_id for answer in given[: len(images)]])
    if isinstance(contender.classes, int):
        if contender.classes != len(names):
            return f"it has {contender.classes} classes, the labels have {len(names)}"
    elif contender.classes != names:
        number = {name: i for i, name in enumerate(names)}
        if set(number) != set(contender.classes):
            return "its classes are others than the labels'"
        answers = np.asarray([number[name] for name in contender.classes])[answers]
    return np.asarray(answers == np.asarray(images.labels))


def _side(contender: Contender, answers: list[Answer], right: Right) -> Side:
    exits = np.bincount([a.exit_stage - 1 for a in answers], minlength=contender.exits)
    energy_mj = [a.energy_mj for a in answers if a.energy_mj is not None]
    return Side(
        name=contender.name,
        engine=contender.engine,
        precision=contender.precision,
        size_bytes=contender.size_bytes,
        latency=distribution([answer.latency_ms for answer in answers]),
        exit_fraction=tuple((exits / len(answers)).tolist()),
        accuracy=None if isinstance(right, str) else float(np.mean(right)),
        accuracy_unavailable=right if isinstance(right, str) else None,
        energy_mj=float(np.mean(energy_mj)) if len(energy_mj) == len(answers) else None,
    )


def ratio_of_means(of: Sequence[float], to: Sequence[float]) -> Interval:
    """Mean of ``of`` [R] over mean of ``to`` [R], paired; by the delta method on means of blocks.

    R is at least BLOCKS.
    """
    a, b = np.asarray(of, float), np.asarray(to, float)
    ratio = float(a.mean() / b.mean())
    rest = np.array([block.mean() for block in np.array_split(a - ratio * b, BLOCKS)])
    half = TWO_SIDED_95 * float(rest.std(ddof=1)) / sqrt(BLOCKS) / float(b.mean())
    return Interval(value=ratio, low=max(0.0, ratio - half), high=ratio + half)


def _points(of: Right, to: Right) -> Interval | None:
    if isinstance(of, str) or isinstance(to, str):
        return None
    gain = 100.0 * (of.astype(float) - to.astype(float))
    value = float(gain.mean())
    half = 1.96 * float(gain.std()) / sqrt(len(gain))
    return Interval(value=value, low=value - half, high=value + half)
