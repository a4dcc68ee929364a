"""Zones, where page ids are dealt, and shelves: what of the stock is one tenant's."""

from __future__ import annotations

from dataclasses import dataclass, field

from vatt.pages import ZONE_PAGES, Extent, FreeExtents, LedgerBug, page_count_of


@dataclass(slots=True, eq=False)
class Zone:
    """Pages whose ids are places beside each other, and nobody else's."""

    number: int
    clean: FreeExtents = field(default_factory=FreeExtents)
    fresh: FreeExtents = field(default_factory=FreeExtents)  # created, and nobody vouches for their content
    destroyed: FreeExtents = field(default_factory=FreeExtents)  # ids that may be backed again
    next_index: int = 0  # from here on, ids were never used
    backed_pages: int = 0  # with memory, or on their way there or back

    def take_ids(self, page_count: int) -> list[Extent]:
        """Ids for new pages: used ones first, since a dense zone makes long runs."""
        extents = self.destroyed.take(page_count)
        missing = page_count - page_count_of(extents)
        if missing:
            if self.next_index + missing > ZONE_PAGES:
                raise LedgerBug(f"zone {self.number} is used up")
            extents.append(Extent(self.number * ZONE_PAGES + self.next_index, missing))
            self.next_index += missing
        return extents


@dataclass(slots=True, eq=False)
class Shelf:
    """One tenant's part of the stock: its zone, and the idle pages that hold its data.

    `hard_pages` is the tenant's hard min: as far as it is not lent, idle pages are kept for it. `relends` says whether
    the tenant may have its dirty pages again as they are.
    """

    zone: Zone
    relends: bool = True
    dirty: FreeExtents = field(default_factory=FreeExtents)
    lent_pages: int = 0
    hard_pages: int = 0

    @property
    def ready_pages(self) -> int:
        """Pages that can be lent to the tenant this instant."""
        return self.own_pages + self.zone.clean.page_count

    @property
    def own_pages(self) -> int:
        """Ready pages that are nobody else's: they hold what the tenant left in them."""
        return self.dirty.page_count if self.relends else 0

    @property
    def kept_pages(self) -> int:
        """Idle pages that nobody else may have."""
        return max(0, self.hard_pages - self.lent_pages)
