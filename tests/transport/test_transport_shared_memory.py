"""The slab's bookkeeping, its bounds, and the sweeping of slabs whose owner died."""

from __future__ import annotations

import fcntl
import itertools
import os
import zlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ConfigurationError, IntegrityError, Overloaded, Unavailable
from triptych.transport.extents import Extent
from triptych.transport.shared_memory import SharedMemorySlab, read_slab, sweep_dead_slabs

PAGE = 4096


def test_written_bytes_are_read_back_elsewhere(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 16 * PAGE, tmp_path)
    first, second = slab.allocate(100), slab.allocate(5 * PAGE + 1)
    tensor = torch.arange(5 * PAGE + 1, dtype=torch.int64).to(torch.uint8)
    crc32 = slab.write(second, tensor)
    assert crc32 == zlib.crc32(tensor.numpy().tobytes())
    target = torch.zeros_like(tensor)
    read_slab(slab.name, second.offset, crc32, target, tmp_path)
    assert torch.equal(target, tensor)
    # Not aligned: a consumer may be told any offset.
    read_slab(slab.name, second.offset + 7, zlib.crc32(tensor[7:].numpy().tobytes()), target[7:], tmp_path)
    assert torch.equal(target, tensor)
    slab.free(first)
    slab.free(second)
    assert slab.free_bytes == 16 * PAGE
    slab.close()


@pytest.mark.parametrize(
    "name",
    [
        "../triptych-a",
        "triptych-../../etc/passwd",
        "/etc/passwd",
        "triptych-a/b",
        "triptych-",
        "",
        "other-a",
        "triptych-a\0b",
    ],
)
def test_names_that_are_no_slab_are_refused_before_anything_is_opened(tmp_path: Path, name: str) -> None:
    with pytest.raises(IntegrityError, match="shared memory name"):
        read_slab(name, 0, 0, torch.zeros(1), tmp_path)


def test_bounds_links_and_missing_files(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 2 * PAGE, tmp_path)
    for offset in (PAGE + 1, 2 * PAGE, 1 << 62):
        with pytest.raises(IntegrityError, match="reach past its end at 8192"):
            read_slab(slab.name, offset, 0, torch.zeros(PAGE, dtype=torch.uint8), tmp_path)
    (tmp_path / "triptych-link").symlink_to(tmp_path / slab.name)
    for name in ("triptych-link", "triptych-gone"):
        with pytest.raises(Unavailable, match=f"can't open shared memory {name}"):
            read_slab(name, 0, 0, torch.zeros(1), tmp_path)
    slab.close()


def test_a_producer_id_that_could_leave_the_folder_is_refused(tmp_path: Path) -> None:
    for producer_id in ("a/b", "..", "", "a_b"):
        with pytest.raises(ConfigurationError):
            SharedMemorySlab(producer_id, PAGE, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_memory_left_is_overloaded_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slab = SharedMemorySlab("encoder-1", 2 * PAGE, tmp_path)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", no_space)
    with pytest.raises(Overloaded, match=r"transport\.shared_memory_bytes"):
        slab.write(slab.allocate(10), torch.zeros(10, dtype=torch.uint8))
    slab.close()


def test_only_slabs_without_a_living_owner_are_swept(tmp_path: Path) -> None:
    alive = SharedMemorySlab("encoder-alive", PAGE, tmp_path)
    (tmp_path / "triptych-dead").write_bytes(b"x")
    (tmp_path / "triptych-locked").write_bytes(b"x")
    (tmp_path / "somebody-else").write_bytes(b"x")
    (tmp_path / "triptych-bad_name").write_bytes(b"x")
    with open(tmp_path / "triptych-locked", "rb") as locked:
        fcntl.flock(locked, fcntl.LOCK_EX)
        assert sweep_dead_slabs(tmp_path) == ["triptych-dead"]
    assert sweep_dead_slabs(tmp_path) == ["triptych-locked"]
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {alive.name, "somebody-else", "triptych-bad_name"}
    alive.close()
    assert sweep_dead_slabs(tmp_path / "missing") == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6 * PAGE), st.integers(0, 100)), max_size=60))
def test_allocations_never_overlap_and_free_space_is_exact(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, int]]
) -> None:
    slab = SharedMemorySlab("encoder-1", 20 * PAGE, tmp_path_factory.mktemp("slab"))
    taken: list[Extent] = []
    for num_bytes, which in steps:
        if which % 3 == 0 and taken:
            slab.free(taken.pop(which % len(taken)))
        else:
            try:
                taken.append(slab.allocate(num_bytes))
            except Overloaded:
                holes = gaps(taken, 20 * PAGE)
                assert all(hole < max(num_bytes, 1) for hole in holes), "refused although it fits"
        in_order = sorted(taken)
        assert all(a.end <= b.offset for a, b in itertools.pairwise(in_order))
        assert slab.free_bytes == 20 * PAGE - sum(extent.length for extent in taken)
    for extent in taken:
        slab.free(extent)
    assert slab.allocate(20 * PAGE) == Extent(0, 20 * PAGE)
    slab.close()


def gaps(taken: list[Extent], end: int) -> list[int]:
    edges = [0, *(edge for extent in sorted(taken) for edge in (extent.offset, extent.end)), end]
    return [b - a for a, b in zip(edges[::2], edges[1::2], strict=True)]
