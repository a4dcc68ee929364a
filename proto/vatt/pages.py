"""Page arithmetic: what a page id means, runs of pages, and the free list that both sides deal from."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A page id is `zone * ZONE_PAGES + index`. Pages of one zone have places beside each other (on the host: offsets in
# one slab), so a run of ids is a run of memory; no extent crosses a zone. 2**40 pages are more than a zone ever uses.
ZONE_PAGES = 1 << 40
MAX_ZONES = 1 << 22


class LedgerBug(Exception):
    """An invariant of ours is broken. Never a caller's mistake, so never to be handled: stop and report it."""


@dataclass(frozen=True, slots=True, order=True)
class Extent:
    """A run of consecutive pages of one zone: `first`, `first + 1`, ... Both fields count pages, not bytes."""

    first: int
    page_count: int

    def __post_init__(self) -> None:
        if self.first < 0 or self.page_count < 1 or self.first // ZONE_PAGES != (self.end - 1) // ZONE_PAGES:
            raise ValueError(f"not an extent: {self}")

    @property
    def end(self) -> int:
        """The page id after the last."""
        return self.first + self.page_count

    @property
    def zone(self) -> int:
        return self.first // ZONE_PAGES

    @property
    def index(self) -> int:
        """Place of the first page in its zone, in pages."""
        return self.first % ZONE_PAGES

    @property
    def page_ids(self) -> range:
        return range(self.first, self.end)

    def split(self, page_count: int) -> tuple[Extent, Extent | None]:
        """The first `page_count` pages, and the rest if there is any."""
        if page_count == self.page_count:
            return self, None
        return Extent(self.first, page_count), Extent(self.first + page_count, self.page_count - page_count)


def extents_of(page_ids: Iterable[int]) -> list[Extent]:
    """The fewest extents that hold exactly these pages. Raises ValueError if one is named twice."""
    extents: list[Extent] = []
    first = end = -1
    for page_id in sorted(page_ids):
        if page_id == end - 1:
            raise ValueError(f"page {page_id} is named twice")
        if page_id == end and page_id % ZONE_PAGES:
            end += 1
            continue
        if end > first:
            extents.append(Extent(first, end - first))
        first, end = page_id, page_id + 1
    if end > first:
        extents.append(Extent(first, end - first))
    return extents


def page_count_of(extents: Iterable[Extent]) -> int:
    return sum(extent.page_count for extent in extents)


class FreeExtents:
    """Pages that may be handed out, as maximal extents.

    Invariant: extents are disjoint, sorted and never adjacent within a zone (adjacent ones are merged), and
    `page_count` is their sum. `_sizes` holds the same extents as (page_count, first), for best fit.
    Not thread-safe: its owner is one event loop, or holds a lock.
    """

    def __init__(self, extents: Iterable[Extent] = ()) -> None:
        self._firsts: list[int] = []
        self._by_first: dict[int, Extent] = {}
        self._sizes: list[tuple[int, int]] = []
        self.page_count = 0
        for extent in extents:
            self.give_back(extent)

    def __iter__(self) -> Iterator[Extent]:
        return (self._by_first[first] for first in self._firsts)

    def __len__(self) -> int:
        """How many extents, not pages."""
        return len(self._firsts)

    def take_run(self, page_count: int) -> Extent | None:
        """Take one run of exactly `page_count` pages from the smallest extent that fits, or None if none does."""
        at = bisect_left(self._sizes, (page_count, -1))
        if at == len(self._sizes):
            return None
        extent = self._by_first[self._sizes[at][1]]
        self._remove(extent)
        taken, rest = extent.split(page_count)
        if rest is not None:
            self._insert(rest)
        return taken

    def take_at(self, first_page_id: int, page_count: int) -> Extent | None:
        """Take up to `page_count` pages that begin exactly here, so that a row goes on where it ended. None if this
        page is not free; fewer if a later one is not."""
        at = bisect_right(self._firsts, first_page_id)
        around = self._by_first[self._firsts[at - 1]] if at > 0 else None
        if around is None or around.end <= first_page_id:
            return None
        taken = Extent(first_page_id, min(page_count, around.end - first_page_id))
        self.remove(taken)
        return taken

    def take(self, page_count: int) -> list[Extent]:
        """Take up to `page_count` pages in the fewest runs: the smallest extent that fits, else the largest ones.

        The answer holds fewer pages only if fewer are free; the caller checks `page_count` first if that matters.
        """
        taken: list[Extent] = []
        wanted = min(page_count, self.page_count)
        while wanted > 0:
            run = self.take_run(wanted)
            if run is None:
                run = self._by_first[self._sizes[-1][1]]
                self._remove(run)
            taken.append(run)
            wanted -= run.page_count
        return taken

    def give_back(self, extent: Extent) -> None:
        """Return pages. Raises LedgerBug if any is free already: a double free is our bug, not a user's error."""
        at = bisect_right(self._firsts, extent.first)
        before = self._by_first[self._firsts[at - 1]] if at > 0 else None
        after = self._by_first[self._firsts[at]] if at < len(self._firsts) else None
        if (before is not None and before.end > extent.first) or (after is not None and after.first < extent.end):
            raise LedgerBug(f"{extent} is free already")
        first, end = extent.first, extent.end
        if before is not None and before.end == first and before.zone == extent.zone:
            self._remove(before)
            first = before.first
        if after is not None and after.first == end and after.zone == extent.zone:
            self._remove(after)
            end = after.end
        self._insert(Extent(first, end - first))

    def remove(self, extent: Extent) -> None:
        """Take exactly these pages. Raises LedgerBug if one of them is not here."""
        at = bisect_right(self._firsts, extent.first)
        around = self._by_first[self._firsts[at - 1]] if at > 0 else None
        if around is None or around.end < extent.end:
            raise LedgerBug(f"{extent} is not free")
        self._remove(around)
        if around.first < extent.first:
            self._insert(Extent(around.first, extent.first - around.first))
        if extent.end < around.end:
            self._insert(Extent(extent.end, around.end - extent.end))

    def _insert(self, extent: Extent) -> None:
        insort(self._firsts, extent.first)
        insort(self._sizes, (extent.page_count, extent.first))
        self._by_first[extent.first] = extent
        self.page_count += extent.page_count

    def _remove(self, extent: Extent) -> None:
        del self._firsts[bisect_left(self._firsts, extent.first)]
        del self._sizes[bisect_left(self._sizes, (extent.page_count, extent.first))]
        del self._by_first[extent.first]
        self.page_count -= extent.page_count
