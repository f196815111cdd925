"""What several test modules share: a bundle of the demo cascade, tiny random cascades, random
records, a clock that takes no time, a browser. Fixtures are asked for by name; plain functions and
classes are imported from here."""

from __future__ import annotations

import contextlib
import json
import math
import os
import resource
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pytest
import yaml
from hypothesis import settings

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.costs import Costs, ExitCost
from dvt_edge.bundle.manifest import COSTS, MANIFEST
from dvt_edge.bundle.measurement import Bounds
from dvt_edge.machine.board import processor_name
from dvt_edge.machine.driver import Driver, Gpu
from dvt_edge.machine.platform import Platform
from dvt_edge.models.config import CascadeConfig, StageConfig
from dvt_edge.policy import Records
from dvt_edge.profile import ExitsConfig, Profile
from dvt_edge.runtime.backends.onnxruntime_cpu import backend_name

if TYPE_CHECKING:
    import onnx

    from dvt_edge.converters.graphs.stage_graph import Target
    from dvt_edge.models.cascade import Cascade

REPOSITORY = Path(__file__).resolve().parents[1]

# Models this small only lose by threads, most of all on a busy machine. Read when torch starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: a busy machine must not fail a test. No database: nothing is kept in the repository.
settings.register_profile("dvt-edge", deadline=None, database=None)
settings.load_profile("dvt-edge")


@pytest.fixture(scope="session", autouse=True)
def _own_folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's engine cache or key."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        yield


@pytest.fixture(scope="session")
def samples() -> Path:
    """The repository's ``samples`` folder; tests only read it."""
    return REPOSITORY / "samples"


def write_yaml(path: Path, values: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def demo_profile_values(
    samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., dict[str, Any]]:
    """A function giving ``demo-cpu.yaml`` as a dictionary with absolute paths, few calibration
    images, a budget that any machine keeps, and an output outside the repository."""

    def values(**changes: Any) -> dict[str, Any]:
        text = (samples / "profiles" / "demo-cpu.yaml").read_text(encoding="utf-8")
        profile: dict[str, Any] = yaml.safe_load(text)
        profile["model"] = str(samples / "demo" / "model.safetensors")
        profile["calibration"] = {
            "data": str(samples / "demo" / "scenes" / "calibration"),
            "samples": 200,
            "tolerance_points": 5.0,  # one image of 200 is half a point
        }
        profile["budget"] = {"latency_ms": 1000.0}
        profile["output"] = str(tmp_path_factory.mktemp("demo") / "bundle")
        return profile | changes

    return values


@pytest.fixture(scope="session")
def demo_bundle(demo_profile_values: Callable[..., dict[str, Any]]) -> Path:
    """Folder of the demo cascade's bundle, built once; read-only for tests (copy it to change).

    Where torch is missing, ``DVT_EDGE_DEMO_BUNDLE`` names one that another machine built; its copy
    gets the budget that any machine keeps.
    """
    values = demo_profile_values()
    if built := os.environ.get("DVT_EDGE_DEMO_BUNDLE"):
        folder = Path(shutil.copytree(built, values["output"]))
        edit_manifest(folder, lambda manifest: manifest.update(budget=values["budget"]))
        return folder
    from dvt_edge.converters.build import build

    return build(Profile.model_validate(values)).bundle.folder


@pytest.fixture(scope="session")
def demo_profile(
    demo_bundle: Path,
    demo_profile_values: Callable[..., dict[str, Any]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A YAML profile whose ``output`` is :func:`demo_bundle`."""
    values = demo_profile_values(output=str(demo_bundle))
    return write_yaml(tmp_path_factory.mktemp("profile") / "demo.yaml", values)


@pytest.fixture
def write_profile(demo_profile: Path, own_bundle: Path, tmp_path: Path) -> Callable[..., Path]:
    """A function writing the demo profile for :func:`own_bundle`, under a mean latency of 2 ms;
    keywords replace sections."""

    def write(**changes: Any) -> Path:
        values = yaml.safe_load(demo_profile.read_text(encoding="utf-8"))
        values |= {"output": str(own_bundle), "budget": {"latency_ms": 2.0}} | changes
        return write_yaml(tmp_path / "profile.yaml", values)

    return write


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Let ``change`` alter the values of a bundle's manifest."""
    path = folder / MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")


def made_records(
    count: int = 300, exits: int = 3, seed: int = 0, *, classes: int = 5, labelled: bool = True
) -> Records:
    """Random records like those of a trained cascade: the surer an exit is, the more often it is
    right, and later exits are surer."""
    rng = np.random.default_rng(seed)
    hard = rng.random((count, 1))
    logits = (np.linspace(0.6, 0.95, exits) - hard) * 8 + rng.normal(0, 0.8, (count, exits))
    confidence = 1 / (1 + np.exp(-logits))
    wrong = rng.random((count, exits)) > confidence
    label = rng.integers(0, classes, count).astype(np.int32)
    prediction = (label[:, None] + wrong) % classes
    return Records(
        confidence.astype(np.float32), prediction.astype(np.int32), label if labelled else None
    )


@contextlib.contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Nothing in this process can write a file beyond ``size`` bytes: a full disk, near enough."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@dataclass
class HandClock:
    """A :class:`~dvt_edge.machine.clock.Clock`, and a ``perf_counter`` when called: it stands still
    unless a test moves it or somebody sleeps. Nobody may sample by it."""

    ms: float = 0.0
    slept_s: list[float] = field(default_factory=list)

    def __call__(self) -> float:
        return self.ms / 1e3

    def now(self) -> float:
        return self()

    def sleep(self, seconds: float) -> None:
        self.slept_s.append(seconds)
        self.ms += 1e3 * seconds

    def every(self, seconds: float, tick: Callable[[], bool]) -> Callable[[], None]:
        raise AssertionError("nobody samples")


def random_pixels(*shape: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Noise of any level."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def idx_bytes(array: npt.NDArray[np.uint8], kind: int = 8) -> bytes:
    """``array`` as an IDX file, the format of MNIST; ``kind`` 8 stands for uint8."""
    head = bytes([0, 0, kind, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


def unknown_dds() -> bytes:
    """An image whose decoder raises NotImplementedError."""
    head = struct.pack("<7I", 124, 0x1007, 4, 4, 0, 0, 0) + bytes(44)
    return b"DDS " + head + struct.pack("<8I", 32, 0x8000_0000, 0, 0, 0, 0, 0, 0) + bytes(20)


def _tiny_config(**changes: Any) -> CascadeConfig:
    values: dict[str, Any] = {
        "image_size": 16,
        "channels": 1,
        "classes": 5,
        "reuse_hidden": 8,
        "reuse_width": 4,
        "stages": (
            StageConfig(grid=2, width=8, depth=2, heads=2, mlp_ratio=2),
            StageConfig(grid=4, width=8, depth=2, heads=2, mlp_ratio=2),
            StageConfig(grid=5, width=8, depth=2, heads=2, mlp_ratio=2),
        ),
    }
    return CascadeConfig(**(values | changes))


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., CascadeConfig]:
    """A function giving the configuration of a cascade small enough for any test: gray 16x16
    images, five classes, grids 2, 4 and 5; keywords replace fields."""
    return _tiny_config


@pytest.fixture(scope="session")
def random_cascade() -> Callable[..., Cascade]:
    """A function ``(config, seed=0)`` giving a cascade in eval mode all of whose weights matter.

    Fresh weights hide mistakes: biases are zero, norms are the identity, attention is uniform.
    """
    import torch

    from dvt_edge.models.cascade import Cascade

    def make(config: CascadeConfig, seed: int = 0) -> Cascade:
        cascade = Cascade(config).eval()
        rng = np.random.default_rng(seed)
        for name, tensor in cascade.state_dict().items():
            if not tensor.is_floating_point():
                continue
            inputs = math.prod(tensor.shape[1:]) if name.endswith("weight") else 4
            values = rng.normal(0, inputs**-0.5, tensor.shape).astype(np.float32)
            if "norm" in name or name.endswith(("running_var", "stem.1.weight")):
                values = np.abs(values) / 2 + 0.5
            tensor.copy_(torch.from_numpy(values))
        return cascade

    return make


UNEQUAL = (
    StageConfig(grid=2, width=8, depth=1, heads=1, mlp_ratio=1),
    StageConfig(grid=3, width=24, depth=3, heads=4, mlp_ratio=2.5),
    StageConfig(grid=4, width=12, depth=2, heads=3, mlp_ratio=3),
    StageConfig(grid=7, width=16, depth=1, heads=2, mlp_ratio=2),
)
"""Stages of unequal widths, depths and heads."""


def stage_graphs(
    cascade: Cascade, exits: ExitsConfig | None = None, target: Target = "onnxruntime"
) -> list[onnx.ModelProto]:
    """The graphs of all stages, in float32."""
    from dvt_edge.converters.graphs.stage_graph import stage_graph_from_cascade

    stages = range(len(cascade.stages))
    return [stage_graph_from_cascade(cascade, i, exits, target) for i in stages]


_BOARDS: dict[str, dict[str, str]] = {
    "orin-nano": {
        "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0"
        "nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=15W >\n< POWER_MODEL ID=1 NAME=25W >\n"
        "< POWER_MODEL ID=2 NAME=MAXN_SUPER >\n< PM_CONFIG DEFAULT=1 >\n",
        "var/lib/nvpmodel/status": "pmode:0002 fmode:quiet\n",
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "12.6.68"}}',
        "proc/meminfo": "MemTotal:        7802272 kB\nMemAvailable:    5000000 kB\n",
    },
    "agx-orin": {
        "proc/device-tree/model": "NVIDIA Jetson AGX Orin Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0005\0nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R36 (release), REVISION: 4.0, GCID: 37537400, BOARD: generic\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=2 NAME=30W >\n"
        "< PM_CONFIG DEFAULT=2 >\n",
    },
    "thor": {
        "proc/device-tree/model": "NVIDIA Jetson AGX Thor Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0"
        "nvidia,tegra264\0",
        "etc/nv_tegra_release": "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic\n",
        "etc/nvpmodel.conf": "< POWER_MODEL ID=0 NAME=MAXN >\n< POWER_MODEL ID=1 NAME=120W >\n",
        "var/lib/nvpmodel/status": "pmode:0001\n",
        "usr/local/cuda/version.json": '{"cuda": {"name": "CUDA SDK", "version": "13.0.0"}}',
    },
    "xavier": {
        "proc/device-tree/model": "NVIDIA Jetson Xavier NX Developer Kit\0",
        "proc/device-tree/compatible": "nvidia,p3509-0000+p3668-0000\0nvidia,tegra194\0",
        "etc/nv_tegra_release": "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref\n",
    },
    "orin-jetpack-5": {
        "proc/device-tree/model": "Jetson AGX Orin\0",
        "proc/device-tree/compatible": "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0",
        "etc/nv_tegra_release": "# R35 (release), REVISION: 3.1, GCID: 32827747, BOARD: t186ref\n",
    },
    "pc": {
        "proc/cpuinfo": "processor\t: 0\nmodel name\t: AMD Ryzen 7 5800X\nflags\t: fpu\n",
        "proc/meminfo": "MemTotal:       32768000 kB\nMemAvailable:   20000000 kB\n",
    },
    "empty": {},
}


@pytest.fixture
def board_root(tmp_path: Path) -> Callable[..., Path]:
    """A function ``(kind, files=None)`` that writes a machine's files and gives their root.

    ``kind`` is ``orin-nano`` (JetPack 6.2), ``agx-orin`` (6.1), ``thor`` (7.0), ``xavier``,
    ``orin-jetpack-5``, ``pc`` or ``empty``; ``files`` maps more paths to their text.
    """

    def write(kind: str, files: dict[str, str] | None = None) -> Path:
        root = tmp_path / kind
        root.mkdir(exist_ok=True)
        for name, text in (_BOARDS[kind] | (files or {})).items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        return root

    return write


ORIN = Driver("12.6", (Gpu("Orin", "8.7"),))
"""The driver of ``orin-nano``."""


def orin_platform(**changes: Any) -> Platform:
    """What engines are built with on ``orin-nano``; keywords replace fields."""
    values: dict[str, Any] = {
        "backend": "tensorrt",
        "version": "10.3.0",
        "compute_capabilities": ("8.7",),
        "device": "Orin",
        "cuda": "12.6.68",
        "l4t": "36.4.3",
        "power_mode": "MAXN_SUPER",
    }
    return Platform(**(values | changes))


def write_onnx(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    output: onnx.ValueInfoProto,
    **weights: npt.NDArray[Any],
) -> Path:
    """A model of any kind, as people export them."""
    import onnx
    from onnx import helper, numpy_helper

    constants = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "graph", inputs, [output], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.fixture(scope="session")
def known_costs() -> Callable[..., Costs]:
    """A function ``(bundle, mean_ms=(1, 2, 4))`` giving costs as if measured on this machine."""

    def make(bundle: Bundle, mean_ms: tuple[float, ...] = (1.0, 2.0, 4.0)) -> Costs:
        exits = tuple(
            ExitCost(
                mean_ms=ms,
                p50_ms=ms,
                p95_ms=ms,
                p99_ms=ms,
                max_ms=ms,
                preprocess_ms=0.1,
                stage_ms=(ms / (k + 1),) * (k + 1),
                at_most=Bounds(mean_ms=ms, p50_ms=ms, p95_ms=ms, p99_ms=ms, independent_runs=900),
            )
            for k, ms in enumerate(mean_ms)
        )
        return Costs(
            machine=f"{processor_name()}, {backend_name(native=bundle.manifest.native)}",
            content_hash=bundle.manifest.content_hash,
            measured_at="2025-01-01T00:00:00+00:00",
            runs_per_exit=900,
            frame_shape=bundle.manifest.frame_shape,
            exits=exits,
            stage_p99_ms=tuple(ms / (k + 1) for k, ms in enumerate(mean_ms)),
        )

    return make


@pytest.fixture(scope="session")
def costed_bundle(
    demo_bundle: Path,
    known_costs: Callable[..., Costs],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A copy of the demo bundle whose exits cost 1, 2 and 4 ms: nothing has to be measured."""
    folder = tmp_path_factory.mktemp("costed") / "bundle"
    shutil.copytree(demo_bundle, folder)
    bundle = Bundle(folder)
    bundle.store(COSTS, known_costs(bundle))
    return folder


@pytest.fixture
def own_bundle(costed_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the bundle that the test may change."""
    return Path(shutil.copytree(costed_bundle, tmp_path / "bundle"))


_CHROMIUM_FLAGS: Sequence[str] = (
    "--headless",
    "--no-sandbox",  # root, as in containers, cannot have one
    "--disable-gpu",
    "--disable-dev-shm-usage",  # 64 MB in containers
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A headless Chromium; the test is skipped where there is none."""
    binary = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if binary is None or driver is None:
        pytest.skip("needs chromium and chromedriver: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*_CHROMIUM_FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(executable_path=driver)
    browser = webdriver.Chrome(options=options, service=service)
    try:
        yield browser
    finally:
        browser.quit()
