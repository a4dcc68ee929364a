"""Keeping an engine's account between its steps: pages ahead of need, pages back, and what vattd wants."""

from __future__ import annotations

import multiprocessing
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from typing import Protocol

from vattention.demand import Demand
from vattention.integrations.vllm.background import Background
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.messages import Wanted
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose

TICK_S = 0.25
# A part of the pool that an engine which has needed as much lately may keep without a use.
SPARE_DIVISOR = 40


class Account(Protocol):
    """The scheduler, as its upkeep needs it. All of it is called with the scheduler's lock held."""

    @property
    def is_short(self) -> bool:
        """Do requests wait for memory? Then nothing is fetched ahead, and nothing goes back."""

    def give_up(self, wanted: Wanted) -> None:
        """Give back what vattd wants, now or in the coming steps."""

    def flush(self) -> None:
        """Send the orders that no step takes along."""


class Upkeep:
    """A thread beside the scheduler's own. Its lock is not held while vattd is asked for pages."""

    def __init__(
        self,
        budget: Budget,
        account: Account,
        changed: threading.Condition,
        ranks: Ranks,
        tidings: Sequence[Connection],
        pool_pages: int,
        step_pages: int,
    ) -> None:
        """`step_pages` is what one step of all requests may take; `tidings` bring what vattd wants of each rank.

        `ranks` and `tidings` are its own, and closed by it.
        """
        self._budget = budget
        self._account = account
        self._changed = changed
        self._ranks = ranks
        self._demand = Demand(spare_pages=pool_pages // SPARE_DIVISOR)
        self._demand.step_pages = step_pages
        woken, self._waker = multiprocessing.Pipe(duplex=False)
        self._sources: list[Connection] = [*tidings, woken]
        self._tidings = tidings
        self._background = Background("vattd-vllm-upkeep", self._tend, self._hang_up)
        self._background.start()

    def note_taken(self, page_count: int) -> None:
        """So many pages have been promised to blocks. Called with the lock held."""
        self._demand.note(page_count, time.monotonic())

    def wake(self) -> None:
        """There may be something to do before the next tick."""
        self._waker.send(None)

    def close(self) -> None:
        self._background.stop()
        self.wake()

    def _hang_up(self) -> None:
        self._ranks.close()
        for connection in self._tidings:
            connection.close()

    def _tend(self) -> None:
        messages = [source.recv() for source in wait(self._sources, TICK_S) if isinstance(source, Connection)]
        wanted = [message for message in messages if isinstance(message, Wanted)]
        with self._changed:
            if wanted:
                self._demand.forget()
                self._account.give_up(Wanted.of_all(wanted))
            short_pages = self._balance()
            self._account.flush()
        if short_pages:
            granted = self._ranks.lease(short_pages, 1, LeasePurpose.AHEAD)
            with self._changed:
                self._budget.lend(granted.page_count)
                self._changed.notify_all()

    def _balance(self) -> int:
        """Give up what is more than is likely to be needed soon; how many pages should be fetched."""
        if self._account.is_short:
            return 0
        marks, free_pages = self._demand.watermarks(time.monotonic()), self._budget.free_pages
        self._budget.give_up(free_pages - marks.keep_pages)
        return marks.high_pages - free_pages if free_pages < marks.low_pages else 0
