"""How many pages to keep ready: a view of what was taken lately."""

from __future__ import annotations

from dataclasses import dataclass

# Long enough to see two growth steps of a slow decode (four pages of 32 tokens at 50 tokens a second are 2.5 s).
WINDOW_S = 3.0


@dataclass(frozen=True, slots=True)
class Watermarks:
    """Below `low_pages` the cache is refilled to `high_pages`; what it has above `keep_pages` it gives back."""

    low_pages: int
    high_pages: int
    keep_pages: int

    def __post_init__(self) -> None:
        if not 0 <= self.low_pages <= self.high_pages <= self.keep_pages:
            raise ValueError(f"not watermarks: {self}")


IDLE = Watermarks(0, 0, 0)


class Demand:
    """Pages taken in this window of time and the one before; time is an argument.

    Watermarks follow demand, so that an idle engine keeps nothing. They never pass what one growth step of all slots
    takes (`step_pages`) or a small part of the pool (`spare_pages`), so that a long prefill does not fetch as much
    again for nobody. Pages that come back are kept up to that part while the demand lasts: to lease one costs as much
    as to map dozens.
    """

    def __init__(self, spare_pages: int = 0) -> None:
        self.step_pages = 0
        self.spare_pages = spare_pages
        self._window = 0
        self._taken_pages = 0
        self._taken_before_pages = 0

    def note(self, page_count: int, now_s: float) -> None:
        self._turn_to(now_s)
        self._taken_pages += page_count

    def forget(self) -> None:
        self._taken_pages = self._taken_before_pages = 0

    def watermarks(self, now_s: float) -> Watermarks:
        self._turn_to(now_s)
        taken_pages = self._taken_pages + self._taken_before_pages
        low_pages = min(taken_pages, max(self.step_pages, self.spare_pages // 2))
        return Watermarks(low_pages, 2 * low_pages, max(2 * low_pages, min(taken_pages, self.spare_pages)))

    def _turn_to(self, now_s: float) -> None:
        window = int(now_s // WINDOW_S)
        if window > self._window:
            self._taken_before_pages = self._taken_pages if window == self._window + 1 else 0
            self._taken_pages = 0
            self._window = window
