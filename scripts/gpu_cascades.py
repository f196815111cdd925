"""What the GPU proof runs: cascades with their scenes, the CPU's answers, and ways to open them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from dvt_edge.bundle.bundle import Bundle, file_sha256, write_records
from dvt_edge.bundle.manifest import (
    MANIFEST,
    RECORDS,
    ExitFigures,
    Manifest,
    QuantizationFigures,
    StageSpec,
)
from dvt_edge.converters.engines.request import Request
from dvt_edge.converters.engines.runner import run_build
from dvt_edge.files.datasets import load_image
from dvt_edge.policy import Records
from dvt_edge.profile import BudgetConfig, EngineConfig, ExitsConfig, InputConfig
from dvt_edge.runtime.backends.cuda_device import CudaDevice
from dvt_edge.runtime.backends.gpu_opening import (
    open_device,
    open_onnxruntime_cuda,
    open_tensorrt,
)
from dvt_edge.runtime.backends.onnxruntime_cpu import OnnxRuntimeBackend
from dvt_edge.runtime.backends.protocol import Backend
from dvt_edge.runtime.backends.tensorrt_stage import load_module
from dvt_edge.runtime.preprocess import Preprocessor

ROOT = Path(__file__).resolve().parents[1]
SCENES = ROOT / "samples" / "demo" / "scenes" / "test"
REFERENCE = "reference.npz"

MODELS = ("demo", "dvt_t2t_vit_12", "dvt_deit_small")
PRECISIONS = ("fp16", "int8")
BATCH = 32
BATCHES = (1, BATCH)
IMAGES = {"demo": 256}
"""Scenes by model; :data:`BATCH` of them for the larger cascades, which take the CPU long."""
CALIBRATION_IMAGES = 8

CAMERA_NOISE = 8
"""Standard deviation, in levels of 255, of what is added to enlarged scenes. Without it they are
flat in places as no photograph is, and on a flat patch T2T's float16 graph divides rounding errors
by a deviation of nearly nothing: its answers then say nothing of the device."""

POSITIONS, BIASES, REUSE_GAIN = 0.3, 0.1, 4.0
"""Fresh weights answer one class whatever the image, and barely use what is reused. So large
cascades get weights of unit gain, small position embeddings (of this deviation) and biases, and
reuse that is this much stronger: then the images tell their logits apart."""

CPU = "rehearsal on the CPU"
TORCH, ORT = "torch stages", "onnxruntime cuda"
BACKENDS = ("tensorrt", "tensorrt_rtx", TORCH, ORT)
"""In the order in which they are tried."""

Values = dict[str, Any]
Images = npt.NDArray[np.float16]


@dataclass(frozen=True)
class Prepared:
    """One cascade, ready to be opened anywhere: a bundle, and what the CPU answers."""

    folder: Path
    specs: tuple[StageSpec, ...]
    frames: npt.NDArray[np.uint8]
    """[n, H, W] or [n, H, W, 3], as a camera gives them."""
    images: Images
    """[n, C, S, S]: the same, as stages take them."""
    expected: tuple[dict[str, npt.NDArray[Any]], ...]
    """Of each stage ``logits``, ``confidence`` and ``class_id`` by ONNX Runtime on the CPU."""

    @property
    def paths(self) -> list[Path]:
        return [self.folder / spec.file for spec in self.specs]

    @property
    def median_thresholds(self) -> tuple[float, ...]:
        """Half of the images leave at each exit that they reach, by the CPU's answers."""
        waiting = np.arange(len(self.images))
        thresholds = []
        for outputs in self.expected[:-1]:
            confidence = outputs["confidence"].astype(np.float64)
            thresholds.append(float(np.median(confidence[waiting])))
            waiting = waiting[confidence[waiting] < thresholds[-1]]
        return (*thresholds, -inf)

    @classmethod
    def load(cls, folder: Path) -> Prepared:
        """What :func:`prepare` wrote."""
        specs = Bundle(folder).manifest.stages
        with np.load(folder.parent / f"{folder.name}-{REFERENCE}") as archive:
            expected = tuple(
                {name: archive[f"{name}{k}"] for name in ("logits", "confidence", "class_id")}
                for k in range(len(specs))
            )
            return cls(folder, specs, archive["frames"], archive["images"], expected)


def prepare(model: str, precision: str, folder: Path, count: int | None = None) -> Prepared:
    """Write a bundle of float16 stages, as engines are built from, and the CPU's answers.

    ``count`` scenes; as many as the proof takes where left out.
    """
    # Rows that only open what was prepared need neither torch nor onnx.
    import onnx

    from dvt_edge.converters.graphs.chain import Chain
    from dvt_edge.converters.graphs.facts import stage_spec
    from dvt_edge.models import Cascade
    from dvt_edge.models.cascade import create

    if model == "demo":
        cascade = Cascade.load(ROOT / "samples" / "demo" / "model.safetensors")
    else:
        cascade = lively(create(model).eval())
    size, gray = cascade.config.image_size, cascade.config.channels == 1
    config = InputConfig(
        resize=size,
        crop=size,
        mean=(0.13,) if gray else (0.485, 0.456, 0.406),
        std=(0.26,) if gray else (0.229, 0.224, 0.225),
        color_order="gray" if gray else "bgr",
        interpolation="bilinear" if gray else "bicubic",
        preprocess="host",
    )
    frames = scenes(count or IMAGES.get(model, BATCH), None if gray else size)
    preprocess = Preprocessor(config)
    images = np.empty((len(frames), *preprocess.shape), np.float16)
    for frame, image in zip(frames, images, strict=True):
        preprocess(frame, image)
    graphs = float16_graphs(cascade, precision, images[:CALIBRATION_IMAGES])
    expected = _answers(Chain(graphs), images)
    folder.mkdir(parents=True)
    specs = []
    for i, graph in enumerate(graphs):
        specs.append(stage_spec(graph, f"stage{i + 1}.onnx"))
        onnx.save(graph, folder / specs[-1].file)
    confidence, class_id = (
        np.stack([outputs[name] for outputs in expected], axis=1)
        for name in ("confidence", "class_id")
    )
    write_records(folder / RECORDS, Records(confidence, class_id, class_id[:, -1]))
    _write_manifest(folder, specs, config, cascade.config.classes, frames.shape[1:3])
    arrays: Values = {
        f"{name}{k}": a for k, outputs in enumerate(expected) for name, a in outputs.items()
    }
    arrays |= {"frames": frames, "images": images}
    np.savez(folder.parent / f"{folder.name}-{REFERENCE}", allow_pickle=False, **arrays)
    return Prepared.load(folder)


def scenes(count: int, enlarged: int | None) -> npt.NDArray[np.uint8]:
    """The demo's test scenes, spread over its classes: gray, or in colour of ``enlarged`` pixels a
    side, with the noise of a camera."""
    from PIL import Image

    paths = sorted(SCENES.glob("*/*.png"))
    chosen = [load_image(path) for path in paths[:: len(paths) // count][:count]]
    if enlarged is None:
        return np.stack(chosen)
    size = (enlarged, enlarged)
    large = [
        Image.fromarray(a).convert("RGB").resize(size, Image.Resampling.BICUBIC) for a in chosen
    ]
    noise = np.random.default_rng(0).normal(0, CAMERA_NOISE, (count, *size, 3))
    noisy = np.rint(np.stack([np.asarray(image) for image in large]) + noise)
    levels: npt.NDArray[np.uint8] = np.clip(noisy, 0, 255).astype(np.uint8)
    return levels


def lively(cascade: Any) -> Any:
    """``cascade`` with random weights under which images and reused tensors matter."""
    import torch

    rng = np.random.default_rng(0)
    for name, tensor in cascade.state_dict().items():
        if not tensor.is_floating_point() or "patch_embed.attention" in name:
            continue  # the performers' own start keeps their exponents in float16
        if "pos_embed" in name or "cls_token" in name:
            deviation = POSITIONS
        elif name.endswith("bias"):
            deviation = BIASES
        elif "norm" in name:
            continue
        else:
            deviation = tensor[0].numel() ** -0.5
        if name.endswith(("feature_reuse.mlp.fc2.weight", "relation_reuse.conv2.weight")):
            deviation *= REUSE_GAIN
        tensor.copy_(torch.from_numpy(rng.normal(0, deviation, tensor.shape).astype(np.float32)))
    return cascade


def float16_graphs(cascade: Any, precision: str, images: Images) -> list[Any]:
    """Stages for TensorRT; those in INT8 are calibrated on ``images``."""
    from dvt_edge.converters.graphs.chain import Chain
    from dvt_edge.converters.graphs.fp16 import fp16_body
    from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade
    from dvt_edge.converters.quantizing.calibration import activation_ranges
    from dvt_edge.converters.quantizing.insert_qdq import (
        TENSORRT_OPS,
        quantizable_layers,
        quantize,
    )

    stages: list[Any] = []
    for i in range(len(cascade.config.stages)):
        graph = stage_graph_from_cascade(cascade, i, target="tensorrt")
        if precision == "int8":
            layers = quantizable_layers(graph, TENSORRT_OPS)
            feeds = Chain(stages).next_feeds(images.astype(np.float32))
            graph = quantize(graph, activation_ranges(graph, layers.values(), [feeds]), layers)
        stages.append(graph)
    return [fp16_body(stage) for stage in stages]


def _answers(chain: Any, images: Images) -> list[dict[str, npt.NDArray[Any]]]:
    """``logits``, ``confidence`` and ``class_id`` of every stage."""
    parts = [list(chain.run(images[i : i + BATCH])) for i in range(0, len(images), BATCH)]
    return [
        {
            name: np.concatenate([part[k][name] for part in parts])
            for name in ("logits", "confidence", "class_id")
        }
        for k in range(len(parts[0]))
    ]


def _write_manifest(
    folder: Path,
    specs: Sequence[StageSpec],
    config: InputConfig,
    classes: int,
    frame_shape: tuple[int, ...],
) -> None:
    """A bundle as a build for ONNX Runtime writes it, so that a Runtime opens it."""
    manifest = Manifest(
        build_key="proof",
        device="proof",
        engine=engine_config(),
        input=config,
        exits=ExitsConfig(),
        budget=BudgetConfig(max_stage=len(specs)),
        class_names=tuple(str(i) for i in range(classes)),
        frame_shape=(frame_shape[0], frame_shape[1]),
        stages=tuple(specs),
        quantization=QuantizationFigures(
            precision="int8",
            exits=tuple(ExitFigures(accuracy_before=1, accuracy_after=1) for _ in specs),
            changed_decisions=0,
            tolerance_points=0,
        ),
        files={path.name: file_sha256(path) for path in sorted(folder.iterdir())},
        versions={},
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")


def engine_config(graph: Literal["stages", "conditional"] = "stages") -> EngineConfig:
    return EngineConfig(batch_sizes=BATCHES, graph=graph)


def opener(backend: str, prepared: Prepared) -> Callable[..., Backend]:
    """A function that opens ``prepared`` on ``backend`` once more: ``(preprocess=False,
    graph="stages")``. Engines are built here, once.

    Raises :class:`~dvt_edge.errors.DvtEdgeError` where it is refused.
    """
    paths, specs = prepared.paths, prepared.specs
    if backend == CPU:
        return lambda **_: OnnxRuntimeBackend(paths, specs, BATCH, threads=0)
    if backend in ("tensorrt", "tensorrt_rtx"):
        load_module(backend)
        plans = [path.with_name(f"{path.stem}.{backend}.plan") for path in paths]
        for path, plan in zip(paths, plans, strict=True):
            request = Request(
                graph=str(path), plan=str(plan), batch_sizes=BATCHES, workspace_bytes=1 << 30
            )
            run_build(backend, request, lambda _: None)

    def open_it(
        *, preprocess: bool = False, graph: Literal["stages", "conditional"] = "stages"
    ) -> Backend:
        engine = engine_config(graph)
        if backend == TORCH:
            return _open_torch(prepared, engine, preprocess)
        if backend == ORT:
            return open_onnxruntime_cuda(paths, specs, engine, preprocess=preprocess)
        return open_tensorrt(backend, plans, specs, engine, preprocess=preprocess)

    return open_it


def _open_torch(prepared: Prepared, engine: EngineConfig, preprocess: bool) -> Backend:
    import onnx
    import torch
    from torch_stage import TorchStage

    device = CudaDevice(engine.wait)
    try:
        with device.current():
            stages = [
                TorchStage(onnx.load(path), spec)
                for path, spec in zip(prepared.paths, prepared.specs, strict=True)
            ]
    except BaseException:
        device.close()
        raise
    name = f"torch {torch.__version__}"
    return open_device(name, device, stages, prepared.specs, engine, preprocess=preprocess)
