"""How many idle pages nobody has needed for a while."""

from __future__ import annotations


class IdleWatch:
    """The fewest idle pages that there were in this window of `quiet_s` and in the one before. Time is an argument.

    What is idle for less than a whole window counts for nothing, so it takes one to two of them until pages that
    nobody needs are a surplus.
    """

    def __init__(self, quiet_s: float) -> None:
        if quiet_s <= 0:
            raise ValueError(f"not a time: {quiet_s}")
        self._quiet_s = quiet_s
        self._end_s: float | None = None  # of this window; none before the first note
        self._last = self._fewest = self._fewest_before = 0

    def note(self, idle_pages: int, now_s: float) -> None:
        """So many are idle from now on."""
        self._turn_to(now_s)
        self._last = idle_pages
        self._fewest = min(self._fewest, idle_pages)

    def surplus_pages(self, now_s: float) -> int:
        self._turn_to(now_s)
        return min(self._fewest, self._fewest_before)

    def next_change_s(self) -> float | None:
        """When there may be a surplus without anything happening: none while nothing is idle."""
        return self._end_s if self._last else None

    def _turn_to(self, now_s: float) -> None:
        if self._end_s is None:
            self._end_s = now_s + self._quiet_s
        while now_s >= self._end_s:
            windows = int((now_s - self._end_s) // self._quiet_s) + 1
            # In a window in which nothing happened there were as many as at the end of the one before.
            self._fewest_before = self._fewest if windows == 1 else self._last
            self._fewest = self._last
            self._end_s += windows * self._quiet_s
