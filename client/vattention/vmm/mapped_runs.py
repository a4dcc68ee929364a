"""Which pages lie where in one address range, stored as runs: a column is seldom more than a few of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence

from vatt.pages import ZONE_PAGES, Extent


class MappedRuns:
    """The pages at the places of one address range. A place counts pages from the range's start.

    Invariant: the three lists are as long as each other and describe runs, sorted and disjoint; within a run places and
    page ids both go up by one, so `_shifts` (page id minus place) is one number; runs are maximal, so two that meet
    are not one. The same page may lie at any number of places. Callers check first that places are free, or taken.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._shifts: list[int] = []

    @property
    def page_count(self) -> int:
        """Places that are taken."""
        return sum(self._ends) - sum(self._starts)

    def run_count(self, start: int, end: int) -> int:
        low, high = self._touched(start, end)
        return high - low

    def first_free(self, start: int, end: int) -> int | None:
        """The first of these places where nothing is."""
        low, high = self._touched(start, end)
        for run in range(low, high):
            if self._starts[run] > start:
                return start
            start = self._ends[run]
        return start if start < end else None

    def pages(self, start: int, end: int) -> list[Extent]:
        """What is at these places, in their order, in as few extents as that order allows."""
        low, high = self._touched(start, end)
        extents = []
        for run in range(low, high):
            first, last = max(start, self._starts[run]), min(end, self._ends[run])
            extents.append(Extent(first + self._shifts[run], last - first))
        return extents

    def add(self, start: int, extents: Sequence[Extent]) -> None:
        """Put pages at free places, one after the other."""
        pieces, place = [], start
        for extent in extents:
            pieces.append((place, place + extent.page_count, extent.first - place))
            place += extent.page_count
        low = high = bisect_left(self._starts, start)
        if low > 0 and self._ends[low - 1] == start:
            low -= 1
            pieces.insert(0, (self._starts[low], start, self._shifts[low]))
        if high < len(self._starts) and self._starts[high] == place:
            pieces.append((place, self._ends[high], self._shifts[high]))
            high += 1
        starts, ends, shifts = list[int](), list[int](), list[int]()
        for first, end, shift in pieces:  # each begins where the one before ends
            if shifts and shifts[-1] == shift and (first + shift) % ZONE_PAGES:
                ends[-1] = end
                continue
            starts.append(first)
            ends.append(end)
            shifts.append(shift)
        self._starts[low:high], self._ends[low:high], self._shifts[low:high] = starts, ends, shifts

    def remove(self, start: int, end: int) -> None:
        """Empty places that are all taken."""
        low, high = self._touched(start, end)
        left, right = self._starts[low] < start, self._ends[high - 1] > end
        starts = [self._starts[low]] * left + [end] * right
        ends = [start] * left + [self._ends[high - 1]] * right
        shifts = [self._shifts[low]] * left + [self._shifts[high - 1]] * right
        self._starts[low:high], self._ends[low:high], self._shifts[low:high] = starts, ends, shifts

    def stretches(self) -> Iterator[tuple[int, int]]:
        """First place and end of each stretch without a gap, whichever pages are there."""
        start = end = 0
        for run_start, run_end in zip(self._starts, self._ends, strict=True):
            if run_start != end:
                if end > start:
                    yield start, end
                start = run_start
            end = run_end
        if end > start:
            yield start, end

    def _touched(self, start: int, end: int) -> tuple[int, int]:
        """The runs from the first index up to the second have places in this range."""
        return bisect_right(self._ends, start), bisect_left(self._starts, end)
