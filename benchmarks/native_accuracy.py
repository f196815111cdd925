"""What the demo's exits answer in float, in INT8 and on native operators, to the test scenes.

    python benchmarks/native_accuracy.py [--count 10000] [--out FILE.json]

Builds the demo's bundle and runs all exits of its three kinds of graphs: float, quantize and
dequantize nodes, native operators. Prints top-1 of every exit, and for the two INT8 kinds the share
of scenes whose class is the float graphs'; --out writes JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from dvt_edge import Profile
from dvt_edge.converters.build import build
from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
from dvt_edge.machine.board import processor_name
from dvt_edge.models.cascade import Cascade
from dvt_edge.policy import Records
from dvt_edge.runtime.native import operator_library
from dvt_edge.runtime.preprocess import Preprocessor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "samples" / "demo"))
from make_scenes import make_test_scenes  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    profile = Profile.from_yaml(ROOT / "samples/profiles/demo-cpu.yaml")
    scenes, labels = make_test_scenes(count=given.count)
    preprocess = Preprocessor(profile.input)
    images = np.empty((len(scenes), *preprocess.shape), np.float32)
    for scene, image in zip(scenes, images, strict=True):
        preprocess(scene, image, "gray")
    label = np.asarray(labels, np.int32)
    found = {kind: Chain(m).records(images, label) for kind, m in graphs(profile).items()}
    table = Table(title=f"top-1 (agreement with float), % of {given.count} test scenes")
    for column in ("", *(f"exit {k + 1}" for k in range(found["float"].exits))):
        table.add_column(column, justify="right")
    rows = {kind: row(records, found["float"]) for kind, records in found.items()}
    for kind, values in rows.items():
        pairs = zip(values["top1"], values["agrees"], strict=True)
        table.add_row(kind, *(f"{100 * a:.2f} ({100 * b:.2f})" for a, b in pairs))
    command = " ".join(["python benchmarks/native_accuracy.py", *sys.argv[1:]])
    machine = f"{processor_name()}, {operator_library.instruction_set()}"
    table.caption = f"{command}\n{machine}"
    Console(width=100).print(table)
    if given.out:
        document = {"command": command, "machine": machine, "count": given.count, "rows": rows}
        given.out.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def graphs(profile: Profile) -> dict[str, list[onnx.ModelProto]]:
    """The demo's stages, by kind."""
    cascade = Cascade.load(profile.model)
    stages = range(len(cascade.stages))
    made = {"float": [stage_graph_from_cascade(cascade, i, profile.exits) for i in stages]}
    with tempfile.TemporaryDirectory() as folder:
        bundle = build(profile.model_copy(update={"output": Path(folder, "bundle")})).bundle
        if not bundle.manifest.native:
            sys.exit("error: the demo does not run on native operators here")
        for kind, file in (("Q/DQ", "stage{}.onnx"), ("native", "stage{}.native.onnx")):
            made[kind] = [onnx.load(bundle.folder / file.format(i + 1)) for i in stages]
    return made


def row(records: Records, reference: Records) -> dict[str, list[float]]:
    """Shares by exit."""
    return {
        "top1": [float(share) for share in records.accuracy],
        "agrees": (records.prediction == reference.prediction).mean(axis=0).tolist(),
    }


if __name__ == "__main__":
    main()
