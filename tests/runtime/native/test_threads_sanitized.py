"""Both libraries under ThreadSanitizer: no memory that two threads touch without a lock."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
RACE = 66
_KNOWN = "race:_dl_deallocate_tls\nrace_top:pthread_cond_destroy\n"
"""No races of ours: glibc gives the memory of a thread that ended to the next, and ONNX Runtime
ends threads by means that ThreadSanitizer cannot see. Our libraries have no conditions."""
PREPROCESS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from dvt_edge.profile import InputConfig
from dvt_edge.runtime.native import library
from dvt_edge.runtime.preprocess import Preprocessor
library.find = lambda name: Path(sys.argv[1]) / name
assert library.unavailable() is None, library.unavailable()
config = InputConfig(
    resize=64, crop=64, mean=(0.5,) * 3, std=(0.25,) * 3, color_order="bgr", interpolation="bicubic"
)
preprocess = Preprocessor(config, threads=3)
rng = np.random.default_rng(0)
frames = [rng.integers(0, 256, (240 + 8 * (i % 2), 320, 3), np.uint8) for i in range(4)]
shared = np.zeros((3, 64, 64), np.float32)
def work(at):
    out = shared if sys.argv[2] == "shared" else np.zeros_like(shared)
    for turn in range(10):
        preprocess(frames[(at + turn) % 4], out)
with ThreadPoolExecutor(6) as pool:
    list(pool.map(work, range(6)))
"""
STAGES = """
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np
from dvt_edge.runtime.native import library, operator_library
library.find = operator_library.find = lambda name: Path(sys.argv[1]) / name
from dvt_edge import Runtime
frames = [np.random.default_rng(i).integers(0, 256, (48, 48), np.uint8) for i in range(8)]
runtimes = [Runtime(sys.argv[2]) for _ in range(2)]
assert runtimes[0].bundle.manifest.native, "the bundle has no native stages"
assert not [event for event in runtimes[0].events if type(event).__name__ == "StandInsRun"]
def work(at):
    for turn in range(8):
        runtimes[at % 2].classify(frames[(at + turn) % 8])
with ThreadPoolExecutor(6) as pool:
    list(pool.map(work, range(6)))
for runtime in runtimes:
    runtime.close()
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++")
    build = tmp_path_factory.mktemp("threads")
    options = ["-DDVT_EDGE_SANITIZE_THREADS=ON", "-DDVT_EDGE_CUDA=OFF", "-DCMAKE_CXX_COMPILER=g++"]
    for command in (
        ["cmake", "-S", str(ROOT), "-B", str(build), *options],
        ["cmake", "--build", str(build)],
    ):
        subprocess.run(command, check=True, capture_output=True)
    return build


def _run(script: str, libraries: Path, argument: str) -> tuple[int, str]:
    """Exit status and output, with ThreadSanitizer's library before all others."""
    known = libraries / "known.txt"
    known.write_text(_KNOWN, encoding="utf-8")
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libtsan.so", "libstdc++.so.6")
    ]
    environment = os.environ | {
        "LD_PRELOAD": " ".join(preload),
        "TSAN_OPTIONS": f"exitcode={RACE} suppressions={known}",
    }
    done = subprocess.run(
        [sys.executable, "-c", script, str(libraries), argument],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    output = done.stdout + done.stderr
    if "unexpected memory mapping" in output:
        pytest.skip("this kernel's addresses are too random for ThreadSanitizer")
    return done.returncode, output[-6000:]


def test_preprocessing(libraries: Path) -> None:
    """Frames of two sizes from six threads, each with three of its own; a race that is made is
    seen."""
    status, output = _run(PREPROCESS, libraries, "own")
    assert status == 0, output
    assert _run(PREPROCESS, libraries, "shared")[0] == RACE


def test_operators(libraries: Path, costed_bundle: Path) -> None:
    """Two Runtimes of native stages, three threads on each."""
    status, output = _run(STAGES, libraries, str(costed_bundle))
    assert status == 0, output
