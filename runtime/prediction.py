"""The answer to one frame."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite


@dataclass(frozen=True, slots=True)
class Prediction:
    """The answer to one frame, and how it came about."""

    class_id: int
    """Class index, from 0."""
    label: str
    """Name of the class, or its number where the model has no names."""
    confidence: float
    """Of the exit that answered, 0..1: the largest softmax probability, or what the profile's
    ``exits.confidence`` says; NaN where its logits were not finite."""
    exit_stage: int
    """The stage that answered, from 1."""
    latency_ms: float
    """From the call to its end: waiting for other callers' frames, preprocessing, stages, adapting,
    audits. With ``classify_each``, lying ready is not counted. In a batch: to the answer of this
    frame's exit."""
    preprocess_ms: float
    """Part of ``latency_ms``: resize, crop, normalise (of the whole batch)."""
    stage_latency_ms: tuple[float, ...]
    """Part of ``latency_ms``: each stage that ran (on the whole batch), in order."""
    thresholds: tuple[float, ...]
    """Thresholds in force: the frame left at the first exit whose confidence reached its own."""
    confidences: tuple[float, ...] = ()
    """Confidence of every exit that was asked, in order."""
    classes: tuple[int, ...] = ()
    """Class of every exit that was asked, in order."""
    truncated: bool = False
    """Whether a deadline ended the work before the thresholds did."""
    reason: str | None = None
    """What decided where the thresholds did not: a deadline, an audit, a kept answer."""
    energy_mj: float | None = None
    """An estimate, not a reading: the mean gross millijoules of leaving at this exit at batch 1,
    from the table that ``dvt-edge profile`` measured (:attr:`Runtime.costs.energy_source` says with
    what). None without such a table, and for an answer that was kept from an earlier frame."""
    regroup_wait_ms: float = 0.0
    """Part of ``latency_ms``: waiting after stage 1 for other cameras' frames, to run the later
    stages together (``Runtime(..., regroup_ms=...)``)."""

    def explain(self) -> str:
        """One sentence: why the answer came from this exit and from no other."""
        forced = self.truncated or self.reason
        return f"'{self.label}' left at exit {self.exit_stage} of {len(self.thresholds)} " + (
            _forced(self) if forced else _decided(self)
        )


def _decided(answer: Prediction) -> str:
    """The thresholds decided, or no stage was left."""
    confidence, thresholds = answer.confidence, answer.thresholds
    exits, threshold = len(thresholds), thresholds[answer.exit_stage - 1]
    unsure = "its logits were not finite, so its confidence is unknown"
    if answer.exit_stage == exits:
        if exits == 1:
            why = "because there is no other exit"
        elif all(t == inf for t in thresholds[:-1]):
            why = "because the thresholds let no image leave earlier"
        else:
            why = "because no earlier exit was sure enough"
        if not isfinite(confidence):
            return f"{why}; do not rely on the answer: {unsure}."
        return (
            f"{why}; the last exit takes every image, this one with a confidence of "
            f"{confidence:.3g}."
        )
    if not isfinite(confidence):
        return f"without reaching its threshold; do not rely on the answer: {unsure}."
    if threshold == -inf:
        return (
            "because the threshold there lets every image leave, this one with a confidence of "
            f"{confidence:.3g}."
        )
    known, limit = _apart(confidence, threshold)
    if confidence >= threshold:
        return f"because its confidence of {known} reached the threshold of {limit}."
    return (
        f"because no later stage ran; its confidence of {known} is below the threshold of {limit}."
    )


def _forced(answer: Prediction) -> str:
    """A deadline or another policy decided."""
    confidence, threshold = answer.confidence, answer.thresholds[answer.exit_stage - 1]
    why = (answer.reason or f"no time was left for stage {answer.exit_stage + 1}").rstrip(".")
    cut = "before it was sure (truncated)" if answer.truncated else "by exception"
    if not isfinite(confidence):
        state = "its logits were not finite, so do not rely on the answer"
    elif not isfinite(threshold):
        state = f"its confidence is {confidence:.3g}"
    else:
        known, limit = _apart(confidence, threshold)
        relation = "below" if confidence < threshold else "at or above"
        state = f"its confidence of {known} is {relation} the threshold of {limit}"
    return f"{cut}: {why}; {state}."


def _apart(first: float, second: float) -> tuple[str, str]:
    """Both numbers with as many digits, from 3 on, as it takes to distinguish them."""
    if not isfinite(second):
        return f"{first:.3g}", "infinity"
    for digits in range(3, 17):
        pair = f"{first:.{digits}g}", f"{second:.{digits}g}"
        if first == second or pair[0] != pair[1]:
            return pair
    return repr(first), repr(second)
