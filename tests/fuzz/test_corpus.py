"""The corpus, and a few hundred mutations of it, through every target."""

from __future__ import annotations

import contextlib
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("h11")

from dvt_edge.errors import DataError
from fuzz.targets import CORPUS, TARGETS, Target, Wrong

SLOW = {"profile": 40, "training": 30, "safetensors": 30, "checkpoint": 60}
"""Mutations of targets that take milliseconds for each."""


class Hang(BaseException):
    """Nothing may take so long; no handler of errors takes it for one."""


@contextlib.contextmanager
def _watched(seconds: int = 10) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _mutated(data: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Bytes flipped, cut out, doubled, and replaced by parts of another input."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(changed) + 1), rng.randint(1, 8)
        kind = rng.randrange(5)
        if kind == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length] * rng.randint(1, 3)
        elif kind == 3:
            changed[at : at + length] = rng.choice([b"\0", b"\xff", b"-1", b"1e999", b"\n", b"{"])
        else:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            changed[at : at + length] = other[start : start + length]
    return bytes(changed)


@pytest.mark.filterwarnings("ignore")  # of libraries, about what they are given
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_corpus_and_mutations(target: Target, tmp_path: Path) -> None:
    """All of it is read, or refused by an error of the project's own."""
    check = target.open(tmp_path)
    inputs = [path.read_bytes() for path in target.seeds()]
    assert inputs
    rng = random.Random(0)
    mutations = [
        _mutated(rng.choice(inputs), inputs, rng) for _ in range(SLOW.get(target.name, 300))
    ]
    for data in [*inputs, b"", *mutations]:
        with _watched():
            check(data)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_corpus_is_small(target: Target) -> None:
    sizes = [path.stat().st_size for path in target.seeds()]
    assert 2 <= len(sizes) <= 20
    assert sum(sizes) < 64 << 10
    assert {path.name for path in CORPUS.iterdir()} == {t.name for t in TARGETS} | {"bundle"}


def test_findings_are_seen(tmp_path: Path) -> None:
    """Another error, an error of several lines, and a file of somebody else's."""

    def make(folder: Path) -> Callable[[bytes], None]:
        def check(data: bytes) -> None:
            if data == b"key":
                raise KeyError(data)
            if data == b"lines":
                raise DataError("one\ntwo")
            if data == b"line":
                raise DataError("one")
            (folder / "own").write_bytes(data)
            if data == b"outside":
                Path("/etc/hostname").open("rb").close()

        return check

    check = Target("made", make).open(tmp_path)
    check(b"line")
    check(b"fine")
    with pytest.raises(KeyError):
        check(b"key")
    for data in (b"lines", b"outside"):
        with pytest.raises(Wrong):
            check(data)
    with pytest.raises(Hang), _watched(1):
        time.sleep(20)
