"""``dvt-edge sign`` and ``verify``, and commands with a profile that trusts keys."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dvt_edge.bundle.manifest import SIGNATURE
from tests.bundle.test_signature import make_keys
from tests.cli.conftest import Run, error_line
from tests.conftest import write_yaml

pytest.importorskip("model_signing", reason="needs pip install 'dvt-edge[signing]'")
pytest.importorskip("OpenSSL", reason="needs pip install 'dvt-edge[signing]'")


def test_sign_and_verify(dvt_edge: Run, own_bundle: Path, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "own")
    other = make_keys(tmp_path, "other")[1]
    assert "is not signed" in error_line(dvt_edge("verify", own_bundle, "--key", public))
    result = dvt_edge("sign", own_bundle, "--key", private)
    assert (result.code, result.err) == (0, "")
    assert (own_bundle / SIGNATURE).is_file()
    result = dvt_edge("verify", own_bundle, "--key", public)
    assert (result.code, result.err) == (0, "")
    assert "files unchanged" in result.out
    assert "no signature by" in error_line(dvt_edge("verify", own_bundle, "--key", other))
    assert "no private key" in error_line(dvt_edge("sign", own_bundle, "--key", public))
    assert "no public key" in error_line(dvt_edge("verify", own_bundle, "--key", private))


def test_what_is_no_bundle(dvt_edge: Run, tmp_path: Path) -> None:
    private, public = make_keys(tmp_path, "own")
    for command in (("sign", "--key", private), ("verify", "--key", public)):
        assert "no bundle here" in error_line(dvt_edge(*command, tmp_path / "none"))


@pytest.mark.parametrize("command", ["classify", "budget", "eval", "profile", "run", "compare"])
def test_every_command_refuses(
    command: str,
    dvt_edge: Run,
    own_bundle: Path,
    demo_profile_values: Callable[..., dict[str, Any]],
    images: Path,
    tmp_path: Path,
) -> None:
    """Unsigned, and so nothing is parsed, nothing run."""
    make_keys(tmp_path, "own")
    values = demo_profile_values(output=str(own_bundle), bundle={"trusted_keys": ["own.pub"]})
    profile = write_yaml(tmp_path / "trusting.yaml", values)
    (own_bundle / "manifest.json").write_text("{", encoding="utf-8")
    arguments: dict[str, list[object]] = {
        "classify": ["--profile", profile, images],
        "eval": ["--profile", profile, "--data", images],
        "run": ["--profile", profile, "--source", "test://"],
        "compare": [profile, profile, "--data", images],
    }
    result = dvt_edge(command, *arguments.get(command, ["--profile", profile]))
    assert "is not signed" in error_line(result)


@pytest.mark.slow
def test_build_reuses_only_what_is_signed(
    dvt_edge: Run, demo_profile_values: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    """An unsigned or altered bundle is built anew; another budget ends a signature."""
    private, _ = make_keys(tmp_path, "own")
    output = tmp_path / "bundle"
    values = demo_profile_values(output=str(output), bundle={"trusted_keys": ["own.pub"]})
    values["engine"] = {"backend": "onnxruntime", "precision": "fp32"}
    values["budget"] = {"max_stage": 3}
    profile = write_yaml(tmp_path / "trusting.yaml", values)

    def build() -> str:
        result = dvt_edge("build", "--profile", profile)
        assert result.code == 0, result.err
        return " ".join(result.out.split())  # lines break anywhere

    reused, unsigned = "unchanged inputs", "Not signed yet"
    out = build()
    assert reused not in out
    assert unsigned in out
    assert reused not in build()
    assert dvt_edge("sign", output, "--key", private).code == 0
    out = build()
    assert reused in out
    assert unsigned not in out
    write_yaml(profile, values | {"budget": {"max_stage": 2}})
    out = build()
    assert reused in out
    assert unsigned in out
    assert dvt_edge("sign", output, "--key", private).code == 0
    (output / "stage1.onnx").write_bytes(b"")
    assert reused not in build()
    assert not (output / SIGNATURE).exists()
