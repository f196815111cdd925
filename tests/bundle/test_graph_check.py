"""ONNX files from strangers: what is refused before a runtime reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from dvt_edge.bundle import graph_check
from dvt_edge.bundle.bundle import Bundle, file_sha256
from dvt_edge.bundle.graph_check import OPERATORS, check_graph
from dvt_edge.errors import BundleError
from tests.conftest import edit_manifest

VARINT, FIXED64, LENGTH, FIXED32 = 0, 1, 2, 5


def _number(value: int) -> bytes:
    parts = []
    while value > 0x7F:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*parts, value])


def _f(number: int, value: int | bytes) -> bytes:
    """A field: a varint, or content with its length."""
    if isinstance(value, int):
        return _number(number << 3 | VARINT) + _number(value)
    return _number(number << 3 | LENGTH) + _number(len(value)) + value


def _node(operator: bytes = b"Add", *more: bytes) -> bytes:
    return _f(1, _f(1, b"x") + _f(2, b"y") + _f(3, b"name") + _f(4, operator) + b"".join(more))


def _tensor(*fields: bytes) -> bytes:
    return _f(1, 3) + _f(2, 1) + _f(8, b"weight") + b"".join(fields)


def _model(*graph: bytes, more: bytes = b"") -> bytes:
    opset = _f(8, _f(1, b"") + _f(2, 17))
    return _f(1, 8) + _f(2, b"dvt-edge") + _f(7, _f(2, b"stage") + b"".join(graph)) + opset + more


def _check(folder: Path, data: bytes) -> str | None:
    """What is said against ``data``; None where it passes."""
    (folder / "a.onnx").write_bytes(data)
    try:
        check_graph(folder, "a.onnx")
    except BundleError as error:
        said = str(error)
    else:
        return None
    assert "\n" not in said
    assert said.startswith(f"{folder / 'a.onnx'}: it ")
    assert "so it is not run; get the bundle from whoever built it, or rebuild" in said
    return said


RAW = _f(9, bytes(12))
EXTERNAL = _f(13, _f(1, b"location") + _f(2, b"../../etc/shadow"))


@pytest.mark.parametrize(
    "data",
    [
        _model(),
        _model(_node()),
        _model(_node(b"MatMul", _f(7, b"ai.onnx"))),
        _model(_node(b"Linear", _f(7, b"dvt_edge")), more=_f(8, _f(1, b"dvt_edge") + _f(2, 1))),
        _model(_f(5, _tensor(RAW))),
        _model(_f(5, _tensor(RAW, _f(14, 0)))),  # here, says the tensor
        _model(_node(b"Add", _f(5, _f(1, b"value") + _f(20, 4) + _f(5, _tensor(RAW))))),
        _model(_node(b"Add", _f(5, _f(1, b"axes") + _f(20, 7) + _f(8, 1) + _f(8, b"\1\2")))),
    ],
)
def test_what_stages_have(tmp_path: Path, data: bytes) -> None:
    assert _check(tmp_path, data) is None


@pytest.mark.parametrize("domain", OPERATORS)
def test_every_operator(tmp_path: Path, domain: bytes) -> None:
    for operator in OPERATORS[domain]:
        assert _check(tmp_path, _model(_node(operator, _f(7, domain)))) is None


ELSEWHERE, DAMAGED = "it keeps weights in another file", "it is no ONNX file, or a damaged one"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        # weights elsewhere: in an initializer, in an attribute, by either of the two fields alone
        (_model(_f(5, _tensor(EXTERNAL, _f(14, 1)))), ELSEWHERE),
        (_model(_f(5, _tensor(EXTERNAL))), ELSEWHERE),
        (_model(_f(5, _tensor(_f(14, 1)))), ELSEWHERE),
        (_model(_f(5, _tensor(RAW, _f(14, 0), _f(14, 1)))), ELSEWHERE),
        (_model(_f(5, _tensor(_f(14, 1 << 32 | 1)))), ELSEWHERE),  # 1, where 32 bits are read
        (_model(_f(5, _tensor(_f(14, 1 << 32)))), ELSEWHERE),
        (_model(_node(b"Add", _f(5, _f(5, _tensor(EXTERNAL))))), ELSEWHERE),
        # the second graph of a file is merged with the first
        (_model(more=_f(7, _f(5, _tensor(EXTERNAL)))), ELSEWHERE),
        # operators and domains
        (_model(_node(b"Loop")), "it uses the operator 'Loop', which no stage has"),
        (_model(_node(b"")), "operator ''"),
        (_model(_node(b"add")), "operator 'add'"),
        (_model(_node(b"\xff\x1b[31m")), r"operator '\\ufffd\\x1b\[31m'"),
        (_model(_node(b"Linear")), "operator 'Linear'"),
        (_model(_node(b"Add", _f(7, b"dvt_edge"))), "operator 'Add'"),
        (_model(_node(b"Add", _f(7, b"com.microsoft"))), "of the domain 'com.microsoft'"),
        (_model(_node(b"Add", _f(4, b"Loop"))), "two names"),
        (_model(_node(b"Add", _f(7, b""), _f(7, b"x"))), "two names"),
        (_model(_node(b"x" * 101)), "of an endless name"),
        (_model(more=_f(8, _f(1, b"evil"))), "of the domain 'evil'"),
        # subgraphs, functions, sparse tensors, text tensors, training, metadata
        (_model(_node(b"Add", _f(5, _f(6, b"")))), r"no stage has \(Attribute 6\)"),
        (_model(_node(b"Add", _f(5, _f(11, b"")))), r"Attribute 11"),
        (_model(_node(b"Add", _f(5, _f(10, b"")))), r"Attribute 10"),
        (_model(_node(b"Add", _f(5, _f(22, b"")))), r"Attribute 22"),
        (_model(_node(b"Add", _f(8, b"overload"))), r"Node 8"),
        (_model(_f(15, b"")), r"Graph 15"),
        (_model(_f(5, _tensor(_f(6, b"text")))), r"Tensor 6"),
        (_model(more=_f(14, b"")), r"Model 14"),
        (_model(more=_f(20, b"")), r"Model 20"),
        (_model(more=_f(25, b"")), r"Model 25"),
        (_model(more=_f(99, b"")), r"Model 99"),
        (_model(more=_f(0, b"")), r"Model 0"),
        # a field of another wire type is unknown to protobuf, or not: it depends
        (_model(_f(5, _tensor(_f(14, b"")))), r"Tensor 14"),
        (_model(_f(5, _tensor(_f(13, 1)))), r"Tensor 13"),
        (_model(more=_f(7, 1)), r"Model 7"),
        (_model(more=b"\x3b"), r"Model 7"),  # a group begins
        (_model(more=_number(1 << 35 | 7 << 3 | LENGTH) + b"\0"), r"Model \d{9}"),
        # damaged
        (b"garbage", "no stage has"),
        (b"\x08", DAMAGED),
        (b"\x08" + b"\x80" * 10 + b"\x01", DAMAGED),
        (_model()[:-1], DAMAGED),
        (_f(1, 8) + _number(7 << 3 | LENGTH) + _number(1 << 62), DAMAGED),
        (_f(7, _number(1 << 3 | LENGTH) + _number(5)) + bytes(5), DAMAGED),  # beyond its graph
        (_f(7, b"\x0a"), DAMAGED),
    ],
)
def test_what_they_do_not_have(tmp_path: Path, data: bytes, message: str) -> None:
    assert re.search(message, _check(tmp_path, data) or "passes")


def test_number_of_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = _model(*[_f(2, b"")] * 50)
    monkeypatch.setattr(graph_check, "MOST_FIELDS", 60)
    assert _check(tmp_path, data) is None
    monkeypatch.setattr(graph_check, "MOST_FIELDS", 50)
    assert "too many parts for a stage" in (_check(tmp_path, data) or "")


def test_contents_are_not_read(tmp_path: Path) -> None:
    """A file of holes passes as quickly as a small one."""
    size = 1 << 30
    head = _f(1, 8)
    inner = _tensor() + _number(9 << 3 | LENGTH) + _number(size)
    for number in (5, 7):
        inner = _number(number << 3 | LENGTH) + _number(len(inner) + size) + inner
    with (tmp_path / "a.onnx").open("wb") as file:
        file.write(head + inner)
        file.truncate(len(head + inner) + size)
    check_graph(tmp_path, "a.onnx")


def test_a_bundle_with_such_a_graph(folder: Path) -> None:
    """Refused as it is opened, be its hash right."""
    (folder / "stage1.onnx").write_bytes(_model(_f(5, _tensor(EXTERNAL))))
    digest = file_sha256(folder / "stage1.onnx")
    edit_manifest(folder, lambda m: m["files"].update({"stage1.onnx": digest}))
    with pytest.raises(BundleError, match=rf"stage1\.onnx: {ELSEWHERE}"):
        Bundle(folder)


@pytest.mark.parametrize("name", ["stage1.ort", "stage1.plan", "stage1", "stage1.onnx.ort"])
def test_files_that_are_not_checked_are_not_run(folder: Path, name: str) -> None:
    """ONNX Runtime would read its own format from them."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["files"][name] = manifest["files"].pop("stage1.onnx")
        manifest["stages"][0]["file"] = name

    (folder / "stage1.onnx").rename(folder / name)
    edit_manifest(folder, change)
    with pytest.raises(BundleError, match=rf"expected a \.onnx file, found {name}"):
        Bundle(folder)


WHOLE = _model(
    _node(b"MatMul"),
    _node(b"Add", _f(5, _f(1, b"v") + _f(20, 4) + _f(5, _tensor(RAW)))),
    _f(5, _tensor(RAW, _f(14, 0))),
    _f(11, _f(1, b"image")),
)


@given(data=st.binary(max_size=300))
def test_garbage(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    _check(tmp_path_factory.getbasetemp(), data)


@given(
    changes=st.lists(
        st.tuples(
            st.integers(0, len(WHOLE)), st.integers(0, 4), st.binary(max_size=6), st.booleans()
        ),
        max_size=4,
    )
)
@example(changes=[(WHOLE.index(_f(14, 0)), 2, _f(14, 1), False)])
@example(changes=[(WHOLE.index(b"MatMul"), 6, b"Gather", False)])
def test_what_passes_is_what_onnx_reads(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, bytes, bool]]
) -> None:
    """Whatever happens to a graph: if it passes and protobuf reads it, it holds nothing else."""
    onnx = pytest.importorskip("onnx")
    data = bytearray(WHOLE)
    for at, removed, added, insert in changes:
        data[at : at + (0 if insert else removed)] = added
    if _check(tmp_path_factory.getbasetemp(), bytes(data)) is not None:
        return
    try:
        model = onnx.load_model_from_string(bytes(data))
    except Exception:  # protobuf is stricter
        return
    assert not model.functions
    assert not model.training_info
    assert not model.graph.sparse_initializer
    tensors = list(model.graph.initializer)
    for node in model.graph.node:
        assert node.op_type.encode() in OPERATORS[node.domain.encode().replace(b"ai.onnx", b"")]
        for attribute in node.attribute:
            assert not attribute.HasField("g")
            assert not attribute.graphs
            tensors.append(attribute.t)
    for tensor in tensors:
        assert not tensor.external_data
        assert tensor.data_location == 0
