"""The claims about the GPU runtime, each with what decides it, and how one is tried.

A claim is tried on one cascade on one backend, and holds, fails, or is not tried for a reason. On a
machine without a GPU the CPU backend stands in, to rehearse this code; that proves nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_trace
import numpy as np
from gpu_cascades import BATCH, BATCHES, CPU, ORT
from gpu_case import (
    Array,
    Case,
    Outcome,
    Values,
    change,
    judged,
    not_tried,
    read_tensor,
    spread,
    write_tensor,
)

from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.prediction import Prediction

LARGEST_ERROR = {"fp16": 0.03, "int8": 0.3}
"""Of logits, root mean square, as a share of how far images' logits are apart. About three times
what torch's own rounding gives against ONNX Runtime on a CPU: 0.007 in float16, and 0.14 in INT8,
where a rounding now and then ends at the next level. Another image's answer is 1.4 away."""
SAME_CLASS = {"fp16": 0.95, "int8": 0.8}
SAME_EXIT = {"fp16": 0.9, "int8": 0.8}
"""Least shares of images. Random weights leave confidences close together, so some lie within
rounding of the median, which decides on the exit."""
LEAST_SPREAD = 0.05
"""How far images' logits must be apart, as a share of the largest logit, where all images get one
class; below, any device agrees with any other."""
LEAST_CHANGE, MOST_UNCHANGED = 0.05, 0.005
"""By how much logits must change when a reused tensor is another image's, measured as
:data:`LARGEST_ERROR` is: on the CPU the least is 0.09. And by how much they may when it is written
back as it was: repeating a run changes nothing, unless sums end in another order."""
THREADS = 4
OPENINGS, WARMING_UP = 50, 3
"""The first openings load code that stays."""
MOST_LOST = 32 << 20
"""Bytes after all openings: an allocator's last blocks, but less than 1 MiB for each opening."""
PROFILED_FRAMES = 10


def engines(case: Case) -> Outcome:
    """The last stage ran, and gave finite numbers."""
    finite = all(bool(np.isfinite(logits).all()) for logits in case.run(1))
    return judged(finite, f"{case.backend.name} on {case.backend.gpu or 'the CPU'}")


def agreement(case: Case) -> Outcome:
    images, precision = case.prepared.images, case.precision
    rows = [Values() for _ in range(case.stages)]
    answers: list[list[tuple[Array, Array, Array]]] = [[] for _ in rows]
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        case.backend.image_buffer(len(part))[:] = part
        for k in range(case.stages):
            answer = case.backend.run_stage(k, len(part))
            confidence, class_id = answer.confidence.copy(), answer.class_id.copy()
            logits = case.backend.logits(k, len(part)).copy()
            answers[k].append((logits, confidence, class_id))
    good, telling = True, True
    for row, parts, outputs in zip(rows, answers, case.prepared.expected, strict=True):
        logits, confidence, class_id = (np.concatenate(a) for a in zip(*parts, strict=True))
        expected = outputs["logits"]
        median = float(np.median(outputs["confidence"]))
        leaves, left = (c >= median for c in (confidence, outputs["confidence"]))
        row["error"] = change(logits, expected)
        row["largest_difference"] = float(np.abs(logits - expected).max())
        row["largest_logit"] = float(np.abs(expected).max())
        row["spread"] = spread(expected)
        row["classes"] = len(np.unique(outputs["class_id"]))
        row["same_class"] = float((class_id == outputs["class_id"]).mean())
        row["same_exit"] = float((leaves == left).mean())
        apart = row["spread"] >= LEAST_SPREAD * row["largest_logit"]
        telling = telling and (row["classes"] > 1 or apart)
        good = (
            good
            and row["error"] <= LARGEST_ERROR[precision]
            and row["same_class"] >= SAME_CLASS[precision]
            and row["same_exit"] >= SAME_EXIT[precision]
        )
    text = "; ".join(
        f"error {row['error']:.2g}, class {row['same_class']:.3f}, exit {row['same_exit']:.3f}"
        for row in rows
    )
    if not telling:
        return Outcome("not tried", f"all images are answered alike, so that means nothing: {text}")
    return judged(good, text, stages=rows, images=len(images))


def reads(case: Case) -> Outcome:
    """Negative control: every tensor that a stage reuses is replaced by another image's."""
    base, count = case.run(), case.count
    changes: dict[str, float] = {}
    same = 0.0
    for k in range(1, case.stages):
        for tensor in case.prepared.specs[k].inputs:
            if tensor.name == "image":
                continue
            for shift in (0, 1):
                for before in range(k):
                    case.backend.run_stage(before, count)
                values = read_tensor(case.backend, k - 1, tensor, count)
                write_tensor(case.backend, k - 1, tensor, np.roll(values, shift, axis=0))
                found = change(case.logits_of(k, count), base[k])
                if shift:
                    changes[f"stage {k + 1} {tensor.name}"] = found
                else:  # nothing was changed, only read and written
                    same = max(same, found)
    least = min(changes, key=changes.__getitem__)
    detail = f"least: {least}, {changes[least]:.2g}; written back unchanged: {same:.2g}"
    good = changes[least] >= LEAST_CHANGE and same <= MOST_UNCHANGED
    return judged(good, detail, changes=changes, unchanged=same)


def captured(case: Case) -> Outcome:
    if not isinstance(case.backend, DeviceBackend):
        return not_tried("no CUDA graphs on a CPU")
    if case.backend_name == ORT:
        return not_tried("ONNX Runtime's work is enqueued, not captured")
    missing = []
    for batch in BATCHES:
        case.run(batch)
        missing += [
            f"stage {k + 1} at batch {batch}"
            for k in range(case.stages)
            if not case.backend.captured(k, batch)
        ]
    every = f"{case.stages} stages at batches {', '.join(map(str, BATCHES))}"
    return judged(not missing, f"without a graph: {', '.join(missing)}" if missing else every)


def resident(case: Case) -> Outcome:
    reason = gpu_trace.unavailable()
    if reason:
        return not_tried(reason)
    backend = case.backend
    assert isinstance(backend, DeviceBackend)
    images = case.prepared.images[:PROFILED_FRAMES]

    def frames() -> None:
        for image in images:
            backend.image_buffer(1)[0] = image
            for k in range(case.stages):
                backend.run_stage(k, 1)

    gpu_trace.profiled(frames)  # bound, captured and warmed up, and so is the profiler
    crossed = gpu_trace.profiled(frames)
    control = gpu_trace.profiled(lambda: _discard(backend.logits(case.stages - 1, 1)))
    return judge_crossed(
        crossed,
        control,
        sent=0 if backend.device.integrated else images.nbytes,
        downloaded=case.prepared.expected[-1]["logits"][:1].nbytes,
    )


def _discard(value: object) -> None:
    """Nothing."""


def judge_crossed(
    crossed: gpu_trace.Crossed, control: gpu_trace.Crossed, sent: int, downloaded: int
) -> Outcome:
    """``sent`` is what the frames' images are together; ``control`` recorded one download of
    ``downloaded`` bytes, which a profiler that can be believed must have seen."""
    if control.bytes["DtoH"] != downloaded or not crossed.saw_the_gpu:
        seen = control.bytes["DtoH"]
        return not_tried(f"the profiler saw {seen} of {downloaded} bytes in a control download")
    good = crossed.bytes["HtoD"] == sent and crossed.bytes["DtoH"] == 0
    others = {name: size for name, size in crossed.bytes.items() if size}
    return judged(good, f"{others} for images of {sent} B together", **crossed.bytes)


def survivors(case: Case) -> Outcome:
    """Two thirds of the frames leave after each stage."""
    expected = [outputs["logits"] for outputs in case.prepared.expected]
    case.run()
    waiting = np.arange(case.count)
    errors = []
    for k in range(1, case.stages):
        rows = np.arange(1, len(waiting), 3)
        case.backend.keep_rows(k - 1, rows)
        waiting = waiting[rows]
        found = case.logits_of(k, len(waiting))
        apart = max(spread(expected[k][: case.count]), 1e-12)
        errors.append(float(np.sqrt(((found - expected[k][waiting]) ** 2).mean())) / apart)
    text = ", ".join(f"{error:.2g}" for error in errors)
    return judged(max(errors) <= LARGEST_ERROR[case.precision], f"error {text}", errors=errors)


def threads(case: Case) -> Outcome:
    with case.runtime() as runtime:
        frames = list(case.prepared.frames[: case.count])
        alone = [_said(runtime.classify(frame)) for frame in frames]

        def work(start: int) -> bool:
            order = [(start + i) % len(frames) for i in range(len(frames))]
            return all(_said(runtime.classify(frames[i])) == alone[i] for i in order)

        with ThreadPoolExecutor(THREADS) as pool:
            same = list(pool.map(work, range(2 * THREADS)))
    distinct = len(set(alone))
    detail = f"{THREADS} threads, {distinct} different answers to {len(frames)} frames"
    if distinct < 2:
        return not_tried(f"all frames are answered alike: {detail}")
    return judged(all(same), detail)


def _said(answer: Prediction) -> tuple[Any, ...]:
    return answer.exit_stage, answer.class_id, answer.confidences


def preprocessed(case: Case) -> Outcome:
    """Frames become images on the device: the same pixels, so the same answers."""
    return _variant(case, preprocess=True)


def conditional(case: Case) -> Outcome:
    """The whole cascade as one graph."""
    return _variant(case, graph="conditional")


def _variant(case: Case, **how: Any) -> Outcome:
    if case.backend_name == CPU:
        return not_tried("a GPU's alone")
    frames = list(case.prepared.frames[: case.count])
    with case.runtime() as runtime:
        expected = [_said(runtime.classify(frame)) for frame in frames]
    try:
        with case.runtime(**how) as runtime:
            backend = runtime.backend
            assert isinstance(backend, DeviceBackend)
            for frame in frames[:4]:  # both slots are warmed up
                runtime.classify(frame)
            before = backend.device.transfers.to_device
            found = [_said(runtime.classify(frame)) for frame in frames]
            sent = backend.device.transfers.to_device - before
            used = backend.run_whole is not None
            if "preprocess" in how:  # what goes up is then the frame
                size = 0 if backend.device.integrated else sum(frame.nbytes for frame in frames)
                used = backend.take_frame is not None and sent == size
    except BackendError as error:
        return not_tried(f"refused: {error}")
    same = sum(a == b for a, b in zip(found, expected, strict=True))
    if not used:
        return judged(False, "the host did it")
    exits = len({answer[0] for answer in expected})
    detail = f"{same} of {len(frames)} frames answered alike, {exits} exits used"
    return judged(same == len(frames), detail)


def openings(case: Case) -> Outcome:
    with _memory(case) as available:

        def once() -> None:
            backend = case.open()
            try:
                backend.image_buffer(1)[:] = case.prepared.images[:1]
                for k in range(case.stages):
                    backend.run_stage(k, 1)
            finally:
                backend.close()

        for _ in range(WARMING_UP):
            once()
        gc.collect()
        before = available()
        for _ in range(OPENINGS):
            once()
        gc.collect()
        lost = before - available()
    detail = f"{lost / (1 << 20):.1f} MiB less after {OPENINGS} openings"
    return judged(lost <= MOST_LOST, detail, lost_bytes=lost)


@contextmanager
def _memory(case: Case) -> Iterator[Callable[[], int]]:
    """A function giving the free bytes: of the device, or in a rehearsal of this process."""
    if case.backend_name == CPU:
        yield lambda: -4096 * int(Path("/proc/self/statm").read_text().split()[1])
        return
    device = CudaDevice()
    try:

        def free() -> int:
            import pycuda.driver as cuda

            with device.current():
                return int(cuda.mem_get_info()[0])

        yield free
    finally:
        device.close()


@dataclass(frozen=True)
class Claim:
    """One line of the table in ``docs/gpu.md``."""

    name: str
    statement: str
    threshold: str
    attempt: Callable[[Case], Outcome] | None = None
    """None where it is not about a cascade."""
    backends: tuple[str, ...] = ()
    """Those that it is about; all if empty."""
    models: tuple[str, ...] = ()
    """As ``backends``."""

    def concerns(self, backend: str, model: str) -> bool:
        return (
            self.attempt is not None
            and (not self.backends or backend in self.backends)
            and (not self.models or model in self.models)
        )


def _percent(shares: dict[str, float]) -> str:
    return " and ".join(f"{100 * share:g} % ({kind})" for kind, share in shares.items())


CLAIMS = (
    Claim(
        "engines",
        "TensorRT or TensorRT-RTX builds engines here, and they run",
        "finite logits at every exit",
        engines,
        ("tensorrt", "tensorrt_rtx"),
    ),
    Claim(
        "provider",
        "ONNX Runtime's CUDA provider runs on the backend's memory and stream",
        "finite logits at every exit",
        engines,
        (ORT,),
    ),
    Claim(
        "agreement",
        "Every stage answers real scenes as the CPU does",
        f"logits within {_percent(LARGEST_ERROR)} of how far images are apart; same class for "
        f"{_percent(SAME_CLASS)}, same exit at the median threshold for {_percent(SAME_EXIT)}",
        agreement,
    ),
    Claim(
        "reads",
        "A stage reads what the one before wrote, each reused tensor of it",
        f"with another image's tensor, logits change by at least {100 * LEAST_CHANGE:g} % of how "
        "far images are apart",
        reads,
    ),
    Claim(
        "captured",
        "Every stage runs as a CUDA graph, at every batch size",
        "all of them",
        captured,
    ),
    Claim(
        "resident",
        "Of a frame only its image crosses, and answers are written in place",
        "bytes copied to the GPU are the image's (none where memory is shared), to the host 0, by "
        "CUPTI",
        resident,
    ),
    Claim(
        "survivors",
        "Frames that go on are answered as if alone",
        f"logits within {_percent(LARGEST_ERROR)} of how far images are apart",
        survivors,
    ),
    Claim(
        "threads",
        "Threads that share a Runtime get the answers of one thread",
        f"exactly, {THREADS} threads",
        threads,
    ),
    Claim(
        "preprocess",
        "Frames become images on the GPU as they do on the host",
        "the same answers exactly",
        preprocessed,
    ),
    Claim(
        "conditional",
        "The cascade as one graph answers as its stages do",
        "the same answers exactly",
        conditional,
    ),
    Claim(
        "openings",
        "Closing gives all memory back",
        f"at most {MOST_LOST >> 20} MiB less after {OPENINGS} openings",
        openings,
        models=("demo",),
    ),
    Claim("kernels", "The kernels compute what their CPU twins do", "bit by bit"),
    Claim("sanitizer", "The kernels touch no memory but their own", "compute-sanitizer: 0 errors"),
)
"""In the order in which they are tried."""
