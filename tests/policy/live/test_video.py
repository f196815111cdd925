from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
import pytest

from dvt_edge.errors import FrameError
from dvt_edge.policy.live import video as video_policy
from dvt_edge.policy.live.video import VideoPolicy, thumbnail

INF, NAN = float("inf"), float("nan")
COSTS = (1.5, 3.0, 6.0)
FRAME_MS, LOOK_MS = 33.0, 0.1


class World:
    """A picture of six coloured patches; what lies in the middle of the view is the class.

    Near a border between two patches the cascade needs its later exits, and answers flicker.
    """

    def __init__(self, seed):
        rng = np.random.default_rng(seed)
        centres, colours = rng.random((6, 2)) * 300, rng.integers(30, 226, (6, 3))
        at = np.stack(np.meshgrid(np.arange(300), np.arange(300), indexing="ij"), -1)
        distance = np.sqrt(((at[:, :, None] - centres) ** 2).sum(-1))
        two = np.sort(distance, axis=2)[:, :, :2]
        self.classes, self.margin = distance.argmin(axis=2), two[:, :, 1] - two[:, :, 0]
        texture = rng.normal(0, 12, (300, 300, 1))
        self.picture = np.clip(colours[self.classes] + texture, 0, 255)

    def view(self, y, x, rng):
        noise = rng.normal(0, 2, (96, 96, 3))
        frame = np.clip(self.picture[y : y + 96, x : x + 96] + noise, 0, 255).astype(np.uint8)
        margin = self.margin[y + 48, x + 48] + rng.normal(0, 1)
        return frame, int(self.classes[y + 48, x + 48]), 1 + (margin < 25) + (margin < 8)


made_world = cache(World)


def video(seed, count, still=0.8):
    """Pans with pauses, and a cut to another picture about every 150 frames."""
    rng = np.random.default_rng(seed)
    worlds = [made_world(s) for s in range(4)]
    world, place, speed = worlds[0], rng.integers(0, 204, 2), np.zeros(2, int)
    for _ in range(count):
        if rng.random() < 1 / 150:
            world, place = worlds[rng.integers(4)], rng.integers(0, 204, 2)
        if rng.random() < 1 / 25:
            speed = np.zeros(2, int) if rng.random() < still else rng.integers(-4, 5, 2)
        place = np.clip(place + speed, 0, 203)
        yield world.view(place[0], place[1], rng)


@dataclass
class Seen:
    """What the policy did."""

    kept: list[bool] = field(default_factory=list)
    wrong: list[bool] = field(default_factory=list)
    cost: float = 0.0
    plain: float = 0.0
    stale: int = 0


def show(policy, frames):
    """Times are made, at 30 frames a second."""
    seen = Seen()
    answer, stale = None, 0
    for t, (frame, class_id, exit_stage) in enumerate(frames):
        look = thumbnail(frame) if policy.wants_thumbnail else None
        reason = policy.keep(look, t * FRAME_MS, LOOK_MS)
        seen.cost += LOOK_MS * (look is not None)
        seen.plain += COSTS[exit_stage - 1]
        seen.kept.append(reason is not None)
        if reason is not None:
            stale += 1
            seen.wrong.append(answer != class_id)
        else:
            stale, answer = 0, class_id
            seen.cost += COSTS[exit_stage - 1]
            policy.observe(class_id, exit_stage, COSTS[exit_stage - 1])
        seen.stale = max(seen.stale, stale)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_pans_pauses_and_cuts(seed):
    policy = VideoPolicy(COSTS)
    seen = show(policy, video(seed, 4000))
    kept = np.array(seen.kept)
    assert kept[1000:].mean() > 0.3
    assert np.mean(seen.wrong) <= video_policy.TOLERATED
    assert seen.cost < 0.8 * seen.plain
    assert 1 <= seen.stale <= video_policy.MAX_STALE_FRAMES
    assert not kept[:100].any()  # nothing before it is learned


@pytest.mark.slow
def test_a_scene_that_never_rests_keeps_nothing_and_stops_looking():
    policy = VideoPolicy(COSTS)
    rng, worlds = np.random.default_rng(0), [made_world(s) for s in range(3)]
    frames = (worlds[i].view(*rng.integers(0, 204, 2), rng) for i in rng.integers(0, 3, 5000))
    looks = []

    def watched():
        for frame in frames:
            looks.append(policy.wants_thumbnail)
            yield frame

    seen = show(policy, watched())
    assert not any(seen.kept)
    assert np.mean(looks) < 0.7
    assert not looks[-1]


def test_nothing_is_kept_where_looking_costs_more_than_running():
    policy = VideoPolicy(COSTS)
    still, _, _ = made_world(0).view(50, 50, np.random.default_rng(0))
    for t in range(1500):
        assert policy.keep(thumbnail(still), t * FRAME_MS, 100.0) is None
        policy.observe(3, 1, 1.5)


def still_stream(policy, count, ms=FRAME_MS, every=1):
    look = np.full((24, 24), 90, np.float32)
    for t in range(count):
        reason = policy.keep(look, t * ms, LOOK_MS)
        yield reason is not None
        if reason is None:
            policy.observe(3, 1, 1.5)


@pytest.mark.parametrize(
    ("frames", "ms", "longest"), [(4, INF, 4), (1, INF, 1), (100, 100.0, 3), (100, 10.0, 0)]
)
def test_staleness_is_bounded_in_frames_and_milliseconds(monkeypatch, frames, ms, longest):
    monkeypatch.setattr(video_policy, "MAX_STALE_FRAMES", frames)
    monkeypatch.setattr(video_policy, "MAX_STALE_MS", ms)
    policy = VideoPolicy(COSTS)
    run, found = 0, 0
    for kept in still_stream(policy, 2000):
        run = run + 1 if kept else 0
        found = max(found, run)
    assert found == longest


@pytest.mark.parametrize("clock", [lambda t: -t, lambda t: NAN, lambda t: 0.0 if t % 2 else 1e9])
def test_a_clock_that_is_none_keeps_nothing(clock):
    policy = VideoPolicy(COSTS)
    look = np.full((24, 24), 90, np.float32)
    for t in range(1000):
        assert policy.keep(look, clock(t), LOOK_MS) is None
        policy.observe(3, 1, 1.5)


def test_an_interruption_a_cut_and_a_blind_frame_are_not_kept():
    policy = VideoPolicy(COSTS)
    look = np.full((24, 24), 90, np.float32)
    list(still_stream(policy, 1500))
    now = 1500 * FRAME_MS
    assert policy.keep(look + 200, now) is None
    policy.observe(1, 1, 1.5)
    assert policy.keep(look, now) is None  # back from a cut
    policy.observe(3, 1, 1.5)
    assert policy.keep(look + 0.01, now)
    assert policy.keep(None, now) is None
    assert policy.keep(look * NAN, now) is None
    policy.reset()
    assert policy.keep(look, now) is None


def test_answers_that_change_on_still_frames_are_not_kept():
    """Another answer in every 20th frame, 5 %, where 2 % are tolerated."""
    policy = VideoPolicy(COSTS)
    look = np.full((24, 24), 90, np.float32)
    for t in range(3000):
        assert policy.keep(look, t * FRAME_MS, LOOK_MS) is None
        policy.observe(int(t % 40 == 0), 1, 1.5)


@pytest.mark.parametrize("period", [2, 5, 8, 13])
def test_checks_are_not_in_step_with_the_scene(period):
    """After a calm stretch the class is another in all but one of ``period`` frames."""
    policy = VideoPolicy(COSTS)
    list(still_stream(policy, 1500))
    look, answer, wrong = np.full((24, 24), 90, np.float32), 3, []
    for t in range(6000):
        truth = 3 if t % period == 0 else 4
        if policy.keep(look, (1500 + t) * FRAME_MS, LOOK_MS) is None:
            answer = truth
            policy.observe(truth, 1, 1.5)
        wrong.append(answer != truth)
    assert np.mean(wrong[1000:]) <= video_policy.TOLERATED


@pytest.mark.parametrize(
    "shape", [(1, 1), (7, 500), (480, 640), (480, 640, 1), (480, 640, 3), (30, 20, 3)]
)
def test_thumbnails(shape):
    look = thumbnail(np.full(shape, 77, np.uint8))
    assert look.shape == (24, 24)
    assert look.dtype == np.float32
    assert look == pytest.approx(77)


def test_thumbnails_keep_the_place_and_not_the_order_of_colours():
    frame = np.zeros((96, 96, 3), np.uint8)
    frame[:48, :, 0], frame[:, 48:, 2] = 100, 40
    look = thumbnail(frame)
    assert (look[0, 0], look[0, -1], look[-1, 0], look[-1, -1]) == (25, 35, 0, 10)
    assert (thumbnail(frame[:, :, ::-1]) == look).all()


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((5, 5)),
        np.zeros((5, 5, 4), np.uint8),
        np.zeros(5, np.uint8),
        np.zeros((0, 5), np.uint8),
    ],
)
def test_frames_that_are_none(frame):
    with pytest.raises(FrameError, match=r"\[H, W\]|pixel"):
        thumbnail(frame)


def test_a_single_exit_and_bad_latencies():
    policy = VideoPolicy([1.0])
    for latency in (NAN, INF, -1.0, 0.0) * 50:
        assert policy.keep(None, 0.0) is None
        policy.observe(0, 1, latency)
