"""Signatures of whole bundles: whose they are, found out before anything in them is parsed.

The package model-signing makes and checks them, with a private key that is kept offline and the
public keys that a profile trusts. Left out is what ``dvt-edge profile`` writes later.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dvt_edge.bundle.manifest import COSTS, MANIFEST, MEASUREMENT, SIGNATURE
from dvt_edge.bundle.members import (
    LEFT_BEHIND,
    MOST_TEXT_BYTES,
    check_members,
    check_name,
    open_member,
)
from dvt_edge.errors import BundleError, ConfigError
from dvt_edge.files.datasets import printable
from dvt_edge.files.replacing import replaced_file
from dvt_edge.requirements import need

UNSIGNED = (COSTS, MEASUREMENT, SIGNATURE)
"""Files of a bundle that no signature covers."""

MOST_KEY_BYTES = 64 << 10


def sign(folder: Path, files: Iterable[str], key: Path) -> None:
    """Sign the bundle in ``folder``, whose manifest names ``files``, with the private ``key``.

    The bundle has been opened, so only what passes every check is signed. Raises
    :class:`~dvt_edge.errors.ConfigError` for a key that cannot be used and without model-signing,
    and :class:`~dvt_edge.errors.BundleError` where the folder holds more than the bundle or cannot
    be written.
    """
    need("signing a bundle", "model_signing", "OpenSSL")
    from model_signing import signing

    names = _covered(folder)
    for name in names:
        if name not in {MANIFEST, *files}:
            raise BundleError(
                f"{folder / name}: is no file of the bundle; move it away, then sign again"
            )
    _check_key(key)
    config = signing.Config()
    try:
        config.use_elliptic_key_signer(private_key=key)
    except Exception as error:  # cryptography has many, of no common base
        if isinstance(error, TypeError):  # no password was given
            raise ConfigError(
                f"{key}: is encrypted; decrypt it to a place in memory with 'openssl ec -in {key} "
                "-out /dev/shm/sign.key', and remove that afterwards"
            ) from None
        raise _no_key(key, "private", error) from None
    config.set_hashing_config(_Files(folder, names))
    path = folder / SIGNATURE
    try:
        with replaced_file(path) as temporary:
            config.sign(folder, temporary)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written ({error.strerror}); make the folder writable"
        ) from None


def check_signed(folder: Path, keys: Sequence[Path]) -> Path:
    """The first of the public ``keys`` that ``folder`` was signed with, as it is now.

    Nothing but the signature is parsed; files are hashed. Raises
    :class:`~dvt_edge.errors.BundleError` where no key signed it, or files were changed, added,
    removed or renamed since, and :class:`~dvt_edge.errors.ConfigError` for a key that cannot be
    used and without model-signing.
    """
    need("checking a signature", "model_signing", "OpenSSL")
    configs = [_verifier(key) for key in keys]
    names = _covered(folder)
    signature = folder / SIGNATURE
    shown = ", ".join(map(str, keys))
    try:
        open_member(folder, SIGNATURE, MOST_TEXT_BYTES).close()
    except FileNotFoundError:
        raise BundleError(
            f"{folder}: is not signed, and only what {shown} signed is opened; whoever built it "
            "signs it with 'dvt-edge sign'"
        ) from None
    except OSError as error:
        raise BundleError(
            f"{signature}: cannot be read ({error.strerror}); copy it again"
        ) from None
    for key, config in zip(keys, configs, strict=True):
        files = _Files(folder, names)
        config.set_hashing_config(files)
        try:
            # A signature without a key's hash makes model-signing print a warning.
            with contextlib.redirect_stdout(sys.stderr):
                config.verify(folder, signature)
        except Exception as error:  # whatever a forged file provokes
            if not files.hashed:
                continue
            raise BundleError(
                f"{folder}: is not as it was signed ({_difference(error)}); get it "
                "again from whoever built it"
            ) from None
        return key
    raise BundleError(
        f"{signature}: no signature by {shown}; name the public key of whoever signed it, or get "
        "the bundle again"
    )


def _difference(error: Exception) -> str:
    """The files that model-signing names; its text has their hashes as well, as Python prints
    them."""
    names = r"\w[\w.-]*(?:, \w[\w.-]*)*"
    found = [
        f"{what} {', '.join(files)}"
        for what, pattern in (
            ("altered:", rf"Hash mismatch for \\?'({names})"),
            ("added:", rf"Extra files found in model [^:]*: ({names})"),
            ("missing:", rf"Missing files in model [^:]*: ({names})"),
        )
        if (files := re.findall(pattern, str(error)))
    ]
    return "; ".join(found)[:200] or "its files differ"


class _Files:
    """How model-signing hashes a bundle: those files that a signature has to cover.

    It would take from the signature what to leave out.
    """

    def __init__(self, folder: Path, names: Sequence[str]) -> None:
        self._paths = [folder / name for name in names]
        self.hashed = False
        """Whether that was asked for, which it is once a signature has been found good."""

    def hash(self, model_path: Path, **options: Any) -> Any:
        from model_signing import hashing

        self.hashed = True
        config = hashing.Config()
        # Written into the signature, so that model-signing's own commands can check it.
        config.set_ignored_paths(paths=UNSIGNED, ignore_git_paths=False)
        return config.hash(model_path, files_to_hash=self._paths)

    def add_ignored_paths(self, **options: Any) -> None:
        pass


def _covered(folder: Path) -> list[str]:
    """Names of all that ``folder`` holds but :data:`UNSIGNED`, which are regular files."""
    try:
        found = sorted(os.listdir(folder))
    except OSError as error:
        raise BundleError(
            f"{folder}: cannot be read ({error.strerror}); give a bundle's folder"
        ) from None
    names = [name for name in found if name not in UNSIGNED and not LEFT_BEHIND.fullmatch(name)]
    for name in names:
        try:
            check_name(name)
        except ValueError:
            shown = " ".join(printable(name).split())
            raise BundleError(
                f"{folder}: holds '{shown}', and no file of a bundle is called that; move it away"
            ) from None
    check_members(folder, names)
    return names


def _verifier(key: Path) -> Any:
    from model_signing import verifying

    _check_key(key)
    try:
        return verifying.Config().use_elliptic_key_verifier(public_key=key)
    except Exception as error:  # cryptography has many, of no common base
        raise _no_key(key, "public", error) from None


def _check_key(key: Path) -> None:
    """Whether it can be read as a whole."""
    try:
        found = os.stat(key)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_KEY_BYTES:
            raise ConfigError(f"{key}: is no key; give the file of one, in PEM")
        with open(key, "rb"):
            pass
    except OSError as error:
        raise ConfigError(
            f"{key}: cannot be read ({error.strerror}); give the file of a key, in PEM"
        ) from None


def _no_key(key: Path, kind: str, error: Exception) -> ConfigError:
    reason = " ".join(str(error).split())[:100] or type(error).__name__
    return ConfigError(
        f"{key}: no {kind} key of an elliptic curve in PEM ({reason}); docs/bundle.md says how to "
        "make a pair with openssl"
    )
