"""The answer to one frame."""

from __future__ import annotations

from dataclasses import dataclass

from dvt_edge.policy.explain import explain


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
    """From the start of the work on the frame to the answer; waiting for another thread's frame is
    not counted. In a batch: to the answer of this frame's exit."""
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

    def explain(self) -> str:
        """One sentence: why the answer came from this exit and from no other."""
        return explain(
            label=self.label,
            confidence=self.confidence,
            exit_stage=self.exit_stage,
            thresholds=self.thresholds,
            truncated=self.truncated,
            reason=self.reason,
        )
