"""Whether a bundle's engines were built here: a key that stays on this machine signs them.

Opening a TensorRT engine is running native code, and the hashes in a manifest come with the bundle,
so they say nothing about who wrote it.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import tempfile
from pathlib import Path

from dvt_edge.bundle.bundle import Bundle
from dvt_edge.bundle.manifest import Manifest
from dvt_edge.errors import BuildError, BundleError
from dvt_edge.files.cache import data_folder

KEY_BYTES = 32


def signed(manifest: Manifest) -> Manifest:
    """``manifest``, whose engines were just built here, with their signature.

    Raises as :func:`make_key`.
    """
    assert manifest.engines is not None
    engines = manifest.engines.model_copy(update={"signature": _signature(manifest, make_key())})
    return manifest.model_copy(update={"engines": engines})


def built_here(manifest: Manifest) -> bool:
    """Whether this machine's key signed the engines of ``manifest``, for this user."""
    if manifest.engines is None or manifest.engines.signature is None:
        return False
    try:
        key = _path().read_bytes()
    except OSError:
        return False
    expected = _signature(manifest, key)
    return len(key) == KEY_BYTES and hmac.compare_digest(
        expected.encode(), manifest.engines.signature.encode()
    )


def check_built_here(bundle: Bundle) -> None:
    """Before an engine is opened: whether it was built here, or its profile trusts foreign ones.

    Raises :class:`~dvt_edge.errors.BundleError` with the command that rebuilds.
    """
    if bundle.trusts_foreign_engines or built_here(bundle.manifest):
        return
    raise BundleError(
        f"{bundle.folder}: its engines were not built by this user on this machine, and opening an "
        "engine is running a program; rebuild them with 'dvt-edge build --phase device --profile "
        "FILE', or, if you trust who built them, put 'trust: foreign-engines' into the profile"
    )


def make_key() -> bytes:
    """This machine's key for this user, made where there is none yet.

    Raises :class:`~dvt_edge.errors.BuildError` where it can neither be read nor written.
    """
    path = _path()
    try:
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=path.parent)  # for this user's eyes only
            with os.fdopen(handle, "wb") as file:
                file.write(secrets.token_bytes(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            # Another build may have been first; its key counts.
            with contextlib.suppress(FileExistsError):
                os.link(name, path)
            os.unlink(name)
        key = path.read_bytes()
    except OSError as error:
        raise BuildError(
            f"{path}: the key that signs engines cannot be kept there ({error.strerror}); set "
            "XDG_DATA_HOME to a folder that can be written"
        ) from None
    if len(key) != KEY_BYTES:
        raise BuildError(f"{path}: the key that signs engines is damaged; remove it, then build")
    return key


def _signature(manifest: Manifest, key: bytes) -> str:
    """Over the engines, and over what says how they are run."""
    assert manifest.engines is not None
    values = {
        "engines": manifest.engines.model_dump(mode="json", exclude={"signature"}),
        "stages": [stage.model_dump(mode="json") for stage in manifest.stages],
        "files": [manifest.files[stage.file] for stage in manifest.stages],
    }
    text = json.dumps(values, sort_keys=True)
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def _path() -> Path:
    return data_folder() / "engines.key"
