"""One target under atheris: ``python -m fuzz.one TARGET SECONDS FOLDER``.

It ends after so many seconds of processor time. What it raised is kept in ``FOLDER/found``, one
input of each kind, and fuzzing goes on; a hang or too much memory ends the process, and libFuzzer
leaves the input there. ``FOLDER/figures.json`` holds what was done so far.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import atheris  # type: ignore[import-untyped]

from fuzz.targets import CORPUS, TARGETS

HANG_S = 10
MOST_MIB = 1024
"""Of resident memory, libraries included."""


def main() -> None:
    """Fuzz until time is up; does not return."""
    name, seconds, folder = sys.argv[1], float(sys.argv[2]), Path(sys.argv[3])
    target = next(target for target in TARGETS if target.name == name)
    found, corpus = folder / "found", folder / "corpus"
    for made in (found, corpus):
        made.mkdir(parents=True, exist_ok=True)
    warnings.simplefilter("ignore")
    logging.disable()
    scratch = Path(tempfile.mkdtemp(prefix="dvt-edge-fuzz-", dir=folder))
    with atheris.instrument_imports(include=list(target.modules), enable_loader_override=False):
        check = target.open(scratch)
    begun = time.process_time()  # imports took minutes of the figure otherwise
    executions, kinds, said = 0, set[str](), 0.0

    def report(now: float) -> None:
        figures = {"executions": executions, "cpu_s": round(now, 1), "kinds": sorted(kinds)}
        (folder / "figures.json").write_text(json.dumps(figures), encoding="utf-8")

    def once(data: bytes) -> None:
        nonlocal executions, said
        executions += 1
        try:
            check(data)
        except Exception as error:
            at = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__} in {Path(at.filename).name}:{at.name}"
            if kind not in kinds:
                kinds.add(kind)
                (found / f"{len(kinds)}-{type(error).__name__}").write_bytes(data)
                text = "".join(traceback.format_exception(error))
                (found / f"{len(kinds)}.txt").write_text(text, encoding="utf-8")
        now = time.process_time() - begun
        if now - said > 1 or now > seconds:
            said = now
            report(now)
        if now > seconds:
            os._exit(0)  # libFuzzer has no way out that is not a failure

    options = [
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={MOST_MIB}",
        f"-max_len={target.longest}",
        f"-artifact_prefix={found}/",
        "-print_final_stats=0",
        "-verbosity=0",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus), str(CORPUS / name)], once)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
