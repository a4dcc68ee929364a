"""The stock: every page of the pool by state, and the ids that pages may take.

Ids are dealt by zone. Where memory may pass from tenant to tenant (CUDA, after a scrub) all tenants share one zone;
where it may not (host: a tenant's pages are its slab's) every tenant has its own, and only capacity moves: pages are
destroyed in one zone and created in another. So it is on CUDA too where the operator has tenants isolated.

A driver call is recorded before and after it: `begin_*` takes pages out of a lendable state, then `finish_*` or
`fail_*` puts them into the next one.

What an earlier vattd lent is in zones of its time: such pages are lent until they come back, and then destroyed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from vatt.errors import InvalidRequest
from vatt.pages import MAX_ZONES, Extent, FreeExtents, LedgerBug, page_count_of
from vattd.old_zones import OldZones
from vattd.scrub import Scrub
from vattd.shelf import Shelf, Zone
from vattd.snapshot import PageState
from vattention.vmm.extent_set import ExtentSet


class Stock:
    """Every page of the pool that is not lent, by state, and how many are.

    Invariant: each page is in one of the sets below, or lent, or left, or unbacked (without an id); so `lent_pages`,
    `_left_pages` and the sets sum to `backed_pages`, never more than `max_pages`. An operation that raises has changed
    nothing.
    """

    def __init__(
        self, max_pages: int, *, shares_zone: bool, scrub: Scrub = Scrub.CROSS_TENANT, first_zone: int = 0
    ) -> None:
        """Zones below `first_zone` are an earlier vattd's."""
        self.max_pages = max_pages
        self.shares_zone = shares_zone
        self.scrub = scrub
        self._short_pages: int | None = None  # what was backed when the device gave no more; None: it gives
        self.lent_pages = self.backed_pages = 0  # backed: with memory, or on their way there or back
        self.created_total = self.scrubbed_total = self.destroyed_total = self.recycled_total = 0
        # The shared zone; else a zone for pages made ahead, which becomes that of the first tenant that comes.
        self._spare: Zone | None = Zone(first_zone)
        self._zones: dict[int, Zone] = {first_zone: self._spare}
        self.first_zone = self._last_zone = first_zone
        self._shelves: list[Shelf] = []
        self.hard_shelves: list[Shelf] = []  # those for which pages are kept
        self._creating = FreeExtents()
        self._scrubbing = FreeExtents()
        self._destroying = FreeExtents()
        self._quarantined = FreeExtents()  # to be destroyed
        self._broken = FreeExtents()  # the driver refused to destroy them: quarantined for good
        self._lent_before = ExtentSet()  # since they were made; of the clean ones, and those that are being scrubbed
        self._disputed = FreeExtents()  # two sessions claim them: quarantined until both have ended
        # An earlier vattd's, of which no session has said that it holds them; their ids are unknown.
        self._left_pages = 0
        self.old_zones = OldZones()

    def open_shelf(self) -> Shelf:
        """A place for one more tenant. Raises InvalidRequest if there have been too many."""
        zone = self._spare if self._spare is not None else self._new_zone()
        shelf = Shelf(zone, relends=self.scrub is not Scrub.ALWAYS)
        if not self.shares_zone:
            self._spare = None
        self._shelves.append(shelf)
        return shelf

    def is_bare(self, shelf: Shelf) -> bool:
        """Does no page, idle or worked on, belong to this shelf? The caller knows that none is lent."""
        if self.shares_zone:
            return not shelf.dirty.page_count
        return not shelf.zone.backed_pages

    def close_shelf(self, shelf: Shelf) -> list[int]:
        """Forget a bare shelf. Returns the zones whose ids will never be used again."""
        self.keep_for(shelf, 0)
        self._shelves.remove(shelf)
        if self.shares_zone:
            return []
        del self._zones[shelf.zone.number]
        if not self._shelves:
            self._spare = self._new_zone()
        return [shelf.zone.number]

    # Lending

    def lend(self, shelf: Shelf, page_count: int) -> list[Extent]:
        """Take ready pages in few runs: one run if there is one, the tenant's own dirty pages first."""
        if page_count > shelf.ready_pages:
            raise LedgerBug(f"{page_count} pages asked of {shelf.ready_pages}")
        own_pages = min(page_count, shelf.own_pages)
        run = shelf.dirty.take_run(page_count) if own_pages == page_count else None
        if run is not None:
            used, clean = [run], []
        elif (run := shelf.zone.clean.take_run(page_count)) is not None:
            used, clean = [], [run]
        else:
            used = shelf.dirty.take(own_pages)
            clean = shelf.zone.clean.take(page_count - page_count_of(used))
        self.recycled_total += page_count_of(used) + sum(map(self._lent_before.discard, clean))
        self._note_lent(shelf, page_count)
        return used + clean

    def take_back(self, shelf: Shelf, extents: Iterable[Extent]) -> None:
        """Lent pages that nothing maps any more. An earlier vattd's are not lent again."""
        own = shelf.zone.clean if self.shares_zone and self.scrub is Scrub.NEVER else shelf.dirty
        for extent in extents:
            to = self._quarantined if extent.zone in self.old_zones else own
            to.give_back(extent)
            if to is shelf.zone.clean:
                self._lent_before.add(extent)
            self._note_lent(shelf, -extent.page_count)

    def quarantine(self, shelf: Shelf, extents: Iterable[Extent]) -> None:
        """Lent pages whose holder died: a forked child may still reach them, so they are destroyed, not lent on."""
        for extent in extents:
            self._quarantined.give_back(extent)
            self._note_lent(shelf, -extent.page_count)

    def _note_lent(self, shelf: Shelf, page_count: int) -> None:
        shelf.lent_pages += page_count
        self.lent_pages += page_count

    # What an earlier vattd lent. Its pages are counted from the start; which they are is known once they are claimed.

    def inherit_lent(self, shelf: Shelf, page_count: int) -> None:
        """So many pages are lent to the shelf's tenant. Raises InvalidRequest if the pool cannot be so large."""
        self._inherit(page_count)
        self._note_lent(shelf, page_count)

    def inherit_left(self, page_count: int) -> None:
        """So many pages have memory, and are lent to nobody. Raises InvalidRequest if the pool cannot be so large."""
        self._inherit(page_count)
        self._left_pages += page_count

    def leave(self, shelf: Shelf, page_count: int) -> None:
        """Pages without a name, counted as lent, are the tenant's no more."""
        self._note_lent(shelf, -page_count)
        self._left_pages += page_count

    def drop_left(self, page_count: int) -> None:
        """Their memory is the device's again."""
        if page_count > self._left_pages:
            raise LedgerBug(f"{page_count} pages dropped of {self._left_pages} that were left")
        self._left_pages -= page_count
        self.backed_pages -= page_count

    def dispute(self, shelf: Shelf, extents: Iterable[Extent]) -> None:
        """Named pages, lent to the shelf's tenant, are another's too, by its word: nobody has them now."""
        for extent in extents:
            self._disputed.give_back(extent)
            self._note_lent(shelf, -extent.page_count)

    def end_dispute(self, extents: Iterable[Extent]) -> None:
        """Nobody claims them any more: they may be destroyed."""
        for extent in extents:
            self._disputed.remove(extent)
            self._quarantined.give_back(extent)

    def owns(self, zone: int) -> bool:
        """Is it a zone of this vattd's, or could it become one?"""
        return zone >= self.first_zone

    def backed_in(self, zone: int) -> int:
        """Pages of a zone that have memory, or are on their way there or back."""
        return self._zones[zone].backed_pages if zone in self._zones else self.old_zones.backed_in(zone)

    def _inherit(self, page_count: int) -> None:
        if page_count > self.unbacked_pages:
            raise InvalidRequest(
                f"{self.backed_pages + page_count} pages of an earlier vattd are in use, and the pool has "
                f"{self.max_pages}: start with a larger --pool-max, or end some engines first"
            )
        self.backed_pages += page_count

    # Creating

    def begin_create(self, shelf: Shelf | None, page_count: int) -> list[Extent]:
        """Up to `page_count` unbacked pages, for a tenant or (None) ahead of any tenant; none if neither can be."""
        zone = self._spare if shelf is None else shelf.zone
        page_count = min(page_count, self.unbacked_pages)
        if zone is None or page_count < 1:
            return []
        extents = zone.take_ids(page_count)
        self.backed_pages += page_count
        zone.backed_pages += page_count
        return _enter(self._creating, extents)

    def finish_create(self, extent: Extent, *, clean: bool) -> None:
        """`clean`: they are zeros."""
        self._creating.remove(extent)
        zone = self._zones[extent.zone]
        (zone.clean if clean or self.scrub is Scrub.NEVER else zone.fresh).give_back(extent)
        self.created_total += extent.page_count
        if self._short_pages is not None and self.backed_pages > self._short_pages:
            self._short_pages = None  # it gives more again

    def fail_create(self, extent: Extent) -> None:
        self._creating.remove(extent)
        zone = self._zones[extent.zone]
        zone.destroyed.give_back(extent)
        zone.backed_pages -= extent.page_count
        self.backed_pages -= extent.page_count

    # Scrubbing

    def begin_scrub(self, shelf: Shelf, page_count: int, *, others: bool = False) -> list[Extent]:
        """Up to `page_count` idle pages that `shelf` could have once they are zeros.

        Fresh ones first, then its own dirty ones if it may not have those as they are; with `others`, where pages may
        pass on, then dirty ones of other tenants.
        """
        extents = shelf.zone.fresh.take(page_count)
        if not shelf.relends:
            extents += self._take_dirty(shelf, page_count - page_count_of(extents))
        if others and self.shares_zone:
            for other in self._by_idle_pages(without=shelf):
                extents += self._take_dirty(other, page_count - page_count_of(extents))
        return _enter(self._scrubbing, extents)

    def begin_scrub_returned(self, page_count: int) -> list[Extent]:
        """Up to `page_count` pages that came back, and that not even their own tenant may have as they are."""
        extents: list[Extent] = []
        for shelf in self._shelves:
            if not shelf.relends:
                extents += self._take_dirty(shelf, page_count - page_count_of(extents))
        return _enter(self._scrubbing, extents)

    def _take_dirty(self, shelf: Shelf, page_count: int) -> list[Extent]:
        extents = shelf.dirty.take(page_count)
        for extent in extents:
            self._lent_before.add(extent)
        return extents

    def finish_scrub(self, extent: Extent) -> None:
        self._scrubbing.remove(extent)
        self._zones[extent.zone].clean.give_back(extent)
        self.scrubbed_total += extent.page_count

    def fail_scrub(self, extent: Extent) -> None:
        """They still hold what they held: nobody may have them, so they are destroyed and made anew."""
        self._scrubbing.remove(extent)
        self._quarantined.give_back(extent)

    # Destroying

    def begin_destroy_idle(self, page_count: int, *, among: Iterable[Shelf], keep_pages: int = 0) -> list[Extent]:
        """Up to `page_count` idle pages of these shelves only, from those with most of them first.

        None that are kept for a hard min, and where tenants have zones of their own `keep_pages` stay on each shelf.
        """
        chosen = sorted(among, key=lambda shelf: -shelf.ready_pages)
        if not chosen and self._shelves:
            return []
        if self.shares_zone:
            return _enter(self._destroying, self._take_shared(page_count, chosen))
        return _enter(self._destroying, self._take_apart(page_count, chosen, keep_pages))

    def _take_shared(self, page_count: int, chosen: list[Shelf]) -> list[Extent]:
        """What is kept for hard mins stays, and stays ready: as many pages, and as many clean ones."""
        left = min(page_count, self.idle_pages - self.kept_pages)
        extents: list[Extent] = []
        for shelf in chosen:
            extents += shelf.dirty.take(min(left - page_count_of(extents), self._spare_dirty_pages(shelf)))
        if len(chosen) == len(self._shelves) and self._spare is not None:  # nobody else could use the others
            extents += self._spare.fresh.take(left - page_count_of(extents))
            spare_pages = self._spare.clean.page_count - self._kept_clean_pages
            extents += self._spare.clean.take(min(left - page_count_of(extents), spare_pages))
        return extents

    def _take_apart(self, page_count: int, chosen: list[Shelf], keep_pages: int) -> list[Extent]:
        extents: list[Extent] = []
        for shelf in chosen:
            idle = (shelf.zone.fresh, shelf.dirty, shelf.zone.clean)
            over = sum(pages.page_count for pages in idle) - max(keep_pages, shelf.kept_pages)
            left = min(page_count - page_count_of(extents), over)
            for pages in idle:
                taken = pages.take(left)
                extents += taken
                left -= page_count_of(taken)
        if not self._shelves and self._spare is not None:
            for pages in (self._spare.fresh, self._spare.clean):
                extents += pages.take(page_count - page_count_of(extents))
        return extents

    def begin_destroy_for(self, shelf: Shelf, page_count: int) -> list[Extent]:
        """Up to `page_count` idle pages of other tenants, so that their capacity can be created for this one."""
        if self.shares_zone:
            return []  # begin_scrub passes the pages themselves on
        return self.begin_destroy_idle(page_count, among=[other for other in self._shelves if other is not shelf])

    def begin_destroy_quarantined(self, page_count: int) -> list[Extent]:
        return _enter(self._destroying, self._quarantined.take(page_count))

    def finish_destroy(self, extent: Extent, *, retire: bool) -> None:
        """`retire`: never use these ids again, since somebody may still map their place (host, after a death)."""
        self._destroying.remove(extent)
        self._lent_before.discard(extent)
        self.destroyed_total += extent.page_count
        self.backed_pages -= extent.page_count
        if extent.zone in self.old_zones:
            self.old_zones.destroyed(extent)
            return
        zone = self._zones[extent.zone]
        zone.backed_pages -= extent.page_count
        if not retire:
            zone.destroyed.give_back(extent)

    def fail_destroy(self, extent: Extent) -> None:
        self._destroying.remove(extent)
        self._broken.give_back(extent)

    # Reading

    @property
    def unbacked_pages(self) -> int:
        return self.max_pages - self.backed_pages

    @property
    def can_grow(self) -> bool:
        """May there be pages to be made, or made and not scrubbed yet, that are nobody else's?"""
        if self.scrub is Scrub.ALWAYS:
            return True  # a tenant's own dirty ones are such
        return self.unbacked_pages > 0 or any(zone.fresh.page_count for zone in self._zones.values())

    @property
    def capacity_pages(self) -> int:
        """What could be lent at one time: less than the limit while the device gives no more."""
        most = self.max_pages if self._short_pages is None else self._short_pages
        return most - self._lost_pages - self._left_pages

    @property
    def is_short(self) -> bool:
        """Did the device refuse to make a page the last time that one more was asked of it?"""
        return self._short_pages is not None

    @property
    def is_below_refusal(self) -> bool:
        """Is less backed than when the device refused?"""
        return self._short_pages is not None and self.backed_pages < self._short_pages

    def note_refusal(self) -> None:
        """The device gave not even one page more than it has given."""
        self._short_pages = self.backed_pages

    def forget_refusal(self) -> None:
        self._short_pages = None

    @property
    def limit_pages(self) -> int:
        """What could be lent at one time if the device gave all that the pool may take."""
        return self.max_pages - self._lost_pages

    @property
    def _lost_pages(self) -> int:
        """That nobody can say when they come back."""
        return self._broken.page_count + self._disputed.page_count

    @property
    def idle_pages(self) -> int:
        """Backed and not lent, but for those that are being worked on."""
        unheld = sum(zone.fresh.page_count + zone.clean.page_count for zone in self._zones.values())
        return unheld + sum(shelf.dirty.page_count for shelf in self._shelves)

    @property
    def kept_pages(self) -> int:
        """Of all hard mins, what is not lent."""
        return sum(shelf.kept_pages for shelf in self.hard_shelves)

    def keep_for(self, shelf: Shelf, hard_pages: int) -> None:
        """From now on so many pages are kept for this shelf's tenant, as far as they are not lent to it."""
        shelf.hard_pages = hard_pages
        self.hard_shelves = [other for other in self._shelves if other.hard_pages]

    def unready_pages(self, shelf: Shelf) -> int:
        """How many of the pages that are kept for this tenant are not ready to be lent yet.

        Where tenants share a zone, a clean page can be kept for one of them only.
        """
        if not self.shares_zone:
            return max(0, shelf.kept_pages - shelf.ready_pages)
        missing = self._kept_clean_pages - shelf.zone.clean.page_count
        return max(0, min(shelf.kept_pages - shelf.own_pages, missing))

    @property
    def _kept_clean_pages(self) -> int:
        """Where tenants share a zone: clean pages that are kept for hard mins, beside their tenants' dirty ones."""
        return sum(max(0, shelf.kept_pages - shelf.own_pages) for shelf in self.hard_shelves)

    def shelf_to_stock_up(self) -> Shelf | None:
        """Where to put pages made ahead of need: ahead of any tenant (None) while that can be, else a bare shelf."""
        return None if self._spare is not None else min(self._shelves, key=lambda shelf: shelf.ready_pages)

    @property
    def pages_by_state(self) -> Mapping[PageState, int]:
        counts = {
            PageState.CREATING: self._creating.page_count,
            PageState.CLEAN: sum(zone.clean.page_count for zone in self._zones.values()),
            PageState.LEASED: self.lent_pages,
            PageState.DIRTY: sum(zone.fresh.page_count for zone in self._zones.values())
            + sum(shelf.dirty.page_count for shelf in self._shelves),
            PageState.SCRUBBING: self._scrubbing.page_count,
            PageState.DESTROYING: self._destroying.page_count,
            PageState.QUARANTINED: self._quarantined.page_count + self._lost_pages + self._left_pages,
        }
        return {PageState.UNBACKED: self.max_pages - sum(counts.values()), **counts}

    @property
    def left_pages(self) -> int:
        """An earlier vattd's, of unknown ids, which nobody has said to hold."""
        return self._left_pages

    def idle_extents(self) -> Iterator[tuple[PageState, Shelf | None, list[Extent]]]:
        """All that have memory and an id and are not lent, by state and whose data they hold (None: nobody's)."""
        for zone in self._zones.values():
            yield PageState.CLEAN, None, list(zone.clean)
            yield PageState.DIRTY, None, list(zone.fresh)
        for shelf in self._shelves:
            yield PageState.DIRTY, shelf, list(shelf.dirty)
        yield PageState.CREATING, None, list(self._creating)
        yield PageState.SCRUBBING, None, list(self._scrubbing)
        yield PageState.DESTROYING, None, list(self._destroying)
        for lost in (self._quarantined, self._broken, self._disputed):
            yield PageState.QUARANTINED, None, list(lost)

    @staticmethod
    def _spare_dirty_pages(shelf: Shelf) -> int:
        """Dirty pages that a hard min does not keep. What the tenant may not have as it is, keeps nothing ready."""
        return shelf.dirty.page_count - min(shelf.own_pages, shelf.kept_pages)

    def _by_idle_pages(self, *, without: Shelf) -> list[Shelf]:
        others = (shelf for shelf in self._shelves if shelf is not without)
        return sorted(others, key=lambda shelf: -shelf.dirty.page_count)

    def _new_zone(self) -> Zone:
        if self._last_zone + 1 >= MAX_ZONES:
            raise InvalidRequest(f"this vattd has seen {MAX_ZONES} tenants, the most it can: restart it")
        self._last_zone += 1
        zone = self._zones[self._last_zone] = Zone(self._last_zone)
        return zone


def _enter(state: FreeExtents, extents: list[Extent]) -> list[Extent]:
    for extent in extents:
        state.give_back(extent)
    return extents
