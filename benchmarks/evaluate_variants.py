"""Top-1 of every exit of the demo cascade and its variants on the 10,000 test scenes.

    python benchmarks/evaluate_variants.py

Reads ``samples/demo/model.safetensors`` and, where they were trained (``train_variants.py``),
``runs/VARIANT/model.safetensors``. Prints the Markdown table of the model card: accuracies of the
FP32 model and multiply-accumulates counted on the stage graphs.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from dvt_edge.converters.graphs.chain import Chain
from dvt_edge.converters.graphs.facts import count_macs
from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
from dvt_edge.models import Cascade
from dvt_edge.models.training_config import TrainingConfig
from dvt_edge.runtime.preprocess import Preprocessor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "samples" / "demo"))
from make_scenes import make_test_scenes  # noqa: E402

VARIANTS = {
    "cascade": ROOT / "samples/demo/model.safetensors",
    "cascade without feature reuse": ROOT / "runs/no-features/model.safetensors",
    "cascade without relation reuse": ROOT / "runs/no-relations/model.safetensors",
    "cascade without both": ROOT / "runs/no-reuse/model.safetensors",
    "static ViT of the last stage's size": ROOT / "samples/demo/static.safetensors",
}


def main() -> None:
    config = TrainingConfig.from_yaml(ROOT / "samples/demo/train.yaml")
    scenes, labels = make_test_scenes()
    preprocess = Preprocessor(config.input)
    images = np.empty((len(scenes), *preprocess.shape), np.float32)
    for row, scene in enumerate(scenes):
        preprocess(scene, images[row])
    print("| model | top-1 of each exit, % | MMACs of each stage | all stages |")
    print("| --- | --- | --- | --- |")
    for name, path in VARIANTS.items():
        if not path.exists():
            print(f"| {name} | not trained here | | |")
            continue
        cascade = Cascade.load(path)
        graphs = [stage_graph_from_cascade(cascade, i) for i in range(len(cascade.stages))]
        records = Chain(graphs).records(images, np.asarray(labels, np.int32))
        macs = [count_macs(graph) / 1e6 for graph in graphs]
        accuracy = " / ".join(f"{100 * a:.2f}" for a in records.accuracy)
        print(
            f"| {name} | {accuracy} | {' / '.join(f'{m:.1f}' for m in macs)} | {sum(macs):.1f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
