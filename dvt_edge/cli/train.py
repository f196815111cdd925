"""``dvt-edge train``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from dvt_edge.cli.options import FILE, json_option
from dvt_edge.cli.output import Interrupted, note_skipped, print_json
from dvt_edge.cli.progress import shown_progress
from dvt_edge.errors import BuildError
from dvt_edge.progress import silent
from dvt_edge.requirements import HOST_MODULES, need

if TYPE_CHECKING:
    from dvt_edge.models.training import EpochResult


@click.command("train")
@click.option("--config", "config_file", type=FILE, required=True, help="The training file (YAML).")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@json_option
def command(config_file: Path, resume: bool, as_json: bool) -> None:
    """Train a cascade in one run, with one loss over all exits; prints one line per epoch."""
    need("'dvt-edge train'", *HOST_MODULES, error=BuildError)
    from dvt_edge.models.training import Trainer
    from dvt_edge.models.training_config import TrainingConfig

    config = TrainingConfig.from_yaml(config_file)
    note_skipped(config.data.train.path, config.data.validation.path)
    trainer = Trainer(config, resume=resume)

    def show(result: EpochResult) -> None:
        if as_json:
            print_json(asdict(result))
            return
        exits = "  ".join(f"exit {k + 1} {100 * a:.2f} %" for k, a in enumerate(result.accuracy))
        click.echo(
            f"epoch {result.epoch}/{config.epochs}  loss {result.loss:.4f}  {exits}  "
            f"{result.seconds:.0f} s"
        )

    try:
        with shown_progress() as progress:
            trainer.run(progress if trainer.rank == 0 else silent, show)
    except KeyboardInterrupt:
        raise Interrupted(
            f"continue with 'dvt-edge train --config {config_file} --resume'"
        ) from None
    if trainer.rank == 0 and not as_json:
        click.echo(f"wrote {config.output / 'model.safetensors'}")
