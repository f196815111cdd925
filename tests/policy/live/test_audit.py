from __future__ import annotations

import numpy as np
import pytest

from dvt_edge.errors import DataError
from dvt_edge.policy import Records
from dvt_edge.policy.live.audit import (
    Agreement,
    Audit,
    AuditEvent,
    agreement_interval,
    early_agreement,
    raised,
)
from tests.conftest import made_records

INF, NAN = float("inf"), float("nan")


RECORDS = made_records(4000, labelled=False)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.1, 0.5, 1.0])
def test_the_share_is_audited_evenly_and_the_same_in_every_run(share):
    audit, again = Audit(share, 0.9), Audit(share, 0.9)
    chosen = np.array([audit.due() for _ in range(200_000)])
    assert [again.due() for _ in range(1000)] == chosen[:1000].tolist()
    in_windows = chosen.reshape(100, 2000).mean(axis=1)
    assert in_windows == pytest.approx(share, abs=3 / 2000)
    for period in (2, 3, 25, 30, 60):  # not in step with a scene that repeats
        assert chosen[::period].mean() == pytest.approx(share, rel=0.1, abs=0.0005)


LOOKS = 150


@pytest.fixture(scope="module")
def bounds():
    """Lower and upper bounds [n, agreed] of all counts up to LOOKS."""
    table = np.full((2, LOOKS + 1, LOOKS + 1), NAN)
    for n in range(LOOKS + 1):
        table[:, n, : n + 1] = np.transpose([agreement_interval(s, n, 0.95) for s in range(n + 1)])
    return table


@pytest.mark.parametrize("p", [0.5, 0.9, 0.97, 1.0])
def test_the_interval_covers_at_every_look(bounds, p):
    """2,000 runs, each looked at after every answer."""
    rng, n, missed, widths = np.random.default_rng(0), np.arange(1, LOOKS + 1), 0, []
    for _ in range(2000):
        low, high = bounds[:, n, np.cumsum(rng.random(LOOKS) < p)]
        missed += bool(((low > p) | (high < p)).any())
        widths.append(high[-1] - low[-1])
    assert missed / 2000 <= 0.05
    assert np.mean(widths) < 0.3  # and says something


@pytest.mark.parametrize(
    ("agreed", "audited", "low", "high"),
    [
        (0, 0, (0, 0), (1, 1)),
        (0, 1, (0, 0), (0.9, 1)),
        (1, 1, (0, 0.1), (1, 1)),
        (500, 500, (0.97, 0.99), (1, 1)),
        (0, 500, (0, 0), (0.01, 0.03)),
        (9000, 10_000, (0.88, 0.9), (0.9, 0.92)),
    ],
)
def test_intervals(agreed, audited, low, high):
    found = agreement_interval(agreed, audited, 0.95)
    assert low[0] <= found[0] <= low[1]
    assert high[0] <= found[1] <= high[1]


def test_no_event_while_the_promise_holds_at_the_stated_rate():
    """500 runs of one window exactly at the promise, the worst case that keeps it."""
    rng = np.random.default_rng(1)
    fired = 0
    for _ in range(500):
        audit = Audit(0.01, 0.95, window=400)
        fired += any(audit.note(True, bool(a)) for a in rng.random(400) < 0.95)
    assert fired / 500 <= 0.05


@pytest.mark.parametrize("good", [0, 150, 3000])
def test_an_event_when_the_agreement_falls_however_long_it_was_good(good):
    rng = np.random.default_rng(2)
    delays = []
    for _ in range(50):
        audit = Audit(0.01, 0.95, window=400)
        for a in rng.random(good) < 0.98:
            audit.note(True, bool(a))
        answers = rng.random(1000) < 0.80
        delays.append(next(i for i, a in enumerate(answers) if audit.note(True, bool(a))))
    assert np.median(delays) <= 150
    assert max(delays) <= 500


def test_the_event_says_what_was_found():
    audit = Audit(0.01, 0.95)
    events = [audit.note(True, i % 2 == 0) for i in range(40)]
    event = next(e for e in events if e)
    assert event.agreement.upper < 0.95 == event.promised
    found = event.agreement
    assert f"{found.agreed} of {found.audited} audited early answers" in event.reason
    assert audit.agreement.audited < 40  # started over


def test_answers_of_the_last_exit_are_not_counted():
    audit = Audit(0.5, 0.9)
    assert not any(audit.note(False, False) for _ in range(1000))
    assert audit.agreement == Agreement(0, 0, 0.0, 1.0)


def test_a_promise_of_one_is_refuted_by_one_and_of_zero_by_none():
    assert Audit(0.5, 1.0).note(True, False) is not None
    assert Audit(0.5, 1.0).note(True, True) is None
    nothing = Audit(0.5, 0.0)
    assert not any(nothing.note(True, False) for _ in range(100))


def event(agreed, audited, promised):
    return AuditEvent(
        Agreement(agreed, audited, *agreement_interval(agreed, audited, 0.95)), promised, ""
    )


@pytest.mark.parametrize("thresholds", [(0.5, 0.5, -INF), (-INF, -INF, -INF), (0.8, INF, -INF)])
def test_thresholds_rise_until_the_records_agree_enough(thresholds):
    promised = early_agreement(RECORDS, thresholds)
    seen = promised - (1 - promised) * 0.5
    higher = raised(RECORDS, thresholds, event(round(seen * 1000), 1000, promised))
    assert all(a >= b for a, b in zip(higher, thresholds, strict=True))
    assert higher != thresholds
    assert higher[-1] == -INF
    wanted = (1 - promised) * (1 - promised) / (1 - seen)
    assert 1 - early_agreement(RECORDS, higher) <= wanted * 1.01


def test_repeated_events_end_with_nothing_leaving_early():
    thresholds: tuple[float, ...] = (0.5, 0.5, -INF)
    for _ in range(200):  # in small steps once no record disagrees any more
        before, thresholds = thresholds, raised(RECORDS, thresholds, event(10, 100, 0.95))
        assert all(a >= b for a, b in zip(thresholds, before, strict=True))
    assert thresholds == (INF, INF, -INF)
    assert early_agreement(RECORDS, thresholds) == 1.0
    assert raised(RECORDS, thresholds, event(10, 100, 0.95)) == thresholds


def test_one_record_and_one_exit():
    one = Records(np.full((1, 2), 0.5, np.float32), np.array([[1, 2]], np.int32), None)
    assert early_agreement(one, (0.4, -INF)) == 0.0
    assert raised(one, (0.4, -INF), event(0, 9, 0.9)) == (INF, -INF)
    single = Records(np.full((1, 1), 0.5, np.float32), np.array([[1]], np.int32), None)
    assert early_agreement(single, (-INF,)) == 1.0
    assert raised(single, (-INF,), event(0, 9, 0.9)) == (-INF,)
    with pytest.raises(DataError, match="expected 2"):
        early_agreement(one, (0.5,))


def test_raised_thresholds_restore_the_agreement_where_the_records_tell_the_truth():
    """Records that were too good: a quarter more early answers are wrong in the field."""
    rng = np.random.default_rng(5)
    field = made_records(4000, seed=9, labelled=False)
    prediction = field.prediction.copy()
    spoil = (rng.random(prediction.shape) < 0.25) & (field.confidence < 0.9)
    prediction[spoil] = 2
    field = Records(field.confidence, prediction, None)
    thresholds: tuple[float, ...] = (0.6, 0.6, -INF)
    promised = early_agreement(RECORDS, thresholds) - 0.02
    before = early_agreement(field, thresholds)
    audit, rises = Audit(1.0, promised, window=500), 0
    for row in rng.integers(0, len(field), 20_000):
        at = next(k for k in range(3) if field.confidence[row, k] >= thresholds[k])
        agrees = field.prediction[row, at] == field.prediction[row, 2]
        found = audit.note(at < 2, bool(agrees))
        if found:
            thresholds, rises = raised(RECORDS, thresholds, found), rises + 1
    assert before < promised - 0.03
    assert rises >= 1
    assert early_agreement(field, thresholds) >= promised - 0.02
