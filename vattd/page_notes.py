"""How many pages whoever has, noted for the vattd that comes after this one."""

from __future__ import annotations

from typing import Protocol

from vattd.journal import Journal, SlabFacts
from vattd.ledger import Ledger
from vattention.vmm.driver import PhysicalDriver


class PageNotes(Protocol):
    """Told before pages are lent or made, and after they came back or went: so it never knows of fewer than there are.

    Raises SystemLimit where a note cannot be taken: then nothing is lent or made.
    """

    def held(self, session_id: str, page_count: int) -> None:
        """The session is lent so many."""

    def backed(self, zone: int) -> None:
        """Pages of the zone are about to be made, or have been, or were destroyed."""

    def dropped(self, zone: int) -> None:
        """The zone is no more."""


class NoNotes:
    """Where nobody comes after."""

    def held(self, session_id: str, page_count: int) -> None: ...

    def backed(self, zone: int) -> None: ...

    def dropped(self, zone: int) -> None: ...


class JournalNotes:
    """In the journal. Slabs are noted where zones have them: a slab outlives vattd in the engines that map it, and its
    idle pages with it."""

    def __init__(self, journal: Journal, ledger: Ledger, driver: PhysicalDriver) -> None:
        self._journal, self._ledger, self._driver = journal, ledger, driver
        self._slabs: dict[int, SlabFacts] = {}

    def held(self, session_id: str, page_count: int) -> None:
        tenant = self._ledger.tenant_of(session_id)
        slab = self._slab(tenant.shelf.zone.number)
        if slab is not None and slab.tenant != tenant.name:  # its pages were made ahead of any tenant
            slab = SlabFacts(slab.zone, tenant.name, slab.mark)
            self._journal.change(slab, self._ledger.stock.backed_in(slab.zone))
            self._slabs[slab.zone] = slab
        self._journal.note_pages(session_id, page_count)

    def backed(self, zone: int) -> None:
        if zone >= self._journal.next_zone:
            self._journal.use_zone(zone)
        if self._journal.has(zone) or self._slab(zone) is not None:
            self._journal.note_pages(zone, self._ledger.stock.backed_in(zone))

    def _slab(self, zone: int) -> SlabFacts | None:
        """The zone's slab, which is noted by now. None: no engine can have it yet, or none ever will."""
        mark = None if zone in self._slabs else self._driver.zone_mark(zone)
        if mark is not None:
            slab = SlabFacts(zone, "", mark)
            self._journal.add_slab(slab)
            self._slabs[zone] = slab
        return self._slabs.get(zone)

    def dropped(self, zone: int) -> None:
        self._slabs.pop(zone, None)
        self._journal.drop(zone)
