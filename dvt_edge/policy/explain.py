"""One sentence that says why an image left the cascade where it did."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from dvt_edge.errors import DataError


def explain(
    *,
    label: str,
    confidence: float,
    exit_stage: int,
    thresholds: Sequence[float],
    truncated: bool = False,
    reason: str | None = None,
) -> str:
    """Why the answer ``label`` came from exit ``exit_stage`` (from 1) and from no other.

    ``thresholds`` [K] were in force, one per exit; ``confidence``, 0..1 or NaN, is that of the exit
    that answered. ``truncated`` says that a deadline ended the work early. ``reason`` is what a
    policy said where the thresholds did not decide, such as a stage refused by the deadline or an
    answer kept from the last video frame; it goes into the sentence as it is.

        >>> explain(label="cat", confidence=0.91, exit_stage=1, thresholds=(0.8, float("-inf")))
        "'cat' left at exit 1 of 2 because its confidence of 0.91 reached the threshold of 0.8."

    Raises :class:`~dvt_edge.errors.DataError` where ``exit_stage`` is none of the K exits.
    """
    exits = len(thresholds)
    if not 1 <= exit_stage <= exits:
        raise DataError(
            f"exit_stage must be 1..{exits}, as there are {exits} thresholds, found {exit_stage}"
        )
    threshold = float(thresholds[exit_stage - 1])
    return f"'{label}' left at exit {exit_stage} of {exits} " + (
        _forced(confidence, exit_stage, threshold, truncated, reason)
        if truncated or reason
        else _decided(confidence, exit_stage, thresholds)
    )


def _decided(confidence: float, exit_stage: int, thresholds: Sequence[float]) -> str:
    """The thresholds decided, or no stage was left."""
    exits, threshold = len(thresholds), float(thresholds[exit_stage - 1])
    unsure = "its logits were not finite, so its confidence is unknown"
    if exit_stage == exits:
        if exits == 1:
            why = "because there is no other exit"
        elif all(t == float("inf") for t in thresholds[:-1]):
            why = "because the thresholds let no image leave earlier"
        else:
            why = "because no earlier exit was sure enough"
        if not isfinite(confidence):
            return f"{why}; do not rely on the answer: {unsure}."
        return f"{why}; the last exit takes every image, this one with a confidence of " + (
            f"{_digits(confidence)}."
        )
    if not isfinite(confidence):
        return f"without reaching its threshold; do not rely on the answer: {unsure}."
    if threshold == float("-inf"):
        return (
            "because the threshold there lets every image leave, this one with a confidence of "
            f"{_digits(confidence)}."
        )
    known, limit = _apart(confidence, threshold)
    if confidence >= threshold:
        return f"because its confidence of {known} reached the threshold of {limit}."
    return (
        f"because no later stage ran; its confidence of {known} is below the threshold of {limit}."
    )


def _forced(
    confidence: float, exit_stage: int, threshold: float, truncated: bool, reason: str | None
) -> str:
    """A deadline or another policy decided."""
    why = reason.rstrip(".") if reason else f"no time was left for stage {exit_stage + 1}"
    cut = "before it was sure (truncated)" if truncated else "by exception"
    if not isfinite(confidence):
        state = "its logits were not finite, so do not rely on the answer"
    elif not isfinite(threshold):
        state = f"its confidence is {_digits(confidence)}"
    else:
        known, limit = _apart(confidence, threshold)
        relation = "below" if confidence < threshold else "at or above"
        state = f"its confidence of {known} is {relation} the threshold of {limit}"
    return f"{cut}: {why}; {state}."


def _digits(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}"


def _apart(first: float, second: float) -> tuple[str, str]:
    """Both numbers with as many digits as it takes to tell them apart."""
    if not isfinite(second):
        return _digits(first), "infinity"
    for digits in range(3, 17):
        pair = _digits(first, digits), _digits(second, digits)
        if first == second or pair[0] != pair[1]:
            return pair
    return repr(first), repr(second)
