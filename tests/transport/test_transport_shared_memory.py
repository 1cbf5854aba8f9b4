"""The slab's bookkeeping, its bounds, and the sweeping of slabs whose owner died."""

from __future__ import annotations

import fcntl
import itertools
import os
import subprocess
import sys
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.errors import ConfigurationError, IntegrityError, Overloaded, Unavailable
from triptych.transport.extents import Extent
from triptych.transport.shared_memory import _MADV_POPULATE_WRITE, SharedMemorySlab, sweep_dead_slabs
from triptych.transport.slab_layout import STAMP_BYTES
from triptych.transport.slab_reader import SlabPiece, copy_out, read_in_place
from triptych.transport.ticket import TensorSpec

PAGE = 4096


def piece_of(slab: SharedMemorySlab, **changes: Any) -> SlabPiece:
    """Not written yet, so that its stamp is wrong."""
    return replace(SlabPiece(slab.name, STAMP_BYTES, PAGE, 1), **changes)


def bytes_of(num_bytes: int) -> torch.Tensor:
    return torch.arange(num_bytes, dtype=torch.int64).to(torch.uint8)


def open_pieces(folder: Path) -> int:
    """How many files of `folder` this process has open."""
    return sum(link.resolve().parent == folder for link in Path("/proc/self/fd").iterdir())


def test_written_bytes_are_read_back_elsewhere(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 16 * PAGE, tmp_path)
    first, second = slab.allocate(100), slab.allocate(5 * PAGE + 1)
    tensor = bytes_of(5 * PAGE + 1)
    piece, crc32 = slab.write(second, tensor)
    assert crc32 == zlib.crc32(tensor.numpy().tobytes())
    assert piece.offset % STAMP_BYTES == 0 and piece.num_bytes == tensor.nbytes
    target = torch.zeros_like(tensor)
    copy_out(piece, crc32, target, tmp_path)
    assert torch.equal(target, tensor)
    with pytest.raises(IntegrityError, match="expected 00000007"):
        copy_out(piece, 7, target, tmp_path)
    slab.free(first)
    slab.free(second)
    assert slab.free_bytes == 16 * PAGE
    slab.close()


def test_a_piece_that_is_read_in_place_is_lent_until_the_tensor_and_its_views_are_gone(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 4 * PAGE, tmp_path)
    before = open_pieces(tmp_path)
    extent = slab.allocate(PAGE)
    piece, _ = slab.write(extent, torch.full((PAGE // 4,), 3.0))
    tensor = read_in_place(piece, TensorSpec(torch.float32, (2, PAGE // 8)), tmp_path)
    slab.free(extent)
    assert slab.free_bytes == 2 * PAGE
    for _ in range(3):  # What comes next does not touch it.
        again = slab.allocate(PAGE)
        slab.write(again, torch.zeros(PAGE // 4))
        slab.free(again)
    assert again != extent and torch.equal(tensor, torch.full((2, PAGE // 8), 3.0))
    view = tensor[1, 5:]
    del tensor
    assert slab.free_bytes == 2 * PAGE and view[0] == 3.0
    del view
    assert slab.free_bytes == 4 * PAGE
    assert open_pieces(tmp_path) == before
    slab.close()


def test_what_a_reader_writes_is_its_own(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 4 * PAGE, tmp_path)
    piece, _ = slab.write(slab.allocate(PAGE), bytes_of(PAGE))
    first, second = (read_in_place(piece, TensorSpec(torch.uint8, (PAGE,)), tmp_path) for _ in range(2))
    first.zero_()
    assert first.sum() == 0 and torch.equal(second, bytes_of(PAGE))
    slab.close()


def test_the_lock_of_a_killed_reader_goes_with_it(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 4 * PAGE, tmp_path)
    extent = slab.allocate(PAGE)
    slab.write(extent, bytes_of(PAGE))
    code = (
        "import sys, time\nfrom triptych.transport.range_lock import try_lock\n"
        "file = open(sys.argv[1], 'rb')\n"
        f"assert try_lock(file.fileno(), {extent.offset}, {STAMP_BYTES + PAGE}, is_exclusive=False)\n"
        "print('locked', flush=True)\ntime.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path / slab.name)], stdout=subprocess.PIPE) as reader:
        assert reader.stdout is not None and reader.stdout.readline() == b"locked\n"
        slab.free(extent)
        assert slab.free_bytes == 2 * PAGE
        reader.kill()
    assert slab.free_bytes == 4 * PAGE
    slab.close()


@pytest.mark.parametrize("is_used_again", [False, True])
def test_a_reader_that_comes_too_late_is_told(tmp_path: Path, is_used_again: bool) -> None:
    slab = SharedMemorySlab("encoder-1", 4 * PAGE, tmp_path)
    extent = slab.allocate(PAGE)
    piece, _ = slab.write(extent, bytes_of(PAGE))
    slab.free(extent)
    if is_used_again:
        assert slab.allocate(PAGE) == extent
        slab.write(extent, torch.zeros(PAGE, dtype=torch.uint8))
    with pytest.raises(Unavailable, match="has taken the piece back"):
        read_in_place(piece, TensorSpec(torch.uint8, (PAGE,)), tmp_path)
    assert slab.free_bytes == (2 if is_used_again else 4) * PAGE
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
        copy_out(SlabPiece(name, STAMP_BYTES, 4, 1), None, torch.zeros(1), tmp_path)


def test_bounds_links_and_missing_files(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 2 * PAGE, tmp_path)
    target = torch.zeros(PAGE, dtype=torch.uint8)
    for offset in (PAGE + STAMP_BYTES, 2 * PAGE, 1 << 62):
        with pytest.raises(IntegrityError, match="reach past its end at 8192"):
            copy_out(piece_of(slab, offset=offset), None, target, tmp_path)
    for offset in (0, STAMP_BYTES + 7):
        with pytest.raises(IntegrityError, match="expected a multiple of 64"):
            copy_out(piece_of(slab, offset=offset), None, target, tmp_path)
    (tmp_path / "triptych-link").symlink_to(tmp_path / slab.name)
    for name in ("triptych-link", "triptych-gone"):
        with pytest.raises(Unavailable, match=f"can't open shared memory {name}"):
            copy_out(piece_of(slab, name=name), None, target, tmp_path)
    os.mkfifo(tmp_path / "triptych-pipe")
    with (
        open(os.open(tmp_path / "triptych-pipe", os.O_RDWR | os.O_NONBLOCK), "rb"),  # Or opening it would block.
        pytest.raises(IntegrityError, match="not a regular file"),
    ):
        copy_out(piece_of(slab, name="triptych-pipe"), None, target, tmp_path)
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


def resident_bytes(path: Path) -> int:
    """How much of the mappings of `path` this process can touch without a page fault."""
    lines, is_ours, found = Path("/proc/self/smaps").read_text().splitlines(), False, 0
    for line in lines:
        first = line.split()[0]
        if not first.endswith(":"):
            is_ours = line.endswith(str(path))
        elif is_ours and first == "Rss:":
            found += int(line.split()[1]) * 1024
    return found


def test_pages_are_mapped_when_they_are_backed_and_no_sooner(tmp_path: Path) -> None:
    slab = SharedMemorySlab("encoder-1", 256 * PAGE, tmp_path)
    try:
        slab._memory.madvise(_MADV_POPULATE_WRITE, 0, PAGE)
    except OSError:
        slab.close()
        pytest.skip("this kernel can't map pages on demand (before Linux 5.14)")
    first, second = slab.allocate(100 * PAGE - STAMP_BYTES), slab.allocate(60 * PAGE - STAMP_BYTES)
    assert resident_bytes(tmp_path / slab.name) == PAGE
    slab.write(first, bytes_of(1))
    assert resident_bytes(tmp_path / slab.name) == 100 * PAGE
    slab.write(second, bytes_of(1))
    assert resident_bytes(tmp_path / slab.name) == 160 * PAGE
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
                assert all(hole < STAMP_BYTES + num_bytes for hole in holes), "refused although it fits"
        in_order = sorted(taken)
        assert all(a.end <= b.offset for a, b in itertools.pairwise(in_order))
        assert slab.free_bytes == 20 * PAGE - sum(extent.length for extent in taken)
    for extent in taken:
        slab.free(extent)
    assert slab.allocate(20 * PAGE - STAMP_BYTES) == Extent(0, 20 * PAGE)
    slab.close()


def gaps(taken: list[Extent], end: int) -> list[int]:
    edges = [0, *(edge for extent in sorted(taken) for edge in (extent.offset, extent.end)), end]
    return [b - a for a, b in zip(edges[::2], edges[1::2], strict=True)]
