"""The workshop: chooses what is to be done to pages, and has the driver do it, a slice at a time.

Between two slices the stock is true. What to do next is asked anew after each one, so there is nothing to cancel.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from vatt.errors import DeviceLost, OutOfMemory, VattError
from vatt.pages import Extent, extents_of
from vattd.driver_thread import DriverThread, Urgency
from vattd.page_notes import NoNotes, PageNotes
from vattd.shelf import Shelf
from vattd.stock import Stock
from vattention.vmm.driver import NotReleased, PhysicalDriver

log = logging.getLogger(__name__)

# A slice keeps the driver thread from the next call for about a millisecond (host: 1.2 ms for 2 MiB, CUDA: 0.2 ms a
# page). Where a lease waits for the pages themselves, longer ones make it shorter.
BACKGROUND_SLICE_BYTES = 2 << 20
URGENT_SLICE_BYTES = 32 << 20
# After the device refused to make or scrub even one page, ask again this much later, unless memory comes back before.
RETRY_S = 0.25


@dataclass(frozen=True, slots=True)
class Slice:
    """Driver work on pages that the stock already shows as being worked on."""

    call: Callable[[Extent], None]
    extents: list[Extent]
    finish: Callable[[Extent], None]
    fail: Callable[[Extent], None]
    urgency: Urgency


class Workshop:
    """Creates, scrubs and destroys the pages of one stock. Belongs to the pool's one task.

    `shortage` is why the device gave or scrubbed no memory the last time, None once it did. Until `retry_s` it is not
    asked again, unless memory of ours goes back to it.
    """

    def __init__(
        self, stock: Stock, driver: PhysicalDriver, thread: DriverThread, notes: PageNotes | None = None
    ) -> None:
        self._stock, self._driver, self._thread = stock, driver, thread
        self._notes = notes or NoNotes()
        self._background_pages = max(1, BACKGROUND_SLICE_BYTES // driver.page_size_bytes)
        self._urgent_pages = max(1, URGENT_SLICE_BYTES // driver.page_size_bytes)
        # Halved while the device refuses, so that it gives what it has, down to the last page.
        self._most_pages = self._urgent_pages
        self._failing: set[str] = set()  # the calls whose last try failed
        self.shortage: VattError | None = None
        self.retry_s = 0.0

    def slice_for(self, shelf: Shelf, missing_pages: int, now_s: float) -> Slice | None:
        """The quickest way to more ready pages on this shelf, for a lease that waits; None if there is none."""
        return self._make(shelf, min(missing_pages, self._urgent_pages), Urgency.LEASE, now_s)

    def kept_slice(self, shelf: Shelf, missing_pages: int, now_s: float) -> Slice | None:
        """The same, for pages that are to lie ready for a hard min."""
        return self._make(shelf, min(missing_pages, self._background_pages), Urgency.BACKGROUND, now_s)

    def quarantine_slice(self) -> Slice | None:
        """The memory of the dead comes back."""
        extents = self._stock.begin_destroy_quarantined(self._background_pages)
        return self._destroy(extents, Urgency.BACKGROUND, died=True)

    def headroom_slice(self, shelf: Shelf, missing_pages: int, now_s: float) -> Slice | None:
        """Pages ahead of a tenant's need; never at another one's cost."""
        page_count, urgency = min(missing_pages, self._background_pages), Urgency.BACKGROUND
        return self._scrub(shelf, page_count, urgency, now_s) or self._create(shelf, page_count, urgency, now_s)

    def stock_up_slice(self, missing_pages: int, now_s: float) -> Slice | None:
        """Pages up to the pool's minimum, wherever they are best put."""
        page_count = min(missing_pages, self._background_pages)
        return self._create(self._stock.shelf_to_stock_up(), page_count, Urgency.BACKGROUND, now_s)

    def probe_slice(self, wanted: Shelf | None, now_s: float) -> Slice | None:
        """While the device gives no more memory: when it is time to, ask for one page more than it has given, for where
        pages are wanted most. If nobody wants any, the refusal is forgotten: who does will find out."""
        if now_s < self.retry_s:
            return None
        hard = next((shelf for shelf in self._stock.hard_shelves if self._stock.unready_pages(shelf)), None)
        shelf = wanted or hard
        if shelf is not None:
            return None if self._stock.is_below_refusal else self._create(shelf, 1, Urgency.BACKGROUND, now_s)
        self._stock.forget_refusal()
        self._failing.discard("create")
        if not self._failing:
            self.shortage = None
        return None

    def trim_slice(self, surplus_pages: int, shelves: Iterable[Shelf], keep_pages: int = 0) -> Slice | None:
        """Idle pages of these tenants go back to the device; `keep_pages` stay with each."""
        page_count = min(surplus_pages, self._background_pages)
        if page_count <= 0:
            return None
        extents = self._stock.begin_destroy_idle(page_count, among=shelves, keep_pages=keep_pages)
        return self._destroy(extents, Urgency.BACKGROUND)

    def returned_slice(self, now_s: float) -> Slice | None:
        """What came back is zeroed though nobody asks for it: `--scrub always`."""
        if not self._may_scrub(now_s):
            return None
        return self._scrub_slice(self._stock.begin_scrub_returned(self._background_pages), Urgency.BACKGROUND)

    async def do(self, work: Slice, now: Callable[[], float]) -> None:
        """Make the slice's driver calls. What a failed call was for goes where `fail` says. Raises DeviceLost: then all
        that was not done goes there."""
        for number, extent in enumerate(work.extents):
            try:
                if work.call == self._driver.create:  # elsewhere the notes know of no fewer pages than there are
                    self._notes.backed(extent.zone)
                await self._thread.run(work.urgency, work.call, extent)
            except DeviceLost:
                for undone in work.extents[number:]:
                    work.fail(undone)
                raise
            except NotReleased as error:
                for kept in error.extents:
                    work.fail(kept)
                kept_ids = {page_id for kept in error.extents for page_id in kept.page_ids}
                for gone in extents_of(set(extent.page_ids) - kept_ids):
                    work.finish(gone)
                self._note_quietly(extent.zone)
                self._failed(work, extent, error, now())
            except VattError as error:
                work.fail(extent)
                self._note_quietly(extent.zone)
                self._failed(work, extent, error, now())
            else:
                work.finish(extent)
                self._note_quietly(extent.zone)
                self._succeeded(work)

    def _note_quietly(self, zone: int) -> None:
        """The pages are there, noted or not; before they are lent it is tried again."""
        try:
            self._notes.backed(zone)
        except VattError as error:
            log.error("%s", error)

    def _make(self, shelf: Shelf, page_count: int, urgency: Urgency, now_s: float) -> Slice | None:
        return (
            self._scrub(shelf, page_count, urgency, now_s)
            or self._create(shelf, page_count, urgency, now_s)
            or self._scrub(shelf, page_count, urgency, now_s, others=True)
            or self._destroy(self._stock.begin_destroy_quarantined(page_count), urgency, died=True)
            or self._destroy(self._stock.begin_destroy_for(shelf, page_count), urgency)
        )

    def _create(self, shelf: Shelf | None, page_count: int, urgency: Urgency, now_s: float) -> Slice | None:
        if now_s < self.retry_s:
            return None
        extents = self._stock.begin_create(shelf, min(page_count, self._most_pages))

        def finish(extent: Extent) -> None:
            self._stock.finish_create(extent, clean=self._driver.fresh_is_zero)
            self._most_pages = min(2 * self._most_pages, self._urgent_pages)

        return Slice(self._driver.create, extents, finish, self._stock.fail_create, urgency) if extents else None

    def _scrub(
        self, shelf: Shelf, page_count: int, urgency: Urgency, now_s: float, *, others: bool = False
    ) -> Slice | None:
        if not self._may_scrub(now_s):
            return None
        return self._scrub_slice(self._stock.begin_scrub(shelf, page_count, others=others), urgency)

    def _scrub_slice(self, extents: list[Extent], urgency: Urgency) -> Slice | None:
        stock = self._stock
        return Slice(self._driver.scrub, extents, stock.finish_scrub, stock.fail_scrub, urgency) if extents else None

    def _may_scrub(self, now_s: float) -> bool:
        return now_s >= self.retry_s or "scrub" not in self._failing

    def _destroy(self, extents: list[Extent], urgency: Urgency, *, died: bool = False) -> Slice | None:
        # Where a place in a slab outlives its page, a forked child of the dead may still map it: never use it again.
        retire = died and not self._driver.recycles_across_tenants

        def finish(extent: Extent) -> None:
            self._stock.finish_destroy(extent, retire=retire)

        return Slice(self._driver.destroy, extents, finish, self._stock.fail_destroy, urgency) if extents else None

    def _failed(self, work: Slice, extent: Extent, error: VattError, now_s: float) -> None:
        name = work.call.__name__
        if name == "create" and isinstance(error, OutOfMemory) and extent.page_count > 1:
            self._most_pages = max(1, extent.page_count // 2)
            return
        if name not in self._failing:  # said once, not at every try
            log.warning("%s of %d pages failed: %s", name, extent.page_count, error)
            self._failing.add(name)
        if name != "destroy":
            self.shortage = error
            self.retry_s = now_s + RETRY_S
        if name == "create":
            self._stock.note_refusal()

    def _succeeded(self, work: Slice) -> None:
        name = work.call.__name__
        if name == "create" and self._stock.is_short:
            return  # no more than the device had given before
        if name in self._failing:
            log.info("%s works again", name)
            self._failing.remove(name)
        if name == "destroy" and "scrub" not in self._failing:
            self.retry_s = 0.0  # the device has that much at least
        if not self._failing:
            self.shortage = None
            self.retry_s = 0.0
