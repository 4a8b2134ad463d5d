"""What an ONNX file says of itself, read without the package onnx: whether it takes weights from other files."""

from collections.abc import Iterator

# message -> number of a field -> the message it holds; fields without tensors somewhere in them are passed over
TENSORS_WITHIN = {
    "model": {7: "graph", 25: "function"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
EXTERNAL_DATA, DATA_LOCATION = 13, 14  # fields of a tensor
VARINT, EIGHT_BYTES, BYTES, FOUR_BYTES = 0, 1, 2, 5


def takes_other_files(model: bytes) -> bool:
    """Tell whether a tensor of an ONNX model, in whatever sub-graph, lies in a file of its own.

    What is no protobuf is left to whoever loads it: False.
    """
    waiting = [("model", memoryview(model))]
    while waiting:
        kind, message = waiting.pop()
        try:
            for field, value in _fields(message):
                if kind == "tensor":
                    if field == EXTERNAL_DATA or (field == DATA_LOCATION and value != 0):
                        return True
                elif (inner := TENSORS_WITHIN[kind].get(field)) and isinstance(value, memoryview):
                    waiting.append((inner, value))
        except (IndexError, ValueError):
            continue
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield the number of every field and its value: a whole number, or the bytes of it."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        field, kind = tag >> 3, tag & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield field, value
            continue
        if kind == BYTES:
            length, at = _varint(message, at)
        elif kind in (EIGHT_BYTES, FOUR_BYTES):
            length = 8 if kind == EIGHT_BYTES else 4
        else:
            raise ValueError(f"a field of kind {kind}")
        if at + length > len(message):
            raise IndexError
        yield field, message[at : at + length]
        at += length


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of too many bytes")
