"""Where the library's pages come from: the seam between the page cache and a session."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from vatt.pages import Extent
from vatt.usage import Usage


class LeasePurpose(enum.Enum):
    """What a lease is for; vattd queues only the one kind."""

    ADMIT = "admit"  # a new request: may wait
    GROW = "grow"  # a running request: answered at once, so that a running engine preempts instead of waiting


class PageSource(Protocol):
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

    def report_usage(self, usage: Usage) -> None:
        """Say what the pages are used for."""
