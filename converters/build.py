"""Profile -> bundle, in one go or in two halves.

The host half turns a checkpoint into quantized graphs and needs torch; the device half turns those
into engines and needs TensorRT. A profile for ONNX Runtime has a host half only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.output import check_output
from dvt_edge.bundle.signing import built_here
from dvt_edge.converters.device import build_engines, find_platform
from dvt_edge.errors import BackendError, BuildError, BundleError
from dvt_edge.profile import Profile
from dvt_edge.progress import Progress, silent
from dvt_edge.requirements import HOST_MODULES, missing, need

Phase = Literal["host", "device", "auto"]


@dataclass(frozen=True)
class BuildResult:
    """What :func:`build` did."""

    bundle: Bundle
    rebuilt: bool
    """False when the bundle there was already the result of the same inputs."""
    unfinished: str | None = None
    """Why the engines that the profile asks for were not built; None if they are there."""


def build(
    profile: Profile,
    progress: Progress = silent,
    *,
    phase: Phase = "auto",
    force: bool = False,
) -> BuildResult:
    """Build the bundle that ``profile`` describes, unless it is there already.

    ``host`` stops at the portable bundle; ``device`` starts from the one that is there and needs
    neither torch nor the calibration images; ``auto`` does what this machine can. The new bundle
    takes the old one's place only when it is complete.

    Raises :class:`~dvt_edge.errors.CheckpointError`, :class:`~dvt_edge.errors.DataError` or
    :class:`~dvt_edge.errors.BuildError` for a model, images or accuracy that cannot be used,
    :class:`~dvt_edge.errors.BundleError` where the portable half is missing or of another profile,
    and, for ``device``, :class:`~dvt_edge.errors.BackendError` where engines cannot be built.
    """
    engines = profile.engine.builds_engines
    if phase == "device" and not engines:
        raise BuildError(
            "engine.backend onnxruntime has no device phase: 'dvt-edge build --profile FILE' on "
            "any machine is the whole build"
        )
    check_output(profile.output)
    rebuilt = False
    if phase == "device" or (phase == "auto" and engines and _host_done_elsewhere(profile)):
        bundle = _portable_there(profile)
    else:
        need(
            "the host half of a build",
            *HOST_MODULES,
            error=BuildError,
            instead=", or copy a portable bundle here and build with --phase device",
        )
        from dvt_edge.converters.host import build_host

        bundle, rebuilt = build_host(profile, progress, force=force)
    manifest = bundle.manifest
    if (manifest.budget, manifest.camera) != (profile.budget, profile.camera):
        bundle.set_use(profile.budget, profile.camera)
    if not engines:
        return BuildResult(bundle, rebuilt)
    done = bundle.manifest.engines if bundle.manifest.engine == profile.engine else None
    if phase == "host":
        return BuildResult(bundle, rebuilt, None if done else "only the host phase was asked for")
    try:
        platform = find_platform(profile.engine)
    except BackendError as error:
        if phase == "device":
            raise
        return BuildResult(bundle, rebuilt, None if done else str(error))
    ours = profile.trust == "foreign-engines" or built_here(bundle.manifest)
    if not force and done and done.platform == platform and ours:
        return BuildResult(bundle, rebuilt)
    bundle.manifest = bundle.manifest.model_copy(update={"engine": profile.engine})
    return BuildResult(build_engines(bundle, platform, progress, fresh=force), rebuilt=True)


def _host_done_elsewhere(profile: Profile) -> bool:
    """Whether this is the board: a bundle is there, and torch or the checkpoint is not."""
    if not missing(*HOST_MODULES) and profile.model.exists():
        return False
    try:
        Bundle(profile.output, profile.trusted_keys)
    except BundleError:
        return False
    return True


def _portable_there(profile: Profile) -> Bundle:
    try:
        bundle = Bundle(profile.output, profile.trusted_keys)
    except BundleError as error:
        raise BundleError(
            f"{error}; the device phase starts from the portable bundle that 'dvt-edge build "
            "--phase host' writes: copy that folder here"
        ) from None
    manifest = bundle.manifest
    for name, built, wanted in (
        ("engine.backend", manifest.engine.backend, profile.engine.backend),
        ("engine.precision", manifest.engine.precision, profile.engine.precision),
        ("input", manifest.input, profile.input),
        ("exits", manifest.exits, profile.exits),
    ):
        if built != wanted:
            raise BundleError(
                f"{bundle.folder}: was built with another '{name}' than the profile has; build "
                "its host half again with 'dvt-edge build --phase host --profile FILE'"
            )
    return bundle
