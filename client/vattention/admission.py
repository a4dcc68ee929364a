"""Room for a new request: a slot, and pages behind it before the request begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from vatt.errors import InvalidRequest, PoolExhausted
from vatt.pages import Extent, page_count_of
from vattention.device_fence import DONE
from vattention.marks import Mark
from vattention.page_cache import PageCache, PageUser
from vattention.page_source import LeasePurpose, PageLender
from vattention.rows import SHORT, Rows


class Lender(PageLender, Protocol):
    """Whom new requests ask for pages: a session."""

    def check_admits(self) -> None:
        """Raises Draining or SessionEvicted if no new request should begin."""


@dataclass(frozen=True, slots=True)
class _Claim:
    """A slot taken for a request that has not begun. As long as the mark is the row's, nobody has ended it."""

    row: int
    token_count: int
    mark: Mark


class Admission:
    """Admits requests to one KV cache: wholly, or an error and nothing.

    A request that waits for pages has its slot, with what an earlier request left there, and nothing else: no lock, and
    no page that others could use. What is leased for it goes straight behind its slot, so nobody gives it back before.
    """

    def __init__(
        self,
        rows: Rows,
        lender: Lender,
        pages: PageCache,
        user: PageUser,
        check_open: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        """`user` is the cache, as `pages` knows it. `check_open` raises Closed from when it begins to close."""
        self._rows = rows
        self._lender = lender
        self._pages = pages
        self._user = user
        self._check_open = check_open
        self._clock = clock

    def admit(self, token_count: int, wait_s: float) -> int:
        """As KVCache.admit_slot."""
        deadline_s = self._clock() + wait_s
        self._lender.check_admits()
        claim = self._claim(token_count)
        with ExitStack() as undo:
            undo.callback(self._leave, claim)
            if not self._back_at_once(claim, is_last=not wait_s):
                self._back_by_waiting(claim, deadline_s)
            undo.pop_all()
        return claim.row

    def _back_at_once(self, claim: _Claim, *, is_last: bool) -> bool:
        """With what vattd has now; else with idle pages of this process too."""
        with suppress(*SHORT):
            self._back(claim, self._lease(self._missing(claim), 0.0))
            return True
        idle = self._gather_idle(claim)
        try:
            with ExitStack() as undo:
                undo.callback(lambda: self._pages.put(idle))
                idle += self._lease(self._missing(claim) - page_count_of(idle), 0.0)
                undo.pop_all()
            self._back(claim, idle)
        except SHORT:
            if is_last:
                raise
            return False
        return True

    def _back_by_waiting(self, claim: _Claim, deadline_s: float) -> None:
        """What vattd refuses is not to be had; but pages here may have gone to other slots meanwhile."""
        while True:
            leased = self._lease(self._missing(claim), max(0.0, deadline_s - self._clock()))
            try:
                self._back(claim, leased)
            except PoolExhausted:
                if self._clock() >= deadline_s:
                    raise
            else:
                return

    def _lease(self, page_count: int, wait_s: float) -> list[Extent]:
        return self._lender.lease(page_count, purpose=LeasePurpose.ADMIT, wait_s=wait_s) if page_count > 0 else []

    def _claim(self, token_count: int) -> _Claim:
        """The free slot that fits best. What it has is expected to be filled: nobody's surplus meanwhile."""
        table = self._rows.table
        with self._rows.state:
            self._check_open()
            row = table.best_fit(token_count)
            is_spoilt = bool(table.spoilt[row])
            mark = table.claim(row, 0 if is_spoilt else min(token_count, int(table.capacity[row])))
            claim = _Claim(row, token_count, mark)
        if is_spoilt:
            with ExitStack() as undo:
                undo.callback(self._leave, claim)
                with self._rows.mapping():
                    self._pages.put(self._rows.empty(row))
                undo.pop_all()
        return claim

    def _leave(self, claim: _Claim) -> None:
        with self._rows.state:
            if self._rows.table.is_claimed(claim.row, claim.mark):
                self._rows.table.leave(claim.row, DONE, self._clock())  # nothing was done in it

    def _lacking(self, claim: _Claim) -> int:
        """Pages that the slot has not."""
        rows = self._rows
        with rows.state:
            lacking = np.maximum(rows.arithmetic.pages(claim.token_count) - rows.table.mapped[claim.row], 0)
            return int(rows.arithmetic.pool_pages(lacking))

    def _missing(self, claim: _Claim) -> int:
        """Pages that neither the slot nor the page cache has. Raises PoolExhausted past the cache's budget."""
        lacking, behind = self._lacking(claim), self._rows.behind
        if behind.budget_pages is not None and behind.is_over_budget(lacking):
            raise PoolExhausted(lacking, max(0, behind.budget_pages - behind.held_pages))
        return lacking - self._pages.page_count

    def _gather_idle(self, claim: _Claim) -> list[Extent]:
        """Pages of finished slots, of this cache and then of others: as many as the slot lacks, if there are any."""
        lacking = self._lacking(claim)
        with self._rows.mapping():
            self._check_open()
            idle = self._rows.gather_idle(lacking, finished_only=True)
        with ExitStack() as undo:
            undo.callback(lambda: self._pages.put(idle))
            for user in self._pages.users():
                missing = lacking - page_count_of(idle)
                if missing > 0 and user is not self._user:
                    idle += user.gather_idle(missing)
            undo.pop_all()
        return idle

    def _back(self, claim: _Claim, offering: Sequence[Extent]) -> None:
        """Have the slot hold its tokens, with what is offered and what the page cache has. What is not used lies there
        afterwards, also after an error."""
        with self._rows.mapping():
            with ExitStack() as undo:
                undo.callback(self._pages.put, offering)
                self._check_open()
                self._rows.extend_to(claim.row, claim.token_count, offering)
                undo.pop_all()
            with self._rows.state:
                if not self._rows.table.is_claimed(claim.row, claim.mark):
                    self._check_open()  # it was close() that ended it
                    raise InvalidRequest(f"slot {claim.row} was ended while a request was being admitted to it")
                self._rows.table.length[claim.row] = claim.token_count
                self._rows.table.expected[claim.row] = 0
