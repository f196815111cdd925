"""Signed bundles: what passes, what does not, and that nothing is parsed before."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dvt_edge import Runtime
from dvt_edge.bundle import bundle as bundle_module
from dvt_edge.bundle.bundle import Bundle, open_source
from dvt_edge.bundle.manifest import COSTS, MANIFEST, MEASUREMENT, RECORDS, SIGNATURE
from dvt_edge.bundle.signature import MOST_KEY_BYTES, check_signed, sign
from dvt_edge.errors import BundleError, ConfigError
from dvt_edge.profile import Profile
from tests.conftest import edit_manifest, write_yaml

pytest.importorskip("model_signing", reason="needs pip install 'dvt-edge[signing]'")
pytest.importorskip("OpenSSL", reason="needs pip install 'dvt-edge[signing]'")


def make_keys(folder: Path, name: str, curve: str = "SECP256R1") -> tuple[Path, Path]:
    """Files of a new private key and of its public one."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(getattr(ec, curve)())
    private, public = folder / f"{name}.key", folder / f"{name}.pub"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private key and its public one."""
    return make_keys(tmp_path, "own")


def sign_bundle(folder: Path, private: Path) -> None:
    sign(folder, Bundle(folder).manifest.files, private)


@pytest.fixture
def signed(folder: Path, keys: tuple[Path, Path]) -> Path:
    """A bundle that ``keys`` signed."""
    sign_bundle(folder, keys[0])
    return folder


@pytest.fixture
def nothing_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever reads a manifest, arrays or a graph fails."""

    def parse(*arguments: object, **options: object) -> None:
        raise AssertionError("parsed before the signature was checked")

    for name in ("read_text", "read_arrays", "check_graph", "check_members", "member_sha256"):
        monkeypatch.setattr(bundle_module, name, parse)


@pytest.mark.parametrize("curve", ["SECP256R1", "SECP384R1", "SECP521R1"])
def test_a_signed_bundle_opens(folder: Path, tmp_path: Path, curve: str) -> None:
    """With any of the curves; other trusted keys and the folder's name do not matter."""
    private, public = make_keys(tmp_path, "signer", curve)
    other = make_keys(tmp_path, "other")[1]
    sign_bundle(folder, private)
    assert Bundle(folder, [other, public]).manifest.device == "a board"
    assert check_signed(folder, [other, public]) == public
    moved = folder.rename(folder.with_name("elsewhere"))
    assert check_signed(moved, [public]) == public
    assert Bundle(moved).manifest.device == "a board"


def test_signed_again(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """The new signature takes the old one's place."""
    private, public = make_keys(tmp_path, "new")
    sign_bundle(signed, private)
    assert check_signed(signed, [public]) == public
    with pytest.raises(BundleError, match="no signature by"):
        check_signed(signed, [keys[1]])


def test_measured_later(signed: Path, keys: tuple[Path, Path]) -> None:
    """What ``dvt-edge profile`` writes is not signed, nor what a power cut leaves of it."""
    for name in (COSTS, MEASUREMENT, f".{COSTS}.a1b2c3_4", f".{SIGNATURE}.a1b2c3_4"):
        (signed / name).write_text("{}", encoding="utf-8")
    assert Bundle(signed, [keys[1]])


def test_signed_when_already_measured(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / COSTS).write_text("{}", encoding="utf-8")
    sign_bundle(folder, keys[0])
    (folder / COSTS).unlink()
    assert Bundle(folder, [keys[1]])


def _edit_signature(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        path = folder / SIGNATURE
        values = json.loads(path.read_text(encoding="utf-8"))
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return edit


def _write(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _link(folder: Path) -> None:
    (folder / "stage1.onnx").rename(folder.parent / "outside.onnx")
    (folder / "stage1.onnx").symlink_to(folder.parent / "outside.onnx")


def _link_signature(folder: Path) -> None:
    (folder / SIGNATURE).unlink()
    (folder / SIGNATURE).symlink_to(folder / MANIFEST)


def _stage_and_hash(folder: Path) -> None:
    data = b"\x08\x09"
    (folder / "stage1.onnx").write_bytes(data)
    found = hashlib.sha256(data).hexdigest()
    edit_manifest(folder, lambda manifest: manifest["files"].update({"stage1.onnx": found}))


ALTERED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a stage altered": (_write("stage1.onnx", b"\x08\x09"), "is not as it was signed .*stage1"),
    "a stage emptied": (_write("stage1.onnx", b""), "is not as it was signed .*stage1"),
    "records altered": (_write(RECORDS, b"PK"), "is not as it was signed .*records"),
    "the manifest altered": (
        lambda folder: edit_manifest(folder, lambda m: m.update(device="another")),
        "is not as it was signed .*manifest",
    ),
    "the manifest is none": (_write(MANIFEST, b"{"), "is not as it was signed .*manifest"),
    "stages and hashes altered": (
        _stage_and_hash,
        "is not as it was signed",
    ),
    "a file added": (_write("stage2.onnx", b""), "is not as it was signed .*stage2"),
    "a file of git added": (_write(".gitignore", b""), "holds '.gitignore'"),
    "a file of a strange name added": (
        lambda folder: Path(os.fsdecode(os.fsencode(folder) + b"/\xff\n")).write_bytes(b""),
        "no file of a bundle is called that; move it away",
    ),
    "a folder added": (lambda folder: (folder / "more").mkdir(), "is not a regular file"),
    "a device added": (lambda folder: os.mkfifo(folder / "pipe"), "is not a regular file"),
    "a file removed": (
        lambda folder: (folder / RECORDS).unlink(),
        "is not as it was signed .*records",
    ),
    "a file renamed": (
        lambda folder: (folder / RECORDS).rename(folder / "other.npz"),
        "is not as it was signed .*other.npz",
    ),
    "a file that is a link": (_link, "is a link"),
    "the signature removed": (lambda folder: (folder / SIGNATURE).unlink(), "is not signed"),
    "the signature emptied": (_write(SIGNATURE, b""), "no signature by"),
    "the signature is no JSON": (_write(SIGNATURE, b"\xff{"), "no signature by"),
    "the signature is deep": (_write(SIGNATURE, b"[" * 100_000), "no signature by"),
    "the signature is of something else": (_write(SIGNATURE, b"{}"), "no signature by"),
    "the signature is a link": (
        _link_signature,
        "is a link",
    ),
    "the signature is large": (
        lambda folder: os.truncate(folder / SIGNATURE, 17 << 20),
        "has 17 MiB, more than",
    ),
    "nobody's signature": (
        _edit_signature(lambda s: s["dsseEnvelope"].update(signatures=[])),
        "no signature by",
    ),
    "a forged signature": (
        _edit_signature(lambda s: s["dsseEnvelope"]["signatures"][0].update(sig="AAAA")),
        "no signature by",
    ),
    "other contents under the signature": (
        _edit_signature(lambda s: s["dsseEnvelope"].update(payload="e30=")),
        "no signature by",
    ),
    "contents of another kind": (
        _edit_signature(lambda s: s["dsseEnvelope"].update(payloadType="text/plain")),
        "no signature by",
    ),
}


@pytest.mark.parametrize("case", ALTERED)
@pytest.mark.usefixtures("nothing_parsed")
def test_refused_unparsed(case: str, keys: tuple[Path, Path], request: Any) -> None:
    """What was altered, added, removed or renamed; in one line."""
    with pytest.MonkeyPatch.context() as patched:  # the bundle has to be read to be signed
        for name in ("read_text", "check_graph", "check_members", "member_sha256"):
            patched.setattr(bundle_module, name, _ORIGINAL[name])
        folder: Path = request.getfixturevalue("signed")
    change, message = ALTERED[case]
    change(folder)
    with pytest.raises(BundleError, match=message) as caught:
        Bundle(folder, [keys[1]])
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


_ORIGINAL = {
    name: getattr(bundle_module, name)
    for name in ("read_text", "check_graph", "check_members", "member_sha256")
}


def test_another_key(signed: Path, tmp_path: Path) -> None:
    public = make_keys(tmp_path, "other")[1]
    with pytest.raises(BundleError, match=r"model\.sig: no signature by .*other\.pub"):
        Bundle(signed, [public])


def test_the_key_s_name_is_not_believed(
    signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """A signature says which key made it; without that, or with another's, it proves nothing."""
    _, other = make_keys(tmp_path, "other")
    hints = []
    for private, _ in (keys, make_keys(tmp_path, "third")):
        sign_bundle(signed, private)
        text = (signed / SIGNATURE).read_text(encoding="utf-8")
        hints.append(json.loads(text)["verificationMaterial"]["publicKey"]["hint"])
    for hint in (hints[0], "", None):  # the first key's, on what the third signed
        path = signed / SIGNATURE
        values = json.loads(path.read_text(encoding="utf-8"))
        values["verificationMaterial"]["publicKey"]["hint"] = hint
        path.write_text(json.dumps(values), encoding="utf-8")
        for public in (keys[1], other):
            with pytest.raises(BundleError, match="no signature by"):
                check_signed(signed, [public])


def test_signature_of_another_bundle(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(signed, other)
    edit_manifest(other, lambda manifest: manifest.update(device="another"))
    (other / SIGNATURE).unlink()
    sign_bundle(other, keys[0])
    shutil.copy(other / SIGNATURE, signed / SIGNATURE)
    with pytest.raises(BundleError, match=r"is not as it was signed .*manifest\.json"):
        Bundle(signed, [keys[1]])


def test_a_signature_does_not_say_what_it_leaves_out(folder: Path, keys: tuple[Path, Path]) -> None:
    """Made with model-signing itself, which lets the signer leave files out."""
    from model_signing import hashing, signing

    config = signing.Config().use_elliptic_key_signer(private_key=keys[0])
    config.set_hashing_config(hashing.Config().set_ignored_paths(paths=["stage1.onnx"]))
    config.sign(folder, folder / SIGNATURE)
    with pytest.raises(BundleError, match=r"is not as it was signed .*stage1\.onnx"):
        Bundle(folder, [keys[1]])


def test_model_signing_checks_it_too(signed: Path, keys: tuple[Path, Path]) -> None:
    """The format is the package's own, so its commands read it."""
    from model_signing import verifying

    (signed / COSTS).write_text("{}", encoding="utf-8")
    config = verifying.Config().use_elliptic_key_verifier(public_key=keys[1])
    config.verify(signed, signed / SIGNATURE)


def _no_key(path: Path) -> None:
    path.write_text("no key", encoding="utf-8")


def _edwards(path: Path) -> None:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    key = ed25519.Ed25519PrivateKey.generate()
    path.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


NO_KEYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "text": (_no_key, "no public key of an elliptic curve in PEM"),
    "empty": (lambda path: path.write_bytes(b""), "no public key of an elliptic curve in PEM"),
    "the private key": (
        lambda path: path.write_bytes((path.parent / "own.key").read_bytes()),
        "no public key of an elliptic curve in PEM",
    ),
    "another kind of key": (_edwards, "no public key of an elliptic curve in PEM"),
    "missing": (lambda path: None, "cannot be read"),
    "a folder": (lambda path: path.mkdir(), "is no key"),
    "a pipe": (os.mkfifo, "is no key"),
    "large": (lambda path: path.write_bytes(b" " * (MOST_KEY_BYTES + 1)), "is no key"),
}


@pytest.mark.parametrize("case", NO_KEYS)
def test_a_public_key_that_is_none(
    case: str, signed: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Refused even where another of the keys is the right one."""
    write, message = NO_KEYS[case]
    write(tmp_path / "bad.pub")
    with pytest.raises(ConfigError, match=rf"bad\.pub: {message}") as caught:
        Bundle(signed, [keys[1], tmp_path / "bad.pub"])
    assert "\n" not in str(caught.value)


def test_a_private_key_that_is_none(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing is written."""
    with pytest.raises(ConfigError, match=r"own\.pub: no private key of an elliptic curve"):
        sign_bundle(folder, keys[1])
    with pytest.raises(ConfigError, match=r"none\.key: cannot be read"):
        sign_bundle(folder, tmp_path / "none.key")
    assert not (folder / SIGNATURE).exists()


def test_an_encrypted_private_key(folder: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key(keys[0].read_bytes(), None)
    path = tmp_path / "locked.key"
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match=rf"is encrypted; .*'openssl ec -in {path}"):
        sign_bundle(folder, path)


def test_only_a_bundle_is_signed(folder: Path, keys: tuple[Path, Path]) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match=r"notes\.txt: is no file of the bundle; move it away"):
        sign_bundle(folder, keys[0])


def test_without_the_package(
    signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Refused with the command that installs it, never opened unchecked."""
    monkeypatch.setitem(sys.modules, "model_signing", None)
    message = re.escape("install with pip install 'dvt-edge[signing]'")
    with pytest.raises(ConfigError, match=f"checking a signature needs model-signing; {message}"):
        Bundle(signed, [keys[1]])
    with pytest.raises(ConfigError, match=f"signing a bundle needs model-signing; {message}"):
        sign_bundle(signed, keys[0])


def test_another_budget_ends_the_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    bundle = Bundle(signed, [keys[1]])
    budget = bundle.manifest.budget.changed(latency_ms=9.0)
    bundle.set_use(budget, bundle.manifest.camera)
    assert not (signed / SIGNATURE).exists()
    with pytest.raises(BundleError, match="is not signed"):
        Bundle(signed, [keys[1]])


@pytest.fixture
def demo(
    own_bundle: Path, demo_profile_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> Callable[[Path], Path]:
    """A function that writes a profile of the demo's bundle which trusts a key."""

    def write(public: Path) -> Path:
        values = demo_profile_values(output=str(own_bundle), bundle={"trusted_keys": [public.name]})
        return write_yaml(tmp_path / "profile.yaml", values)

    return write


def test_runtime(own_bundle: Path, demo: Callable[[Path], Path], keys: tuple[Path, Path]) -> None:
    """Names of keys are relative to the profile; a signed bundle answers."""
    profile = demo(keys[1])
    with pytest.raises(BundleError, match="is not signed"):
        Runtime(profile)
    sign_bundle(own_bundle, keys[0])
    with Runtime(profile) as runtime:
        shape = (48, 48) if runtime.bundle.manifest.input.channels == 1 else (48, 48, 3)
        assert runtime.classify(np.zeros(shape, np.uint8)).label
    (own_bundle / "stage1.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match="is not as it was signed"):
        open_source(profile)


def test_what_differs_is_said_plainly(signed: Path, keys: tuple[Path, Path]) -> None:
    (signed / "stage1.onnx").write_bytes(b"")
    (signed / RECORDS).rename(signed / "other.npz")
    with pytest.raises(BundleError) as caught:
        Bundle(signed, [keys[1]])
    assert str(caught.value) == (
        f"{signed}: is not as it was signed (altered: stage1.onnx; added: other.npz; missing: "
        "records.npz); get it again from whoever built it"
    )


def test_no_keys_are_no_choice(demo: Callable[[Path], Path], tmp_path: Path) -> None:
    """An empty list might mean anything."""
    path = demo(tmp_path / "own.pub")
    text = path.read_text(encoding="utf-8")
    path.write_text(
        text.replace("trusted_keys:\n  - own.pub", "trusted_keys: []"), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="trusted_keys"):
        Profile.from_yaml(path)


def test_nothing_is_imported_for_profiles_without(costed_bundle: Path) -> None:
    code = (
        "import sys; from dvt_edge.bundle.bundle import Bundle; Bundle(sys.argv[1]); "
        "sys.exit('model_signing' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(costed_bundle)], check=True)
