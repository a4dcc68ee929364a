"""What one process has reserved, imported and mapped: pure bookkeeping that both mapping drivers share."""

from __future__ import annotations

from bisect import bisect_right, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from vatt.errors import DriverError
from vatt.pages import Extent, page_count_of
from vattention.vmm.extent_set import ExtentSet
from vattention.vmm.mapped_runs import MappedRuns
from vattention.vmm.page_counts import PageCounts


@dataclass(slots=True)
class _Reservation:
    start: int
    size_bytes: int
    runs: MappedRuns = field(default_factory=MappedRuns)


class MappingTable:
    """Refuses every misuse before a driver or the kernel sees it, since those do not: CUDA leaves a double release
    undefined, and mmap(MAP_FIXED) replaces whatever was there without a word.

    A driver asks the `check_...` of a step, takes the step, then records it; a step that fails is never recorded.
    Everything is kept as runs, so a step costs the same for 512 pages that follow each other as for one.

    Invariants: reservations are disjoint; what is mapped lies in one of them each; a page's count in `_mapped` is the
    number of addresses it is mapped at, and every page that has one is imported.
    """

    def __init__(self, page_size_bytes: int) -> None:
        self._page_size_bytes = page_size_bytes
        self._starts: list[int] = []  # of the reservations, sorted
        self._reservations: dict[int, _Reservation] = {}  # by start
        self._imported = ExtentSet()
        self._mapped = PageCounts()
        self._closed = False

    def close(self) -> None:
        """Forget everything, and refuse whatever is asked from now on."""
        self._starts.clear()
        self._reservations.clear()
        self._imported, self._mapped = ExtentSet(), PageCounts()
        self._closed = True

    # Reservations

    def check_reserve(self, size_bytes: int) -> None:
        self._check_open("reserve")
        if size_bytes < 1 or size_bytes % self._page_size_bytes:
            raise DriverError(f"{size_bytes} bytes are not a multiple of {self._page_size_bytes}", call="reserve")

    def add_reservation(self, address: int, size_bytes: int) -> None:
        insort(self._starts, address)
        self._reservations[address] = _Reservation(address, size_bytes)

    def check_free(self, address: int, size_bytes: int) -> None:
        reservation = self._reservations.get(address)
        if reservation is None or reservation.size_bytes != size_bytes:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not what one reserve() gave", call="free")
        if page_count := reservation.runs.page_count:
            raise DriverError(f"{page_count} pages are mapped at {address:#x}: unmap first", call="free")

    def drop_reservation(self, address: int) -> None:
        self._starts.remove(address)
        del self._reservations[address]

    def reservations(self) -> list[tuple[int, int]]:
        """(address, size_bytes) of each."""
        return [(start, self._reservations[start].size_bytes) for start in self._starts]

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
        if self._mapped.any(extent.first, extent.end):
            raise DriverError(f"some of {extent} is mapped: unmap first", call="release")

    def drop_import(self, extent: Extent) -> None:
        self._imported.remove(extent)

    # Mappings

    @property
    def mapped_page_count(self) -> int:
        """Pages that are mapped, each counted once."""
        return self._mapped.page_count

    def check_map(self, address: int, extents: Sequence[Extent]) -> None:
        size_bytes = page_count_of(extents) * self._page_size_bytes
        runs, start, end = self._places(address, size_bytes, "map")
        if runs.run_count(start, end):
            raise DriverError(f"something is mapped already between {address:#x} and {address + size_bytes:#x}", "map")
        for extent in extents:
            if not self._imported.covers(extent):
                raise DriverError(f"not all of {extent} is imported", call="map")

    def add_mapped(self, address: int, extents: Sequence[Extent]) -> None:
        runs, start, _ = self._places(address, page_count_of(extents) * self._page_size_bytes, "map")
        runs.add(start, extents)
        for extent in extents:
            self._mapped.change(extent.first, extent.end, by=1)

    def check_unmap(self, address: int, size_bytes: int) -> None:
        self._all_mapped(address, size_bytes, "unmap")

    def drop_mapped(self, address: int, size_bytes: int) -> list[Extent]:
        """The pages that were there, in the order of their addresses."""
        runs, start, end = self._places(address, size_bytes, "unmap")
        extents = runs.pages(start, end)
        runs.remove(start, end)
        for extent in extents:
            self._mapped.change(extent.first, extent.end, by=-1)
        return extents

    def pages_at(self, address: int, size_bytes: int) -> list[Extent]:
        runs, start, end = self._all_mapped(address, size_bytes, "pages_at")
        return runs.pages(start, end)

    def unmapped_of(self, extents: Iterable[Extent]) -> list[Extent]:
        gaps = (gap for extent in extents for gap in self._mapped.absent(extent.first, extent.end))
        return [Extent(first, end - first) for first, end in gaps]

    def run_count(self, address: int, size_bytes: int) -> int:
        runs, start, end = self._places(address, size_bytes, "run_count")
        return runs.run_count(start, end)

    def mapped_stretches(self) -> Iterator[tuple[int, int]]:
        """(address, size_bytes) of each contiguous stretch of mapped addresses within one reservation."""
        page = self._page_size_bytes
        for address in self._starts:
            for start, end in self._reservations[address].runs.stretches():
                yield address + start * page, (end - start) * page

    def _check_open(self, call: str) -> None:
        if self._closed:
            raise DriverError("used after close()", call=call)

    def _all_mapped(self, address: int, size_bytes: int, call: str) -> tuple[MappedRuns, int, int]:
        runs, start, end = self._places(address, size_bytes, call)
        free = runs.first_free(start, end)
        if free is not None:
            at = address + (free - start) * self._page_size_bytes
            raise DriverError(f"nothing is mapped at {at:#x}", call=call)
        return runs, start, end

    def _places(self, address: int, size_bytes: int, call: str) -> tuple[MappedRuns, int, int]:
        """The reservation that holds all of this range of whole pages: its runs, first place and end place."""
        at = bisect_right(self._starts, address) - 1
        reservation = self._reservations[self._starts[at]] if at >= 0 else None
        if reservation is None or address + size_bytes > reservation.start + reservation.size_bytes:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not within one reservation", call=call)
        start, cut = divmod(address - reservation.start, self._page_size_bytes)
        page_count, rest = divmod(size_bytes, self._page_size_bytes)
        if page_count < 1 or cut or rest:
            raise DriverError(f"{size_bytes} bytes at {address:#x} are not whole pages", call=call)
        return reservation.runs, start, start + page_count


class TableAnswers:
    """The questions to a mapping driver that its table answers."""

    def __init__(self, page_size_bytes: int) -> None:
        self._table = MappingTable(page_size_bytes)

    def pages_at(self, address: int, size_bytes: int) -> list[Extent]:
        return self._table.pages_at(address, size_bytes)

    def unmapped_of(self, extents: Sequence[Extent]) -> list[Extent]:
        return self._table.unmapped_of(extents)

    def run_count(self, address: int, size_bytes: int) -> int:
        return self._table.run_count(address, size_bytes)

    @property
    def mapped_page_count(self) -> int:
        return self._table.mapped_page_count
