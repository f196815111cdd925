"""What an ONNX file of a bundle may hold, checked before a runtime reads it.

The file is walked as protobuf's wire format, without the package onnx, which a device that only
runs bundles does not have. A field, an operator or a domain that no stage has is refused: code in
function bodies and subgraphs, and above all weights in other files, whose names may lead anywhere.
Contents of tensors are skipped, not read.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from dvt_edge.bundle.members import open_member
from dvt_edge.errors import BundleError

MOST_FIELDS = 200_000
"""Of a file. A stage of 14 layers has 10,000; those of 96 layers, the most there can be, fit."""

OPERATORS: Mapping[bytes, frozenset[bytes]] = {
    b"": frozenset(
        b"Add ArgMax AveragePool Cast Concat Conv DequantizeLinear Div Erf Exp Identity "
        b"LayerNormalization Log MatMul Max Mul Pad QuantizeLinear Reciprocal ReduceMax "
        b"ReduceMean ReduceSumSquare Relu Reshape Slice Softmax Split Sqrt Squeeze Sub TopK "
        b"Transpose".split()
    ),
    b"dvt_edge": frozenset(
        b"Quantize Linear LinearTable RelationMlp Attention NormQuantize".split()
    ),
}
"""What stages are made of, by domain; the empty one is ONNX's own."""

_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5
_NUMBERS = {_VARINT, _LENGTH}  # one by one, or packed
_MOST_VARINT_BYTES = 10
_MOST_NAME_BYTES = 100


class _Message(NamedTuple):
    """The fields that a message may have: number -> wire types."""

    name: str
    fields: Mapping[int, set[int]]


_OPSET = _Message("OperatorSetId", {1: {_LENGTH}, 2: {_VARINT}})
_TENSOR = _Message(
    "Tensor",
    {
        **{1: _NUMBERS, 2: {_VARINT}, 4: {_FIXED32, _LENGTH}, 5: _NUMBERS, 7: _NUMBERS},
        **{8: {_LENGTH}, 9: {_LENGTH}, 10: {_FIXED64, _LENGTH}, 11: _NUMBERS, 12: {_LENGTH}},
        **{13: {_LENGTH}, 14: {_VARINT}},
    },
)
_ATTRIBUTE = _Message(
    "Attribute",
    {
        **{1: {_LENGTH}, 2: {_FIXED32}, 3: {_VARINT}, 4: {_LENGTH}, 5: {_LENGTH}},
        **{7: {_FIXED32, _LENGTH}, 8: _NUMBERS, 9: {_LENGTH}, 13: {_LENGTH}, 20: {_VARINT}},
    },
)
_NODE = _Message("Node", {number: {_LENGTH} for number in (1, 2, 3, 4, 5, 6, 7)})
_GRAPH = _Message("Graph", {number: {_LENGTH} for number in (1, 2, 5, 10, 11, 12, 13)})
_MODEL = _Message(
    "Model", {1: {_VARINT}, 5: {_VARINT}, **{n: {_LENGTH} for n in (2, 3, 4, 6, 7, 8)}}
)
_PARTS = {
    ("Model", 7): _GRAPH,
    ("Model", 8): _OPSET,
    ("Graph", 1): _NODE,
    ("Graph", 5): _TENSOR,
    ("Node", 5): _ATTRIBUTE,
    ("Attribute", 5): _TENSOR,
}
_NAMES = {("Node", 4), ("Node", 7), ("OperatorSetId", 1)}
"""Operator and domain, and the domain of an operator set."""
_ELSEWHERE = {("Tensor", 13), ("Tensor", 14)}
"""In which file the weights lie, and (unless it is 0) that they do not lie in this one."""


class _NoGraphError(Exception):
    """What the file holds that no stage does."""


class _Field(NamedTuple):
    number: int
    value: int
    """Of a varint; for a field of a length, where its content ends."""


def check_graph(folder: Path, name: str) -> None:
    """Whether the ONNX file ``name`` of ``folder`` holds nothing but what stages are made of.

    Raises :class:`~dvt_edge.errors.BundleError`.
    """
    try:
        with open_member(folder, name) as file:
            _Walk(file).message(_MODEL, os.fstat(file.fileno()).st_size)
    except _NoGraphError as error:
        raise BundleError(
            f"{folder / name}: {error}, so it is not run; get the bundle from whoever built it, or "
            "rebuild with 'dvt-edge build'"
        ) from None
    except OSError as error:
        raise BundleError(f"{folder / name}: cannot be read ({error.strerror}); rebuild") from None


class _Walk:
    """Goes once through a file."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._left = MOST_FIELDS

    def message(self, message: _Message, end: int) -> None:
        """Check the message from here to ``end``."""
        names: dict[int, bytes] = {}
        for field in self._fields(message, end):
            part = _PARTS.get((message.name, field.number))
            if part is not None:
                self.message(part, field.value)
            elif (message.name, field.number) in _ELSEWHERE and field.value:
                raise _NoGraphError("it keeps weights in another file, which bundles never do")
            elif (message.name, field.number) in _NAMES:
                if field.number in names:  # readers differ in which one they take
                    raise _NoGraphError("it gives a node or an operator set two names")
                names[field.number] = self._name(field.value)
        if message is _NODE:
            _check_operator(names.get(7, b""), names.get(4, b""))
        elif message is _OPSET:
            _check_operator(names.get(1, b""), None)

    def _fields(self, message: _Message, end: int) -> Iterator[_Field]:
        """The fields from here to ``end``; whatever was read of a field, the next one is found."""
        while self._file.tell() != end:  # a field that reaches beyond ends in _damaged
            self._left -= 1
            if self._left < 0:
                raise _NoGraphError("it has too many parts for a stage")
            tag = self._varint()
            number, wire = tag >> 3, tag & 7
            if wire not in message.fields.get(number, ()):
                raise _NoGraphError(f"it has a part that no stage has ({message.name} {number})")
            if wire == _VARINT:
                yield _Field(number, self._varint())
                continue
            length = {_FIXED32: 4, _FIXED64: 8}.get(wire)
            if length is None:
                length = self._varint()
            stop = self._file.tell() + length
            if stop > end:
                raise _damaged()
            yield _Field(number, stop)
            self._file.seek(stop)

    def _varint(self) -> int:
        value = 0
        for place in range(_MOST_VARINT_BYTES):
            byte = self._file.read(1)
            if not byte:
                raise _damaged()
            value |= (byte[0] & 0x7F) << (7 * place)
            if byte[0] < 0x80:
                return value
        raise _damaged()

    def _name(self, end: int) -> bytes:
        length = end - self._file.tell()
        if length > _MOST_NAME_BYTES:
            raise _NoGraphError("it has an operator or a domain of an endless name")
        return self._file.read(length)


def _damaged() -> _NoGraphError:
    return _NoGraphError("it is no ONNX file, or a damaged one")


def _check_operator(domain: bytes, operator: bytes | None) -> None:
    """Whether stages have nodes of ``operator``, or any of ``domain`` where that is None."""
    known = OPERATORS.get(b"" if domain == b"ai.onnx" else domain)
    if known is None:
        raise _NoGraphError(f"it uses operators of the domain {_shown(domain)}, which no stage has")
    if operator is not None and operator not in known:
        raise _NoGraphError(f"it uses the operator {_shown(operator)}, which no stage has")


def _shown(name: bytes) -> str:
    return ascii(name.decode(errors="replace"))
