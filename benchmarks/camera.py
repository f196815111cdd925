"""How old frames are, what a source costs, and how it stands faults.

    python benchmarks/camera.py [--seconds 30] [--faults 300] [--frames 20000] [--out FILE]

Three parts, all on loopback: 1920x1080 H.264 at 30 fps from a file that is played at its pace and
over RTSP (where GStreamer's server is installed), and MJPEG over HTTP; injected faults (cut,
refused, stalled, corrupted, slow connections) in a stream of 320x240; memory and descriptors over
many frames. Pictures are stamped with when they were made, so ages are measured from outside.
Prints tables with the machine; ``--out`` writes JSON.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import av
import numpy as np
from camera_servers import Fault, MjpegServer, Proxy, RtspServer, rtsp_server_lacks, scene
from rich.console import Console
from rich.table import Table

from dvt_edge.camera import CapturedFrame, Source, open_source
from dvt_edge.camera.stamp import read_stamp, write_stamp
from dvt_edge.machine.board import available_cores, processor_name

SIZE, FPS = (1920, 1080), 30
CLIP_S = 4
FAULTS: tuple[Fault, ...] = ("cut", "refuse", "stall", "corrupt", "slow")
STALL_S = 1.0
OLD_MS = 200.0
"""A picture counts as given as new if it is older than it says by more than this."""


def main() -> None:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--seconds", type=float, default=30.0, help="per stream of part 1")
    arguments.add_argument("--faults", type=int, default=300, help="over all kinds of streams")
    arguments.add_argument("--frames", type=int, default=20_000, help="of part 3")
    arguments.add_argument("--out", type=Path, help="JSON file")
    given = arguments.parse_args()
    machine = {
        "processor": processor_name(),
        "architecture": platform.machine(),
        "cores": available_cores(),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "av": av.__version__,
        "command": " ".join(["python", *sys.argv]),
    }
    console = Console()
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()))
    lacking = rtsp_server_lacks()
    if lacking:
        console.print(f"no RTSP: {lacking}")
    streams = [asdict(row) for row in _streams(given.seconds, not lacking)]
    _show(console, f"{SIZE[0]}x{SIZE[1]} at {FPS} fps, {given.seconds:g} s each", streams)
    faults = _faults(given.faults, not lacking)
    _show(console, f"{given.faults} faults, stall_s {STALL_S:g}", faults)
    leaks = _leaks(given.frames)
    _show(console, f"{given.frames} frames of 640x480", [leaks])
    if given.out:
        values = {"machine": machine, "streams": streams, "faults": faults, "leaks": leaks}
        given.out.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _show(console: Console, title: str, rows: list[dict[str, Any]]) -> None:
    """A column per row: there are more figures than streams."""
    table = Table(title=title, show_header=False)
    for name in rows[0]:
        cells = (row[name] for row in rows)
        shown = (f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in cells)
        table.add_row(name.replace("_", " "), *shown)
    console.print(table)


@dataclass
class Stream:
    """One stream, watched by somebody who takes every frame at once."""

    source: str
    frames: int
    dropped: int
    late: int
    """Of those dropped, how many lay in buffers when the stream was opened."""
    says_ms_p50: float
    """``age_ms`` when the frame is handed over."""
    says_ms_p99: float
    is_ms_p50: float | None
    """By the stamp; the time to encode counts. None for a file, whose pictures are never made."""
    is_ms_p99: float | None
    hidden_ms_max: float | None
    """Longest by which a picture was older than it said."""
    cpu_decoder: float
    """Share of one core: the decoder's process."""
    cpu_user: float
    """Of the process that takes frames."""
    copies_decoder: float
    """Of a picture's pixels per frame, after its conversion to BGR; by construction."""
    copies_user: float
    """Measured: how many frames' pixels are not those that the decoder's process wrote."""
    rss_decoder_mb: float


def _streams(seconds: float, rtsp: bool) -> Iterator[Stream]:
    with tempfile.TemporaryDirectory() as folder:
        clip = _clip(Path(folder) / "clip.mp4")
        yield _watched("file, H.264", f"{clip}?loop=1", seconds, stamped=False)
    if rtsp:
        with RtspServer(FPS, SIZE) as server:
            yield _watched("RTSP, H.264", server.uri, seconds)
    with _mjpeg_process() as uri:
        yield _watched("HTTP, MJPEG", uri, seconds)


def _watched(name: str, uri: str, seconds: float, stamped: bool = True) -> Stream:
    says, real, hidden = [], [], []
    copies = 0
    with open_source(uri) as source:
        decoder = _decoder(source)
        next(source)
        begun = _cpu_s(decoder), _cpu_s(os.getpid()), time.monotonic()
        for frame in source:
            now = time.monotonic()
            says.append(1e3 * (now - frame.captured_at))
            copies += _is_copied(frame)
            stamp = read_stamp(frame.pixels) if stamped else None
            if stamp is not None:
                real.append(1e3 * (now - stamp.at))
                hidden.append(1e3 * (frame.captured_at - stamp.at))
            if now - begun[2] > seconds:
                break
        spent_s = time.monotonic() - begun[2]
        shares = [
            (after - before) / spent_s
            for before, after in zip(begun, (_cpu_s(decoder), _cpu_s(os.getpid())), strict=False)
        ]
        rss_mb = _rss_mb(decoder)
        counts = source.counts
    return Stream(
        name,
        len(says),
        counts.received - counts.given - counts.unread,
        counts.late,
        _quantile(says, 50),
        _quantile(says, 99),
        _quantile(real, 50) if real else None,
        _quantile(real, 99) if real else None,
        max(hidden) if hidden else None,
        shares[0],
        shares[1],
        1.0,
        copies / len(says),
        rss_mb,
    )


def _is_copied(frame: CapturedFrame) -> bool:
    """Whether the pixels are memory of their own instead of the decoder's."""
    base: Any = frame.pixels
    while isinstance(base, np.ndarray) and base.base is not None:
        base = base.base
    return isinstance(base, np.ndarray)


@dataclass
class Faults:
    """What faults of one kind did to streams of one kind."""

    source: str
    fault: str
    count: int = 0
    disconnects: int = 0
    back_s: list[float] = field(default_factory=list)
    """From the end of the fault to the first frame made after it."""
    hidden_ms: float = 0.0
    given_as_new: int = 0
    """Pictures older than they said by more than :data:`OLD_MS`."""
    oldest_says_ms: float = 0.0
    """The oldest ``age_ms`` of a frame given: old and said to be."""

    def values(self) -> dict[str, Any]:
        return {
            "source": self.source,
            "fault": self.fault,
            "count": self.count,
            "disconnects": self.disconnects,
            "back_s_p50": _quantile(self.back_s, 50),
            "back_s_p99": _quantile(self.back_s, 99),
            "back_s_max": max(self.back_s, default=0.0),
            "hidden_ms_max": self.hidden_ms,
            "given_as_new": self.given_as_new,
            "oldest_says_ms": self.oldest_says_ms,
        }


def _faults(count: int, rtsp: bool) -> list[dict[str, Any]]:
    """Both kinds of streams at the same time, for most of it is waiting."""
    kinds = ["MJPEG", "RTSP"] if rtsp else ["MJPEG"]

    def of(kind: str) -> list[dict[str, Any]]:
        tallies = {fault: Faults(kind, fault) for fault in FAULTS}
        server: MjpegServer | RtspServer = MjpegServer() if kind == "MJPEG" else RtspServer()
        with server, Proxy(server.port) as proxy:
            uri = server.uri.replace(str(server.port), str(proxy.port))
            _inject(uri, proxy, tallies, count // len(kinds))
        return [tally.values() for tally in tallies.values()]

    with ThreadPoolExecutor(len(kinds)) as pool:
        return [row for rows in pool.map(of, kinds) for row in rows]


def _inject(uri: str, proxy: Proxy, tallies: dict[Fault, Faults], count: int) -> None:
    chance = random.Random(0)
    events: list[str] = []
    last_seq = -1
    with open_source(uri, stall_s=STALL_S, on_event=lambda e: events.append(e.kind)) as source:
        for fault in itertools.islice(itertools.cycle(FAULTS), count):
            tally = tallies[fault]
            events.clear()
            for _ in range(10):
                last_seq = _looked_at(next(source), last_seq, tally)
            mended: list[float] = []
            proxy.set(fault)
            timer = threading.Timer(chance.uniform(0.1, 3.0), _mend, (proxy, mended))
            timer.start()
            for frame in source:
                # Wrong bytes may spell a wrong stamp.
                last_seq = _looked_at(frame, last_seq, None if fault == "corrupt" else tally)
                stamp = read_stamp(frame.pixels)
                if mended and stamp is not None and stamp.at > mended[0]:
                    break
            tally.back_s.append(time.monotonic() - mended[0])
            tally.count += 1
            tally.disconnects += events.count("disconnected")
    counts = source.counts
    fates = ("given", "superseded", "late", "held", "damaged", "unread")
    assert counts.received == sum(getattr(counts, fate) for fate in fates)


def _mend(proxy: Proxy, mended: list[float]) -> None:
    proxy.set("none")
    mended.append(time.monotonic())


def _looked_at(frame: CapturedFrame, last_seq: int, tally: Faults | None) -> int:
    says_ms, stamp = frame.age_ms, read_stamp(frame.pixels)
    assert frame.seq - last_seq - 1 == frame.dropped_before
    if tally is not None and stamp is not None:
        hidden_ms = 1e3 * (frame.captured_at - stamp.at)
        tally.hidden_ms = max(tally.hidden_ms, hidden_ms)
        tally.given_as_new += hidden_ms > OLD_MS
        tally.oldest_says_ms = max(tally.oldest_says_ms, says_ms)
    return frame.seq


def _leaks(frames: int) -> dict[str, Any]:
    with open_source("test://?size=640x480&fps=1000") as source:
        decoder = _decoder(source)
        for _ in range(min(500, frames)):
            next(source)
        before = _state(decoder)
        for _ in range(frames):
            next(source)
        after = _state(decoder)
    opened = _state(os.getpid())
    for _ in range(10):
        with open_source("test://?size=640x480") as again:
            next(again)
    reopened = _state(os.getpid())
    return {
        "user_rss_mb": f"{before['user_rss_mb']:.1f} -> {after['user_rss_mb']:.1f}",
        "user_descriptors": f"{before['user_fds']} -> {after['user_fds']}",
        "decoder_rss_mb": f"{before['rss_mb']:.1f} -> {after['rss_mb']:.1f}",
        "decoder_descriptors": f"{before['fds']} -> {after['fds']}",
        "user_rss_mb_10_openings": f"{opened['rss_mb']:.1f} -> {reopened['rss_mb']:.1f}",
        "user_descriptors_10_openings": f"{opened['fds']} -> {reopened['fds']}",
    }


def _state(pid: int) -> dict[str, float]:
    return {
        "rss_mb": _rss_mb(pid),
        "fds": len(os.listdir(f"/proc/{pid}/fd")),
        "user_rss_mb": _rss_mb(os.getpid()),
        "user_fds": len(os.listdir("/proc/self/fd")),
    }


def _decoder(source: Source) -> int:
    """The process that decodes."""
    link = source._link
    assert link is not None
    return link.pid


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _quantile(values: list[float], percent: float) -> float:
    return float(np.percentile(values, percent)) if values else 0.0


def _clip(path: Path) -> Path:
    """As a camera's encoder makes it: no reordering, a key frame each second."""
    moving = scene(SIZE[0] + 64, SIZE[1] + 64)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.options = {"preset": "veryfast", "bf": "0", "g": str(FPS), "b": "8M"}
        for number in range(CLIP_S * FPS):
            at = number % 64
            picture = moving[at : at + SIZE[1], at : at + SIZE[0]].copy()
            write_stamp(picture, number, number / FPS)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@contextmanager
def _mjpeg_process() -> Iterator[str]:
    """A server whose work does not count as that of the one who takes frames."""
    size = "{}x{}".format(*SIZE)
    command = [sys.executable, str(Path(__file__).with_name("camera_servers.py")), size]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.kill()


if __name__ == "__main__":
    main()
