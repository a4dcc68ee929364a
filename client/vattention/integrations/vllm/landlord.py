"""What a scheduler's process does for its budget beside the steps: pages ahead of need, pages back, waiting requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Protocol

from vatt.errors import VattError
from vattention.demand import Demand
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.messages import Wanted
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose

log = logging.getLogger(__name__)

TICK_S = 0.25
# How long a lease for a waiting request stays in vattd's queue before it is asked for anew, at its new size.
QUEUE_S = 1.0
# A wish that no scheduling step repeats is over.
WISH_LASTS_S = 1.0
# A part of the pool that an engine which has needed as much lately may keep without a use.
SPARE_DIVISOR = 40


class Tenant(Protocol):
    """The scheduler, as the landlord needs it. All of it is called with the scheduler's lock held."""

    def give_up(self, wanted: Wanted) -> None:
        """Give back what vattd wants, now or in the coming steps."""

    def flush(self) -> None:
        """Send the orders that no step will take along."""


class Landlord:
    """Two threads: one keeps a few pages ahead of the steps' need, gives those back that are over, and hears what vattd
    wants; the other waits in vattd's queue for the request that is to be admitted next.

    The scheduler's lock is never held while vattd is asked for pages.
    """

    def __init__(
        self,
        budget: Budget,
        tenant: Tenant,
        lock: threading.RLock,
        ranks: Callable[[], Ranks],
        pool_pages: int,
        step_pages: int,
    ) -> None:
        """`ranks` makes a line of its own for each thread; `step_pages` is what one step of all requests may take."""
        self._budget = budget
        self._tenant = tenant
        self._lock = lock
        self._demand = Demand(spare_pages=pool_pages // SPARE_DIVISOR)
        self._demand.step_pages = step_pages
        self._wish_pages = 0
        self._wish_ends_s = 0.0
        self._changed = threading.Condition(lock)
        self._is_closed = False
        self._wake_reader, self._wake_writer = _pipe()
        self._upkeep_ranks, self._queue_ranks, tidings = ranks(), ranks(), ranks()
        self._threads = [
            threading.Thread(target=self._guarded, args=[self._keep_up, tidings], name="vattd-vllm-upkeep", daemon=True),
            threading.Thread(target=self._guarded, args=[self._queue, None], name="vattd-vllm-queue", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def note_taken(self, page_count: int) -> None:
        """So many pages have been promised to blocks. The lock is held."""
        self._demand.note(page_count, time.monotonic())

    def wake(self) -> None:
        """There may be orders to send, or pages to fetch."""
        self._wake_writer.send(None)

    def wish(self, page_count: int) -> None:
        """A request cannot be admitted for want of so many pages: queue for them. The lock is held."""
        self._wish_pages = page_count
        self._wish_ends_s = time.monotonic() + WISH_LASTS_S
        self._changed.notify_all()

    def forget_wish(self) -> None:
        """The request has what it needs. The lock is held."""
        self._wish_pages = 0

    def wait_for_pages(self, timeout_s: float) -> None:
        """Until pages have come, if any are being waited for. The lock is held, and let go of meanwhile."""
        credit_pages = self._budget.credit_pages
        self._changed.wait_for(lambda: self._is_closed or self._budget.credit_pages > credit_pages, timeout_s)

    def close(self) -> None:
        with self._lock:
            self._is_closed = True
            self._changed.notify_all()
        self.wake()

    def _keep_up(self, tidings: Ranks) -> None:
        connections: list[Connection] = [*tidings.subscribe(), self._wake_reader]
        while not self._is_closed:
            for ready in wait(connections, TICK_S):
                message = ready.recv()  # type: ignore[union-attr]
                if isinstance(message, Wanted):
                    with self._lock:
                        self._demand.forget()
                        self._tenant.give_up(message)
            self._tend()

    def _tend(self) -> None:
        with self._lock:
            marks = self._demand.watermarks(time.monotonic())
            free_pages = self._budget.free_pages
            short_pages = marks.high_pages - free_pages if free_pages < marks.low_pages and not self._wish_pages else 0
            if not self._wish_pages:
                self._budget.give_up(free_pages - marks.keep_pages)
            self._tenant.flush()
        if short_pages:
            granted = self._upkeep_ranks.lease(short_pages, 1, LeasePurpose.AHEAD)
            if granted.page_count:
                self._lend(granted.page_count)

    def _queue(self, _: None) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._is_closed or self._wishes())
                if self._is_closed:
                    return
                page_count = self._wish_pages
            granted = self._queue_ranks.lease(page_count, page_count, LeasePurpose.ADMIT, QUEUE_S)
            with self._lock:
                if granted.page_count:
                    self._wish_pages = 0
                    self._lend(granted.page_count)
                elif self._wishes():  # a refusal at once must not be asked for again at once
                    self._changed.wait_for(lambda: self._is_closed, TICK_S)

    def _wishes(self) -> bool:
        if time.monotonic() > self._wish_ends_s:
            self._wish_pages = 0
        return self._wish_pages > 0

    def _lend(self, page_count: int) -> None:
        with self._lock:
            self._budget.lend(page_count)
            self._changed.notify_all()

    def _guarded(self, work: Callable[..., None], argument: object) -> None:
        try:
            with suppress(EOFError, OSError):  # a worker has ended, and the engine with it
                work(argument)
        except VattError as error:
            if not self._is_closed:
                log.warning("vattd: %s", error)
        except Exception:  # the thread's boundary
            log.exception("vattd: unexpected")


def _pipe() -> tuple[Connection, Connection]:
    from multiprocessing import Pipe

    return Pipe(duplex=False)  # type: ignore[return-value]
