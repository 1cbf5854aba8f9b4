"""TensorChunk messages without protobuf's own copies of the bytes.

What stands on the wire is the message FetchResponse of protos/triptych/v1/tensor.proto, so that any protobuf reads and
writes it: only the code that builds and parses it is other. The bytes are copied once into the message, and handed out
as a view of it; protobuf would copy them three times on each side, which costs more than the network.
"""

from __future__ import annotations

from dataclasses import dataclass

from google.protobuf.message import DecodeError

from triptych.v1.tensor_pb2 import FetchResponse, TensorChunk

_VARINT, _BYTES = 0, 2
_RESPONSE = FetchResponse.DESCRIPTOR.fields_by_name
_CHUNK = TensorChunk.DESCRIPTOR.fields_by_name
_CHUNK_TAG = _RESPONSE["chunk"].number << 3 | _BYTES
_OFFSET_TAG = _CHUNK["offset"].number << 3 | _VARINT
_CRC32_TAG = _CHUNK["crc32"].number << 3 | _VARINT
_DATA_TAG = _CHUNK["data"].number << 3 | _BYTES
# 64 bits, 7 a byte.
_MAX_VARINT_BYTES = 10


@dataclass(frozen=True)
class Chunk:
    """`data` is a view of the message that it came in."""

    offset: int
    crc32: int
    data: memoryview


def encode_chunk(chunk: Chunk) -> bytes:
    """FetchResponse(chunk=...). The bytes come last, so that they are a plain piece of the message."""
    head = bytearray()
    for tag, value in ((_OFFSET_TAG, chunk.offset), (_CRC32_TAG, chunk.crc32), (_DATA_TAG, len(chunk.data))):
        head.append(tag)
        _put_varint(head, value)
    outer = bytearray([_CHUNK_TAG])
    _put_varint(outer, len(head) + len(chunk.data))
    return b"".join((outer, head, chunk.data))


def decode_chunk(message: bytes) -> Chunk | None:
    """The chunk in a FetchResponse, None where it holds something else. Raises DecodeError when it can't be read."""
    chunk = _decode_encoded(message)
    if chunk is not None:
        return chunk
    response = FetchResponse.FromString(message)
    if not response.HasField("chunk"):
        return None
    return Chunk(response.chunk.offset, response.chunk.crc32, memoryview(response.chunk.data))


def _decode_encoded(message: bytes) -> Chunk | None:
    """What `encode_chunk` makes; None for every other way of writing a message, which protobuf then reads."""
    try:
        length, at = _field(message, 0, _CHUNK_TAG)
        if length != len(message) - at:
            return None
        offset, at = _field(message, at, _OFFSET_TAG)
        crc32, at = _field(message, at, _CRC32_TAG)
        length, at = _field(message, at, _DATA_TAG)
    except (DecodeError, IndexError):
        return None
    if length != len(message) - at:
        return None
    return Chunk(offset, crc32, memoryview(message)[at:])


def _field(message: bytes, at: int, tag: int) -> tuple[int, int]:
    """The varint behind `tag` at `at`, and where it ends. Raises DecodeError for another tag."""
    if message[at] != tag:
        raise DecodeError(f"tag {message[at]} where {tag} was expected")
    value = 0
    for index in range(_MAX_VARINT_BYTES):
        byte = message[at + 1 + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, at + 2 + index
    raise DecodeError("a number of more than 64 bits")


def _put_varint(target: bytearray, value: int) -> None:
    while value >= 0x80:
        target.append(value & 0x7F | 0x80)
        value >>= 7
    target.append(value)
