from __future__ import annotations

import pytest

from dvt_edge.runtime.prediction import Prediction

INF = float("inf")
NAN = float("nan")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {"confidence": 0.914, "exit_stage": 1},
            "'cat' left at exit 1 of 3 because its confidence of 0.914 reached the threshold "
            "of 0.8.",
        ),
        (
            {"confidence": 0.80004, "exit_stage": 1},
            "'cat' left at exit 1 of 3 because its confidence of 0.80004 reached the threshold "
            "of 0.8.",
        ),
        (
            {"confidence": 0.8, "exit_stage": 1},
            "'cat' left at exit 1 of 3 because its confidence of 0.8 reached the threshold of 0.8.",
        ),
        (
            {"confidence": 0.4, "exit_stage": 3},
            "'cat' left at exit 3 of 3 because no earlier exit was sure enough; the last exit "
            "takes every image, this one with a confidence of 0.4.",
        ),
        (
            {"confidence": 0.4, "exit_stage": 3, "thresholds": (INF, INF, -INF)},
            "'cat' left at exit 3 of 3 because the thresholds let no image leave earlier; the "
            "last exit takes every image, this one with a confidence of 0.4.",
        ),
        (
            {"confidence": 0.4, "exit_stage": 1, "thresholds": (-INF,)},
            "'cat' left at exit 1 of 1 because there is no other exit; the last exit takes every "
            "image, this one with a confidence of 0.4.",
        ),
        (
            {"confidence": 0.4, "exit_stage": 1, "thresholds": (-INF, -INF)},
            "'cat' left at exit 1 of 2 because the threshold there lets every image leave, this "
            "one with a confidence of 0.4.",
        ),
        (
            {"confidence": NAN, "exit_stage": 3},
            "'cat' left at exit 3 of 3 because no earlier exit was sure enough; do not rely on "
            "the answer: its logits were not finite, so its confidence is unknown.",
        ),
        (
            {"confidence": 0.5, "exit_stage": 2},
            "'cat' left at exit 2 of 3 because no later stage ran; its confidence of 0.5 is below "
            "the threshold of 0.7.",
        ),
        (
            {"confidence": 0.5, "exit_stage": 2, "truncated": True},
            "'cat' left at exit 2 of 3 before it was sure (truncated): no time was left for stage "
            "3; its confidence of 0.5 is below the threshold of 0.7.",
        ),
        (
            {
                "confidence": 0.5,
                "exit_stage": 1,
                "truncated": True,
                "reason": "stage 2 needs 4 ms (p99) and only 3 ms of time is left",
                "thresholds": (INF, 0.7, -INF),
            },
            "'cat' left at exit 1 of 3 before it was sure (truncated): stage 2 needs 4 ms (p99) "
            "and only 3 ms of time is left; its confidence is 0.5.",
        ),
        (
            {"confidence": 0.9, "exit_stage": 2, "reason": "the frame hardly changed."},
            "'cat' left at exit 2 of 3 by exception: the frame hardly changed; its confidence of "
            "0.9 is at or above the threshold of 0.7.",
        ),
        (
            {"confidence": NAN, "exit_stage": 1, "truncated": True},
            "'cat' left at exit 1 of 3 before it was sure (truncated): no time was left for stage "
            "2; its logits were not finite, so do not rely on the answer.",
        ),
    ],
)
def test_sentences(values, expected):
    fixed = {"class_id": 3, "label": "cat", "thresholds": (0.8, 0.7, -INF)}
    times = {"latency_ms": 1.0, "preprocess_ms": 0.5, "stage_latency_ms": (0.5,)}
    sentence = Prediction(**{**fixed, **times, **values}).explain()
    assert sentence == expected
    assert sentence.count(". ") == 0  # one sentence
