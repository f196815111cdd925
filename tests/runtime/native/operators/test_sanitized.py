"""The operators' tests once more, with the library under AddressSanitizer and UBSan."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[4]
TESTS = Path(__file__).parent
RUN = """
import sys
from pathlib import Path
import pytest
from dvt_edge.runtime.native import operator_library
operator_library.find = lambda name: Path(sys.argv[1])
options = ["-q", "-s", "-m", "not slow", "-p", "no:cacheprovider", "-p", "no:xdist"]
sys.exit(pytest.main([*options, "--rootdir", sys.argv[2], sys.argv[3]]))
"""


@pytest.mark.slow
def test_sanitized(tmp_path: Path) -> None:
    """Nothing is read or written out of bounds, and nothing depends on undefined behaviour."""
    if not (shutil.which("cmake") and shutil.which("g++")):
        pytest.skip("needs cmake and g++")
    build = tmp_path / "build"
    options = ["-DDVT_EDGE_SANITIZE=ON", "-DDVT_EDGE_CUDA=OFF", "-DCMAKE_CXX_COMPILER=g++"]
    subprocess.run(
        ["cmake", "-S", str(ROOT), "-B", str(build), *options], check=True, capture_output=True
    )
    command = ["cmake", "--build", str(build), "--target", "dvt_edge_operators"]
    subprocess.run(command, check=True, capture_output=True)
    # Python itself is not built for the sanitizer: its library must come first, and C++'s with it.
    preload = [
        subprocess.run(
            ["g++", f"-print-file-name={name}"], check=True, capture_output=True, text=True
        ).stdout.strip()
        for name in ("libasan.so", "libstdc++.so.6")
    ]
    environment = os.environ | {"LD_PRELOAD": " ".join(preload), "ASAN_OPTIONS": "detect_leaks=0"}
    environment.pop("PYTEST_XDIST_WORKER", None)
    library = build / "libdvt_edge_operators.so"
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(library), str(ROOT), str(TESTS)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
