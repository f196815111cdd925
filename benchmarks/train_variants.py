"""Train what the demo cascade is compared with, by its own recipe: one argument, the variant.

    python benchmarks/train_variants.py static|no-features|no-relations|no-reuse

Writes ``runs/VARIANT/``; started again, it resumes. The log's figures stand in
``samples/demo/MODEL_CARD.md``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dvt_edge.models.training import Trainer
from dvt_edge.models.training_config import TrainingConfig

ROOT = Path(__file__).resolve().parents[1]


def variant(name: str) -> TrainingConfig:
    """The demo's training configuration with one thing changed."""
    config = TrainingConfig.from_yaml(ROOT / "samples/demo/train.yaml")
    change = {
        "static": {"stages": config.model.stages[-1:]},
        "no-features": {"feature_reuse": False},
        "no-relations": {"relation_reuse": False},
        "no-reuse": {"feature_reuse": False, "relation_reuse": False},
    }[name]
    model = config.model.model_copy(update=change)
    return config.model_copy(update={"model": model, "output": ROOT / "runs" / name})


if __name__ == "__main__":
    for result in Trainer(variant(sys.argv[1]), resume=True).run(
        lambda epoch, step, steps, loss: print(
            f"\r{sys.argv[1]} epoch {epoch + 1} step {step}/{steps} loss {loss:.3f}",
            end="\n" if step == steps else "",
            flush=True,
        )
    ):
        print(result)
