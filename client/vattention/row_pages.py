"""Pages behind rows: what is done to many columns at once, each time wholly or not at all."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch

from vatt.errors import PoolExhausted
from vatt.pages import Extent, FreeExtents, page_count_of
from vattention.layout import Geometry
from vattention.mapper import AddressRange, Mapper
from vattention.page_cache import PageCache, deal
from vattention.page_source import LeasePurpose

# Pages mapped by one call at most: a long prefill lets others at the driver in between.
CHUNK_PAGES = 512


@dataclass(frozen=True, slots=True)
class Stretch:
    """Pages `first`, `first + 1`, ... of a row, in every column of a band."""

    row: int
    band: int
    first: int
    page_count: int


class RowPages:
    """Maps, unmaps and shares the pages of one cache's address range. Who calls it makes sure that one does at a time.

    Invariant: `held_pages` is how many of the pool's pages are mapped in the range, each counted once, and never more
    than `budget_pages` if there is a budget.
    """

    def __init__(self, geometry: Geometry, reserved: AddressRange, mapper: Mapper, pages: PageCache) -> None:
        self._bands = geometry.bands
        self._page_size_bytes = geometry.page_size_bytes
        self._ratio = geometry.pool_pages_per_page
        self._keeps_runs = geometry.keeps_runs
        self._start = reserved.address
        self._mapper = mapper
        self._pages = pages
        self._shares = False  # has a page ever been behind two rows?
        self.held_pages = 0
        self.budget_pages: int | None = None
        # Runs of pages mapped and unmapped so far, in the pool's pages: what a benchmark counts.
        self.mapped_total = self.unmapped_total = 0

    def pool_pages(self, stretches: Iterable[Stretch]) -> int:
        return sum(stretch.page_count * self._bands[stretch.band].column_count for stretch in stretches) * self._ratio

    def map(
        self,
        stretches: Sequence[Stretch],
        offering: Sequence[Extent] = (),
        purpose: LeasePurpose = LeasePurpose.GROW,
    ) -> None:
        """Back the stretches with pages of the cache, all of them, or an error and none. `offering` are pages of the
        caller's that it may use; after an error they are still the caller's. What is missing is leased for `purpose`.

        Raises PoolExhausted past the budget, and what PageCache.take and Mapper.map raise.
        """
        places = list(self._places(stretches))
        after = self._pages_before(stretches) if self._keeps_runs else None
        with ExitStack() as undo:
            taken = sum(page_count for _, page_count in places)
            if self.budget_pages is not None and self.is_over_budget(taken):
                raise PoolExhausted(taken, max(0, self.budget_pages - self.held_pages))
            dealt, left = self._deal([page_count for _, page_count in places], after, offering, purpose, undo)
            for (address, _), extents in zip(places, dealt, strict=True):
                for chunk_address, chunk in self._chunks(address, extents):
                    self._mapper.map(chunk_address, chunk)
                    undo.callback(self._mapper.unmap, chunk_address, page_count_of(chunk))
            undo.pop_all()
        self._pages.put(left)
        self.held_pages += taken
        self.mapped_total += taken

    def unmap(self, stretches: Sequence[Stretch]) -> list[Extent]:
        """Unmap the stretches, all or none, and say which pages are mapped nowhere now: the caller's to put back."""
        unmapped: list[Extent] = []
        with ExitStack() as undo:
            for address, page_count in self._places(stretches):
                extents = self._mapper.unmap(address, page_count)
                undo.callback(self._mapper.map, address, extents)
                unmapped += extents
            undo.pop_all()
        freed = self._mapper.unmapped_of(unmapped) if self._shares else unmapped
        self._note_freed(freed)
        return freed

    def vacate(self, stretches: Sequence[Stretch]) -> tuple[list[Extent], Callable[[], None]]:
        """Unmap the stretches; what `unmap` returns, and how to have everything as before while those pages are still
        the caller's."""
        places = list(self._places(stretches))
        before = [self._mapper.pages_at(address, page_count) for address, page_count in places]
        freed = self.unmap(stretches)
        return freed, lambda: self._map_back(places, before, freed)

    def alias(self, stretches: Sequence[Stretch], source_row: int) -> None:
        """Map the pages of another row at the same places of theirs, all or none."""
        self._shares = True
        with ExitStack() as undo:
            for stretch in stretches:
                source = Stretch(source_row, stretch.band, stretch.first, stretch.page_count)
                pairs = zip(self._places([stretch]), self._places([source]), strict=True)
                for (address, page_count), (source_address, _) in pairs:
                    self._mapper.map(address, self._mapper.pages_at(source_address, page_count))
                    undo.callback(self._mapper.unmap, address, page_count)
            undo.pop_all()

    def map_common(self, stretches_of_rows: Sequence[Sequence[Stretch]]) -> None:
        """Back the first row's stretches, and map the same pages as every other row's: the stretches are alike."""
        first, *others = stretches_of_rows
        with ExitStack() as undo:
            self.map(first)
            undo.callback(lambda: self._pages.put(self.unmap(first)))
            self._shares = True
            pages = [self._mapper.pages_at(address, page_count) for address, page_count in self._places(first)]
            for stretches in others:
                for (address, page_count), extents in zip(self._places(stretches), pages, strict=True):
                    self._mapper.map(address, extents)
                    undo.callback(self._mapper.unmap, address, page_count)
            undo.pop_all()

    def make_private(
        self, stretch: Stretch, memory: Callable[[int, int], torch.Tensor], offering: Sequence[Extent] = ()
    ) -> None:
        """Put new pages with the same content where other rows hold the pages too. `offering` is as in `map`.

        The device must have stopped using them. `memory` looks at bytes of the whole range: offset and size.
        """
        size_bytes = stretch.page_count * self._page_size_bytes
        places = list(self._places([stretch]))
        saved = [memory(address - self._start, size_bytes).clone() for address, _ in places]
        if saved[0].is_cuda:  # the copies are under way in the current stream
            torch.cuda.current_stream(saved[0].device).synchronize()
        with ExitStack() as undo:
            freed, put_back = self.vacate([stretch])
            undo.callback(put_back)
            if page_count_of(freed) == self.pool_pages([stretch]):
                self._pages.put(offering)
                return  # nobody shares them any more: they stay
            self.map([stretch], offering)
            undo.pop_all()
        self._pages.put(freed)
        for (address, _), content in zip(places, saved, strict=True):
            memory(address - self._start, size_bytes).copy_(content)

    def _deal(
        self,
        runs: Sequence[int],
        after: Sequence[int | None] | None,
        offering: Sequence[Extent],
        purpose: LeasePurpose,
        undo: ExitStack,
    ) -> tuple[list[list[Extent]], list[Extent]]:
        """Pages for the runs, from what is offered and, for the rest, the cache; and what is left of the offer."""
        if not offering:
            dealt = self._pages.take(runs, after, purpose)
            undo.callback(self._pages.put, list(chain.from_iterable(dealt)))
            return dealt, []
        free = FreeExtents(offering)
        missing = sum(runs) - free.page_count
        if missing > 0:
            (added,) = self._pages.take([missing], None, purpose)
            undo.callback(self._pages.put, added)
            for extent in added:
                free.give_back(extent)
        return deal(free, runs, after), free.take(free.page_count)

    def page_ids(self, row: int, band: int, page_count: int) -> list[int]:
        """The first pages of a row, in the first column of a band, by the pool's ids."""
        if page_count == 0:
            return []
        place = next(self._places([Stretch(row, band, 0, page_count)]))
        return [page_id for extent in self._mapper.pages_at(*place) for page_id in extent.page_ids]

    def offset_bytes(self, row: int, band: int, column: int, offset_in_row_bytes: int) -> int:
        """From the start of the whole range."""
        place = self._bands[band]
        return place.offset_bytes + column * place.column_bytes + row * place.row_bytes + offset_in_row_bytes

    def _places(self, stretches: Iterable[Stretch]) -> Iterator[tuple[int, int]]:
        """Address and count of the pool's pages for every column of each stretch."""
        for stretch in stretches:
            band = self._bands[stretch.band]
            at = self._start + self.offset_bytes(stretch.row, stretch.band, 0, stretch.first * self._page_size_bytes)
            for column in range(band.column_count):
                yield at + column * band.column_bytes, stretch.page_count * self._ratio

    def _chunks(self, address: int, extents: Sequence[Extent]) -> Iterator[tuple[int, list[Extent]]]:
        """The extents from `address` on, in parts of at most CHUNK_PAGES."""
        part: list[Extent] = []
        room = CHUNK_PAGES
        for extent in extents:
            rest: Extent | None = extent
            while rest is not None:
                head, rest = rest.split(min(room, rest.page_count))
                part.append(head)
                room -= head.page_count
                if room == 0:
                    yield address, part
                    address += CHUNK_PAGES * self._mapper.page_size_bytes
                    part, room = [], CHUNK_PAGES
        if part:
            yield address, part

    def _pages_before(self, stretches: Iterable[Stretch]) -> list[int | None]:
        """For each place, the page that it would go on from: pages in a row are one kernel mapping."""
        size_bytes = self._mapper.page_size_bytes
        return [
            self._mapper.pages_at(address - size_bytes, 1)[0].first if stretch.first else None
            for stretch in stretches
            for address, _ in self._places([stretch])
        ]

    def is_over_budget(self, page_count: int) -> bool:
        """Would so many more pages be too many?"""
        return self.budget_pages is not None and self.held_pages + page_count > self.budget_pages

    def _note_freed(self, freed: Sequence[Extent]) -> None:
        page_count = page_count_of(freed)
        self.held_pages -= page_count
        self.unmapped_total += page_count

    def _map_back(
        self, places: Sequence[tuple[int, int]], before: Sequence[Sequence[Extent]], freed: Sequence[Extent]
    ) -> None:
        for (address, _), extents in zip(places, before, strict=True):
            self._mapper.map(address, extents)
        self.held_pages += page_count_of(freed)
        self.unmapped_total -= page_count_of(freed)
