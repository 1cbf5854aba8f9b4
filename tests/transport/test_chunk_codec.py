"""Chunks are the protobuf messages that they stand for, whoever wrote them; nothing else is taken for one."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.transport.checksum import crc32_of_bytes
from triptych.transport.chunk_codec import Chunk, decode_chunk, encode_chunk
from triptych.transport.landing import landing_memory
from triptych.transport.ticket import TensorSpec
from triptych.v1.tensor_pb2 import FetchResponse, TensorChunk, TensorHeader

CHUNKS = st.builds(
    Chunk,
    offset=st.integers(0, 2**64 - 1),
    crc32=st.integers(0, 2**32 - 1),
    data=st.binary(max_size=300).map(memoryview),
)


def message_of(chunk: Chunk) -> FetchResponse:
    return FetchResponse(chunk=TensorChunk(offset=chunk.offset, crc32=chunk.crc32, data=bytes(chunk.data)))


@settings(max_examples=200, deadline=None)
@given(CHUNKS)
def test_protobuf_and_the_codec_read_what_the_other_writes(chunk: Chunk) -> None:
    encoded = encode_chunk(chunk)
    assert FetchResponse.FromString(encoded) == message_of(chunk)
    assert decode_chunk(encoded) == chunk
    # Protobuf writes the fields in another order, and leaves out zeros.
    assert decode_chunk(message_of(chunk).SerializeToString()) == chunk


def test_a_large_chunk_is_handed_out_as_a_view_of_its_message() -> None:
    encoded = encode_chunk(Chunk(5 << 40, 7, memoryview(bytes(3 << 20))))
    decoded = decode_chunk(encoded)
    assert decoded is not None and decoded.data.obj is encoded and decoded.data.nbytes == 3 << 20


def test_what_is_no_chunk_is_none() -> None:
    assert decode_chunk(FetchResponse(header=TensorHeader(num_bytes=3)).SerializeToString()) is None
    assert decode_chunk(b"") is None


@settings(max_examples=300, deadline=None)
@given(CHUNKS, st.data())
def test_broken_messages_are_read_as_protobuf_reads_them(chunk: Chunk, data: st.DataObject) -> None:
    """Cut short, with bytes put in or changed: the codec never sees more, or other, than protobuf does."""
    encoded = bytearray(encode_chunk(chunk))
    at = data.draw(st.integers(0, min(len(encoded) - 1, 40)))
    match data.draw(st.sampled_from(["cut", "insert", "change"])):
        case "cut":
            del encoded[at:]
        case "insert":
            encoded[at:at] = data.draw(st.binary(min_size=1, max_size=4))
        case _:
            encoded[at] = data.draw(st.integers(0, 255))
    expected = None
    with suppress(DecodeError):
        expected = FetchResponse.FromString(bytes(encoded))
    if expected is None:
        with suppress(DecodeError):
            # An overlong number is all that the codec may read beside protobuf; no checksum fits it.
            read = decode_chunk(bytes(encoded))
            assert read is None or max(read.offset >> 64, read.crc32 >> 32) > 0
        return
    read = decode_chunk(bytes(encoded))
    assert (read is not None) == expected.HasField("chunk")
    if read is not None and read.crc32 < 2**32 and read.offset < 2**64:
        assert message_of(read).chunk == TensorChunk(
            offset=expected.chunk.offset, crc32=expected.chunk.crc32, data=expected.chunk.data
        )


def test_the_checksum_is_crc32() -> None:
    """The check value of CRC-32/ISO-HDLC, and going on from a part."""
    assert crc32_of_bytes(b"123456789") == 0xCBF43926
    assert crc32_of_bytes(memoryview(b"6789"), crc32_of_bytes(b"12345")) == 0xCBF43926


@pytest.mark.parametrize("shape", [(3, 0), (7, 5), (1_500, 1_001)], ids=str)
def test_landing_memory_is_an_ordinary_tensor(shape: tuple[int, ...]) -> None:
    tensor = landing_memory(TensorSpec(torch.bfloat16, shape))
    assert tensor.shape == shape and tensor.dtype is torch.bfloat16 and tensor.is_contiguous()
    assert torch.equal(tensor.fill_(2.0) + 1, torch.full(shape, 3.0, dtype=torch.bfloat16))
