"""What the pool wants for itself: the dead's memory back, pages ready ahead of need, and no more than is of use."""

from __future__ import annotations

from collections.abc import Callable

from vattd.idle_watch import IdleWatch
from vattd.ledger import Ledger
from vattd.shelf import Shelf
from vattd.tenants import Tenant
from vattd.workshop import Slice, Workshop


class Upkeep:
    """Chooses the background work of one pool, a slice at a time. Belongs to the pool's one task.

    Pages are made ahead: hard mins whole, and headroom for every tenant that has a session, so that leases in steady
    state find pages ready. Idle ones go back to the device: at once where no engine is, after a quiet time elsewhere,
    and all of them when told to shrink. Counts are pages.
    """

    def __init__(
        self, ledger: Ledger, workshop: Workshop, *, min_pages: int, headroom_pages: int, idle_after_s: float
    ) -> None:
        self._ledger, self._stock, self._workshop = ledger, ledger.stock, workshop
        self._min_pages, self._headroom_pages = min_pages, headroom_pages
        self._idle = IdleWatch(idle_after_s)
        self._to_tend: dict[str, Tenant] = {}  # those that may lack headroom
        self._on_shrunk: list[Callable[[], None]] = []

    def tend(self, tenant: Tenant) -> None:
        """Look whether this tenant's headroom is there."""
        self._to_tend[tenant.name] = tenant

    def shrink(self, on_shrunk: Callable[[], None]) -> None:
        """Give all idle memory back, but for the minimum and hard mins; `on_shrunk` is told when that is done.

        Headroom is made again for whoever leases next.
        """
        self._on_shrunk.append(on_shrunk)
        self._to_tend.clear()

    def rested(self) -> None:
        """There is nothing left to do: a shrinking is over."""
        if self._on_shrunk:
            told, self._on_shrunk = self._on_shrunk, []
            for on_shrunk in told:
                on_shrunk()

    def next_slice(self, wanted: Shelf | None, now_s: float) -> Slice | None:
        """`wanted` is where pages are waited for most."""
        work = self._workshop.quarantine_slice()
        if work is None and self._stock.is_short:
            work = self._workshop.probe_slice(wanted, now_s)
        if work is None and not self._on_shrunk:
            work = self._ready_slice(now_s)
        if work is not None:
            return work
        surplus = self._stock.backed_pages - self._min_pages
        work = self._workshop.stock_up_slice(-surplus, now_s) if surplus < 0 else self._trim_slice(surplus, now_s)
        return work or self._workshop.returned_slice(now_s)

    def next_change_s(self) -> float | None:
        """When there may be something to do without anything happening."""
        return self._idle.next_change_s()

    def _ready_slice(self, now_s: float) -> Slice | None:
        for shelf in self._stock.hard_shelves:
            unready = self._stock.unready_pages(shelf)
            work = self._workshop.kept_slice(shelf, unready, now_s) if unready else None
            if work is not None:
                return work
        if not self._stock.can_grow:  # however many lack headroom
            return None
        for tenant in list(self._to_tend.values()):
            lacking = self._headroom_pages - tenant.shelf.ready_pages if tenant.session_count else 0
            work = self._workshop.headroom_slice(tenant.shelf, lacking, now_s) if lacking > 0 else None
            if work is not None:
                return work
            if lacking <= 0:
                del self._to_tend[tenant.name]
        return None

    def _trim_slice(self, surplus: int, now_s: float) -> Slice | None:
        stock, ledger = self._stock, self._ledger
        work = self._workshop.trim_slice(surplus, ledger.idle_shelves())
        if work is not None:
            return work
        if self._on_shrunk:
            return self._workshop.trim_slice(surplus, ledger.shelves())
        headroom = ledger.attached_count * self._headroom_pages
        self._idle.note(max(0, stock.backed_pages - stock.lent_pages - stock.kept_pages - headroom), now_s)
        quiet = min(surplus, self._idle.surplus_pages(now_s))
        return self._workshop.trim_slice(quiet, ledger.shelves(), self._headroom_pages)
