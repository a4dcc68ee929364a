"""How often each page is mapped, stored as runs of pages that are mapped equally often."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator


class PageCounts:
    """A count of each page id, 0 unless told otherwise.

    Invariant: `_bounds` is sorted and begins with 0; `_counts[i]` is the count of every page from `_bounds[i]` to the
    next bound, and differs from its neighbours'; the last one, of all pages without end, is 0. `page_count` is how
    many pages have a count other than 0.
    """

    def __init__(self) -> None:
        self._bounds = [0]
        self._counts = [0]
        self.page_count = 0

    def any(self, first: int, end: int) -> bool:
        """Has one of these pages a count other than 0?"""
        run = bisect_right(self._bounds, first) - 1
        return self._counts[run] > 0 or (run + 1 < len(self._bounds) and self._bounds[run + 1] < end)

    def absent(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """First and end of each run of these pages whose count is 0."""
        run = bisect_right(self._bounds, first) - 1
        while first < end:
            run_end = min(end, self._bounds[run + 1]) if run + 1 < len(self._bounds) else end
            if self._counts[run] == 0:
                yield first, run_end
            first, run = run_end, run + 1

    def change(self, first: int, end: int, by: int) -> None:
        """Add 1 or -1 to the count of each of these pages. No count may go below 0."""
        low, high = bisect_right(self._bounds, first) - 1, bisect_left(self._bounds, end)
        bounds = [first, *self._bounds[low + 1 : high]]
        counts = [count + by for count in self._counts[low:high]]
        for bound, next_bound, count in zip(bounds, [*bounds[1:], end], counts, strict=True):
            if count == by:  # it was 0
                self.page_count += next_bound - bound
            elif count == 0:
                self.page_count -= next_bound - bound
        last = counts[-1]
        if self._bounds[low] < first:
            bounds.insert(0, self._bounds[low])
            counts.insert(0, self._counts[low])
        elif low > 0 and self._counts[low - 1] == counts[0]:
            del bounds[0], counts[0]
        if high == len(self._bounds) or self._bounds[high] > end:
            bounds.append(end)
            counts.append(self._counts[high - 1])
        elif self._counts[high] == last:
            high += 1
        # One assignment a list: in a long one, moving what lies behind is what takes the time.
        self._bounds[low:high], self._counts[low:high] = bounds, counts
