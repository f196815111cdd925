"""Two or more classifiers on the same images, in turns, so that the machine treats them alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


class Contender(Protocol):
    """One of those that are compared."""

    name: str
    engine: str
    precision: str
    size_bytes: int
    exits: int
    class_names: Sequence[str] | None
    """None where only their number is known."""
    classes: int

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
        self.class_names: Sequence[str] | None = manifest.class_names
        self.classes = len(manifest.class_names)

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


@dataclass
class _Taken:
    """What one contender answered, frame by frame."""

    latency_ms: list[float] = field(default_factory=list)
    exit_at: list[int] = field(default_factory=list)
    class_id: list[int] = field(default_factory=list)
    energy_mj: list[float] = field(default_factory=list)

    def add(self, answer: Answer) -> None:
        self.latency_ms.append(answer.latency_ms)
        self.exit_at.append(answer.exit_stage - 1)
        self.class_id.append(answer.class_id)
        if answer.energy_mj is not None:
            self.energy_mj.append(answer.energy_mj)


class _WarmUpRound:
    """Some images through everybody."""

    def __init__(
        self, contenders: Sequence[Contender], images: list[Pixels], order: ColorOrder | None
    ) -> None:
        self.count = len(contenders) * len(images)
        self._contenders, self._images, self._order = contenders, images, order

    def round_ms(self) -> float:
        return sum(
            contender.classify(image, self._order).latency_ms
            for image in self._images
            for contender in self._contenders
        )


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
    they are.
    """
    some = spread_rows(len(images), WARM_UP_IMAGES)
    warm = warm_up(
        _WarmUpRound(contenders, [images.image(int(i)) for i in some], order),
        clock,
        max(1.0, seconds),
    )
    get = _decoded_once(images)
    taken = [_Taken() for _ in contenders]
    started, frames = clock.now(), 0
    while frames < max(len(images), BLOCKS) or clock.now() - started < seconds:
        image = get(frames % len(images))
        turn = range(len(contenders)) if frames % 2 else range(len(contenders) - 1, -1, -1)
        for k in turn:
            taken[k].add(contenders[k].classify(image, order))
        frames += 1
        progress("images", min(frames, len(images)), len(images))
    rights = [_right(c, t, images, contenders[0]) for c, t in zip(contenders, taken, strict=True)]
    return Comparison(
        images=len(images),
        frames=frames,
        labelled=images.labels is not None,
        settled=warm.settled,
        sides=tuple(_side(c, t, r) for c, t, r in zip(contenders, taken, rights, strict=True)),
        differences=tuple(
            Difference(
                name=contenders[k].name,
                to=contenders[0].name,
                latency_ratio=ratio_of_means(taken[k].latency_ms, taken[0].latency_ms),
                accuracy_points=_points(rights[k], rights[0]),
            )
            for k in range(1, len(contenders))
        ),
    )


def _decoded_once(images: ImageDataset) -> Callable[[int], Pixels]:
    """Images by number; kept, where all of them fit, so that no decoder runs between frames."""
    if images.image(0).nbytes * len(images) > KEPT_BYTES:
        return images.image
    kept = [images.image(i) for i in range(len(images))]
    return lambda i: kept[i]


def _right(
    contender: Contender, taken: _Taken, images: ImageDataset, first: Contender
) -> npt.NDArray[np.bool_] | str:
    """[images]: whether each answer is right, or why that cannot be said."""
    if images.labels is None:
        return "the images have no labels"
    answers = np.asarray(taken.class_id[: len(images)])
    if contender.class_names is None:
        if contender.classes != first.classes:
            return f"it tells {contender.classes} classes apart, the labels are {first.classes}"
    elif first.class_names is not None and contender.class_names != first.class_names:
        number = {name: i for i, name in enumerate(first.class_names)}
        if set(number) != set(contender.class_names):
            return "its classes are others than the labels'"
        answers = np.asarray([number[name] for name in contender.class_names])[answers]
    return np.asarray(answers == np.asarray(images.labels))


def _side(contender: Contender, taken: _Taken, right: npt.NDArray[np.bool_] | str) -> Side:
    known = not isinstance(right, str)
    exits = np.bincount(taken.exit_at, minlength=contender.exits) / len(taken.exit_at)
    measured = len(taken.energy_mj) == len(taken.latency_ms)
    return Side(
        name=contender.name,
        engine=contender.engine,
        precision=contender.precision,
        size_bytes=contender.size_bytes,
        latency=distribution(taken.latency_ms),
        exit_fraction=tuple(exits.tolist()),
        accuracy=float(np.mean(right)) if known else None,  # type: ignore[arg-type]
        accuracy_unavailable=None if known else str(right),
        energy_mj=float(np.mean(taken.energy_mj)) if measured else None,
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


def _points(of: npt.NDArray[np.bool_] | str, to: npt.NDArray[np.bool_] | str) -> Interval | None:
    if isinstance(of, str) or isinstance(to, str):
        return None
    gain = 100.0 * (of.astype(float) - to.astype(float))
    value = float(gain.mean())
    half = 1.96 * float(gain.std()) / sqrt(len(gain))
    return Interval(value=value, low=value - half, high=value + half)
