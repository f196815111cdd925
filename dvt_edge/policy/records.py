"""What every exit said about every calibration image."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from dvt_edge.errors import DataError
from dvt_edge.policy.estimate import estimate_right

Floats = npt.NDArray[np.float64]
Exits = npt.NDArray[np.integer]


@dataclass(frozen=True)
class Records:
    """Answers of all K exits to N images.

    Raises :class:`~dvt_edge.errors.DataError` for shapes that do not fit together, no records,
    confidences that are not finite, and labels below zero.
    """

    confidence: npt.NDArray[np.float32]
    """[N, K]: largest softmax probability, 0..1."""
    prediction: npt.NDArray[np.int32]
    """[N, K]: predicted class."""
    label: npt.NDArray[np.int32] | None = None
    """[N]: true class; None where unknown, then the last exit's answer counts as right."""
    group: npt.NDArray[np.int32] | None = None
    """[N]: number of the clip, camera or day that each image is of; None where images are drawn
    independently."""

    def __post_init__(self) -> None:
        shape = self.confidence.shape
        if len(shape) != 2 or self.prediction.shape != shape:
            raise DataError(
                f"records need confidence and prediction of one shape [N, K], found {shape} and "
                f"{self.prediction.shape}"
            )
        if not shape[0] or not shape[1]:
            raise DataError("records are empty; thresholds need at least one image and one exit")
        if not np.isfinite(self.confidence).all():
            bad = int((~np.isfinite(self.confidence)).any(axis=1).sum())
            raise DataError(f"confidences of {bad} records are not finite; rebuild the bundle")
        if self.label is not None and self.label.shape != shape[:1]:
            raise DataError(f"label must have shape [{shape[0]}], found {self.label.shape}")
        if self.group is not None and self.group.shape != shape[:1]:
            raise DataError(f"group must have shape [{shape[0]}], found {self.group.shape}")
        if self.label is not None and self.label.min() < 0:
            raise DataError(f"labels are classes from 0, found {self.label.min()}")

    def __len__(self) -> int:
        return len(self.confidence)

    @property
    def exits(self) -> int:
        return int(self.confidence.shape[1])

    @property
    def truth(self) -> npt.NDArray[np.int32]:
        """[N]: the class that counts as right: the label, or the last exit's answer without one."""
        return self.prediction[:, -1] if self.label is None else self.label

    @cached_property
    def correct(self) -> npt.NDArray[np.bool_]:
        """[N, K]: whether the exit's answer is right, or agrees with the last exit."""
        right: npt.NDArray[np.bool_] = self.prediction == self.truth[:, None]
        return right

    @cached_property
    def probability_right(self) -> Floats:
        """[N, K]: estimated probability of ``correct``, 0..1, which the solver maximises.

        Estimated from these records alone: those taken from others (:meth:`take`) know nothing of
        the rest. :mod:`dvt_edge.policy.estimate` says how. What thresholds are reported to give is
        counted, by :attr:`correct`.
        """
        return estimate_right(self.confidence, self.correct)

    @cached_property
    def accuracy(self) -> Floats:
        """[K]: share of right answers of every exit."""
        return np.asarray(self.correct.mean(axis=0))

    def exits_taken(self, thresholds: npt.ArrayLike) -> Exits:
        """[N]: the exit, from 0, at which each record leaves by ``thresholds`` [K].

        Raises :class:`~dvt_edge.errors.DataError` for another number of thresholds.
        """
        limits = np.asarray(thresholds, float)
        if limits.shape != (self.exits,):
            raise DataError(f"expected {self.exits} thresholds, found {limits.shape}")
        leaves = self.confidence >= limits
        leaves[:, -1] = True
        return np.asarray(leaves.argmax(axis=1))

    def correct_at(self, exits: Exits) -> npt.NDArray[np.bool_]:
        """[N]: whether each record's answer at its own of ``exits`` [N], from 0, is right."""
        return np.asarray(self.correct[np.arange(len(self)), exits])

    def exit_shares(self, exits: Exits) -> Floats:
        """[K]: share of ``exits`` [n], from 0, at each exit."""
        return np.bincount(exits, minlength=self.exits) / len(exits)

    def take(self, rows: npt.NDArray[np.integer]) -> Records:
        """The records ``rows`` [n], in that order."""
        label = None if self.label is None else self.label[rows]
        group = None if self.group is None else self.group[rows]
        return Records(self.confidence[rows], self.prediction[rows], label, group)

    def first_exits(self, exits: int) -> Records:
        """The records of the first ``exits`` only; what is right stays what it was."""
        return Records(
            self.confidence[:, :exits], self.prediction[:, :exits], self.truth, self.group
        )
