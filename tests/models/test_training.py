"""Training: it learns, and a killed run ends exactly where an uninterrupted one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from dvt_edge.errors import CheckpointError, ConfigError, DataError
from dvt_edge.models import Cascade, CascadeConfig, training
from dvt_edge.models.training import EpochResult, Trainer, schedule
from dvt_edge.models.training_config import TrainingConfig
from dvt_edge.models.training_data import TrainingImages, loader
from dvt_edge.progress import Progress
from tests.conftest import largest_file, write_yaml

Configs = Callable[..., TrainingConfig]
OFTEN = 1e-9
"""Minutes between checkpoints that make every step write one."""
EVERY_AUGMENTATION = {"flip": 0.5, "crop_scale": (0.5, 1.0), "brightness": 0.3, "erase": 0.5}


class KilledError(Exception):
    """Stands for the signal that ends a run."""


def _kill_at(epoch: int, step: int) -> Progress:
    def progress(what: str, done: float, total: float, remark: str = "") -> None:
        if (_epoch(what), done) == (epoch, step):
            raise KilledError

    return progress


def _epoch(what: str) -> int:
    """From 0, of ``epoch 1/3``."""
    return int(what.removeprefix("epoch ").split("/")[0]) - 1


def _log(output: Path) -> list[dict[str, Any]]:
    lines = (output / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "seconds"} for line in lines]


def _weights(output: Path) -> dict[str, bytes]:
    """Every tensor to the last bit."""
    tensors = load_file(output / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_loss_falls_and_every_exit_learns(training_config: Configs, optimizer: str) -> None:
    config = training_config(epochs=12, learning_rate=0.02, optimizer=optimizer)
    results = Trainer(config).run()
    assert results[-1].loss < 0.7 * results[0].loss
    assert min(results[-1].accuracy) > 0.4  # chance is 0.2
    assert [result.epoch for result in results] == list(range(1, 13))


def test_output_is_a_checkpoint_and_a_log(training_config: Configs) -> None:
    config = training_config()
    seen: list[EpochResult] = []
    results = Trainer(config).run(on_epoch=seen.append)
    assert seen == results
    assert Cascade.load(config.output / "model.safetensors").config == config.model
    assert sorted(os.listdir(config.output)) == ["log.jsonl", "model.safetensors", "state.pt"]
    logged = _log(config.output)
    assert [line["loss"] for line in logged] == [result.loss for result in results]
    assert [len(line["accuracy"]) for line in logged] == [3, 3]
    assert logged[-1]["learning_rate"] < logged[0]["learning_rate"]


def test_logged_accuracy_is_that_of_the_saved_weights(
    training_config: Configs, tmp_path: Path
) -> None:
    config = training_config(epochs=4)
    result = Trainer(config).run()[-1]
    with np.load(tmp_path / "validation.npz") as archive:
        pixels, labels = archive["images"], torch.from_numpy(archive["labels"])
    images = (torch.from_numpy(pixels)[:, None].float() / 255 - 0.4) / 0.25
    with torch.no_grad():
        outputs = Cascade.load(config.output / "model.safetensors")(images)
    expected = [float((o.logits.argmax(1) == labels).float().mean()) for o in outputs]
    assert result.accuracy == pytest.approx(expected)


def test_progress_is_told_after_every_step(training_config: Configs) -> None:
    calls = []
    Trainer(training_config()).run(lambda *call: calls.append(call))
    expected = [(f"epoch {e}/2", s, 5) for e in (1, 2) for s in range(1, 6)]
    assert [call[:3] for call in calls] == expected
    assert all(call[3].startswith("loss ") for call in calls)


@pytest.mark.parametrize(
    ("changes", "kills"),
    [
        ({}, [(0, 1)]),  # before the first checkpoint: starts again
        ({}, [(0, 5)]),  # at the end of an epoch, which is not closed yet
        ({}, [(1, 3)]),
        pytest.param({}, [(0, 2), (0, 4), (1, 1), (2, 5)], marks=pytest.mark.slow),
        pytest.param({"optimizer": "muon"}, [(1, 3)], marks=pytest.mark.slow),
        pytest.param({"precision": "bf16"}, [(1, 3)], marks=pytest.mark.slow),
        pytest.param({"augment": EVERY_AUGMENTATION}, [(1, 3)], marks=pytest.mark.slow),
    ],
)
def test_killed_run_ends_where_an_uninterrupted_one_does(
    training_config: Configs,
    tiny_config: Callable[..., CascadeConfig],
    tmp_path: Path,
    changes: dict[str, Any],
    kills: list[tuple[int, int]],
) -> None:
    """With batch norm in the model, whose running averages are state too."""
    changes = {"epochs": 3, "model": tiny_config(tokenizer="conv").model_dump()} | changes
    whole = training_config(output=tmp_path / "whole", **changes)
    Trainer(whole).run()
    config = training_config(checkpoint_minutes=OFTEN, **changes)
    for kill in kills:
        with pytest.raises(KilledError):
            Trainer(config, resume=True).run(_kill_at(*kill))
    assert not (config.output / "model.safetensors").exists()
    Trainer(config, resume=True).run()
    assert _weights(config.output) == _weights(whole.output)
    assert _log(config.output) == _log(whole.output)


def test_resume_goes_on_instead_of_starting_again(training_config: Configs) -> None:
    config = training_config(checkpoint_minutes=OFTEN)
    with pytest.raises(KilledError):
        Trainer(config).run(_kill_at(1, 3))
    steps = []
    Trainer(config, resume=True).run(lambda *call: steps.append((_epoch(call[0]), call[1])))
    assert steps == [(1, 3), (1, 4), (1, 5)]  # the checkpoint is from after the step before


def test_rare_checkpoints_lose_the_epoch_and_still_agree(
    training_config: Configs, tmp_path: Path
) -> None:
    config, whole = training_config(), training_config(output=tmp_path / "whole")
    with pytest.raises(KilledError):
        Trainer(config).run(_kill_at(1, 4))
    steps = []
    Trainer(config, resume=True).run(lambda *call: steps.append((_epoch(call[0]), call[1])))
    assert steps[0] == (1, 1)
    Trainer(whole).run()
    assert _weights(config.output) == _weights(whole.output)


def test_finished_run_resumes_to_itself(training_config: Configs) -> None:
    config = training_config()
    first = Trainer(config).run()
    before = _weights(config.output)
    assert Trainer(config, resume=True).run() == first
    assert _weights(config.output) == before


def test_run_is_not_overwritten_without_resume(training_config: Configs) -> None:
    config = training_config()
    Trainer(config).run()
    before = _weights(config.output)
    with pytest.raises(ConfigError, match=r"holds a training run; continue it with --resume"):
        Trainer(config)
    assert _weights(config.output) == before


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 4}, {"learning_rate": 0.001}, {"seed": 1}, {"epochs": 3}, {"augment": {}}],
)
def test_another_configuration_is_not_resumed(
    training_config: Configs, change: dict[str, Any]
) -> None:
    changes: dict[str, Any] = {"augment": {"flip": 0.5}}
    Trainer(training_config(**changes)).run()
    with pytest.raises(ConfigError, match="was trained with another configuration"):
        Trainer(training_config(**(changes | change)), resume=True)


def test_settings_that_do_not_move_weights_may_change(
    training_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    values = training_values()
    Trainer(TrainingConfig.model_validate(values)).run()
    values["output"].rename(tmp_path / "moved")
    values["data"] = values["data"] | {"workers": 1}
    changes = {
        "output": tmp_path / "moved",
        "checkpoint_minutes": 1.0,
        "save_dtype": "float16",
    }
    Trainer(TrainingConfig.model_validate(values | changes), resume=True).run()
    tensors = load_file(tmp_path / "moved" / "model.safetensors")
    assert tensors["stages.0.head.weight"].dtype == torch.float16


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: b"not a state",
        lambda data: data[: len(data) // 2],
        lambda data: data[: len(data) - 30],
    ],
    ids=["empty", "text", "half", "end missing"],
)
def test_damaged_state_is_refused(
    training_config: Configs, damage: Callable[[bytes], bytes]
) -> None:
    config = training_config()
    Trainer(config).run()
    state = config.output / "state.pt"
    state.write_bytes(damage(state.read_bytes()))
    with pytest.raises(CheckpointError, match="cannot be resumed from") as caught:
        Trainer(config, resume=True)
    assert str(state) in str(caught.value)
    assert "weights_only" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", [{"model": {}}, {"optimizers": [{}]}, {"state": {"a": 1}}])
def test_incomplete_state_is_refused(training_config: Configs, change: dict[str, Any]) -> None:
    """Of the right run, with something else inside."""
    config = training_config()
    Trainer(config).run()
    state = config.output / "state.pt"
    torch.save(torch.load(state, weights_only=True) | change, state)
    with pytest.raises(CheckpointError, match=r"state\.pt: cannot be resumed from, because it is"):
        Trainer(config, resume=True)


def test_place_that_cannot_be_written(training_config: Configs, tmp_path: Path) -> None:
    """Known before any image is read."""
    (tmp_path / "file").write_text("")
    config = training_config(output=tmp_path / "file" / "run")
    (tmp_path / "train.npz").unlink()
    with pytest.raises(ConfigError, match=r"cannot be written .*make its folder writable"):
        Trainer(config)


def test_full_disk(training_config: Configs) -> None:
    """The first state that is saved does not fit."""
    trainer = Trainer(training_config())
    with largest_file(1000), pytest.raises(CheckpointError, match=r"state\.pt: cannot be written"):
        trainer.run()
    assert os.listdir(trainer.config.output) == []


def test_file_of_another_program_is_refused(training_config: Configs) -> None:
    config = training_config()
    config.output.mkdir()
    torch.save({"epoch": 3}, config.output / "state.pt")
    with pytest.raises(CheckpointError, match="cannot be resumed from"):
        Trainer(config, resume=True)


def test_seed_decides_the_weights(training_config: Configs, tmp_path: Path) -> None:
    outputs = [tmp_path / name for name in ("one", "same", "other")]
    for output, seed in zip(outputs, (3, 3, 4), strict=True):
        Trainer(training_config(output=output, seed=seed, epochs=1)).run()
    assert _weights(outputs[0]) == _weights(outputs[1])
    assert _weights(outputs[0]) != _weights(outputs[2])


def test_every_epoch_draws_its_own_order_and_images(
    training_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A resumed epoch would hide a draw that never changes."""
    orders, epochs = [], []

    def spy(images: TrainingImages, batches: Any, workers: int) -> Any:
        if images.epoch is not None:
            orders.append(np.concatenate(batches).tolist())
            epochs.append(images.epoch)
        return loader(images, batches, workers)

    monkeypatch.setattr(training, "loader", spy)
    Trainer(training_config(epochs=3)).run()
    assert epochs == [0, 1, 2]
    assert all(sorted(order) == list(range(40)) for order in orders)
    assert orders[0] != orders[1] != orders[2] != orders[0]


def test_worker_processes_change_nothing(
    training_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    outputs = []
    for workers in (0, 2):
        values = training_values(output=tmp_path / str(workers), epochs=1)
        values["data"] = values["data"] | {"workers": workers}
        values["augment"] = {"flip": 0.5, "erase": 0.5}
        config = TrainingConfig.model_validate(values)
        Trainer(config).run()
        outputs.append(config.output)
    assert _weights(outputs[0]) == _weights(outputs[1])


def test_shared_start(training_config: Configs, tmp_path: Path) -> None:
    for shared in (True, False):
        config = training_config(shared_start=shared, output=tmp_path / str(shared))
        stages = Trainer(config).cascade.stages
        first, last = (stages[i].get_parameter("blocks.0.attn.qkv.weight") for i in (0, 2))
        assert torch.equal(first, last) == shared


def test_exit_weights_choose_what_is_learned(training_config: Configs) -> None:
    config = training_config(exit_weights=(1.0, 0.0, 0.0), weight_decay=0.0)
    trainer = Trainer(config)
    heads = [s.get_parameter("head.weight").detach().clone() for s in trainer.cascade.stages]
    trainer.run()
    same = [
        torch.equal(stage.get_parameter("head.weight"), head)
        for stage, head in zip(trainer.cascade.stages, heads, strict=True)
    ]
    assert same == [False, True, True]


def test_loss_is_the_weighted_sum_of_the_exits(training_config: Configs, tmp_path: Path) -> None:
    """At the first step, whose weights are the seed's."""
    losses = {}
    for weights in ((1, 0, 0), (0, 1, 0), (0, 0, 1), None, (2, 0.5, 3)):
        config = training_config(exit_weights=weights, output=tmp_path / str(weights))

        def first(
            what: str, done: float, total: float, remark: str = "", key: Any = weights
        ) -> None:
            losses[key] = float(remark.removeprefix("loss "))
            raise KilledError

        with pytest.raises(KilledError):
            Trainer(config).run(first)
    one, two, three = losses[1, 0, 0], losses[0, 1, 0], losses[0, 0, 1]
    rounding = 5e-4
    assert losses[None] == pytest.approx(one + two + three, abs=rounding)
    assert losses[2, 0.5, 3] == pytest.approx(2 * one + 0.5 * two + 3 * three, abs=rounding)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_only_weights_decay(training_config: Configs, optimizer: str) -> None:
    trainer = Trainer(training_config(optimizer=optimizer, weight_decay=0.1))
    decay = {
        id(parameter): group["weight_decay"]
        for one in trainer.optimizers
        for group in one.param_groups
        for parameter in group["params"]
    }
    named = dict(trainer.cascade.named_parameters())
    assert len(decay) == len(named)
    for name, parameter in named.items():
        weight = name.endswith("weight") and ".norm" not in name
        assert (decay[id(parameter)] > 0) == weight, name
    matrices = {id(p) for p in trainer.optimizers[0].param_groups[0]["params"]}
    qkv = id(named["stages.1.blocks.0.attn.qkv.weight"])
    head = id(named["stages.1.head.weight"])
    if optimizer == "muon":
        assert qkv in matrices
        assert head not in matrices
        assert len(trainer.optimizers) == 2
    else:
        assert len(trainer.optimizers) == 1


def test_labels_beyond_the_classes_are_refused(training_config: Configs, tmp_path: Path) -> None:
    with np.load(tmp_path / "train.npz") as archive:
        images, labels = archive["images"], archive["labels"]
    np.savez(tmp_path / "train.npz", images=images, labels=labels + 1)
    with pytest.raises(DataError, match="labels run from 1 to 5, the model has 5 classes"):
        Trainer(training_config())


def test_batch_larger_than_the_data_is_refused(training_config: Configs) -> None:
    with pytest.raises(ConfigError, match="batch_size 41 exceeds the 40 training images"):
        Trainer(training_config(batch_size=41))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exit_weights": (1.0, 1.0)}, "one weight per stage"),
        ({"epochs": 0}, "greater than or equal to 1"),
        ({"augment": {"crop_scale": (0.9, 0.5)}}, "0 < smallest <= largest <= 1"),
        ({"optimizer": "sgd"}, "'adamw' or 'muon'"),
        (
            {
                "input": {
                    "resize": 16,
                    "crop": 8,
                    "mean": (0.5,),
                    "std": (0.5,),
                    "color_order": "gray",
                }
            },
            "input gives 1x8x8, the model takes 1x16x16",
        ),
    ],
)
def test_impossible_configuration_is_refused(
    training_config: Configs, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        training_config(**changes)


def test_bfloat16_trains_float32_weights(training_config: Configs) -> None:
    config = training_config(precision="bf16")
    results = Trainer(config).run()
    assert np.isfinite(results[-1].loss)
    tensors = load_file(config.output / "model.safetensors")
    assert {t.dtype for t in tensors.values()} == {torch.float32}


@pytest.mark.parametrize(
    ("step", "warmup", "total", "factor"),
    [
        (0, 4, 12, 0.25),
        (3, 4, 12, 1.0),
        (4, 4, 12, 1.0),
        (8, 4, 12, 0.5),
        (12, 4, 12, 0.0),
        (0, 0, 10, 1.0),
        (5, 0, 10, 0.5),
        (9, 10, 10, 1.0),  # all of it warm-up
        (0, 1, 1, 1.0),
    ],
)
def test_schedule(step: int, warmup: int, total: int, factor: float) -> None:
    assert schedule(step, warmup, total) == pytest.approx(factor, abs=1e-12)


def test_schedule_reaches_the_optimizers(training_config: Configs) -> None:
    config = training_config(warmup_epochs=1.0, optimizer="muon")
    trainer = Trainer(config)
    rates = []
    trainer.run(
        lambda *_: rates.append({g["lr"] for o in trainer.optimizers for g in o.param_groups})
    )
    assert all(len(rate) == 1 for rate in rates)
    expected = [config.learning_rate * schedule(step, 5, 10) for step in range(10)]
    assert [rate.pop() for rate in rates] == pytest.approx(expected)


@pytest.mark.slow
def test_two_processes_train_what_one_does(
    training_config: Configs, tiny_config: Callable[..., CascadeConfig], tmp_path: Path
) -> None:
    """Launched as a user would, by torchrun; compared by answers, as rounding moves weights that
    no answer depends on (the softmax ignores a bias on the keys)."""
    config = training_config(output=tmp_path / "one", epochs=2)
    results = Trainer(config).run()
    values = config.model_dump(mode="json") | {"output": str(tmp_path / "two")}
    write_yaml(tmp_path / "train.yaml", values)
    script = tmp_path / "train.py"
    script.write_text(
        "import os, sys\n"
        "from dvt_edge.models.training import Trainer\n"
        "from dvt_edge.models.training_config import TrainingConfig\n"
        "Trainer(TrainingConfig.from_yaml(sys.argv[1])).run()\n"
        # On a busy machine one exit in 25 aborts ("terminate called without an active exception"),
        # after the work is done; why is not known. What is compared here is the training.
        "os._exit(0)\n",
        encoding="utf-8",
    )
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(script), str(tmp_path / "train.yaml")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"TMPDIR": str(tmp_path)},  # where the launcher keeps its logs
    )
    assert done.returncode == 0, done.stderr
    shape = (16, 1, 16, 16)
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        one, two = (
            Cascade.load(tmp_path / name / "model.safetensors")(images) for name in ("one", "two")
        )
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a.logits, b.logits, atol=1e-5, rtol=1e-5)
    assert _log(tmp_path / "two")[-1]["accuracy"] == results[-1].accuracy


def test_batch_must_divide_among_the_processes(
    training_config: Configs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of them, as ``torchrun`` announces it and torch tells."""
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 3)
    with pytest.raises(ConfigError, match="batch_size 8 does not divide by 3"):
        Trainer(training_config())
