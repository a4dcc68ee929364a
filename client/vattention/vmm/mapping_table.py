"""What one process has reserved, imported and mapped: pure bookkeeping that both mapping drivers share."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import chain

from vatt.errors import DriverError
from vatt.pages import Extent
from vattention.vmm.extent_set import ExtentSet


class MappingTable:
    """Refuses every misuse before a driver or the kernel sees it, since those do not: CUDA leaves a double release
    undefined, and mmap(MAP_FIXED) replaces whatever was there without a word.

    A driver asks the `check_...` of a step, takes the step, then records it; a step that fails is never recorded.

    Invariants: `_page_at` and `_address_of` are inverse to each other; every mapped page is imported; every mapped
    address lies in one reservation, whose count of mapped pages in `_mapped_in` is exact; reservations are disjoint.
    """

    def __init__(self, page_size_bytes: int) -> None:
        self._page_size_bytes = page_size_bytes
        self._starts: list[int] = []  # of the reservations, sorted
        self._sizes: dict[int, int] = {}  # bytes, by start
        self._mapped_in: dict[int, int] = {}  # pages, by start
        self._imported = ExtentSet()
        self._page_at: dict[int, int] = {}
        self._address_of: dict[int, int] = {}
        self._closed = False

    def close(self) -> None:
        """Forget everything, and refuse whatever is asked from now on."""
        self._starts.clear()
        for by_key in (self._sizes, self._mapped_in, self._page_at, self._address_of):
            by_key.clear()
        self._imported = ExtentSet()
        self._closed = True

    # Reservations

    def check_reserve(self, size_bytes: int) -> None:
        self._check_open("reserve")
        if size_bytes < 1 or size_bytes % self._page_size_bytes:
            raise DriverError(f"{size_bytes} bytes are not a multiple of {self._page_size_bytes}", call="reserve")

    def add_reservation(self, address: int, size_bytes: int) -> None:
        self._starts.insert(bisect_right(self._starts, address), address)
        self._sizes[address] = size_bytes
        self._mapped_in[address] = 0

    def check_free(self, address: int, size_bytes: int) -> None:
        if self._sizes.get(address) != size_bytes:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not what one reserve() gave", call="free")
        if self._mapped_in[address]:
            raise DriverError(f"{self._mapped_in[address]} pages are mapped at {address:#x}: unmap first", call="free")

    def drop_reservation(self, address: int) -> None:
        self._starts.remove(address)
        del self._sizes[address], self._mapped_in[address]

    def reservations(self) -> list[tuple[int, int]]:
        """(address, size_bytes) of each."""
        return [(start, self._sizes[start]) for start in self._starts]

    # Imports

    def check_import(self, extent: Extent) -> None:
        self._check_open("import_pages")
        if self._imported.overlaps(extent):
            raise DriverError(f"some of {extent} is imported already", call="import_pages")

    def add_import(self, extent: Extent) -> None:
        self._imported.add(extent)

    def check_release(self, extent: Extent) -> None:
        if not self._imported.covers(extent):
            raise DriverError(f"not all of {extent} is imported", call="release")
        if not self._address_of.keys().isdisjoint(extent.page_ids):
            raise DriverError(f"some of {extent} is mapped: unmap first", call="release")

    def drop_import(self, extent: Extent) -> None:
        self._imported.remove(extent)

    # Mappings

    def check_map(self, address: int, extents: Sequence[Extent]) -> None:
        size_bytes = sum(extent.page_count for extent in extents) * self._page_size_bytes
        self._reservation_of(address, size_bytes, "map")
        if not self._page_at.keys().isdisjoint(self._addresses(address, size_bytes)):
            raise DriverError(f"something is mapped already between {address:#x} and {address + size_bytes:#x}", "map")
        named: set[int] = set()
        for extent in extents:
            if not self._imported.covers(extent):
                raise DriverError(f"not all of {extent} is imported", call="map")
            if not self._address_of.keys().isdisjoint(extent.page_ids) or not named.isdisjoint(extent.page_ids):
                raise DriverError(f"some of {extent} is mapped already: a page has one address", call="map")
            named.update(extent.page_ids)

    def add_mapped(self, address: int, extents: Sequence[Extent]) -> None:
        page_ids = list(chain.from_iterable(extent.page_ids for extent in extents))
        size_bytes = len(page_ids) * self._page_size_bytes
        addresses = self._addresses(address, size_bytes)
        self._page_at.update(zip(addresses, page_ids, strict=True))
        self._address_of.update(zip(page_ids, addresses, strict=True))
        self._mapped_in[self._reservation_of(address, size_bytes, "map")] += len(page_ids)

    def check_unmap(self, address: int, size_bytes: int) -> None:
        self._reservation_of(address, size_bytes, "unmap")
        for at in self._addresses(address, size_bytes):
            if at not in self._page_at:
                raise DriverError(f"nothing is mapped at {at:#x}", call="unmap")

    def drop_mapped(self, address: int, size_bytes: int) -> None:
        for at in self._addresses(address, size_bytes):
            del self._address_of[self._page_at.pop(at)]
        pages = size_bytes // self._page_size_bytes
        self._mapped_in[self._reservation_of(address, size_bytes, "unmap")] -= pages

    def mapped_runs(self) -> Iterator[tuple[int, int]]:
        """(address, size_bytes) of each contiguous run of mapped pages within one reservation."""
        first = end = -1
        for address in sorted(self._page_at):
            if address != end or address in self._sizes:
                if end > first:
                    yield first, end - first
                first = address
            end = address + self._page_size_bytes
        if end > first:
            yield first, end - first

    def _check_open(self, call: str) -> None:
        if self._closed:
            raise DriverError("used after close()", call=call)

    def _addresses(self, address: int, size_bytes: int) -> range:
        return range(address, address + size_bytes, self._page_size_bytes)

    def _reservation_of(self, address: int, size_bytes: int, call: str) -> int:
        """The start of the reservation that holds all of this range of whole pages."""
        at = bisect_right(self._starts, address) - 1
        start = self._starts[at] if at >= 0 else 0
        if at < 0 or address + size_bytes > start + self._sizes[start]:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not within one reservation", call=call)
        if size_bytes < 1 or (address - start) % self._page_size_bytes or size_bytes % self._page_size_bytes:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not whole pages", call=call)
        return start
