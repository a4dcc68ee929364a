"""A set of pages, stored as runs: a pool of a million pages is seldom more than a few thousand of them."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator

from vatt.pages import Extent


class ExtentSet:
    """Page ids, of any zones.

    Invariant: `_firsts` and `_ends` are as long as each other, sorted, and describe runs that neither overlap nor
    touch; `page_count` is the sum of their lengths. Callers ask `overlaps` or `covers` first and say in their own
    words what is wrong; add and remove raise ValueError if they did not.
    """

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._ends: list[int] = []
        self.page_count = 0

    def overlaps(self, extent: Extent) -> bool:
        """Is any of these pages in the set?"""
        at = bisect_right(self._ends, extent.first)
        return at < len(self._firsts) and self._firsts[at] < extent.end

    def covers(self, extent: Extent) -> bool:
        """Are all of them?"""
        at = bisect_right(self._firsts, extent.first) - 1
        return at >= 0 and self._ends[at] >= extent.end

    def gaps(self, extent: Extent) -> Iterator[Extent]:
        """Those of these pages that are not in the set, as runs."""
        first = extent.first
        at = bisect_right(self._ends, extent.first)
        while at < len(self._firsts) and self._firsts[at] < extent.end:
            if first < self._firsts[at]:
                yield Extent(first, self._firsts[at] - first)
            first = self._ends[at]
            at += 1
        if first < extent.end:
            yield Extent(first, extent.end - first)

    def add(self, extent: Extent) -> None:
        if self.overlaps(extent):
            raise ValueError(f"some of {extent} is in the set already")
        low, high = bisect_left(self._ends, extent.first), bisect_right(self._firsts, extent.end)
        first = min([extent.first, *self._firsts[low:high]])
        end = max([extent.end, *self._ends[low:high]])
        self._firsts[low:high], self._ends[low:high] = [first], [end]
        self.page_count += extent.page_count

    def remove(self, extent: Extent) -> None:
        if not self.covers(extent):
            raise ValueError(f"not all of {extent} is in the set")
        at = bisect_right(self._firsts, extent.first) - 1
        first, end = self._firsts[at], self._ends[at]
        left = [(first, extent.first)] if first < extent.first else []
        right = [(extent.end, end)] if extent.end < end else []
        self._firsts[at : at + 1] = [run[0] for run in left + right]
        self._ends[at : at + 1] = [run[1] for run in left + right]
        self.page_count -= extent.page_count

    def discard(self, extent: Extent) -> int:
        """Take out those of these pages that are in the set. Returns how many those were."""
        before = self.page_count
        at = bisect_right(self._ends, extent.first)
        while at < len(self._firsts) and self._firsts[at] < extent.end:
            first, end = max(self._firsts[at], extent.first), min(self._ends[at], extent.end)
            self.remove(Extent(first, end - first))
            at = bisect_right(self._ends, extent.first)
        return before - self.page_count
