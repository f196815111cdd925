"""The profile: what to build, for which device, and the budget it must keep."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, ValidationError, ValidationInfo, field_validator, model_validator
from pydantic_core import ErrorDetails

from dvt_edge.errors import BudgetError
from dvt_edge.files.documents import Document, DocumentPath
from dvt_edge.policy.confidence import ConfidenceKind
from dvt_edge.policy.statistic import Statistic

ColorOrder = Literal["bgr", "rgb", "gray", "nv12", "yuyv"]
"""Layout of a frame in memory: the order of its channels, or how it packs YUV."""


_BOUNDS = {"mean": (-1.0, 2.0), "std": (0.001, 2.0)}
"""Of pixel values scaled to 0..1, with room for models that scale them otherwise: to -1..1, or back
to 0..255."""


class InputConfig(Document):
    """How a frame becomes the model's input."""

    resize: int = Field(ge=4, le=8192)
    """The short side is resized to this many pixels before the crop."""
    crop: int = Field(ge=4, le=4096)
    """Side of the centre crop in pixels: the model's input size."""
    mean: tuple[float, ...] = Field(min_length=1, max_length=3)
    """Per channel, of pixel values scaled to 0..1, in RGB order. Means of levels 0..255, such as
    123.7, are to be divided by 255."""
    std: tuple[float, ...] = Field(min_length=1, max_length=3)
    """Per channel, as ``mean``."""
    color_order: ColorOrder = "bgr"
    """Layout of the frames given to ``classify``: OpenCV's is ``bgr``; ``gray`` models take [H, W]
    frames, and colour frames are converted; cameras give ``nv12`` [H * 3 / 2, W] or ``yuyv``
    [H, W, 2], BT.601 of limited range."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Filter of the resize, antialiased."""
    preprocess: Literal["auto", "host", "device"] = "auto"
    """Where single frames become the model's input: ``device`` on the GPU, ``host`` on the CPU, to
    the same pixels. ``auto`` takes what was faster on the GPU that the engines were built on, and
    ``host`` where none was measured. Batches are always made on the CPU."""

    @field_validator("mean", "std")
    @classmethod
    def _of_shares(cls, values: tuple[float, ...], info: ValidationInfo) -> tuple[float, ...]:
        least, most = _BOUNDS[str(info.field_name)]
        for value in values:
            if not least <= value <= most:
                raise ValueError(
                    f"expected {least:g} to {most:g}, of pixel values scaled to 0..1, found "
                    f"{value:g}; divide what is of levels 0..255 by 255"
                )
        return values

    @model_validator(mode="after")
    def _consistent(self) -> InputConfig:
        if len(self.mean) != len(self.std) or len(self.mean) == 2:
            raise ValueError("mean and std need one value per channel: 1 (gray) or 3 (colour)")
        fits = {"gray": (1,), "bgr": (3,), "rgb": (3,)}.get(self.color_order, (1, 3))
        if len(self.mean) not in fits:
            raise ValueError(
                "color_order gray goes with one mean and std, bgr and rgb with three, nv12 and "
                "yuyv with either"
            )
        if self.crop > self.resize:
            raise ValueError(f"crop {self.crop} is larger than resize {self.resize}")
        return self

    @property
    def channels(self) -> int:
        return len(self.mean)


class DeviceConfig(Document):
    """The machine that the bundle is for."""

    name: str = Field(min_length=1, max_length=200)
    """Free text that reports show, such as ``Jetson Orin Nano 8 GB``."""


class EngineConfig(Document):
    """How the stages are executed."""

    backend: Literal["onnxruntime", "tensorrt", "tensorrt-rtx"] = "onnxruntime"
    """``onnxruntime`` runs on any CPU; ``tensorrt`` on Jetson and other NVIDIA GPUs, with engines
    built on the device; ``tensorrt-rtx`` on RTX GPUs, with engines built anywhere."""
    provider: Literal["cpu", "cuda"] = "cpu"
    """Where ``onnxruntime`` computes; ``cuda`` is for NVIDIA GPUs in x86-64 machines without
    TensorRT and needs onnxruntime-gpu 1.21 or later and pycuda. A Jetson takes backend
    ``tensorrt``."""
    precision: Literal["int8", "fp16", "fp32", "auto"] = "int8"
    """``int8`` quantizes every linear layer. ``fp16`` (TensorRT) and ``fp32`` (ONNX Runtime) leave
    the layers in float. ``auto`` builds both and keeps, stage by stage, the faster one here whose
    answers pass; where the device cannot be measured, ``int8``. On a CPU, ``int8`` and ``auto``
    take the stages on dvt-edge's own operators where those are faster here and pass."""
    batch_sizes: tuple[Annotated[int, Field(ge=1, le=1024)], ...] = (1,)
    """Batch sizes to prepare buffers for; larger batches are cut into the largest of them."""
    threads: int = Field(default=0, ge=0, le=256)
    """CPU threads per stage, with ``onnxruntime``; 0 takes one per core that the process may
    use."""
    compute_capabilities: tuple[Annotated[int, Field(ge=10, le=999)], ...] = ()
    """GPUs that ``tensorrt-rtx`` builds for, such as 86 for compute capability 8.6; the one in
    this machine if empty."""
    workspace_mb: int = Field(default=1024, ge=16, le=1_000_000)
    """Most scratch memory in MiB that a TensorRT engine may use while it is built and runs."""
    wait: Literal["spin", "block"] = "spin"
    """How a thread waits for a GPU at batch 1: ``spin`` answers soonest and keeps a core busy,
    ``block`` sleeps. For larger batches it sleeps."""
    graph: Literal["stages", "conditional"] = "stages"
    """What a GPU runs at one launch: a stage, or with ``conditional`` the whole cascade at batch 1,
    its exits decided on the device. That takes CUDA 12.4, excludes deadlines, and has not run on
    hardware yet."""

    @model_validator(mode="after")
    def _consistent(self) -> EngineConfig:
        if 1 not in self.batch_sizes:
            raise ValueError("batch_sizes must contain 1, which classify() runs")
        if self.compute_capabilities and self.backend != "tensorrt-rtx":
            raise ValueError(
                "compute_capabilities belong to tensorrt-rtx; a tensorrt engine is built on the "
                "device that runs it"
            )
        if self.provider == "cuda" and self.backend != "onnxruntime":
            raise ValueError(f"provider belongs to onnxruntime; {self.backend} runs on the GPU")
        float_ = "fp32" if self.backend == "onnxruntime" else "fp16"
        if self.precision not in ("int8", "auto", float_):
            raise ValueError(
                f"{self.backend} takes precision int8, {float_} or auto, found {self.precision}"
            )
        return self

    @property
    def builds_engines(self) -> bool:
        """Whether the stages become TensorRT engines."""
        return self.backend != "onnxruntime"

    @property
    def runs_on_cpu(self) -> bool:
        return self.backend == "onnxruntime" and self.provider == "cpu"


class CameraConfig(Document):
    """What the frames come from: latency is measured at its pace, with frames of its size."""

    source: str | None = Field(default=None, min_length=1, exclude=True)
    """URI that ``dvt-edge run`` opens, such as ``rtsp://user:${PASSWORD}@host/stream``; ``${NAME}``
    is read from the environment. A path is relative to the profile. It stays out of the bundle."""
    fps: float = Field(default=30.0, ge=0.1, le=10_000)
    """Frames per second. Between frames clocks fall and caches empty, so a frame takes longer than
    in a queue."""
    frame: tuple[Annotated[int, Field(ge=1, le=16384)], Annotated[int, Field(ge=1, le=16384)]] | (
        None
    ) = None
    """Width and height in pixels, such as [1920, 1080]; those of the calibration images where left
    out."""


class CalibrationConfig(Document):
    """Images for quantization and for the thresholds; never images that were trained on."""

    data: DocumentPath
    """Folder with one subfolder per class, flat folder (unlabelled), or npz archive."""
    samples: int = Field(default=2000, ge=1, le=1_000_000)
    """At most this many images, spread evenly over the data."""
    groups: str | None = None
    r"""Which images are alike, such as the frames of a clip: a regular expression whose one group,
    searched in each image's path below ``data``, names its clip, camera or day: ``'(clip\d+)_'``.
    Certificates then count clips, not images. A npz archive has an array ``groups`` instead."""
    unlabelled: DocumentPath | None = None
    """Images from the field, without classes: flat folder or npz archive. They may prove what a
    certificate says of costs, so that all labelled images can choose thresholds."""
    tolerance_points: float = Field(default=1.0, ge=0, le=100)
    """Largest drop of top-1 at any exit through quantization, in percentage points."""

    @field_validator("groups")
    @classmethod
    def _one_group(cls, pattern: str | None) -> str | None:
        if pattern is not None:
            try:
                count = re.compile(pattern).groups
            except (re.error, OverflowError, RecursionError) as error:
                raise ValueError(f"not a regular expression ({error})") from None
            if count != 1:
                raise ValueError(
                    f"needs exactly one group in parentheses, such as (clip\\d+)_, found {count}"
                )
        return pattern


class ExitsConfig(Document):
    """How sure an exit is of its answer."""

    confidence: ConfidenceKind = "max_softmax"
    """What is compared with the thresholds: the largest softmax probability, its ``margin`` over
    the second largest, or one less the normalised ``entropy``."""
    fit_temperature: bool = False
    """Divide each exit's logits by a temperature fitted on the calibration images, so that a
    confidence of 0.8 is right about 80 % of the time (Guo et al. 2017)."""


def _unusable(problem: ErrorDetails) -> str:
    """What is wrong with one key of a budget that a program or a command gave, and the remedy."""
    key = ".".join(str(part) for part in problem["loc"])
    found, kind = problem.get("input"), problem["type"]
    if kind == "extra_forbidden":
        part, keys = "a budget", BudgetConfig.model_fields
        if key.startswith("battery."):
            part, keys = "battery", BatteryConfig.model_fields
        return f"{key}: no such key; the keys of {part} are {', '.join(keys)}"
    if not key:  # keys that do not go together
        return problem["msg"].removeprefix("Value error, ")
    limits = {
        "latency_ms": "a positive number of milliseconds",
        "fps": "a positive number of frames per second, at most 10000",
        "utilisation": "a share above 0 and at most 1, such as 0.8",
        "duty_cycle": "a share above 0 and at most 1, such as 0.3",
        "energy_mj": "a positive number of millijoules",
        "battery": "wh, hours and fps, such as {wh: 20, hours: 8, fps: 10}",
        "battery.wh": "a positive number of watt-hours",
        "battery.hours": "a positive number of hours",
        "battery.fps": "a positive number of frames per second, at most 10000",
        "deadline_ms": "a positive number of milliseconds",
        "min_accuracy": "a share above 0 and at most 1, such as 0.8",
        "confidence_level": "a probability above 0.5 and below 1, such as 0.95",
        "max_stage": "a stage, counted from 1",
        "point": "a row of the recorded thresholds, counted from 1",
        "audit": "a share from 0 to 0.5, such as 0.01",
        "statistic": f"one of {', '.join(get_args(Statistic))}",
        "thresholds": "solve or recorded",
        "adapt": "true or false",
        "video": "true or false",
    }
    return f"{key}: expected {limits[key]}, found {found!r}"


class _Limits(Document):
    """Base of what programs set key by key: a boolean is no number, though Python takes it for
    one."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: object, info: ValidationInfo) -> object:
        kind = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and {int, float} & {kind, *get_args(kind)}:
            raise ValueError("expected a number, found a boolean (true, false, yes, no, on, off)")
        return value


class BatteryConfig(_Limits):
    """A charge that must last, idle power included."""

    wh: float = Field(gt=0, le=1e6)
    """Usable charge in watt-hours."""
    hours: float = Field(gt=0, le=1e5)
    """How long it must last."""
    fps: float = Field(gt=0, le=10_000)
    """Frames per second that are classified meanwhile."""


class BudgetConfig(_Limits):
    """What must not be exceeded: at least one limit; several are kept at once."""

    latency_ms: float | None = Field(default=None, gt=0)
    """Milliseconds per frame: preprocessing, stages and decision, at batch 1."""
    statistic: Statistic = "mean"
    """Of what ``latency_ms`` is the limit: the mean, a percentile or the maximum over frames."""
    fps: float | None = Field(default=None, gt=0, le=10_000)
    """Frames per second that must be classified: a mean latency of ``utilisation`` times the time
    between two frames."""
    utilisation: float = Field(default=0.8, gt=0, le=1)
    """Share of that time that classifying may take, with ``fps``."""
    duty_cycle: float | None = Field(default=None, gt=0, le=1)
    """Share of the time that the machine may be busy at the camera's pace: a mean latency, too."""
    energy_mj: float | None = Field(default=None, gt=0)
    """Mean millijoules per frame; needs measured energy per exit."""
    battery: BatteryConfig | None = None
    """A charge that must last; needs measured energy per exit and power at rest."""
    min_accuracy: float | None = Field(default=None, gt=0, le=1)
    """Accuracy on the calibration records, 0..1; then the cheapest thresholds are chosen."""
    max_stage: int | None = Field(default=None, ge=1)
    """No stage after this one runs, counted from 1."""
    thresholds: Literal["solve", "recorded"] = "solve"
    """``recorded`` uses row ``point`` of the thresholds that an imported checkpoint carries as
    they are; no limit is kept then."""
    point: int | None = Field(default=None, ge=1)
    """Row of the recorded thresholds, from 1."""
    confidence_level: float | None = Field(default=None, gt=0.5, lt=1)
    """Choose only thresholds whose budget holds for unseen frames with this probability, and
    certify it, such as 0.95."""
    deadline_ms: float | None = Field(default=None, gt=0)
    """A stage is started only if its p99 fits into what is left of this time; otherwise the best
    answer so far is given, marked ``truncated``."""
    adapt: bool = False
    """Watch latencies and confidences, and move the thresholds when the mean latency is about to
    leave the budget."""
    audit: float = Field(default=0.0, ge=0, le=0.5)
    """Share of frames that run all exits, to estimate without labels how often early answers agree
    with the last exit; thresholds rise when that falls below what was promised."""
    video: bool = False
    """Frames are consecutive: keep the last answer while the picture hardly changes, where
    measurements say that it pays."""

    def changed(self, **changes: Any) -> BudgetConfig:
        """This budget with other values for some keys; raises BudgetError for unusable ones."""
        try:
            return BudgetConfig.model_validate({**self.model_dump(), **changes})
        except ValidationError as error:
            raise BudgetError(_unusable(error.errors()[0])) from None

    def __str__(self) -> str:
        """The limits, for people: ``mean latency 1.5 ms, accuracy of at least 0.8``."""
        parts = [] if self.point is None else [f"recorded thresholds, point {self.point}"]
        if self.latency_ms is not None:
            parts.append(f"{self.statistic} latency {self.latency_ms:g} ms")
        if self.fps is not None:
            parts.append(f"{self.fps:g} fps at {100 * self.utilisation:g} % utilisation")
        if self.duty_cycle is not None:
            parts.append(f"busy {100 * self.duty_cycle:g} % of the time")
        if self.energy_mj is not None:
            parts.append(f"mean energy {self.energy_mj:g} mJ")
        if self.battery is not None:
            charge = self.battery
            parts.append(f"{charge.wh:g} Wh for {charge.hours:g} h at {charge.fps:g} fps")
        if self.min_accuracy is not None:
            parts.append(f"accuracy of at least {self.min_accuracy:g}")
        if self.max_stage is not None:
            parts.append(f"at most stage {self.max_stage}")
        return ", ".join(parts)

    @model_validator(mode="after")
    def _has_a_limit(self) -> BudgetConfig:
        means = (self.fps, self.duty_cycle)
        energies = (self.energy_mj, self.battery)
        limits = (self.latency_ms, *means, *energies, self.min_accuracy, self.max_stage)
        if (self.thresholds == "recorded") != (self.point is not None):
            raise ValueError("thresholds: recorded needs a point, and only that does")
        if self.thresholds == "recorded":
            if any(limit is not None for limit in limits) or self.adapt or self.confidence_level:
                raise ValueError("recorded thresholds keep no limit; give them alone")
            return self
        if all(limit is None for limit in limits):
            raise ValueError(
                "give latency_ms, fps, duty_cycle, energy_mj, battery, min_accuracy or max_stage"
            )
        if self.adapt and (self.latency_ms, *means) == (None, None, None):
            raise ValueError("adapt keeps a mean latency: it needs latency_ms, fps or duty_cycle")
        if self.adapt and self.latency_ms is not None and self.statistic != "mean":
            raise ValueError("adapt keeps a mean latency: it needs statistic mean")
        if self.adapt and (*energies, self.min_accuracy) != (None, None, None):
            raise ValueError(
                "adapt keeps a mean latency alone, no energy_mj, battery or min_accuracy"
            )
        return self


class EnergyConfig(Document):
    """Declared power, for machines on which no sensor can be read."""

    watts: (
        Annotated[float, Field(gt=0)]
        | Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]
    )
    """Power in watts while a stage runs: one figure, or one per stage. ``dvt-edge profile``
    multiplies it by measured time where it finds no power sensor, and calls the result declared."""
    idle_watts: float | None = Field(default=None, ge=0)
    """Power in watts at rest, which a ``battery`` has to feed as well."""


class BundleConfig(Document):
    """Whose bundles are opened."""

    trusted_keys: tuple[DocumentPath, ...] = Field(min_length=1, max_length=100)
    """Files of public keys (PEM, elliptic curve). A bundle that none of them signed with
    ``dvt-edge sign``, or that was changed since, is refused before anything in it is parsed. Needs
    the extra ``signing``."""


class Profile(Document):
    """One YAML file that says what to build and which budget to keep.

    Relative paths are relative to the profile's own folder.
    """

    device: DeviceConfig
    model: DocumentPath
    """Checkpoint written by ``dvt-edge train`` or ``Cascade.save`` (safetensors)."""
    input: InputConfig
    engine: EngineConfig = EngineConfig()
    exits: ExitsConfig = ExitsConfig()
    camera: CameraConfig = CameraConfig()
    calibration: CalibrationConfig
    budget: BudgetConfig
    energy: EnergyConfig | None = None
    output: DocumentPath
    """Folder of the bundle."""
    bundle: BundleConfig | None = None
    trust: Literal["foreign-engines"] | None = None
    """``foreign-engines`` runs TensorRT engines that were built elsewhere. An engine is a program:
    say this only of bundles from people whose programs you would run."""

    @property
    def trusted_keys(self) -> tuple[Path, ...]:
        """One of these has to have signed the bundle; none where every bundle is opened."""
        return self.bundle.trusted_keys if self.bundle else ()

    @model_validator(mode="after")
    def _consistent(self) -> Profile:
        on_cpu = self.engine.runs_on_cpu
        if on_cpu and (self.input.preprocess == "device" or self.engine.graph == "conditional"):
            raise ValueError(
                "input.preprocess: device and engine.graph: conditional need a GPU: "
                "engine.backend tensorrt or tensorrt-rtx, or provider cuda"
            )
        if self.engine.graph == "conditional" and self.budget.deadline_ms is not None:
            raise ValueError(
                "engine.graph: conditional runs the whole cascade at one launch, so a deadline_ms "
                "cannot stop it between stages; set engine.graph to stages"
            )
        return self
