"""Where the library's pages come from: the seam between the page cache and a session."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from vatt.errors import InvalidRequest
from vatt.pages import Extent
from vatt.usage import Usage

MAX_WAIT_S = 3600.0


class LeasePurpose(enum.Enum):
    """What a lease is for; vattd queues only the one kind."""

    ADMIT = "admit"  # a new request: may wait
    GROW = "grow"  # a running request: answered at once, so that a running engine preempts instead of waiting
    AHEAD = "ahead"  # nobody needs them yet: refused where somebody waits for pages


class PageLender(Protocol):
    """Lends imported pages, ready to be mapped. Thread-safe. Raises VattError."""

    def lease(
        self,
        page_count: int,
        *,
        min_page_count: int = 0,
        purpose: LeasePurpose = LeasePurpose.GROW,
        wait_s: float = 0.0,
    ) -> list[Extent]:
        """At least `min_page_count` pages (0: all of `page_count`), or none and an error."""

    def give_back(self, extents: Sequence[Extent]) -> None:
        """Return pages that are mapped nowhere. Safe to repeat."""


class PageSource(PageLender, Protocol):
    """A lender that is told what its pages are used for."""

    def report_usage(self, usage: Usage) -> None:
        """Say what the pages are used for."""


def check_wait(wait_s: float) -> None:
    """Raises InvalidRequest for what a lease to ADMIT cannot wait."""
    if isinstance(wait_s, bool) or not isinstance(wait_s, (int, float)) or not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidRequest(f"a wait must be 0 to {MAX_WAIT_S:g} seconds, not {wait_s!r}")  # nan is not between
