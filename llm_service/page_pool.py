"""PagePool: which KV page belongs to whom. Knows page numbers and hashes, never a tensor."""

from __future__ import annotations

from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Hashable, Sequence
from typing import TypeAlias

# int32: a step's block tables are copied into the upload as they are.
PageTable: TypeAlias = "array[int]"
PAGE_TYPECODE = "i"


class PagePool:
    """Allocates pages with reference counts and finds full pages again by their hash.

    A page is in exactly one of three places: held (in the table of one or more holders), cached (held by nobody, still
    filled and findable, taken again least recently used first), or free. Used by the engine thread alone.
    """

    def __init__(self, num_pages: int, page_size: int, enable_prefix_cache: bool = True) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.enable_prefix_cache = enable_prefix_cache
        self._tables: dict[Hashable, PageTable] = {}
        self._num_holders = [0] * num_pages
        self._free: deque[int] = deque(range(num_pages))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._page_by_hash: dict[bytes, int] = {}
        self._hash_by_page: dict[int, bytes] = {}

    @property
    def num_available_pages(self) -> int:
        """Pages that an allocation may take: free, or cached."""
        return len(self._free) + len(self._cached)

    @property
    def num_cached_pages(self) -> int:
        return len(self._cached)

    @property
    def num_held_pages(self) -> int:
        return self.num_pages - self.num_available_pages

    def num_pages_for(self, num_tokens: int) -> int:
        return -(-num_tokens // self.page_size)

    def table(self, holder: Hashable) -> PageTable:
        """The pages of `holder`, in the order of its tokens. Not to be changed by the caller."""
        table = self._tables.get(holder)
        return array(PAGE_TYPECODE) if table is None else table

    def match(self, hashes: Sequence[bytes]) -> list[int]:
        """The pages of the longest run of `hashes`, from the first on, that is held or cached here."""
        pages = []
        for page_hash in hashes:
            page = self._page_by_hash.get(page_hash)
            if page is None:
                break
            pages.append(page)
        return pages

    def can_allocate(self, num_new: int, shared: Sequence[int] = ()) -> bool:
        """Are there `num_new` pages beside the `shared` ones, of which some may only be cached?"""
        num_revived = sum(self._num_holders[page] == 0 for page in shared)
        return num_new + num_revived <= self.num_available_pages

    def allocate(self, holder: Hashable, num_new: int, shared: Sequence[int] = ()) -> PageTable:
        """Appends the shared pages, then `num_new` others, to the table of `holder` and returns it."""
        assert self.can_allocate(num_new, shared)
        table = self._tables.setdefault(holder, array(PAGE_TYPECODE))
        for page in shared:
            self._hold(page)
        table.extend(shared)
        for _ in range(num_new):
            page = self._take()
            self._hold(page)
            table.append(page)
        return table

    def release(self, holder: Hashable) -> None:
        """Takes every page from `holder`; without pages that is nothing."""
        # Last page first: the beginning of a prompt is the part most likely to be asked for again.
        for page in reversed(self._tables.pop(holder, array(PAGE_TYPECODE))):
            self._num_holders[page] -= 1
            assert self._num_holders[page] >= 0
            if self._num_holders[page] > 0:
                continue
            if page in self._hash_by_page:
                self._cached[page] = None
            else:
                self._free.append(page)

    def publish(self, page: int, page_hash: bytes) -> None:
        """Makes a held, full page findable. A second page of the same content stays private to its holder."""
        assert self._num_holders[page] > 0
        if not self.enable_prefix_cache or page_hash in self._page_by_hash or page in self._hash_by_page:
            return
        self._page_by_hash[page_hash] = page
        self._hash_by_page[page] = page_hash

    def check(self) -> None:
        """Asserts the ledger: every page in one place, every count equal to the tables that name it."""
        counts = Counter(page for table in self._tables.values() for page in table)
        assert all(self._num_holders[page] == counts[page] for page in range(self.num_pages))
        places = [*self._free, *self._cached, *counts]
        assert len(places) == self.num_pages and set(places) == set(range(self.num_pages))
        assert all(page in self._hash_by_page for page in self._cached)
        assert {page: name for name, page in self._page_by_hash.items()} == self._hash_by_page

    def _hold(self, page: int) -> None:
        self._cached.pop(page, None)
        self._num_holders[page] += 1

    def _take(self) -> int:
        if self._free:
            return self._free.popleft()
        page, _ = self._cached.popitem(last=False)
        del self._page_by_hash[self._hash_by_page.pop(page)]
        return page
