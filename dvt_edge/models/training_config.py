"""The training configuration: plain data, no torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from dvt_edge.files.documents import Document, DocumentPath
from dvt_edge.models.config import CascadeConfig
from dvt_edge.profile import InputConfig


class SourceConfig(Document):
    """Where labelled images come from."""

    format: Literal["folder", "idx", "npz"]
    """``folder``: one subfolder per class; ``idx``: MNIST's format, gzipped or not; ``npz``: arrays
    ``images`` uint8 [N, H, W(, 3)] and ``labels`` [N]."""
    path: DocumentPath
    """The folder, the npz archive or the IDX file of images."""
    labels: DocumentPath | None = None
    """The IDX file of labels."""
    first: int = Field(default=0, ge=0)
    """Index of the first image used."""
    count: int | None = Field(default=None, ge=1)
    """Number of images used; all from ``first`` on when absent."""

    @model_validator(mode="after")
    def _idx_has_labels(self) -> SourceConfig:
        if (self.format == "idx") != (self.labels is not None):
            raise ValueError("'labels' belongs to format idx, and is needed there")
        return self


class DataConfig(Document):
    """Training and validation images."""

    train: SourceConfig
    validation: SourceConfig
    draw: DocumentPath | None = None
    """``FILE.py:FUNCTION`` that makes each image from ``idx`` or ``npz`` data: called with all
    images uint8 [N, H, W(, 3)], an index and a NumPy generator, it returns one uint8 image. Images
    are drawn again every epoch for training, once for validation. The file is run, so use your
    own."""
    validation_seed: int = 1
    """Seed of the images drawn for validation."""
    workers: int = Field(default=1, ge=0, le=256)
    """Processes that prepare images (per training process)."""


class AugmentConfig(Document):
    """Random changes to training images."""

    flip: float = Field(default=0.0, ge=0, le=1)
    """Probability of a horizontal flip."""
    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Share of the image's area that a random crop keeps, smallest and largest; (1, 1) is off."""
    brightness: float = Field(default=0.0, ge=0, lt=1)
    """Largest relative change of brightness."""
    erase: float = Field(default=0.0, ge=0, le=1)
    """Probability that a random rectangle (2 to 20 % of the area) is filled with noise."""

    @model_validator(mode="after")
    def _crop_in_order(self) -> AugmentConfig:
        low, high = self.crop_scale
        if not 0 < low <= high <= 1:
            raise ValueError("crop_scale needs 0 < smallest <= largest <= 1")
        return self


class TrainingConfig(Document):
    """One training run: the joint loss over all exits of one cascade."""

    model: CascadeConfig
    input: InputConfig
    data: DataConfig
    output: DocumentPath
    """Folder for the checkpoint ``model.safetensors``, ``log.jsonl`` and the resume state."""
    augment: AugmentConfig = AugmentConfig()
    epochs: int = Field(ge=1, le=10_000)
    """Passes over the training images."""
    batch_size: int = Field(ge=1, le=65_536)
    """Images per step in all processes together."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """``muon`` updates the layers' matrices by Muon (Jordan et al. 2024) and the rest by AdamW."""
    learning_rate: float = Field(gt=0, le=1)
    """At the end of the warm-up, the highest."""
    weight_decay: float = Field(default=0.05, ge=0, le=1)
    """Decoupled; on matrices and kernels only."""
    warmup_epochs: float = Field(default=1.0, ge=0)
    """Linear warm-up; then half a cosine down to zero."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes; it blurs the confidences that exits go by."""
    exit_weights: tuple[float, ...] | None = None
    """Weight of each exit's loss; all ones when absent, as in the paper."""
    clip_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """``auto``: bfloat16 where the device computes in it natively, otherwise float32."""
    shared_start: bool = True
    """All stages start from the first stage's weights wherever the shapes agree."""
    start: DocumentPath | None = None
    """A checkpoint of the same model to start from, such as ``dvt-edge import`` writes;
    ``shared_start`` then does nothing."""
    save_dtype: Literal["float32", "float16"] = "float32"
    """Of the weights in ``model.safetensors``; ``float16`` halves the file."""
    seed: int = Field(default=0, ge=0)
    """Of weights, order, augmentation and drawn images."""
    checkpoint_minutes: float = Field(default=5.0, gt=0)
    """A killed run loses at most this much."""

    @model_validator(mode="after")
    def _weights_match(self) -> TrainingConfig:
        if self.exit_weights is not None and len(self.exit_weights) != len(self.model.stages):
            raise ValueError(f"exit_weights needs one weight per stage ({len(self.model.stages)})")
        if self.input.crop != self.model.image_size or self.input.channels != self.model.channels:
            raise ValueError(
                f"input gives {self.input.channels}x{self.input.crop}x{self.input.crop}, the model "
                f"takes {self.model.channels}x{self.model.image_size}x{self.model.image_size}"
            )
        return self
