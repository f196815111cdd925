"""Kill ``dvt-edge build`` at random moments; afterwards the old bundle or the new one works.

    make faults     # or: python scripts/kill_builds.py --times 200

Each build gets another device name, so that none finds its work done. It is killed (``kill -9``)
between its start and a little more than the time that a whole build takes. Then the bundle has to
open. At the end a build that nobody kills has to succeed and leave nothing beside the bundle. Exit
status 1 where one of these fails.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import yaml

from dvt_edge.bundle.bundle import Bundle

ROOT = Path(__file__).resolve().parents[1]
SEED = 16


def profile_values(output: Path) -> dict[str, Any]:
    """The demo's profile, with few calibration images and without INT8: a build of seconds."""
    demo = ROOT / "samples" / "demo"
    text = (ROOT / "samples" / "profiles" / "demo-cpu.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    values["model"] = str(demo / "model.safetensors")
    values["calibration"] = {"data": str(demo / "scenes" / "calibration"), "samples": 100}
    values["engine"]["precision"] = "fp32"
    values["budget"] = {"max_stage": 3}
    values["output"] = str(output)
    return values


def kill_builds(folder: Path, times: int) -> Counter[str]:
    """Which bundle was there after each kill, ``old`` or ``new``, and how many builds had ended.

    Raises whatever a bundle that does not open raises, and :class:`RuntimeError` for litter.
    """
    output, profile = folder / "bundle", folder / "profile.yaml"
    values = profile_values(output)
    moments = random.Random(SEED)

    def start(device: str) -> subprocess.Popen[bytes]:
        values["device"] = {"name": device}
        profile.write_text(yaml.safe_dump(values), encoding="utf-8")
        code = "from dvt_edge.cli import main; main()"
        command = [sys.executable, "-c", code, "build", "--profile", str(profile)]
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=ROOT)

    def finish(device: str) -> None:
        if start(device).wait():
            raise RuntimeError(f"the build for '{device}' failed")
        if Bundle(output).manifest.device != device:
            raise RuntimeError(f"the build for '{device}' left another bundle")

    began = time.monotonic()
    finish("before")
    whole_s = time.monotonic() - began
    seen: Counter[str] = Counter()
    device = "before"
    for number in range(times):
        process = start(f"build {number}")
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0, 1.1 * whole_s))
            seen["ended before it was killed"] += 1
        process.kill()
        process.wait()
        found = Bundle(output).manifest.device
        if found not in (device, f"build {number}"):
            raise RuntimeError(f"after build {number} the bundle is that of '{found}'")
        seen["old" if found == device else "new"] += 1
        device = found
    finish("afterwards")
    litter = {path.name for path in folder.iterdir()} - {output.name, profile.name}
    if litter:
        raise RuntimeError(f"left behind: {', '.join(sorted(litter))}")
    return seen


def main() -> None:
    """Prints what was there after the kills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--times", type=int, default=200)
    times: int = parser.parse_args().times
    with tempfile.TemporaryDirectory() as folder:
        seen = kill_builds(Path(folder), times)
    print(f"{times} builds killed: {', '.join(f'{seen[key]} {key}' for key in sorted(seen))}")


if __name__ == "__main__":
    main()
