"""The bundle: a folder with one graph per stage, calibration records and a manifest.

manifest.json   what is inside: schema version, stages, tensors, SHA-256 of every file
stage1.onnx ... one file per stage
records.npz     answers of every exit to every calibration image
unlabelled.npz  the same for images from the field, where the profile has some
costs.json      measured by ``dvt-edge profile``; belongs to the machine, not to the build
measurement.json    all that ``dvt-edge profile`` measured, for reports and comparisons
model.sig       signature of all but the last two, where ``dvt-edge sign`` wrote one

For TensorRT it is written in two halves. The portable one, made on any host, also holds each stage
in the precisions that engines may be built in and a few calibration images; stage1.onnx ... run
where there is no NVIDIA driver:

stage1.int8.onnx    INT8 with a float16 body and scales, opset 19
stage1.fp16.onnx    float16, nothing quantized, opset 17
parity.npz          images that engines are compared on

The device adds stage1.plan ..., raw engines that ``trtexec --loadEngine`` opens.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from dvt_edge.bundle.graph_check import check_graph
from dvt_edge.bundle.manifest import (
    MANIFEST,
    RECORDS,
    SCHEMA_VERSION,
    SIGNATURE,
    UNLABELLED,
    Manifest,
)
from dvt_edge.bundle.members import (
    check_members,
    member_sha256,
    read_arrays,
    read_text,
    sha256,
)
from dvt_edge.bundle.output import check_path
from dvt_edge.bundle.signature import check_signed
from dvt_edge.errors import BundleError, ConfigError
from dvt_edge.files.documents import Document, first_problem
from dvt_edge.files.replacing import write_text
from dvt_edge.policy.records import Records
from dvt_edge.profile import BudgetConfig, CameraConfig, Profile

_ROUNDED = 1e-3
"""How far a confidence may be rounded beyond 0 and 1."""


class Bundle:
    """An opened bundle: checked against its manifest, and its graphs for what they may hold.

    Whoever sent it, no file outside its folder is read. Raises
    :class:`~dvt_edge.errors.BundleError` when the folder is not a bundle, was written by another
    schema version, a file was changed or is none that a build writes. With ``trusted_keys``, files
    of public keys, one of them has to have signed it; nothing in it is parsed before that is known.
    """

    def __init__(self, folder: str | Path, trusted_keys: Sequence[Path] = ()) -> None:
        self.folder = Path(folder)
        self.trusts_foreign_engines = False
        """Whether the profile that it was opened with says so; a bundle cannot say it of itself."""
        check_path(self.folder)
        path = self.folder / MANIFEST
        if trusted_keys and os.path.lexists(path):
            check_signed(self.folder, trusted_keys)
        try:
            self.manifest = Manifest.model_validate_json(read_text(self.folder, MANIFEST))
        except FileNotFoundError:
            raise BundleError(
                f"{self.folder}: no bundle here (no {MANIFEST}); build one with "
                "'dvt-edge build --profile FILE'"
            ) from None
        except (ValidationError, UnicodeDecodeError) as error:
            written = _schema_version(self.folder)
            if written not in (None, SCHEMA_VERSION):
                raise BundleError(_other_schema(self.folder, written)) from None
            raise BundleError(
                f"{path}: not a manifest of schema {SCHEMA_VERSION} ({first_problem(error)}); "
                "rebuild with 'dvt-edge build --profile FILE'"
            ) from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be read ({error})") from None
        check_members(self.folder, self.manifest.files)
        for name, expected in self.manifest.files.items():
            found = member_sha256(self.folder, name)
            if found != expected:
                raise BundleError(
                    f"{self.folder / name}: changed since the build (SHA-256 {found[:12]}..., "
                    f"expected {expected[:12]}...); rebuild with 'dvt-edge build'"
                )
            if name.endswith(".onnx"):
                check_graph(self.folder, name)

    def stage_path(self, index: int) -> Path:
        """File of stage ``index`` (from 0)."""
        return self.folder / self.manifest.stages[index].file

    def records(self) -> Records:
        """The calibration records."""
        return self._read_records(RECORDS)

    def unlabelled_records(self) -> Records | None:
        """Records of images from the field, without labels; None where there are none."""
        return self._read_records(UNLABELLED) if UNLABELLED in self.manifest.files else None

    def _read_records(self, name: str) -> Records:
        arrays = read_arrays(self.folder, name)
        exits = len(self.manifest.stages)
        for key, kind, shape in (
            ("confidence", "f", (exits,)),
            ("prediction", "i", (exits,)),
            ("label", "i", ()),
            ("group", "i", ()),
        ):
            array = arrays.get(key)
            missing = array is None and key in ("confidence", "prediction")
            if missing or (
                array is not None and (array.dtype.kind != kind or array.shape[1:] != shape)
            ):
                raise BundleError(
                    f"{self.folder / name}: unusable (no '{key}' as {exits} stages have it); "
                    "rebuild"
                )
        label, group = (arrays.get(key) for key in ("label", "group"))
        self._check_range(name, "confidence", arrays["confidence"], -_ROUNDED, 1 + _ROUNDED)
        last = len(self.manifest.class_names) - 1
        for key in {"prediction", "label"} & arrays.keys():
            self._check_range(name, key, arrays[key], 0, last)
        return Records(arrays["confidence"], arrays["prediction"], label, group)

    def _check_range(
        self, name: str, key: str, array: npt.NDArray[Any], low: float, high: float
    ) -> None:
        """Records are indices and probabilities; NaN is left to :class:`Records`."""
        if ((array < low) | (array > high)).any():
            raise BundleError(
                f"{self.folder / name}: unusable (a '{key}' is out of its range); rebuild"
            )

    def store(self, name: str, document: Document) -> None:
        """Write ``document`` as the bundle's file ``name``, whole or not at all."""
        path = self.folder / name
        try:
            write_text(path, document.model_dump_json(indent=2))
        except OSError as error:
            raise BundleError(
                f"{path}: cannot be written ({error}); make the folder writable"
            ) from None

    def set_use(self, budget: BudgetConfig, camera: CameraConfig) -> None:
        """Store another budget and camera in the manifest, which ends a signature; nothing else
        changes."""
        manifest = self.manifest.model_copy(update={"budget": budget, "camera": camera})
        self.store(MANIFEST, manifest)
        self.manifest = manifest
        (self.folder / SIGNATURE).unlink(missing_ok=True)


def open_source(source: str | Path | Profile) -> tuple[Bundle, BudgetConfig]:
    """The bundle that a profile, its YAML file or a folder stands for, and the budget to keep.

    Raises :class:`~dvt_edge.errors.BundleError` for a bundle that was built with another input,
    engine or exits than the profile has, and :class:`~dvt_edge.errors.ConfigError` for anything
    that is no path and no profile.
    """
    if not isinstance(source, str | os.PathLike | Profile):
        raise ConfigError(
            "expected a profile, the path of its YAML file or a bundle's folder, found "
            f"{type(source).__name__}"
        )
    if not isinstance(source, Profile):
        path = Path(source)
        if path.is_dir():
            bundle = Bundle(path)
            return bundle, bundle.manifest.budget
        source = Profile.from_yaml(path)
    bundle = Bundle(source.output, source.trusted_keys)
    for name in ("input", "engine", "exits"):
        if getattr(bundle.manifest, name) != getattr(source, name):
            raise BundleError(
                f"{bundle.folder}: was built with another '{name}' than the profile has; rebuild "
                "with 'dvt-edge build --profile FILE'"
            )
    bundle.manifest = bundle.manifest.model_copy(update={"camera": source.camera})
    bundle.trusts_foreign_engines = source.trust == "foreign-engines"
    return bundle, source.budget


def _other_schema(folder: Path, written: int) -> str:
    """What to do with a bundle of another schema; nothing is migrated, because older stages lack
    what later ones need."""
    who, first = (
        ("an older", "") if written < SCHEMA_VERSION else ("a later", "update dvt-edge, or ")
    )
    return (
        f"{folder}: a bundle of schema {written}, which {who} version of dvt-edge wrote; this one "
        f"reads schema {SCHEMA_VERSION}: {first}rebuild it with 'dvt-edge build --profile FILE'"
    )


def _schema_version(folder: Path) -> int | None:
    """What a manifest says of itself, if anything."""
    try:
        found = json.loads(read_text(folder, MANIFEST))["schema_version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if isinstance(found, int) else None


def write_records(path: Path, records: Records) -> None:
    """Write ``records`` as ``records.npz`` is read."""
    arrays = {"confidence": records.confidence, "prediction": records.prediction}
    if records.label is not None:
        arrays["label"] = records.label
    if records.group is not None:
        arrays["group"] = records.group
    np.savez_compressed(path, allow_pickle=False, **arrays)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    try:
        with path.open("rb") as file:
            return sha256(file)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}); rebuild") from None
