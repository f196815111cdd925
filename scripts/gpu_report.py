"""What the rows of a GPU proof say together: a verdict on each claim, and a page about it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gpu_claims import CLAIMS

Values = dict[str, Any]

PROVEN, FAILED, UNPROVEN = "proven", "failed", "not proven"
STATUS = {PROVEN: 0, FAILED: 1, UNPROVEN: 2}
"""Exit status of the proof, by the worst verdict: a failure counts most."""
NO_GPU = "no NVIDIA GPU answers here"


def title(row: Mapping[str, Any]) -> str:
    """What a row is about."""
    return ", ".join(
        str(row[key]) for key in ("kind", "backend", "model", "precision") if key in row
    )


def verdicts(proof: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Of each claim, whether it is proven, and on what, or why not.

    One row where it fails is enough; rehearsals prove nothing, but may fail.
    """
    found = {}
    for claim in CLAIMS:
        tried = [
            (title(row), bool(row.get("rehearsal")), row["claims"][claim.name])
            for row in proof["rows"]
            if claim.name in row.get("claims", {})
        ]
        failing = [f"{name}: {o['detail']}" for name, _, o in tried if o["state"] == "fails"]
        holding = [name for name, mock, o in tried if o["state"] == "holds" and not mock]
        if failing:
            found[claim.name] = (FAILED, "; ".join(failing))
        elif holding:
            found[claim.name] = (PROVEN, "; ".join(holding))
        else:
            found[claim.name] = (UNPROVEN, _why_not(proof, tried))
    return found


def _why_not(proof: Mapping[str, Any], tried: Sequence[tuple[str, bool, Values]]) -> str:
    if proof["machine"].get("gpu") is None:
        rehearsed = sum(mock and o["state"] == "holds" for _, mock, o in tried)
        died = proof["machine"].get("died")
        return (
            NO_GPU
            + (f": {died}" if died else "")
            + (f" (rehearsed on the CPU, {rehearsed} times)" if rehearsed else "")
        )
    reasons = {o["detail"] for _, _, o in tried if o["state"] == "not tried"}
    return "; ".join(sorted(reasons)) or "no row came to it"


def status(proof: Mapping[str, Any]) -> int:
    """Exit status: 0 every claim is proven, 1 one fails, 2 some could not be tried here.

    A row that died or could not be prepared is a failure, whichever claim it was about.
    """
    states = {state for state, _ in verdicts(proof).values()}
    died = any(row.get("died") for row in proof["rows"])
    worst = FAILED if died or FAILED in states else UNPROVEN if UNPROVEN in states else PROVEN
    return STATUS[worst]


def markdown(proof: Mapping[str, Any]) -> str:
    """The whole proof as a page."""
    machine = proof["machine"]
    gpu = machine.get("gpu")
    lines = [
        f"# {gpu}, compute capability {machine['compute_capability']}"
        if gpu
        else "# Rehearsal on the CPU: nothing here is proven",
        "",
        f"`{proof['command']}`, {proof['date']}"
        + (f", driver for CUDA {machine['driver_cuda']}" if gpu else f"; {NO_GPU}")
        + "; "
        + ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items()),
        "",
        "| claim | threshold | verdict |",
        "| --- | --- | --- |",
    ]
    found = verdicts(proof)
    for claim in CLAIMS:
        verdict, why = found[claim.name]
        lines.append(
            f"| {claim.statement} | {claim.threshold} | {_cell(f'**{verdict}**: {why}')} |"
        )
    for row in proof["rows"]:
        lines += ["", f"## {title(row)}", "", *_row(row)]
    return "\n".join(lines) + "\n"


def _row(row: Mapping[str, Any]) -> list[str]:
    lines = []
    if row.get("rehearsal"):
        lines.append("- rehearsal: on the CPU, in place of a GPU; proves nothing")
    for key, text in (("refused", "refused"), ("died", "**died**"), ("latency_failed", "latency")):
        if row.get(key):
            lines.append(f"- {text}: {row[key]}")
    for name, outcome in row.get("claims", {}).items():
        state = outcome["state"]
        shown = f"**{state}**" if state == "fails" else state
        lines.append(f"- {name}: {shown}: {outcome['detail']}")
    for batch, times in row.get("latency", {}).items():
        whole, events = times["classify_ms"], times.get("stages_by_events_ms")
        text = f"- {batch}, all stages: {whole['median']:.3f} ms (p95 {whole['p95']:.3f})"
        text += f", of it preprocessing {times['preprocess_ms']['median']:.3f} ms"
        if events:
            text += f", stages by events {events['median']:.3f} ms, gap {times['gap_us']:.0f} us"
        lines.append(text)
    lines.append(f"- took {row['seconds']:.0f} s")
    return lines


def _cell(text: str) -> str:
    return text.replace("|", "/").replace("\n", " ")


def claims_table() -> str:
    """The table of ``docs/gpu.md`` before anything is proven."""
    lines = ["| claim | threshold | proven on |", "| --- | --- | --- |"]
    lines += [f"| {claim.statement} | {claim.threshold} | unproven |" for claim in CLAIMS]
    return "\n".join(lines) + "\n"
