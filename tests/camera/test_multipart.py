"""When MJPEG pictures were captured, told from when their bytes come; the clock is played."""

from __future__ import annotations

import time

import pytest

from dvt_edge.camera.causes import Cause, ReadingError
from dvt_edge.camera.readers.multipart import Multipart


class Network:
    """Chunks of bytes, each with the time that it takes to come; the clock stands meanwhile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        self.stream = Multipart(self)

    def read1(self, size: int) -> bytes:
        wait_s, length = self.chunk
        self.now += wait_s
        return bytes(length)

    def picture(self, *chunks: tuple[float, int]) -> float:
        """Age in seconds of a picture that comes like this."""
        for self.chunk in chunks:
            self.stream.read(65536)
        return self.now - self.stream.captured_at()


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> Network:
    return Network(monkeypatch)


def test_a_network_that_keeps_up(network: Network) -> None:
    """The age is what it takes to come, the end of the last part notwithstanding."""
    for _ in range(10):
        age_s = network.picture((0.0, 2), (0.033, 30_000), (0.001, 60_000), (0.001, 20_000))
        assert age_s == pytest.approx(0.002)


def test_a_large_picture_takes_long(network: Network) -> None:
    """That is its age, and no sign of older ones in a buffer."""
    for _ in range(10):
        age_s = network.picture((0.02, 30_000), *[(0.008, 30_000)] * 9)
        assert age_s == pytest.approx(0.072)


def test_a_network_that_is_too_slow(network: Network) -> None:
    """Pictures get older, by what they come later than they are made."""
    for _ in range(20):
        network.picture((0.1, 30_000), (0.0, 30_000))
    ages = [network.picture(*[(0.1, 4_000)] * 5) for _ in range(10)]
    assert ages[-1] == pytest.approx(ages[0] + 9 * 0.4, abs=0.5)
    network.picture((0.1, 30_000), (0.0, 30_000))  # this one may have waited
    assert network.picture((0.1, 30_000), (0.0, 30_000)) < 0.001  # and then all is well again


def test_too_slow_from_the_start(network: Network) -> None:
    ages = [network.picture(*[(0.1, 4_000)] * 5) for _ in range(10)]
    assert ages == sorted(ages)
    assert ages[-1] > 3


def test_a_stop(network: Network) -> None:
    """What comes first after it was made before, and so was what comes with it."""
    for _ in range(20):
        network.picture((0.033, 30_000), (0.0, 30_000))
    assert network.picture((0.8, 30_000), (0.0, 30_000)) == pytest.approx(0.8 - 0.033)
    assert network.picture((0.0, 30_000), (0.0, 30_000)) == pytest.approx(0.8 - 2 * 0.033)
    assert network.picture((0.033, 30_000), (0.0, 30_000)) < 0.001


def test_a_camera_that_gets_slow(network: Network) -> None:
    """At night it exposes for longer; that is no hold-up, which shows after some pictures."""
    for _ in range(20):
        network.picture((0.033, 30_000), (0.0, 30_000))
    ages = [network.picture((0.5, 30_000), (0.0, 30_000)) for _ in range(20)]
    assert max(ages) < 0.5
    assert max(ages[10:]) < 0.001


@pytest.mark.parametrize(
    ("error", "cause"),
    [(TimeoutError(), Cause.STALLED), (ConnectionResetError(), Cause.ENDED)],
)
def test_a_connection_that_fails(
    network: Network, monkeypatch: pytest.MonkeyPatch, error: OSError, cause: Cause
) -> None:
    def fail(size: int) -> bytes:
        raise error

    monkeypatch.setattr(network, "read1", fail)
    with pytest.raises(ReadingError) as caught:
        network.stream.read(10)
    assert caught.value.cause is cause
