"""One rank's KV cache: pages leased to the scheduler's account, mapped behind the blocks that it says."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch

from vatt.errors import InvalidRequest, PoolExhausted, VattError
from vatt.pages import Extent, FreeExtents, page_count_of
from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry
from vattention.block_memory import BlockMemory
from vattention.integrations.vllm.budget import NULL_BLOCK
from vattention.integrations.vllm.channel import Port
from vattention.integrations.vllm.messages import Attach, Depth, Facts, Granted, Lease, Orders, Unlease, Wanted
from vattention.page_cache import deal
from vattention.page_source import LeasePurpose
from vattention.session import Session

log = logging.getLogger(__name__)

# How long an engine that starts waits for the little memory that it begins with.
FIRST_WAIT_S = 30.0
# How long vattd's asking waits for the scheduler at a time, which may be in the middle of a step.
ANSWER_WITHIN_S = 0.2
# For so long after vattd has asked, pages that are given up are kept for the answer.
ASKED_LASTS_S = 1.0


class Spare:
    """Leased pages that are mapped nowhere: a page store, whose lender is the scheduler's account."""

    def __init__(self) -> None:
        self.free = FreeExtents()

    def take(self, runs: Sequence[int], after: Sequence[int | None] | None = None) -> list[list[Extent]]:
        if sum(runs) > self.free.page_count:
            raise PoolExhausted(sum(runs), self.free.page_count)
        return deal(self.free, runs, after)

    def put(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self.free.give_back(extent)


class KVMemory:
    """The memory behind one rank's KV cache, and its session with vattd.

    Invariant: `_credit_pages` pages are held for the scheduler, mapped or spare, and none goes back to vattd unless the
    scheduler says so. Pages that it gave up lie in `_surplus` until vattd, which may have asked for them, has them.
    Thread-safe: the model's thread carries out orders, others answer the scheduler between steps, and vattd's asks.
    """

    def __init__(self, session: Session, geometry: BlockGeometry, path: Path) -> None:
        """Takes over `session`, and closes it if this fails. Backs the null block: it is read where a request has no
        block. Raises what Session.lease raises."""
        self.path = path
        self._session = session
        self._geometry = geometry
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        self._spare = Spare()
        self._credit_pages = 0
        self._surplus: list[Extent] = []
        self._owed_pages = 0  # given up by the scheduler, and not let go of by the device yet
        self._asked_until_s = float("-inf")
        self._wanted_number = self._answered_number = 0
        self._idle_pages = 0
        self._usage = Usage()
        self.is_attached = False  # to a scheduler, whose orders name every block from then on
        self._warm: list[int] = []
        with ExitStack() as undo:
            undo.callback(session.close)
            self._memory = BlockMemory(session.mapper, self._spare, geometry)
            self._take_in(session.lease(geometry.cluster_pages, purpose=LeasePurpose.ADMIT, wait_s=FIRST_WAIT_S))
            self._memory.back([NULL_BLOCK])
            self._port = Port(path, self._answer)
            undo.pop_all()
        session.pages.join(self)
        session.close_first(self)
        session.on_pressure = self._press

    @property
    def tensor(self) -> torch.Tensor:
        """[virtual_bytes], uint8."""
        return self._memory.tensor

    @property
    def leased_pages(self) -> int:
        """What the session holds."""
        return self._session.leased_pages

    @property
    def mapped_pages(self) -> int:
        return self._memory.mapped_pages

    @property
    def needed_pages(self) -> int:
        """Of those, the ones that blocks in use need; the others are kept for blocks to come."""
        return self._memory.mapped_pages - self._memory.kept_pages

    # For the model's thread

    def carry_out(self, orders: Orders) -> None:
        """Do what the scheduler says before a step, or where there is none for it."""
        with self._lock:
            self._memory.drop(orders.drop)
            self._memory.back(orders.back)
            self._owe(orders.give_back_pages)
            self._idle_pages, self._usage = orders.idle_pages, orders.usage
            self._answered_number = max(self._answered_number, orders.answered)
            self._changed.notify_all()
        self._return_surplus()

    def warm_up(self, blocks: Sequence[int]) -> None:
        """Back blocks that vLLM uses before its scheduler exists: until that attaches."""
        with self._lock:
            missing = [block for block in dict.fromkeys(blocks) if not self._memory.is_backed(block)]
            if self.is_attached or not missing:
                return
            page_count = len(self._geometry.pages(missing))
            self._take_in(self._session.lease(page_count, purpose=LeasePurpose.ADMIT, wait_s=FIRST_WAIT_S))
            self._memory.back(missing)
            self._warm += missing

    # For the scheduler

    def _answer(self, message: object) -> object:
        if isinstance(message, Lease):
            return self.lease(message)
        if isinstance(message, Orders):
            self.carry_out(message)
            return None
        if isinstance(message, Unlease):
            self._owe(message.page_count)
            self._return_surplus()
            return None
        if isinstance(message, Attach):
            return self._attach()
        raise InvalidRequest(f"a rank has no answer to {message!r}")

    def _attach(self) -> Facts:
        with self._lock:
            self.is_attached = True
            self._memory.drop(self._warm)
            self._warm = []
            return Facts(self._geometry, self._session.pool_pages, self._credit_pages)

    def lease(self, wanted: Lease) -> Granted:
        try:
            extents = self._session.lease(
                wanted.page_count,
                min_page_count=wanted.least_pages,
                purpose=wanted.purpose,
                wait_s=wanted.wait_s,
            )
        except VattError as error:
            return Granted(0, str(error))
        self._take_in(extents)
        return Granted(page_count_of(extents))

    # For the session: vattention.page_cache.PageUser

    def usage(self) -> Usage:
        with self._lock:
            self._settle_debt()
            usage = self._usage
        self._return_surplus()
        return usage

    def idle_pages(self, *, finished_only: bool = True) -> int:
        with self._lock:
            return self._idle_pages + self._owed_pages + page_count_of(self._surplus)

    def gather_idle(self, page_count: int, *, finished_only: bool = True) -> list[Extent]:
        """Ask the scheduler, and wait a moment for what it gives up."""
        return self._gather(page_count, Depth.IDLE)

    def _press(self, page_count: int) -> None:
        with self._lock:
            self._idle_pages = max(self._idle_pages, page_count)  # there will be some: worth waiting for
        self._want(page_count, Depth.RUNNING)

    def _gather(self, page_count: int, depth: Depth) -> list[Extent]:
        with self._lock:
            self._asked_until_s = time.monotonic() + ASKED_LASTS_S
            if not self._surplus and self._answered_number >= self._wanted_number and not self._owed_pages:
                self._want(page_count, depth)
            self._changed.wait_for(lambda: bool(self._surplus), ANSWER_WITHIN_S)
            self._settle_debt()
            free = FreeExtents(self._surplus)
            taken = free.take(min(page_count, free.page_count))
            self._surplus = list(free)
            return taken

    def _want(self, page_count: int, depth: Depth) -> None:
        with self._lock:
            self._wanted_number = number = time.monotonic_ns()
        if not self._port.tell(Wanted(number, page_count, depth)):
            with self._lock:  # no scheduler yet, and so no answer: the next time it is asked anew
                self._answered_number = max(self._answered_number, number)

    def close(self) -> None:
        """Unmap everything and return it, session and all. Idempotent."""
        self._port.close()
        with self._lock:
            self._memory.close()
            extents = [*self._spare.free.take(self._spare.free.page_count), *self._surplus]
            self._surplus = []
        self._session.pages.leave(self)
        self._session.pages.put(extents)

    def _take_in(self, extents: Sequence[Extent]) -> None:
        with self._lock:
            self._spare.put(extents)
            self._credit_pages += page_count_of(extents)

    def _owe(self, page_count: int) -> None:
        with self._lock:
            self._credit_pages -= page_count
            self._owed_pages += page_count
            self._settle_debt()

    def _settle_debt(self) -> None:
        """Turn pages that are owed into surplus, as far as the device has let go of them."""
        if self._owed_pages:
            short = self._owed_pages - self._spare.free.page_count
            if short > 0:
                self._memory.trim(short)
            extents = self._spare.free.take(min(self._owed_pages, self._spare.free.page_count))
            self._owed_pages -= page_count_of(extents)
            self._surplus += extents

    def _return_surplus(self) -> None:
        """To vattd, through the page cache, which keeps none of it; unless vattd's asking takes it."""
        with self._lock:
            if time.monotonic() < self._asked_until_s:
                return
            extents, self._surplus = self._surplus, []
        if extents:
            self._session.pages.put(extents)
