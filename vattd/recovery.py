"""Recovery: what an earlier vattd lent is counted from the start, and named by those who hold it, once they are back.

A session of that vattd is restored from the journal, fenced, with as many pages as it was lent. When its process
re-attaches it says which these are; when it ends, they are nobody's. So the device is never lent beyond what it has,
whoever comes back and whenever, and nobody waits for anybody.

On the host an earlier vattd's slabs live on in the engines, with the idle pages in them. An engine that re-attaches
brings its slabs' descriptors, so the memory of what nobody holds can be given back: as soon as all sessions of a tenant
have said what they hold, since what is not theirs then is nobody's.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

from vatt.errors import InvalidRequest, SessionFenced, SystemLimit, VattError
from vattd.driver_thread import DriverThread, Urgency
from vattd.journal import Entry, Journal, SessionFacts, SlabFacts
from vattd.ledger import Claimed
from vattd.page_run import PageRun
from vattd.peer import Peer, peer_of_pid
from vattd.pool import Pool
from vattention.vmm.driver import PhysicalDriver

log = logging.getLogger(__name__)

_T = TypeVar("_T")
# After memory could not be given back.
SWEEP_AGAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Survivor:
    """A session of an earlier vattd whose process lives. The session that is made of it owns `peer`."""

    facts: SessionFacts
    peer: Peer
    page_count: int


@dataclass(slots=True, eq=False)
class _Remains:
    """What is left of one tenant's slabs. `waiting` are its sessions that have not said what they hold."""

    slabs: dict[int, SlabFacts] = field(default_factory=dict)
    adopted: set[int] = field(default_factory=set)
    waiting: set[str] = field(default_factory=set)
    left_pages: int = 0


def survivors_of(entries: Iterable[Entry], journal: Journal) -> list[Survivor]:
    """The sessions whose process still lives; the others are dropped."""
    survivors = []
    for entry in entries:
        if isinstance(entry.facts, SessionFacts):
            peer = peer_of_pid(entry.facts.pid, entry.facts.uid, entry.facts.start_ticks)
            if peer is None:
                journal.drop(entry.facts.session_id)
            else:
                survivors.append(Survivor(entry.facts, peer, entry.page_count))
    return survivors


class Recovery:
    """Until every session of an earlier vattd has claimed its pages or has ended. Belongs to the event loop."""

    def __init__(
        self, pool: Pool, driver: PhysicalDriver, thread: DriverThread, journal: Journal, grace_until_s: float
    ) -> None:
        """`grace_until_s`, on the event loop's clock: from then on claims are disputed no more."""
        self._pool, self._driver, self._thread, self._journal = pool, driver, thread, journal
        self._grace_until_s = grace_until_s
        self._waiting: dict[str, Survivor] = {}
        self._claiming: set[str] = set()  # of these, and of some that have ended since
        self._remains: dict[str, _Remains] = {}  # by tenant
        self._sweeping: set[asyncio.Task[None]] = set()
        self.recovered_total = self.lost_total = 0

    def restore(self, entries: Iterable[Entry], survivors: Sequence[Survivor]) -> None:
        """Count what is in use. Raises InvalidRequest if the pool is too small for it."""
        ledger = self._pool.ledger
        for survivor in survivors:
            facts = survivor.facts
            ledger.restore_session(facts.session_id, facts.tenant, facts.uid, survivor.page_count)
            self._waiting[facts.session_id] = survivor
        for entry in entries:
            if isinstance(entry.facts, SlabFacts):
                remains = self._remains.setdefault(entry.facts.tenant, _Remains())
                remains.slabs[entry.facts.zone] = entry.facts
                ledger.stock.old_zones.inherit(entry.facts.zone, entry.page_count)
                remains.left_pages += entry.page_count
        for tenant, remains in list(self._remains.items()):
            own = [survivor for survivor in survivors if survivor.facts.tenant == tenant]
            remains.waiting = {survivor.facts.session_id for survivor in own}
            remains.left_pages = max(0, remains.left_pages - sum(survivor.page_count for survivor in own))
            if own:
                ledger.stock.inherit_left(remains.left_pages)
            else:  # nobody has the slabs
                self._forget(tenant)
        if survivors:
            log.info(
                "%d sessions of an earlier vattd live, with %d pages; they may re-attach",
                len(survivors),
                sum(survivor.page_count for survivor in survivors),
            )

    @property
    def is_over(self) -> bool:
        return not self._waiting and not self._remains

    @property
    def awaited_count(self) -> int:
        """How many sessions have still to say what they hold."""
        return len(self._waiting)

    def is_final(self, now_s: float) -> bool:
        """Is the time over in which sessions are expected?"""
        return now_s >= self._grace_until_s

    def awaits(self, session_id: str) -> bool:
        """Has the session still to say what it holds?"""
        return session_id in self._waiting

    def expects(self, pid: int) -> bool:
        """Is a session of this process awaited? It may bring slabs."""
        return any(survivor.peer.pid == pid for survivor in self._waiting.values())

    def wants(self, zone: int, fd: int) -> bool:
        """Is this an earlier vattd's slab that is missed?"""
        slab = self._slab(zone)
        if slab is None:
            return False
        try:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)  # memfds alone have seals; of others, even fstat may never return
            return os.fstat(fd).st_ino == slab.mark
        except OSError:
            return False

    async def claim(self, session_id: str, runs: Sequence[PageRun], slabs: Mapping[int, int]) -> Claimed:
        """The session says what it holds, and brings these slabs: descriptors by zone, which stay the caller's.

        Raises InvalidRequest for what cannot be, and SessionFenced where it is claiming already; the session may try
        again. Not to be cancelled.
        """
        if session_id in self._claiming:
            raise SessionFenced(f"session {session_id} is being resumed over another connection: re-attach")
        tenant = self._waiting[session_id].facts.tenant
        self._claiming.add(session_id)
        try:
            return await self._claim(session_id, tenant, runs, slabs)
        finally:
            self._claiming.remove(session_id)
            if session_id not in self._waiting:
                self._settle(tenant, session_id)

    async def _claim(self, session_id: str, tenant: str, runs: Sequence[PageRun], slabs: Mapping[int, int]) -> Claimed:
        await self._adopt(tenant, {run.extent.zone for run in runs}, slabs)
        if session_id not in self._waiting:
            raise SessionFenced(f"session {session_id} has ended")
        ledger = self._pool.ledger
        claimed = ledger.claim(session_id, runs, final=self.is_final(asyncio.get_running_loop().time()))
        del self._waiting[session_id]
        self.recovered_total += 1
        self._left(tenant, claimed.left_pages)
        for holder in (session_id, *claimed.losers):
            self._note_pages(holder, ledger.noted_pages(holder))
        await self._inherit(claimed.runs)  # meanwhile the session may end
        return claimed

    def ended(self, session_id: str) -> None:
        """The session's process has ended. Its pages are nobody's, if it had not claimed them."""
        survivor = self._waiting.pop(session_id, None)
        if survivor is None:
            return
        self.lost_total += 1
        self._left(survivor.facts.tenant, survivor.page_count)
        if session_id not in self._claiming:  # else its slabs may be on their way in
            self._settle(survivor.facts.tenant, session_id)

    async def close(self) -> None:
        for task in self._sweeping:
            task.cancel()
        await asyncio.gather(*self._sweeping, return_exceptions=True)

    def _slab(self, zone: int) -> SlabFacts | None:
        return next((remains.slabs[zone] for remains in self._remains.values() if zone in remains.slabs), None)

    async def _adopt(self, tenant: str, zones: set[int], slabs: Mapping[int, int]) -> None:
        """Take over the slabs that are brought; those of `zones`, where claims are, must be among them, or be here."""
        remains = self._remains.get(tenant)
        if remains is None:
            if zones and not self._driver.recycles_across_tenants:
                raise InvalidRequest(f"tenant {tenant} had no slab")
            return
        for zone in sorted((zones | slabs.keys()) - remains.adopted):
            if zone in slabs and zone in remains.slabs:
                await self._call(self._driver.adopt_zone, zone, slabs[zone], remains.slabs[zone].mark)
                remains.adopted.add(zone)
            elif zone in zones:
                raise InvalidRequest(f"pages of zone {zone} are claimed, and its slab is not offered")

    async def _inherit(self, runs: Sequence[PageRun]) -> None:
        """The driver can only refuse what is there twice, which the ledger has ruled out."""

        def inherit() -> None:
            for run in runs:
                self._driver.inherit(run.extent)

        # As urgent as can be: nothing that is done to these pages from now on may come before it.
        await self._thread.run(Urgency.LEASE, inherit)

    def _left(self, tenant: str, page_count: int) -> None:
        """Pages that nobody holds. Where they are in a slab, their memory is there until it is swept."""
        if tenant in self._remains:
            self._remains[tenant].left_pages += page_count
        else:
            self._pool.ledger.stock.drop_left(page_count)
        self._pool.look_again()

    def _note_pages(self, key: str | int, page_count: int) -> None:
        """Fewer than it knew of: if it cannot be told, its word does no harm."""
        with suppress(SystemLimit):
            self._journal.note_pages(key, page_count)

    def _settle(self, tenant: str, session_id: str) -> None:
        """One session less is waited for."""
        remains = self._remains.get(tenant)
        if remains is None:
            return
        remains.waiting.discard(session_id)
        if not remains.waiting:
            task = asyncio.get_running_loop().create_task(self._sweep(tenant, remains))
            self._sweeping.add(task)
            task.add_done_callback(self._swept)

    def _swept(self, task: asyncio.Task[None]) -> None:
        self._sweeping.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._pool.broken(error)

    async def _sweep(self, tenant: str, remains: _Remains) -> None:
        """All that is held has been named: give back the memory of the rest."""
        for zone in remains.adopted:
            await self._sweep_zone(tenant, zone)
        self._pool.ledger.stock.drop_left(remains.left_pages)
        self._forget(tenant)
        log.info("tenant %s: %d idle pages of an earlier vattd went back to the device", tenant, remains.left_pages)
        self._pool.look_again()

    async def _sweep_zone(self, tenant: str, zone: int) -> None:
        while True:
            try:
                sweep = await self._call(self._driver.sweeper, zone)
                await asyncio.to_thread(sweep)
            except VattError as error:
                log.error("idle memory of an earlier vattd is taken yet (tenant %s): %s", tenant, error)
                await asyncio.sleep(SWEEP_AGAIN_S)
            else:
                return

    def _forget(self, tenant: str) -> None:
        """Slabs that nobody brought are nobody's; the others go when the last page that is held in them is back."""
        remains = self._remains.pop(tenant)
        stock = self._pool.ledger.stock
        for zone in remains.slabs:
            if zone in remains.adopted:
                stock.old_zones.await_end_of(zone)
                self._note_pages(zone, stock.backed_in(zone))
            else:
                stock.old_zones.forget(zone)
                self._journal.drop(zone)

    async def _call(self, call: Callable[..., _T], *args: object) -> _T:
        return await self._thread.run(Urgency.EXPORT, call, *args)
