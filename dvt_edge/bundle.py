"""The bundle: a folder with one graph per stage, calibration records and a manifest.

manifest.json   what is inside: schema version, stages, tensors, SHA-256 of every file
stage1.onnx ... one file per stage
records.npz     answers of every exit to every calibration image
costs.json      measured by ``dvt-edge profile``; belongs to the machine, not to the build

For TensorRT it is written in two halves. The portable one, made on any host, holds each stage in
the serialisations that builders read and a few calibration images:

stage1.int8.onnx        float32 body and scales, opset 17: ONNX Runtime, TensorRT 8.6
stage1.int8-fp16.onnx   float16 body and scales, opset 19: TensorRT 10 and later, TensorRT-RTX
stage1.fp16.onnx        float16, nothing quantized
parity.npz              images that engines are compared on

The device adds stage1.plan ..., raw engines that ``trtexec --loadEngine`` opens.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
from pydantic import Field, ValidationError, model_validator

from dvt_edge.documents import Document
from dvt_edge.engines import Engines, Precision, PrecisionFigures
from dvt_edge.errors import BundleError
from dvt_edge.files import replaced_file
from dvt_edge.policy.records import Records
from dvt_edge.profile import BudgetConfig, EngineConfig, ExitsConfig, InputConfig

Value = TypeVar("Value")

SCHEMA_VERSION: Literal[2] = 2
MANIFEST = "manifest.json"
RECORDS = "records.npz"
COSTS = "costs.json"
PARITY = "parity.npz"
HANDED_ON = "next_"
"""A stage's outputs of this prefix are the next stage's inputs of the name without it."""


class TensorSpec(Document):
    """One input or output of a stage."""

    name: str
    shape: tuple[int | str, ...]
    """``"N"`` stands for the batch."""
    dtype: Literal["float32", "float16", "int32"]

    @property
    def bytes_per_image(self) -> int:
        width = 2 if self.dtype == "float16" else 4
        return width * math.prod(size for size in self.shape if isinstance(size, int))


def handed_on(tensors: Mapping[str, Value]) -> dict[str, Value]:
    """What the next stage takes of one stage's ``tensors``, by the names that it reads."""
    return {
        name.removeprefix(HANDED_ON): value
        for name, value in tensors.items()
        if name.startswith(HANDED_ON)
    }


class StageSpec(Document):
    """One stage file."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    parameters: int = Field(ge=0)
    """Weights and biases in the graph, upsampling constants included."""
    macs: int = Field(ge=0)
    """Multiply-accumulates of matrix products and convolutions at batch 1, counted on the graph."""
    precision: Precision = "fp32"
    """Of the layers that quantization is about."""
    layers: dict[str, dict[str, int]] = Field(default_factory=dict)
    """How many layers of each class compute in each precision."""
    float_layers: tuple[str, ...] = ()
    """Layers left in float because INT8 cost this exit too much."""
    graphs: dict[str, str] = Field(default_factory=dict)
    """Serialisations in a bundle for TensorRT: ``int8``, ``int8-fp16``, ``fp16`` -> file."""

    @property
    def handed_on_bytes(self) -> int:
        """Size of features and relations for the next stage, per image."""
        return sum(handed_on({t.name: t.bytes_per_image for t in self.outputs}).values())


class ExitFigures(Document):
    """What quantization did to one exit, on the calibration images (shares, 0..1)."""

    accuracy_before: float
    """Top-1 of the FP32 graphs; agreement with the last FP32 exit where labels are missing."""
    accuracy_after: float
    """The same for the stages in the bundle."""


class QuantizationFigures(Document):
    """What quantization did, on the calibration images."""

    precision: Literal["int8", "fp16", "fp32", "auto"]
    """As the profile asked for it."""
    exits: tuple[ExitFigures, ...]
    changed_decisions: float
    """Share of images that leave at another exit than with the FP32 graphs."""
    tolerance_points: float
    fp16_same_class: tuple[float, ...] | None = None
    """[K]: share of the parity images whose class the float16 serialisation keeps, where there is
    one; run by ONNX Runtime, which computes float16 products in float32."""


class Manifest(Document):
    """``manifest.json``."""

    schema_version: Literal[2] = SCHEMA_VERSION
    build_key: str
    """Hash of everything that decided the contents; the same key rebuilds nothing."""
    device: str
    engine: EngineConfig
    input: InputConfig
    exits: ExitsConfig
    temperatures: tuple[float, ...] | None = None
    """Fitted temperature of every exit, where ``exits.fit_temperature`` asked for it."""
    budget: BudgetConfig
    class_names: tuple[str, ...]
    recorded_thresholds: tuple[tuple[float | str, ...], ...] | None = None
    """[P, K] as an imported checkpoint carries them; infinities are strings."""
    frame_shape: tuple[int, int]
    """Median height and width of the calibration images, for measuring costs."""
    stages: tuple[StageSpec, ...] = Field(min_length=1)
    quantization: QuantizationFigures
    choices: tuple[PrecisionFigures, ...] = ()
    """Every precision that was tried, stage by stage, with ``precision: auto``."""
    portable_stages: tuple[StageSpec, ...] | None = None
    """The stages before the device half, from which it can be built again."""
    engines: Engines | None = None
    """The device half; None before it, and where there are no engines."""
    files: dict[str, str]
    """SHA-256 of every file but the manifest and the costs."""
    versions: dict[str, str]
    """Of the programs that built the bundle."""

    @model_validator(mode="after")
    def _every_file_has_a_hash(self) -> Manifest:
        graphs = [file for stage in self.stages for file in stage.graphs.values()]
        for name in (*(stage.file for stage in self.stages), *graphs, RECORDS):
            if name not in self.files:
                raise ValueError(f"files has no SHA-256 of {name}")
        return self

    @property
    def portable(self) -> bool:
        """Whether engines are still to be built from it, on the device."""
        return self.engine.builds_engines and self.engines is None

    @property
    def bytes_resident(self) -> int:
        """Images, reuse tensors and answers that a backend holds for the largest batch."""
        own = sum(t.bytes_per_image for stage in self.stages for t in stage.outputs)
        image = self.stages[0].inputs[0].bytes_per_image
        return max(self.engine.batch_sizes) * (image + own)

    @property
    def content_hash(self) -> str:
        """Hash over all stage files; measured costs are bound to it."""
        return _sha256("".join(self.files[stage.file] for stage in self.stages).encode())


class Bundle:
    """An opened bundle: checked against its manifest.

    Raises :class:`~dvt_edge.errors.BundleError` when the folder is no bundle, was written by
    another schema version, or a file was changed.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / MANIFEST
        try:
            self.manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise BundleError(
                f"{self.folder}: no bundle here (no {MANIFEST}); build one with "
                "'dvt-edge build --profile FILE'"
            ) from None
        except (ValidationError, UnicodeDecodeError) as error:
            written = _schema_version(path)
            first = str(error).replace("\n", " ")[:200]
            if written not in (None, SCHEMA_VERSION):
                first = f"written as schema {written} by another version of dvt-edge"
            raise BundleError(
                f"{path}: not a manifest of schema {SCHEMA_VERSION} ({first}); rebuild with "
                "'dvt-edge build'"
            ) from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error})") from None
        for name, expected in self.manifest.files.items():
            found = file_sha256(self.folder / name)
            if found != expected:
                raise BundleError(
                    f"{self.folder / name}: changed since the build (SHA-256 {found[:12]}..., "
                    f"expected {expected[:12]}...); rebuild with 'dvt-edge build'"
                )

    def stage_path(self, index: int) -> Path:
        """File of stage ``index`` (from 0)."""
        return self.folder / self.manifest.stages[index].file

    def records(self) -> Records:
        """The calibration records."""
        try:
            with np.load(self.folder / RECORDS, allow_pickle=False) as archive:
                label = archive["label"] if "label" in archive.files else None
                return Records(archive["confidence"], archive["prediction"], label)
        except (OSError, KeyError, ValueError, zipfile.BadZipFile, zlib.error) as error:
            raise BundleError(f"{self.folder / RECORDS}: unusable ({error}); rebuild") from None

    def set_budget(self, budget: BudgetConfig) -> None:
        """Store another budget in the manifest; nothing else changes."""
        manifest = self.manifest.model_copy(update={"budget": budget})
        write_aside(self.folder / MANIFEST, manifest.model_dump_json(indent=2))
        self.manifest = manifest


def _schema_version(path: Path) -> int | None:
    """What a manifest says of itself, if anything."""
    try:
        found = json.loads(path.read_bytes())["schema_version"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, int) else None


def write_records(path: Path, records: Records) -> None:
    """Write ``records.npz``."""
    arrays = {"confidence": records.confidence, "prediction": records.prediction}
    if records.label is not None:
        arrays["label"] = records.label
    np.savez_compressed(path, allow_pickle=False, **arrays)


@contextlib.contextmanager
def replaced_folder(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside ``folder`` that takes its place when the block succeeds.

    On failure or Ctrl-C the old folder stays as it was. A folder that is no bundle is not replaced.
    """
    if folder.exists() and not (
        (folder / MANIFEST).exists() or (folder.is_dir() and not any(folder.iterdir()))
    ):
        raise BundleError(f"{folder}: holds something else than a bundle; choose another output")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{folder.name}.new-", dir=folder.parent))
    except OSError as error:
        raise BundleError(f"{folder}: cannot be written ({error}); choose another output") from None
    try:
        yield new
        new.chmod(0o755)
        old = new.with_name(new.name.replace(".new-", ".old-"))
        try:
            if folder.exists():
                folder.rename(old)
            new.rename(folder)
        except BaseException:
            if old.exists() and not folder.exists():
                old.rename(folder)
            raise
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_aside(path: Path, text: str) -> None:
    """Write ``text`` to ``path`` so that a reader sees the old file or the new one."""
    with replaced_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); rebuild") from None
    return digest.hexdigest()


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
