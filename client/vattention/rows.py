"""The rows of a KV cache and the pages behind them: who may change what, and whose pages go when they are short."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from vatt.errors import LimitExceeded, OutOfMemory, PoolExhausted, SystemLimit, TooBusy
from vatt.pages import Extent, page_count_of
from vattention.device_fence import DONE, Fence
from vattention.layout import Counts, Geometry, RowArithmetic
from vattention.lookahead import Pace
from vattention.marks import Mark
from vattention.page_cache import PageCache, PageUser
from vattention.page_source import LeasePurpose
from vattention.row_pages import RowPages, Stretch
from vattention.slots import SlotTable

RowNumbers = npt.NDArray[np.intp]

# What a growth may be refused with while idle pages, ours or of another cache, could serve it.
SHORT = (PoolExhausted, LimitExceeded, OutOfMemory, SystemLimit, TooBusy)


@dataclass(frozen=True, slots=True)
class RowFigures:
    """What the table said of a row."""

    row: int
    mapped: Counts
    shared: Counts
    length: int
    common: bool
    spoilt: bool


@dataclass(frozen=True, slots=True)
class Lowered:
    """Pages that the table has given up, and that are still mapped."""

    before: RowFigures
    stretches: list[Stretch]


class Rows:
    """The slot table and the mapped pages, kept in step with each other.

    Two locks, always taken in this order. `mapping` is held while mappings change, with driver calls and leases under
    it; `state` for microseconds around the slot table. So whoever finds its pages mapped waits for nobody. An active
    row's capacity is lowered before its pages are unmapped, and raised after others are mapped: what the table says is
    there can be touched.

    Invariants: only who holds `mapping` changes `table.mapped`; what is behind the rows is what the table says, unless
    `mapping` is held; an operation that raises has mapped, unmapped and noted nothing, save that idle pages may be
    gone.
    """

    def __init__(
        self,
        geometry: Geometry,
        behind: RowPages,
        pages: PageCache,
        user: PageUser,
        fence: Fence,
        clock: Callable[[], float],
    ) -> None:
        self.arithmetic = RowArithmetic(geometry)
        self.table = SlotTable(geometry.spec.max_batch_size, len(geometry.bands), self.arithmetic)
        self.behind = behind
        self.fence = fence
        self.pace = Pace()
        self.state = threading.RLock()
        self._mapping = threading.Lock()
        self._waiting = 0  # callers that want `mapping`: the background lets them go first
        self.max_context_length = geometry.spec.max_context_length
        self._bands = geometry.bands
        self._page_size_bytes = geometry.page_size_bytes
        self._pages = pages
        self._user = user
        self._clock = clock

    # Locks

    @contextmanager
    def mapping(self) -> Iterator[None]:
        """Hold the right to change mappings, for a caller that waits for the outcome."""
        with self.state:
            self._waiting += 1
        try:
            with self._mapping:
                yield
        finally:
            with self.state:
                self._waiting -= 1

    @contextmanager
    def mapping_if_free(self) -> Iterator[bool]:
        """The same for who can come back later: does it hold it?"""
        held = not self._waiting and self._mapping.acquire(blocking=False)
        try:
            yield held
        finally:
            if held:
                self._mapping.release()

    # Growing: `mapping` is held

    def reach(
        self, rows: RowNumbers, token_counts: Counts, commit: Callable[[], None], lowered: Sequence[int] = ()
    ) -> None:
        """Back so many tokens of each row, then `commit()` under the `state` lock. All rows, or an error and none.

        `lowered` are rows in use that the commit ends or shortens: what they leave serves the others if nothing else
        does.
        """
        for row in rows[self.table.spoilt[rows]]:
            self._pages.put(self.empty(int(row)))
        mapped = self.table.mapped[rows]
        missing = np.maximum(self.arithmetic.pages(token_counts) - mapped, 0)
        if missing.any():
            generous = np.where(missing > 0, np.maximum(missing, self.arithmetic.run_ahead(mapped)), 0)
            with ExitStack() as undo:
                wanted = dict(zip(rows.tolist(), token_counts.tolist(), strict=True))
                try:
                    extra = self.extend_or_reclaim(rows, missing, generous, wanted)
                except SHORT:
                    if not lowered:
                        raise
                    extra = self._extend_by_lowering(lowered, rows, missing, wanted)
                # Not as before: what running rows had over their need may have been reclaimed meanwhile.
                mapped = self.table.mapped[rows]
                undo.callback(self.take_back, rows, mapped, extra)
                with self.state:
                    commit()  # may raise: a row may have been freed meanwhile
                    self.table.set_mapped(rows, mapped + extra)
                undo.pop_all()
            self.announce_growth()
            return
        with self.state:
            commit()

    def extend_ahead(self, rows: RowNumbers, extra: Counts, *, is_due: bool) -> bool:
        """Map more pages of rows before they are needed; with `is_due`, idle ones are given up, and others are leased
        even where somebody waits for pages. False if short."""
        purpose = LeasePurpose.GROW if is_due else LeasePurpose.AHEAD
        try:
            self._extend(rows, extra, purpose=purpose)
        except SHORT:
            offering = self.reclaim(self._pool_pages(extra), {}, finished_only=True) if is_due else []
            if not offering:
                return False
            try:
                self._extend(rows, extra, offering)
            except BaseException as error:
                self._pages.put(offering)
                if isinstance(error, SHORT):
                    return False
                raise
        with self.state:
            # Not as before: a row that was freed meanwhile may have been cut.
            self.table.set_mapped(rows, self.table.mapped[rows] + extra)
        self.announce_growth()
        return True

    def extend_to(self, row: int, token_count: int, offering: Sequence[Extent]) -> None:
        """Map what a row lacks for so many tokens: what is offered first, then pages of the page cache, where the rest
        of the offer goes. After an error it is still the caller's."""
        rows = np.array([row])
        extra = np.maximum(self.arithmetic.pages(token_count) - self.table.mapped[rows], 0)
        if not extra.any():
            self._pages.put(offering)
            return
        self._extend(rows, extra, offering)
        with self.state:
            self.table.set_mapped(rows, self.table.mapped[rows] + extra)
        self.announce_growth()

    def extend_or_reclaim(self, rows: RowNumbers, missing: Counts, generous: Counts, wanted: dict[int, int]) -> Counts:
        """Map pages behind rows, `generous` if they are there and `missing` at least; says which it was."""
        try:
            self._extend(rows, generous)
        except SHORT:
            pass
        else:
            return generous
        self.reclaiming(self._pool_pages(missing), wanted, lambda offering: self._extend(rows, missing, offering))
        return missing

    def expect(self, rows: RowNumbers, token_counts: Counts) -> None:
        """Note that rows have room for so many tokens on purpose: it is no surplus until they have grown by them."""
        with self.state:
            expected = self.table.expected
            expected[rows] = np.where(self.table.in_use[rows], np.maximum(expected[rows], token_counts[rows]), 0)

    def reclaiming(self, page_count: int, wanted: dict[int, int], action: Callable[[Sequence[Extent]], None]) -> None:
        """Do what needs pages, with ever more idle ones to offer as long as they are short."""
        offering: list[Extent] = []
        with ExitStack() as undo:
            undo.callback(lambda: self._pages.put(offering))
            while True:
                try:
                    action(offering)
                except SHORT:
                    more = self.reclaim(page_count, wanted)
                    offering += more
                    others_help = not self.behind.is_over_budget(page_count)
                    if not more and not (others_help and self._pages.reclaim(page_count, self._user)):
                        raise
                else:
                    undo.pop_all()
                    return

    def _extend_by_lowering(
        self, lowered: Sequence[int], rows: RowNumbers, missing: Counts, wanted: dict[int, int]
    ) -> Counts:
        """Map `missing` pages behind rows with those of rows that are about to end or shorten; or all is as it was."""
        (self.fence() or DONE).wait()
        offering: list[Extent] = []
        with ExitStack() as undo:
            for row in lowered:
                self.table.marks[row].wait()
                with self.state:
                    self.table.check_used(row)
                    lower = self._lower(row, np.zeros(len(self._bands), dtype=np.int64), wanted.get(row, 0))
                undo.callback(self._restore, lower.before)
                freed, put_back = self.behind.vacate(lower.stretches)
                undo.callback(put_back)
                offering += freed
            self._extend(rows, missing, offering)
            undo.pop_all()
        return missing

    def _extend(
        self,
        rows: RowNumbers,
        extra: Counts,
        offering: Sequence[Extent] = (),
        purpose: LeasePurpose = LeasePurpose.GROW,
    ) -> None:
        stretches = self.stretches_after(rows.tolist(), extra)
        started_s = self._clock()
        self.behind.map(stretches, offering, purpose)
        self.pace.note_mapping(self._pool_pages(extra), self._clock() - started_s)

    def stretches_after(self, rows: Iterable[int], extra: Counts) -> list[Stretch]:
        """The `extra` pages that follow what is mapped of rows."""
        return [
            Stretch(row, band, int(self.table.mapped[row, band]), page_count)
            for row, page_counts in zip(rows, extra.tolist(), strict=True)
            for band, page_count in enumerate(page_counts)
            if page_count
        ]

    def take_back(self, rows: RowNumbers, mapped: Counts, extra: Counts) -> None:
        stretches = [
            Stretch(row, band, first, page_count)
            for row, firsts, page_counts in zip(rows.tolist(), mapped.tolist(), extra.tolist(), strict=True)
            for band, (first, page_count) in enumerate(zip(firsts, page_counts, strict=True))
            if page_count
        ]
        self._pages.put(self.behind.unmap(stretches))

    # Letting go: `mapping` is held, and the device has stopped using what is unmapped

    def mark_of(self, row: int) -> Mark:
        """What tells that the device has stopped using what is mapped past a row's tokens, with the fence asked."""
        while not (mark := self.table.marks[row]).is_set:
            with self.state:
                unset = [(at, mark) for at, mark in enumerate(self.table.marks) if not mark.is_set]
            proof = self.fence()
            with self.state:
                for at, mark in unset:
                    if self.table.marks[at] is mark:  # else it was used after the fence
                        mark.set(proof)
        return mark

    def empty(self, row: int) -> list[Extent]:
        """Unmap a row, once the device is done with it; its pages are the caller's to put back."""
        return self._cut_when_done(row, np.zeros(len(self._bands), dtype=np.int64))

    def cut(self, row: int, keep: Counts, length: int) -> list[Extent]:
        """End a row in use at `length` tokens and unmap its pages past them and past the first `keep`; those pages, the
        caller's to put back. The device has stopped using them. Raises InvalidRequest if the row is not in use."""
        with self.state:
            self.table.check_used(row)
            lowered = self._lower(row, keep, length)
        return self._unmap(lowered)

    def _cut_when_done(self, row: int, keep: Counts, *, waits: bool = True) -> list[Extent]:
        """Unmap a row's pages past the first `keep` and past its tokens, once the device is done with them; without
        `waits`, none if it is not."""
        while True:
            if not (self.table.mapped[row] > keep).any():
                mark = self.table.marks[row]  # there is nothing to wait for
            else:
                mark = self.mark_of(row)
                if not waits and not mark.done():
                    return []
                mark.wait()
            with self.state:
                if self.table.marks[row] is not mark:
                    continue  # it was used meanwhile
                lowered = self._lower(row, keep)
            return self._unmap(lowered)

    def _lower(self, row: int, keep: Counts, length: int | None = None) -> Lowered:
        """Note that a row's pages past the first `keep`, and past its tokens, are no longer there. `state` is held."""
        table = self.table
        before = self._figures(row)
        if length is not None:
            table.length[row] = length
            table.expected[row] = 0
            table.marks[row] = table.marks[row].after_use()
        after = np.minimum(before.mapped, np.maximum(keep, self.arithmetic.pages(int(table.length[row]))))
        self._note_mapped(row, after)
        stretches = [
            Stretch(row, band, first, end - first)
            for band, (first, end) in enumerate(zip(after.tolist(), before.mapped.tolist(), strict=True))
            if end > first
        ]
        return Lowered(before, stretches)

    def _unmap(self, lowered: Lowered) -> list[Extent]:
        if not lowered.stretches:
            return []
        with ExitStack() as undo:
            undo.callback(self._restore, lowered.before)
            freed = self.behind.unmap(lowered.stretches)
            undo.pop_all()
        self.announce_growth()
        return freed

    def _figures(self, row: int) -> RowFigures:
        table = self.table
        return RowFigures(
            row,
            table.mapped[row].copy(),
            table.shared[row].copy(),
            int(table.length[row]),
            bool(table.common[row]),
            bool(table.spoilt[row]),
        )

    def _note_mapped(self, row: int, mapped: Counts) -> None:
        self.table.set_mapped(row, mapped)
        if not mapped.any():
            self.table.common[row] = self.table.spoilt[row] = False

    def _restore(self, before: RowFigures) -> None:
        """Have a row's figures as they were, its pages being mapped again."""
        table, row = self.table, before.row
        with self.state:
            table.set_mapped(row, before.mapped)
            table.shared[row] = before.shared
            table.common[row] = before.common
            if table.in_use[row]:
                table.length[row] = before.length
            table.spoilt[row] = before.spoilt or (not table.in_use[row] and bool(before.shared.any()))

    def reclaim(
        self, page_count: int, wanted: dict[int, int], *, finished_only: bool = False, waits: bool = True
    ) -> list[Extent]:
        """Unmap about so many of the pool's pages that nobody needs, the caller's to put back: of finished slots first,
        then what running ones have over their length, or over what is `wanted` for them; the largest first. Without
        `waits`, only what the device is done with."""
        freed: list[Extent] = []
        with self.state:
            finished, running = np.flatnonzero(~self.table.in_use), np.flatnonzero(self.table.in_use)
        with ExitStack() as undo:
            undo.callback(lambda: self._pages.put(freed))
            for rows in (finished,) if finished_only else (finished, running):
                for row in self._largest_first(rows, wanted):
                    short = page_count - page_count_of(freed)
                    if short > 0:
                        # A finished slot may be wanted too: a step's new request begins in it, with the pages it has.
                        floor = self.arithmetic.pages(max(int(self.table.length[row]), wanted.get(row, 0)))
                        freed += self.cut_most(row, short, floor, waits=waits)
            undo.pop_all()
        return freed

    def idle_pages(self, *, finished_only: bool) -> int:
        """The pool's pages that `gather_idle` could gather in the end. Needs no lock."""
        with self.state:
            table = self.table
            over = np.maximum(table.mapped - self.arithmetic.pages(np.maximum(table.length, table.expected)), 0)
            page_counts = self.arithmetic.pool_pages(over)
            return int((page_counts[~table.in_use] if finished_only else page_counts).sum())

    def gather_idle(self, page_count: int, *, finished_only: bool) -> list[Extent]:
        """As `reclaim`, of what the device is done with; what running rows are expected to fill is left to them."""
        with self.state:
            wanted = {row: int(self.table.expected[row]) for row in np.flatnonzero(self.table.in_use).tolist()}
        return self.reclaim(page_count, wanted, finished_only=finished_only, waits=False)

    def cut_most(self, row: int, page_count: int, floor: Counts, *, waits: bool = True) -> list[Extent]:
        """Unmap about `page_count` of the pool's pages from a row's end, none of the first `floor`, once the device is
        done with them; without `waits`, none if it is not."""
        if self.table.spoilt[row] and not floor.any():
            return self._cut_when_done(row, np.zeros(len(self._bands), dtype=np.int64), waits=waits)
        over = np.maximum(self.table.mapped[row] - floor, 0)
        whole = int(self.arithmetic.pool_pages(over))
        if whole == 0:
            return []
        part = min(1.0, page_count / whole)
        keep = self.table.mapped[row] - np.ceil(over * part).astype(np.int64)
        return self._cut_when_done(row, keep, waits=waits)

    def _largest_first(self, rows: RowNumbers, wanted: dict[int, int]) -> list[int]:
        """Rows with pages that nobody needs."""
        with self.state:
            tokens = self.table.length[rows]
            for at, row in enumerate(rows.tolist()):
                tokens[at] = max(tokens[at], wanted.get(row, 0))
            over = self.arithmetic.pool_pages(np.maximum(self.table.mapped[rows] - self.arithmetic.pages(tokens), 0))
        order = np.argsort(-over, kind="stable")
        return [int(rows[at]) for at in order if over[at]]

    # Counting

    def announce_growth(self) -> None:
        """Tell the page cache what one growth step of every row in use would take."""
        first = self.arithmetic.pages(1)
        with self.state:  # held to the end: else what was true before close() could be told after it
            mapped = self.table.mapped[self.table.in_use]
            step = np.where(mapped > 0, np.maximum(self.arithmetic.run_ahead(mapped), 0), first)
            self._pages.set_growth_step(self._user, int(self.arithmetic.pool_pages(step).sum()))

    def _pool_pages(self, page_counts: Counts) -> int:
        return int(self.arithmetic.pool_pages(page_counts).sum())
