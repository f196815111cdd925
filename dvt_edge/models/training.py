"""Training: one run, one loss over all exits, one shared start.

The paper's cascades (Wang et al., NeurIPS 2021) minimise the sum of the exits' cross-entropies;
so does this. Launched by ``torchrun`` it trains on several devices with DistributedDataParallel.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from dvt_edge.errors import CheckpointError, ConfigError
from dvt_edge.files.replacing import check_writable
from dvt_edge.models.cascade import Cascade
from dvt_edge.models.checkpoint import replaced
from dvt_edge.models.training_config import TrainingConfig
from dvt_edge.models.training_data import (
    TrainingImages,
    epoch_batches,
    loader,
    with_class_names,
)
from dvt_edge.progress import Progress, silent


@dataclass(frozen=True)
class EpochResult:
    """One line of ``log.jsonl``."""

    epoch: int
    """Epochs done, from 1."""
    loss: float
    """Mean training loss of the epoch: the weighted sum over the exits."""
    accuracy: list[float]
    """Top-1 of every exit on the validation images, 0..1."""
    learning_rate: float
    """At the end of the epoch."""
    seconds: float
    """Wall time of the epoch, validation included."""


@dataclass
class _State:
    """What a resumed run needs besides weights and optimizers."""

    epoch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """One training run of one cascade.

    Raises :class:`~dvt_edge.errors.ConfigError` when ``config.output`` holds another run, or an
    unfinished one and ``resume`` is false, and where it cannot be written.
    """

    def __init__(self, config: TrainingConfig, *, resume: bool = False) -> None:
        self.config = config = with_class_names(config)
        self._state_path = config.output / "state.pt"
        self._check_output(resume)
        self.rank, self.world = _join_process_group()
        if config.batch_size % self.world:
            raise ConfigError(f"batch_size {config.batch_size} does not divide by {self.world}")
        self.device = torch.device(
            f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if torch.cuda.is_available() else "cpu"
        )
        self.validation = TrainingImages(
            config, config.data.validation, config.data.validation_seed, None
        )
        self.training_count = len(TrainingImages(config, config.data.train, config.seed, 0))
        if self.training_count < config.batch_size:
            raise ConfigError(
                f"batch_size {config.batch_size} exceeds the {self.training_count} training images"
            )
        torch.manual_seed(config.seed)
        self.cascade = _starting_cascade(config)
        self.cascade.to(self.device)
        self.model = self._wrap()
        self.optimizers = _make_optimizers(self.cascade, config)
        self.state = _State()
        if self._state_path.exists():
            self._resume()

    def run(
        self,
        progress: Progress = silent,
        on_epoch: Callable[[EpochResult], None] | None = None,
    ) -> list[EpochResult]:
        """Train to the end; returns one result per epoch, those before a resume included.

        ``progress`` is called after every step, ``on_epoch`` after every epoch. The finished
        ``model.safetensors`` is in ``config.output``, beside ``log.jsonl``.
        """
        while self.state.epoch < self.config.epochs:
            self._train_epoch(progress)
            result = self._end_epoch()
            if on_epoch and self.rank == 0:
                on_epoch(result)
        if self.rank == 0:
            half = self.config.save_dtype == "float16"
            self.cascade.save(self.config.output / "model.safetensors", half=half)
        if self.world > 1:  # torchrun stops the saving process when another one dies
            dist.barrier()
        return [EpochResult(**line) for line in self.state.log]

    def _train_epoch(self, progress: Progress) -> None:
        config, state = self.config, self.state
        images = TrainingImages(config, config.data.train, config.seed, state.epoch)
        batches = epoch_batches(
            self.training_count, config.batch_size, config.seed, state.epoch, self.rank, self.world
        )
        self.model.train()
        started = saved = time.monotonic()
        before = state.seconds
        for pixels, labels in loader(images, batches[state.step :], config.data.workers):
            loss = self._step(pixels, labels, state.epoch * len(batches) + state.step, len(batches))
            state.step += 1
            state.loss_sum += loss
            state.seconds = before + time.monotonic() - started
            what = f"epoch {state.epoch + 1}/{config.epochs}"
            progress(what, state.step, len(batches), f"loss {state.loss_sum / state.step:.4f}")
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                self._save_state()
                saved = time.monotonic()

    def _step(self, pixels: Tensor, labels: Tensor, step: int, steps_per_epoch: int) -> float:
        config = self.config
        rate = config.learning_rate * schedule(
            step,
            round(config.warmup_epochs * steps_per_epoch),
            config.epochs * steps_per_epoch,
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
        labels = labels.to(self.device, non_blocking=True)
        with self._autocast():
            outputs = self.model(self._normalise(pixels))
        weights = config.exit_weights or (1.0,) * len(outputs)
        loss = sum(
            (
                weight
                * F.cross_entropy(
                    output.logits.float(), labels, label_smoothing=config.label_smoothing
                )
                for weight, output in zip(weights, outputs, strict=True)
            ),
            start=torch.zeros((), device=self.device),
        )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.cascade.parameters(), config.clip_norm)
        for optimizer in self.optimizers:
            optimizer.step()
        return float(loss.detach())

    @torch.no_grad()
    def evaluate(self) -> list[float]:
        """Top-1 of every exit on the validation images, 0..1."""
        self.cascade.eval()
        count = len(self.validation)
        batches = np.array_split(np.arange(count), math.ceil(count / self.config.batch_size))
        right = torch.zeros(len(self.config.model.stages), device=self.device)
        mine = batches[self.rank :: self.world]
        for pixels, labels in loader(self.validation, mine, self.config.data.workers):
            with self._autocast():
                outputs = self.cascade(self._normalise(pixels))
            truth = labels.to(self.device)
            right += torch.stack([(o.logits.argmax(1) == truth).sum() for o in outputs])
        if self.world > 1:
            dist.all_reduce(right)
        return (right / count).tolist()

    def _end_epoch(self) -> EpochResult:
        started = time.monotonic()
        accuracy = self.evaluate()
        state = self.state
        result = EpochResult(
            epoch=state.epoch + 1,
            loss=round(state.loss_sum / max(1, state.step), 5),
            accuracy=[round(a, 5) for a in accuracy],
            learning_rate=float(self.optimizers[0].param_groups[0]["lr"]),
            seconds=round(state.seconds + time.monotonic() - started, 1),
        )
        self.state = _State(epoch=state.epoch + 1, log=[*state.log, asdict(result)])
        self._save_state()
        return result

    def _normalise(self, pixels: Tensor) -> Tensor:
        images = pixels.to(self.device, non_blocking=True).float().div_(255)
        mean, std = (
            torch.tensor(v, device=self.device).view(1, -1, 1, 1)
            for v in (self.config.input.mean, self.config.input.std)
        )
        return images.sub_(mean).div_(std)

    def _autocast(self) -> torch.autocast:
        precision = self.config.precision
        native = (
            torch.cuda.is_bf16_supported(including_emulation=False)
            if self.device.type == "cuda"
            else torch.cpu._is_avx512_bf16_supported()
        )
        enabled = precision == "bf16" or (precision == "auto" and native)
        return torch.autocast(self.device.type, torch.bfloat16, enabled=enabled)

    def _wrap(self) -> nn.Module:
        if self.world == 1:
            return self.cascade
        model: nn.Module = self.cascade
        if self.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return DistributedDataParallel(
            model, device_ids=[self.device.index] if self.device.type == "cuda" else None
        )

    def _check_output(self, resume: bool) -> None:
        """Before the images are read, which takes long."""
        check_writable(self._state_path)
        if self._state_path.exists() and not resume:
            raise ConfigError(
                f"{self.config.output}: holds a training run; continue it with --resume, or choose "
                "another output"
            )

    def _resume(self) -> None:
        damaged = CheckpointError(
            f"{self._state_path}: cannot be resumed from, because it is damaged or of another "
            "program; remove it to start again"
        )
        try:
            saved = torch.load(self._state_path, map_location=self.device, weights_only=True)
            fingerprint = saved["config"]
        except Exception:  # of a damaged pickle, whatever its bytes stand for
            raise damaged from None
        if fingerprint != _fingerprint(self.config):
            raise ConfigError(
                f"{self.config.output}: was trained with another configuration; restore that one, "
                "or choose another output"
            )
        try:
            self.cascade.load_state_dict(saved["model"])
            for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            self.state = _State(**saved["state"])
        except Exception:
            raise damaged from None

    def _save_state(self) -> None:
        if self.rank:
            return
        values = {
            "config": _fingerprint(self.config),
            "model": self.cascade.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "state": asdict(self.state),
        }
        with replaced(self._state_path) as temporary:
            try:
                torch.save(values, temporary)
            except RuntimeError as error:  # its own words for a full disk
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        with replaced(self.config.output / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in self.state.log))


def schedule(step: int, warmup: int, total: int) -> float:
    """Factor 0..1 on the learning rate: linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def _make_optimizers(cascade: Cascade, config: TrainingConfig) -> list[torch.optim.Optimizer]:
    """AdamW, or Muon for the layers' matrices and AdamW for the rest; only weights decay."""
    matrices, weights, others = [], [], []
    for name, parameter in cascade.named_parameters():
        if config.optimizer == "muon" and parameter.ndim == 2 and ".blocks." in name:
            matrices.append(parameter)
        elif parameter.ndim >= 2 and not name.endswith(("cls_token", "pos_embed")):
            weights.append(parameter)
        else:
            others.append(parameter)
    groups: list[dict[str, Any]] = [{"params": weights}, {"params": others, "weight_decay": 0.0}]
    adamw = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, 0.99),
        weight_decay=config.weight_decay,
    )
    if not matrices:
        return [adamw]
    muon = torch.optim.Muon(
        matrices,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        adjust_lr_fn="match_rms_adamw",
    )
    return [muon, adamw]


def _starting_cascade(config: TrainingConfig) -> Cascade:
    """Fresh weights, or those of the checkpoint that ``config.start`` names."""
    if config.start is None:
        cascade = Cascade(config.model)
        if config.shared_start:
            cascade.share_start()
        return cascade
    cascade = Cascade.load(config.start)
    named = {"class_names": config.model.class_names}
    if cascade.config.model_copy(update=named) != config.model:
        raise ConfigError(
            f"start: {config.start} holds another model than 'model' describes; "
            f"'dvt-edge inspect {config.start}' shows it"
        )
    cascade.config = config.model
    return cascade.train()


def _join_process_group() -> tuple[int, int]:
    """Rank and number of processes; joins the group that ``torchrun`` announces."""
    if "WORLD_SIZE" not in os.environ or int(os.environ["WORLD_SIZE"]) == 1:
        return 0, 1
    if not dist.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return dist.get_rank(), dist.get_world_size()


def _fingerprint(config: TrainingConfig) -> str:
    """Hash of all that decides the weights; folders and worker counts do not."""
    elsewhere = {"output": True, "checkpoint_minutes": True, "save_dtype": True}
    values = config.model_dump(exclude=elsewhere)
    if values.pop("start") is not None and config.start is not None:
        values["start"] = hashlib.sha256(config.start.read_bytes()).hexdigest()
    values["data"].pop("workers")
    # Not as pydantic writes JSON, which has no paths that are not UTF-8.
    return hashlib.sha256(json.dumps(values, sort_keys=True, default=str).encode()).hexdigest()
