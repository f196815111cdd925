"""``dvt-edge train``: progress and results on the terminal."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from dvt_edge.cli.progress import step_progress
from dvt_edge.models.training import EpochResult, Trainer
from dvt_edge.models.training_config import TrainingConfig


def train_with_progress(config_file: Path, *, resume: bool, as_json: bool) -> None:
    """Train, printing one line per epoch: with ``as_json`` an object, otherwise text."""
    config = TrainingConfig.from_yaml(config_file)
    trainer = Trainer(config, resume=resume)
    with step_progress(quiet=as_json or trainer.rank > 0) as progress:
        trainer.run(
            lambda epoch, step, steps, loss: progress(
                f"epoch {epoch + 1}/{config.epochs}", step, steps
            ),
            lambda result: _print_epoch(result, config.epochs, as_json),
        )
    if trainer.rank == 0 and not as_json:
        click.echo(f"wrote {config.output / 'model.safetensors'}")


def _print_epoch(result: EpochResult, epochs: int, as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(asdict(result)))
        return
    exits = "  ".join(f"exit {k + 1} {100 * a:.2f} %" for k, a in enumerate(result.accuracy))
    click.echo(
        f"epoch {result.epoch}/{epochs}  loss {result.loss:.4f}  {exits}  {result.seconds:.0f} s"
    )
