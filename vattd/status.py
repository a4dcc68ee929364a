"""Everything about this vattd at one instant. It changes nothing."""

from __future__ import annotations

import asyncio
import enum
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

from vatt.pages import LedgerBug
from vatt.v1 import vatt_pb2 as pb
from vattd import __version__
from vattd.messages import device_message, memory_message, reclaim_counts_message, timestamp
from vattd.pool import Pool
from vattd.pressure import PromiseView
from vattd.reclaim import Ask
from vattd.recovery import Recovery
from vattd.sessions import Sessions
from vattd.snapshot import Snapshot, TenantView
from vattd.status_instant import Instant, SessionInstant, TenantInstant, Wanted
from vattd.tenant_book import TenantBook
from vattention.vmm.driver import Device, DeviceMemory

NO_MEMORY = DeviceMemory(0, 0, 0)


class DaemonState(enum.Enum):
    SERVING = "serving"
    DRAINING = "draining"
    SHUTTING_DOWN = "shutting_down"
    DEVICE_LOST = "device_lost"
    BROKEN = "broken"  # a bug of ours


@dataclass(slots=True)
class DaemonFacts:
    """What status says of the daemon itself; the daemon alone writes it."""

    incarnation: int
    start_time_s: float
    state: DaemonState = DaemonState.SERVING


class Status:
    """What status says. Belongs to the event loop; nothing here waits, so that all figures are of one instant."""

    def __init__(
        self,
        facts: DaemonFacts,
        sessions: Sessions,
        pool: Pool,
        device: Device,
        book: TenantBook,
        recovery: Recovery,
    ) -> None:
        self._facts, self._sessions, self._pool = facts, sessions, pool
        self._device, self._book, self._recovery = device, book, recovery

    @property
    def state(self) -> DaemonState:
        is_drained = self._facts.state is DaemonState.SERVING and self._pool.draining
        return DaemonState.DRAINING if is_drained else self._facts.state

    def instant(self, memory: DeviceMemory) -> Instant:
        """`memory` is what the driver has just said."""
        snapshot, now_s = self._pool.ledger.snapshot(), asyncio.get_running_loop().time()
        views = {view.session_id: view for view in snapshot.sessions}
        asks = self._pool.pressure.reclaims.by_session()
        promised = list(self._pool.ledger.promised())
        views_of_promised = self._pool.pressure.promises_of(promised, now_s)
        promises = {tenant.name: view for tenant, view in zip(promised, views_of_promised, strict=True)}
        return Instant(
            head=pb.GetStatusResponse(
                daemon=self._daemon_message(),
                device=device_message(self._device),
                memory=memory_message(memory),
                pool=self._pool_message(snapshot),
            ),
            tenants=[self._tenant(view, promises.get(view.name), now_s) for view in snapshot.tenants],
            sessions=[
                SessionInstant(
                    views[session.session_id],
                    session.facts,
                    self._sessions.state_of(session),
                    self._wanted(asks[session.session_id], now_s) if session.session_id in asks else None,
                )
                for session in self._sessions
            ],
            revision=self._book.revision,
            wall_s=time.time(),
            now_s=now_s,
        )

    def message(self, memory: DeviceMemory) -> pb.GetStatusResponse:
        """`memory` is what the driver has just said."""
        return self.instant(memory).message()

    def tenant(self, name: str) -> pb.Tenant:
        """Of a tenant that is known."""
        instant = self.instant(NO_MEMORY)
        return instant.tenant(next(one for one in instant.tenants if one.view.name == name))

    def _daemon_message(self) -> pb.Daemon:
        return pb.Daemon(
            version=__version__,
            incarnation=self._facts.incarnation,
            pid=os.getpid(),
            start_time=timestamp(self._facts.start_time_s),
            state=self.state.value,
            recovered_sessions_total=self._recovery.recovered_total,
            lost_sessions_total=self._recovery.lost_total,
            disputed_pages_total=self._pool.ledger.disputed_pages,
        )

    def _pool_message(self, snapshot: Snapshot) -> pb.Pool:
        page, ledger = snapshot.page_size_bytes, self._pool.ledger
        shortage = self._pool.shortage
        passes_on = ledger.stock.shares_zone
        return pb.Pool(
            page_size_bytes=page,
            min_bytes=self._pool.limits.min_bytes,
            max_bytes=snapshot.max_pages * page,
            pages_by_state=[
                pb.PagesInState(state=state.value, page_count=count) for state, count in snapshot.pages_by_state.items()
            ],
            peak_leased_bytes=snapshot.peak_leased_pages * page,
            peak_mapped_bytes=snapshot.peak_mapped_pages * page,
            waiting_pages=self._pool.waiting_pages,
            created_pages_total=snapshot.created_pages_total,
            scrubbed_pages_total=snapshot.scrubbed_pages_total,
            destroyed_pages_total=snapshot.destroyed_pages_total,
            shortage="" if shortage is None else str(shortage),
            promised_bytes=sum(tenant.guarantee.min_pages for tenant in ledger.promised()) * page,
            kept_free_bytes=self._pool.kept_free_pages * page,
            reclaims=reclaim_counts_message(self._pool.pressure.reclaims.counts),
            scrub=ledger.stock.scrub.value,
            isolated=not passes_on,
            context_bytes=self._pool.context_bytes,
        )

    def _tenant(self, view: TenantView, promise: PromiseView | None, now_s: float) -> TenantInstant:
        tenant, policy = self._pool.ledger.tenant(view.name), self._pool.policy
        if tenant is None:
            raise LedgerBug(f"tenant {view.name} is in the snapshot, and there is none")
        reservation, source = self._book.in_force(view.name) or (None, None)
        return TenantInstant(
            view,
            waiting_pages=policy.wishes.queued_pages(tenant),
            waiting_leases=policy.wishes.queue_length(tenant),
            longest_wait_s=policy.longest_wait_s(tenant, now_s),
            reservation=reservation,
            source="" if source is None else source.value,
            promise=promise,
        )

    def _wanted(self, asks: Sequence[Ask], now_s: float) -> Wanted:
        return Wanted(
            page_count=sum(ask.page_count for ask in asks),
            length_s=now_s - min(ask.asked_s for ask in asks),
            is_overdue=self._pool.pressure.reclaims.are_overdue(asks, now_s),
        )
