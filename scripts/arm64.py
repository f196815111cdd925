"""Install and test on 64-bit Arm without a board, and compare the answers with this machine's.

    make arm64      # or, where the demo is built: python scripts/arm64.py

qemu-user executes a Debian root folder, ``build/arm64``, which is made once. The package is
installed there with plain pip, without torch, and tested. Writes arm64.json and arm64.md to
``benchmarks/results/arm64-emulated/``; exit status 1 where a claim fails.

Needs root, the network, and Debian's or Ubuntu's qemu-user-static and debootstrap.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from arm64_report import compare, failures, markdown

from dvt_edge.machine.board import processor_name

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = Path("out/demo-cpu")
RESULTS = ROOT / "benchmarks" / "results" / "arm64-emulated"
MISC = Path("/proc/sys/fs/binfmt_misc")
RULE = Path("/usr/lib/binfmt.d/qemu-aarch64.conf")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DEBIAN = "http://deb.debian.org/debian"
PACKAGES = "ca-certificates,cmake,g++,ninja-build,python3-venv"
TESTS = ("tests/runtime", "tests/policy", "tests/bundle", "tests/machine", "tests/energy")
OPERATOR_TESTS = "tests/runtime/native/operators"
TEST_PACKAGES = ("hypothesis", "opencv-python-headless", "prometheus-client", "pytest")
PROCESSORS = ("cortex-a72", "cortex-a76", "max")
"""Without and with INT8 dot products, and with all that qemu knows."""

Values = dict[str, Any]


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--every", type=int, default=5, help="compare each n-th test scene")
    every = arguments.parse_args().every
    check_machine()
    result: Values = {
        "command": " ".join(["python", "scripts/arm64.py", *sys.argv[1:]]),
        "machine": f"aarch64, emulated by qemu-user {_qemu()} on {processor_name()}",
        "times": "no time from this run counts",
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    try:
        prove(Emulated(ROOT / "build" / "arm64"), every, result)
    except subprocess.CalledProcessError as error:
        command = shlex.join(map(str, error.cmd[-6:]))
        print(f"error: status {error.returncode} of {command}; see above", file=sys.stderr)
        return 1
    result["failed"] = failures(result)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / "arm64.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    text = markdown(result)
    (RESULTS / "arm64.md").write_text(text, encoding="utf-8")
    print(text)
    return 1 if result["failed"] else 0


def check_machine() -> None:
    """Have the kernel start Arm programs with qemu, or say in one line what is missing."""
    if platform.machine() == "aarch64":
        raise SystemExit("error: this machine is 64-bit Arm; run make check instead")
    if os.geteuid():
        raise SystemExit("error: debootstrap and chroot need root; run sudo make arm64")
    found = {
        "qemu-user-static": shutil.which("qemu-aarch64-static") and RULE.exists(),
        "debootstrap": shutil.which("debootstrap"),
        "debian-archive-keyring": KEYS.exists(),
    }
    if missing := " ".join(name for name, there in found.items() if not there):
        raise SystemExit(f"error: missing {missing}; run apt-get install {missing}")
    if not (ROOT / BUNDLE / "manifest.json").exists():
        raise SystemExit(f"error: no bundle in {BUNDLE}; run make demo")
    entry = MISC / "qemu-aarch64"
    try:
        if not (MISC / "register").exists():
            subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", MISC], check=True)
        if not entry.exists():
            (MISC / "register").write_text(RULE.read_text(encoding="ascii"), encoding="ascii")
        state = entry.read_text(encoding="ascii")
    except (OSError, subprocess.CalledProcessError) as error:
        raise SystemExit(
            f"error: no binfmt_misc to register qemu with ({error}); load the kernel module "
            "binfmt_misc, and start a container with --privileged"
        ) from None
    # With flag F the kernel keeps qemu open, so it need not lie in the root folder.
    if not state.startswith("enabled") or not re.search("^flags:.*F", state, re.MULTILINE):
        raise SystemExit(
            f"error: {entry} is off or without flag F; run echo -1 > {entry} and retry"
        )


class Emulated:
    """Debian for 64-bit Arm in a folder. Without /proc and /sys: ONNX Runtime crashed with them."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def make(self) -> None:
        """Unless it is there. One that was not finished has another name and is made anew."""
        if self.root.exists():
            return
        part = self.root.with_suffix(".part")
        if part.exists():
            shutil.rmtree(part)
        part.mkdir(parents=True)
        options = ("--arch=arm64", "--foreign", "--variant=minbase", f"--include={PACKAGES}")
        keys = ("--force-check-gpg", f"--keyring={KEYS}")
        address = mirror(path.read_text(encoding="utf-8") for path in _apt_sources())
        subprocess.run(["debootstrap", *options, *keys, "bookworm", part, address], check=True)
        # It mounts /proc, which goes with the namespace even where this is interrupted.
        second = ("chroot", part, "/debootstrap/debootstrap", "--second-stage")
        subprocess.run(["unshare", "--mount", *second], check=True)
        part.rename(self.root)

    def copy_in(self) -> None:
        """The working tree, the bundle, and the files by which pip reaches its index here."""
        work = self.root / "work"
        shutil.rmtree(work, ignore_errors=True)
        listing = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
        for name in filter(None, _output(listing).split("\0")):
            if os.path.lexists(ROOT / name):  # else deleted, and not committed yet
                _copy(ROOT / name, work / name)
        shutil.copytree(ROOT / BUNDLE, work / BUNDLE)
        (self.root / "dev" / "shm").mkdir(exist_ok=True)
        named = [os.environ.get(name, "") for name in ("PIP_CERT", "PIP_CONFIG_FILE")]
        paths = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", *named]
        paths += ["/etc/ssl/certs/ca-certificates.crt", os.environ.get("SSL_CERT_FILE", "")]
        for path in [*map(Path, filter(None, paths)), *Path("/etc/xdg/pip").glob("*")]:
            if path.is_file():
                _copy(path.resolve(), self.root / path.relative_to("/"))
        for name in (".config/pip/pip.conf", ".pip/pip.conf"):
            if (Path.home() / name).is_file():
                _copy(Path.home() / name, self.root / "root" / name)

    def command(self, *command: str) -> tuple[str, ...]:
        """To execute in the copy of the working tree, with nothing of this environment but pip's
        settings."""
        passed = ("PIP_", "SSL_CERT_", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
        kept = [f"{k}={v}" for k, v in os.environ.items() if k.upper().startswith(passed)]
        own = ("HOME=/root", "LANG=C.UTF-8", "PATH=/opt/dvt/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        inside = ("sh", "-c", 'cd /work && exec "$@"', "sh", *command)
        return ("env", "-i", *kept, *own, "chroot", str(self.root), *inside)

    def run(self, *command: str) -> None:
        print("arm64 $", shlex.join(command), flush=True)
        subprocess.run(self.command(*command), check=True)


def prove(machine: Emulated, every: int, result: Values) -> None:
    """Everything that is claimed; fills ``result``."""
    machine.make()
    machine.copy_in()
    result["install"] = install(machine)
    result["tests"] = run_tests(machine)
    result["operators"] = run_operator_tests(machine)
    scenes = ("samples/demo/scenes/test", "--every", str(every))
    arguments = ("scripts/arm64_answers.py", str(BUNDLE), *scenes)
    here = json.loads(_output((sys.executable, *arguments)))
    result["versions"] = {platform.machine(): here["versions"]}
    result["preprocess"], result["answers"] = {}, {}
    for processor in PROCESSORS:
        command = ("env", f"QEMU_CPU={processor}", "python", *arguments)
        there = json.loads(_output(machine.command(*command)))
        result["versions"]["aarch64"] = there["versions"]
        same = there["preprocess"].pop("sha256") == here["preprocess"]["sha256"]
        result["preprocess"][processor] = {**there["preprocess"], "same_as_host": same}
        result["answers"][processor] = compare(here["scenes"], there["scenes"])


def install(machine: Emulated) -> Values:
    """Plain pip into a new environment; then the package outside of the working tree."""
    machine.run("rm", "-rf", "/opt/dvt")
    machine.run("python3", "-m", "venv", "/opt/dvt")
    machine.run("pip", "install", "--quiet", ".")
    machine.run("dvt-edge", "doctor")
    code = """if True:
        import importlib.util, json
        from dvt_edge.runtime.native.library import library, unavailable
        found = {"native_library": unavailable() or "loaded"}
        found["torch"] = "there" if importlib.util.find_spec("torch") else "missing"
        print(json.dumps({"path": library()._name if library() else None, **found}))"""
    found: Values = json.loads(_output(machine.command("python", "-I", "-c", code)))
    path = found.pop("path")
    text = _output(machine.command("objdump", "-d", path)) if path else ""
    found["neon_instructions"] = len(re.findall(r"\tv\d+\.(?:16b|8b|8h|4h|4s|2s|2d)", text))
    return found


def run_tests(machine: Emulated) -> Values:
    """The tests that need neither torch nor onnx, with the bundle that this machine built."""
    machine.run("pip", "install", "--quiet", *TEST_PACKAGES)
    needs = re.compile(r"^(?:import|from) (?:torch|onnx)\b", re.MULTILINE)
    files = [path for folder in TESTS for path in (ROOT / folder).rglob("test_*.py")]
    left_out = [path for path in files if needs.search(path.read_text(encoding="utf-8"))]
    names = sorted(path.relative_to(ROOT).as_posix() for path in left_out)
    ignored = [f"--ignore={name}" for name in (*names, OPERATOR_TESTS)]
    found = _pytest(machine, f"DVT_EDGE_DEMO_BUNDLE=/work/{BUNDLE}", *ignored, *TESTS)
    return {"folders": list(TESTS), "left_out": names, **found}


def run_operator_tests(machine: Emulated) -> Values:
    """Those of the operators for ONNX Runtime, in all instruction sets of the largest processor;
    they need onnx."""
    machine.run("pip", "install", "--quiet", "onnx")
    code = "from dvt_edge.runtime.native.operator_library import *; print(*instruction_sets())"
    largest = f"QEMU_CPU={PROCESSORS[-1]}"
    sets = _output(machine.command("env", largest, "python", "-I", "-c", code)).split()
    return {"instruction_sets": sets, **_pytest(machine, largest, OPERATOR_TESTS)}


def _pytest(machine: Emulated, setting: str, *arguments: str) -> Values:
    options = ("-q", "-m", "not slow", "--junitxml=/tmp/tests.xml", "-p", "no:cacheprovider")
    command = machine.command("env", setting, "pytest", *options, *arguments)
    status = subprocess.run(command, check=False).returncode
    suite = next(ElementTree.parse(machine.root / "tmp" / "tests.xml").iter("testsuite"))
    count = {key: int(suite.get(key, 0)) for key in ("tests", "failures", "errors", "skipped")}
    return {
        "exit_status": status,
        "passed": count["tests"] - count["failures"] - count["errors"] - count["skipped"],
        "failed": count["failures"] + count["errors"],
        "skipped": dict(Counter(case.get("message") for case in suite.iter("skipped"))),
    }


def mirror(texts: Iterable[str]) -> str:
    """The Debian mirror that APT's source lists name first, or Debian's own."""
    pattern = re.compile(r"^(?:URIs:|deb )[^#\n]*?(https?://\S+/debian)/?(?=\s|$)", re.MULTILINE)
    found = (pattern.search(text) for text in texts)
    return next((match[1] for match in found if match), DEBIAN)


def _apt_sources() -> list[Path]:
    folder = Path("/etc/apt")
    files = (folder / "sources.list", *sorted((folder / "sources.list.d").glob("*")))
    return [path for path in files if path.suffix in (".list", ".sources") and path.is_file()]


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target, follow_symlinks=False)


def _output(command: tuple[str, ...]) -> str:
    return subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, cwd=ROOT).stdout


def _qemu() -> str:
    return _output(("qemu-aarch64-static", "--version")).split()[2]


if __name__ == "__main__":
    sys.exit(main())
