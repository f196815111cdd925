"""Write the demo's calibration and test scenes as PNG files, one folder per class.

    python samples/demo/make_scenes.py [FOLDER OF FASHION-MNIST]

Calibration scenes are made from the last 2,000 training photographs, which ``train.yaml`` leaves
out; test scenes from Fashion-MNIST's own test photographs: the first 2,000 of the model card's
10,000. Both are fixed by their seeds.
"""

from __future__ import annotations

import sys
from pathlib import Path

from fashion_scenes import draw_scenes
from PIL import Image

from dvt_edge.files.datasets import Pixels, open_idx
from dvt_edge.models.training_config import TrainingConfig

HERE = Path(__file__).resolve().parent
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
CALIBRATION_SEED, TEST_SEED = 1, 2
SHIPPED = 2000


def make_calibration_scenes(source: Path = FASHION_MNIST) -> tuple[Pixels, list[int]]:
    """2,000 scenes [N, 48, 48] of photographs that were not trained on, and their classes."""
    data = open_idx(source / "train-images-idx3-ubyte.gz", source / "train-labels-idx1-ubyte.gz")
    scenes, indices = draw_scenes(data.images[58_000:], 2000, CALIBRATION_SEED)
    return scenes, [data.labels[58_000 + i] for i in indices]  # type: ignore[index]


def make_test_scenes(source: Path = FASHION_MNIST, count: int = 10_000) -> tuple[Pixels, list[int]]:
    """The first ``count`` test scenes [N, 48, 48] and their classes."""
    data = open_idx(source / "t10k-images-idx3-ubyte.gz", source / "t10k-labels-idx1-ubyte.gz")
    scenes, indices = draw_scenes(data.images, count, TEST_SEED)
    return scenes, [data.labels[i] for i in indices]  # type: ignore[index]


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else FASHION_MNIST
    names = TrainingConfig.from_yaml(HERE / "train.yaml").model.class_names
    assert names is not None  # the demo's configuration names its classes
    for part, (scenes, labels) in {
        "calibration": make_calibration_scenes(source),
        "test": make_test_scenes(source, SHIPPED),
    }.items():
        for i, (scene, label) in enumerate(zip(scenes, labels, strict=True)):
            path = HERE / "scenes" / part / names[label] / f"{i:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(scene).save(path, optimize=True)


if __name__ == "__main__":
    main()
