from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.policy.deadline import refused

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("stage", "left_ms", "slowdown", "words"),
    [
        (1, 0.0, (), None),  # the first stage always runs
        (1, -5.0, (), None),
        (1, NAN, (), None),
        (2, 3.0, (), None),
        (2, 2.999, (), "stage 2 needs 3 ms"),
        (2, 0.0, (), "no time is left"),
        (2, -1.0, (), "no time is left"),
        (2, NAN, (), "no time is left"),
        (2, INF, (), None),
        (2, 5.0, (1.0, 2.0), "stage 2 needs 6 ms"),
        (2, 6.0, (1.0, 2.0), None),
        (2, 2.0, (1.0, 0.5), "needs 3 ms"),  # faster than measured is not trusted
        (2, 3.0, (1.0, NAN), None),
        (2, 3.0, (2.0,), None),
        (3, 100.0, (), "no measured p99"),
        (4, 100.0, (), "no measured p99"),
        (5, 100.0, (), "no measured p99"),
        (6, 100.0, (), "no measured p99"),
        (3, INF, (), None),
    ],
)
def test_the_rule(stage, left_ms, slowdown, words):
    reason = refused((1.0, 3.0, None, NAN, INF, -1.0), stage, left_ms, slowdown)
    assert (reason is None) if words is None else (reason is not None and words in reason)


@pytest.mark.parametrize("deadline_ms", [0.5, 3.0, 6.0, 9.0, 30.0])
def test_the_worst_case_is_bounded_as_the_docstring_says(deadline_ms):
    """Log-normal stages: late at most in 1 % per later stage, and only through one stage."""
    rng = np.random.default_rng(3)
    stages = np.array([2.0, 3.0, 4.0]) * np.exp(0.3 * rng.standard_normal((20_000, 3)))
    p99 = np.percentile(stages[:10_000], 99, axis=0, method="inverted_cdf")
    late = 0
    for row in stages[10_000:]:
        spent, ran = 0.0, 0
        for k, took in enumerate(row, 1):
            if refused(p99, k, deadline_ms - spent):
                break
            spent, ran = spent + took, k
        first = row[0]
        assert ran >= 1
        if spent > max(deadline_ms, first):
            late += 1
            assert row[ran - 1] > p99[ran - 1]  # that stage outlasted its p99
    assert late <= 10_000 * 2 * 0.013  # 1 % for each of two stages, and sampling
