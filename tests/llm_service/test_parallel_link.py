"""What ranks tell each other, and what becomes of a group that loses one."""

from __future__ import annotations

import socket
import struct
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from engine_helpers import CASES, Model, greedy, make_model, new_sequence
from parallel_helpers import CPU, ParallelEngine

from llm_service.loading import LoadedModel
from llm_service.page_pool import PAGE_TYPECODE
from llm_service.parallel.frames import MAX_FRAME_BYTES, Frame, FrameKind, receive_frame
from llm_service.parallel.leader import LeaderLink
from llm_service.parallel.rendezvous import Rendezvous, RendezvousAddress, join
from llm_service.parallel.step_reader import StepReader
from llm_service.parallel.step_writer import StepWriter
from llm_service.prompt import Prompt
from llm_service.scheduler import Chunk
from llm_service.sequence import Sequence, SequenceState
from triptych.config import DefaultsSection, LimitsSection
from triptych.errors import ConfigurationError, IntegrityError, Unavailable
from triptych.sampling import SamplingParameters


@pytest.fixture(scope="module")
def wide_model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return make_model(tmp_path_factory.mktemp("link") / "model", hidden_size=64, num_heads=8, num_kv_heads=4)


@pytest.fixture
def streams() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_frames_arrive_as_they_were_sent(streams: tuple[socket.socket, socket.socket]) -> None:
    here, there = streams
    here.sendall(Frame.of(FrameKind.EXPORT, (-1, 2**62), b"abc").pack() + Frame.of(FrameKind.STOP).pack())
    frame = receive_frame(there)
    assert (frame.kind, frame.integers.tolist(), frame.data) == (FrameKind.EXPORT, [-1, 2**62], b"abc")
    assert receive_frame(there).kind is FrameKind.STOP
    here.close()
    with pytest.raises(EOFError):
        receive_frame(there)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<4sIQQ", b"HTTP", 4, 0, 0),
        struct.pack("<4sIQQ", b"TPGF", 99, 0, 0),
        struct.pack("<4sIQQ", b"TPGF", 4, MAX_FRAME_BYTES, 0),
        struct.pack("<4sIQQ", b"TPGF", 4, 0, 2**63),
    ],
)
def test_what_is_no_frame_is_refused_before_it_is_read(
    streams: tuple[socket.socket, socket.socket], header: bytes
) -> None:
    here, there = streams
    here.sendall(header)
    with pytest.raises(IntegrityError):
        receive_frame(there)


def is_closed(stream: socket.socket) -> bool:
    stream.settimeout(10.0)
    try:
        return stream.recv(1) == b""
    except ConnectionResetError:
        return True


def test_strangers_do_not_join() -> None:
    rendezvous = Rendezvous("127.0.0.1")
    address = RendezvousAddress.from_text(rendezvous.address.to_text())
    assert address == rendezvous.address
    joined: list[dict[int, socket.socket]] = []
    gathering = threading.Thread(target=lambda: joined.append(rendezvous.gather(2, 30.0)))
    gathering.start()
    refused = [
        join(RendezvousAddress(address.host, address.port, address.store_port, "0" * 64), 1, 2, 5.0),
        join(address, 0, 2, 5.0),
        join(address, 1, 3, 5.0),
        socket.create_connection((address.host, address.port)),
    ]
    refused[-1].sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert all(is_closed(stream) for stream in refused)
    member = join(address, 1, 2, 5.0)
    gathering.join(timeout=10.0)
    assert list(joined[0]) == [1]
    for stream in (*refused, member, joined[0][1]):
        stream.close()
    rendezvous.close()


def test_a_group_that_does_not_come_together_says_so() -> None:
    rendezvous = Rendezvous("127.0.0.1")
    with pytest.raises(Unavailable, match="0 of 2 followers"):
        LeaderLink.gather(rendezvous, 3, CPU, 0.05)
    rendezvous.close()
    with pytest.raises(ConfigurationError):
        RendezvousAddress.from_text("1 2 3")


class MaskForm:
    """Allows the tokens of one mask."""

    def __init__(self, mask: list[int]) -> None:
        self._mask = np.array(mask, dtype=np.int32)

    def mask(self) -> np.ndarray:
        return self._mask


def make_sequence(num_tokens: int, **sampling: object) -> Sequence:
    prompt = Prompt(tuple(range(num_tokens)), (), np.arange(3 * num_tokens).reshape(3, -1))
    return Sequence("request", prompt, SamplingParameters(**{"max_tokens": 9} | sampling), token_limit=num_tokens + 9)  # type: ignore[arg-type]


def test_a_step_is_described_by_what_is_new() -> None:
    writer, reader = StepWriter(), StepReader(DefaultsSection(), LimitsSection())

    def tell(*chunks: Chunk) -> list[Chunk]:
        return reader.read(writer.write(chunks).frame, lambda rows, columns: torch.zeros(rows, columns))

    first, second = make_sequence(6, temperature=0.7, seed=2**64 - 1, stop_token_ids=(3,)), make_sequence(4)
    table, other = array(PAGE_TYPECODE, (4, 2)), array(PAGE_TYPECODE, (7,))
    second.form = MaskForm([5, -1])  # type: ignore[assignment]
    assert not first.is_special
    mirrored = tell(Chunk(first, 0, 6, table, True), Chunk(second, 0, 4, other, True))
    assert [(chunk.start, chunk.end, chunk.is_sampled) for chunk in mirrored] == [(0, 6, True), (0, 4, True)]
    assert mirrored[0].sequence.sampling == first.sampling
    assert mirrored[0].sequence.token_limit == first.token_limit
    assert np.array_equal(mirrored[0].sequence.positions(2, 8), first.positions(2, 8))
    form = mirrored[1].sequence.form
    assert form is not None and form.mask().tolist() == [5, -1]
    assert [chunk.sequence.is_special for chunk in mirrored] == [False, True]
    first.expect_token()
    table.append(9)
    (decode,) = tell(Chunk(first, 6, 7, table, True))
    assert decode.sequence is mirrored[0].sequence
    assert (decode.sequence.token_ids[6:], decode.block_table.tolist()) == ([-1], [4, 2, 9])
    first.receive_token(6, 42)
    first.expect_token()
    (decode,) = tell(Chunk(first, 7, 8, array(PAGE_TYPECODE, (1, 3, 5)), True))
    assert (decode.sequence.token_ids[6:], decode.block_table.tolist()) == ([42, -1], [1, 3, 5])
    second.state = SequenceState.FINISHED
    tell(Chunk(first, 7, 8, table, True))
    assert reader.num_sequences == 1


def test_a_rank_that_chose_another_token_ends_the_group(wide_model: Model) -> None:
    engine = ParallelEngine(wide_model.folder, 2)
    (follower,) = engine.followers
    sequence = new_sequence(wide_model.case("text"), greedy())
    engine.engine.add(sequence)
    engine.step()
    (mirrored,) = follower.reader._sequences.values()
    while not mirrored.chosen:
        time.sleep(0.001)
    mirrored.chosen = {index: token ^ 1 for index, token in mirrored.chosen.items()}
    while engine.engine.scheduler.has_work:
        engine.step()
    assert isinstance(engine.outputs[-1].error, Unavailable)
    engine.close()


@pytest.mark.parametrize("num_steps_ahead", [0, 1], ids=["plain", "overlapped"])
def test_a_lost_rank_fails_what_runs_and_all_that_comes(wide_model: Model, num_steps_ahead: int) -> None:
    engine = ParallelEngine(wide_model.folder, 4, num_steps_ahead)
    sequences = [new_sequence(wide_model.case(name), greedy()) for name in CASES]
    engine.engine.add(*sequences)
    for _ in range(5):
        engine.step()
    follower = engine.followers[1].follower
    assert follower is not None
    follower.stop(1.0)
    while engine.engine.scheduler.has_work:
        engine.step()
    assert engine.link.lost.result(timeout=10.0)
    errors = {output.sequence: output.error for output in engine.outputs if output.is_last}
    assert all(isinstance(errors[sequence], Unavailable) for sequence in sequences)
    for sequence in sequences:
        assert sequence.prompt.num_tokens < sequence.num_tokens
    engine.run([late := new_sequence(wide_model.case("text"), greedy())])
    assert isinstance(engine.outputs[-1].error, Unavailable) and engine.outputs[-1].sequence is late
    engine.close()


def test_ranks_say_what_they_hold(wide_model: Model) -> None:
    engine = ParallelEngine(wide_model.folder, 4)
    whole = LoadedModel.from_folder(Path(wide_model.folder), torch.float32, CPU)
    counts = [rank.weights.num_language_parameters for rank in engine.ranks]
    assert len(set(counts)) == 1 and [rank.rank for rank in engine.ranks] == [0, 1, 2, 3]
    embedding = whole.language.embed_tokens.weight.numel()
    # All but the embedding, the norms and the biases is cut.
    assert counts[0] < embedding + (whole.num_parameters - embedding) / 4 + 2_000
    assert engine.engine.scheduler.pool.num_pages == 200
    engine.close()
