"""Whether a wheel alone runs a bundle: in a new environment, without torch and onnx.

    make release    # or: python scripts/check_release.py dist/*.whl

Installs the wheel and what it asks for into ``build/wheel-env`` (pip needs its index), opens the
demo's bundle there, from another folder, and compares its answers to some scenes with this
environment's. Exit status 1 where something is not as it should be.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = ROOT / "build" / "wheel-env"
BUNDLE = ROOT / "out" / "demo-cpu"
SCENES = ROOT / "samples" / "demo" / "scenes" / "test"
MOST_SCENES = 40
HOST_ONLY = ("torch", "onnx", "safetensors", "model_signing")
"""What a wheel does not ask for."""

CLASSIFY = """
import importlib.util, json, sys
from pathlib import Path
import dvt_edge
from dvt_edge.files.datasets import load_image
from dvt_edge.runtime.native import library
bundle, *scenes = sys.argv[1:]
with dvt_edge.Runtime(bundle) as runtime:
    answers = [
        runtime.classify(load_image(Path(scene)), color_order="rgb").label for scene in scenes
    ]
print(json.dumps({
    "version": dvt_edge.__version__,
    "package": dvt_edge.__file__,
    "native": library.unavailable(),
    "there": [name for name in %r if importlib.util.find_spec(name)],
    "answers": answers,
}))
"""


def main() -> int:
    """Exit status: 1 with a line for each thing that is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("wheel", type=Path, help="the wheel that was built")
    wheel: Path = parser.parse_args().wheel.resolve()
    if not BUNDLE.is_dir():
        sys.exit("out/demo-cpu: no bundle here; run 'make demo' first")
    scenes = sorted(SCENES.glob("*/*.png"))
    scenes = scenes[:: max(1, len(scenes) // MOST_SCENES)]
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    venv.create(ENVIRONMENT, with_pip=True)
    python = ENVIRONMENT / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
    # What stays is what the wheel brings, which `make sbom` lists.
    tools = ["pip", "setuptools"]  # the latter with Python before 3.12
    subprocess.run([python, "-m", "pip", "uninstall", "--quiet", "--yes", *tools], check=True)
    with tempfile.TemporaryDirectory() as folder:  # no checkout here that could be imported
        alone, here = (
            json.loads(
                subprocess.run(
                    [interpreter, "-c", CLASSIFY % (HOST_ONLY,), BUNDLE, *scenes],
                    cwd=folder,
                    check=True,
                    stdout=subprocess.PIPE,
                ).stdout
            )
            for interpreter in (python, sys.executable)
        )
        for arguments in (["--version"], ["inspect", BUNDLE]):
            command = [ENVIRONMENT / "bin" / "dvt-edge", *arguments]
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    wrong = problems(alone, here, ENVIRONMENT)
    for line in wrong:
        print(f"{wheel.name}: {line}", file=sys.stderr)
    if not wrong:
        print(f"{wheel.name}: alone, it answers to {len(scenes)} scenes as this checkout does")
    return 1 if wrong else 0


def problems(alone: dict[str, object], here: dict[str, object], environment: Path) -> list[str]:
    """What is wrong with what the wheel did ``alone``, beside what is known to be right."""
    found = []
    if not str(alone["package"]).startswith(str(environment)):
        found.append(f"another package was imported: {alone['package']}")
    if alone["there"]:
        found.append(f"was not alone: {alone['there']} are there")
    if alone["native"]:
        found.append(f"has no native library: {alone['native']}")
    if alone["version"] != here["version"]:
        found.append(f"is version {alone['version']}, the checkout {here['version']}")
    if not alone["answers"] or alone["answers"] != here["answers"]:
        found.append(f"answers {alone['answers']}, the checkout {here['answers']}")
    return found


if __name__ == "__main__":
    sys.exit(main())
