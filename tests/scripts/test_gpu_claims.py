"""Each claim of the GPU proof holds for the demo on host memory, and fails when something is
broken: a proof that cannot fail proves nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import gpu_claims
import numpy as np
import pytest
from gpu_cascades import CPU, Prepared, opener
from gpu_case import Case

from dvt_edge.errors import BackendError
from dvt_edge.runtime.backends.gpu_backend import DeviceBackend
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.runtime import Runtime
from tests.runtime.backends.conftest import HostDevice, OrtEngine

Open = Callable[..., DeviceBackend]


@pytest.mark.parametrize(
    "claim", ["engines", "agreement", "reads", "captured", "survivors", "threads"]
)
def test_a_claim_holds(case: Case, claim: str) -> None:
    outcome = next(c for c in gpu_claims.CLAIMS if c.name == claim).attempt(case)  # type: ignore[misc]
    assert outcome.state == "holds", outcome.detail


def test_a_claim_holds_on_the_cpu(prepared: Prepared) -> None:
    """What a rehearsal does."""
    open_it = opener(CPU, prepared)
    case = Case(CPU, "fp16", prepared, open_it, open_it())
    assert gpu_claims.reads(case).state == "holds"
    assert gpu_claims.survivors(case).state == "holds"
    for attempt in (gpu_claims.captured, gpu_claims.conditional, gpu_claims.preprocessed):
        assert attempt(case).state == "not tried"


def test_agreement_fails_beyond_the_tolerance(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gpu_claims.LARGEST_ERROR, "fp16", -1.0)
    assert gpu_claims.agreement(case).state == "fails"


@pytest.mark.parametrize("what", ["logits", "class_id", "confidence"])
def test_agreement_fails_where_the_cpu_says_something_else(
    case: Case, prepared: Prepared, what: str
) -> None:
    """In the last stage alone."""
    *others, last = prepared.expected
    wrong = (*others, {**last, what: np.roll(last[what], 1, axis=0)})
    assert gpu_claims.agreement(
        replace(case, prepared=replace(prepared, expected=wrong))
    ).state == ("fails")


def test_agreement_on_one_image_means_nothing(case: Case, prepared: Prepared) -> None:
    """Many times the same scene."""
    images = prepared.images[[0] * 8]
    expected = tuple(
        {name: values[[0] * 8] for name, values in outputs.items()} for outputs in prepared.expected
    )
    case = replace(case, prepared=replace(prepared, images=images, expected=expected))
    outcome = gpu_claims.agreement(case)
    assert outcome.state == "not tried"
    assert "means nothing" in outcome.detail


class _Forgetful(OrtEngine):
    """Reads one reused tensor from memory of its own, which nobody writes."""

    forgotten = ""

    def prepare(
        self, batch: int, addresses: Mapping[str, int], scratch: int, stream: int
    ) -> Callable[[], None]:
        own = dict(addresses)
        for tensor in self.spec.inputs:
            if tensor.name == self.forgotten:
                self.private = np.ones(tensor.shape_at(batch), tensor.dtype)
                own[tensor.name] = self.private.ctypes.data
        return super().prepare(batch, own, scratch, stream)


@pytest.mark.parametrize("name", ["features", "queries", "keys", "coarse_relations"])
def test_a_stage_that_does_not_read_a_tensor_is_found(
    case: Case, open_on_host: Open, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(_Forgetful, "forgotten", name)

    def engine(model: Any, spec: Any) -> OrtEngine:
        return _Forgetful(HostDevice(), model, spec)

    outcome = gpu_claims.reads(replace(case, backend=open_on_host(engine)))
    assert outcome.state == "fails"
    assert f"{name}, 0;" in outcome.detail


def test_survivors_that_do_not_move_are_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(case.backend, "keep_rows", lambda stage, rows: None)
    assert gpu_claims.survivors(case).state == "fails"


def test_a_stage_without_a_graph_is_found(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(work: Callable[[], None]) -> int:
        raise BackendError("not while capturing")

    monkeypatch.setattr(case.backend.device, "capture", refuse)  # type: ignore[attr-defined]
    outcome = gpu_claims.captured(case)
    assert outcome.state == "fails"
    assert "stage 3 at batch 8" in outcome.detail


def test_answers_that_threads_mix_up_are_found(
    case: Case, prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the ninth frame on, each gets the answer to the first."""
    classify = Runtime.classify
    seen = iter(range(1000))

    def mixed(self: Runtime, frame: object, **how: Any) -> Any:
        return classify(self, frame if next(seen) < 8 else prepared.frames[0], **how)

    monkeypatch.setattr(Runtime, "classify", mixed)
    assert gpu_claims.threads(case).state == "fails"


@pytest.mark.parametrize(("leak", "state"), [(0, "holds"), (1 << 20, "fails")])
def test_memory_that_is_not_given_back_is_found(
    case: Case, open_on_host: Open, monkeypatch: pytest.MonkeyPatch, leak: int, state: str
) -> None:
    opened: list[DeviceBackend] = []

    def count() -> DeviceBackend:
        opened.append(open_on_host())
        return opened[-1]

    @contextmanager
    def memory(case: Case) -> Iterator[Callable[[], int]]:
        yield lambda: (1 << 40) - leak * len(opened)

    monkeypatch.setattr(gpu_claims, "_memory", memory)
    monkeypatch.setattr(gpu_claims, "WARMING_UP", 1)
    monkeypatch.setattr(gpu_claims, "OPENINGS", 3)
    monkeypatch.setattr(gpu_claims, "MOST_LOST", 2 << 20)
    assert gpu_claims.openings(replace(case, open=count)).state == state
    assert all(backend.device.closed for backend in opened)  # type: ignore[attr-defined]


def test_preprocessing_on_the_device(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same answers; and it is noticed where the host does it after all."""
    case = replace(case, prepared=replace(case.prepared, frames=case.prepared.frames[:3]))
    assert gpu_claims.preprocessed(case).state == "holds"
    monkeypatch.setattr(DeviceBackend, "take_frame", None)
    outcome = gpu_claims.preprocessed(case)
    assert (outcome.state, outcome.detail) == ("fails", "the host did it")


def test_what_a_backend_refuses_is_not_tried(case: Case) -> None:
    def refuse(**how: Any) -> Backend:
        if how:
            raise BackendError("this NVIDIA driver has no cuGraphConditionalHandleCreate")
        return case.open()

    outcome = gpu_claims.conditional(replace(case, open=refuse))
    assert outcome.state == "not tried"
    assert "cuGraphConditionalHandleCreate" in outcome.detail
