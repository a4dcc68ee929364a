"""Everything about this vattd at one instant, as the messages of GetStatus. It changes nothing."""

from __future__ import annotations

import asyncio
import enum
import os
import time
from dataclasses import dataclass

from vatt.v1 import vatt_pb2 as pb
from vattd import __version__
from vattd.engine_session import EngineSession
from vattd.messages import (
    access_message,
    device_message,
    duration,
    guarantee_message,
    memory_message,
    promise_message,
    put_usage,
    reclaim_counts_message,
    timestamp,
)
from vattd.pool import Pool
from vattd.recovery import Recovery
from vattd.sessions import Sessions
from vattd.snapshot import SessionView, Snapshot, TenantView
from vattd.tenant_book import TenantBook
from vattd.tenants import Tenant
from vattention.vmm.driver import Device, DeviceMemory


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

    def message(self, memory: DeviceMemory) -> pb.GetStatusResponse:
        """`memory` is what the driver has just said."""
        snapshot = self._pool.ledger.snapshot()
        views = {view.session_id: view for view in snapshot.sessions}
        return pb.GetStatusResponse(
            daemon=pb.Daemon(
                version=__version__,
                incarnation=self._facts.incarnation,
                pid=os.getpid(),
                start_time=timestamp(self._facts.start_time_s),
                state=self.state.value,
                recovered_sessions_total=self._recovery.recovered_total,
                lost_sessions_total=self._recovery.lost_total,
                disputed_pages_total=self._pool.ledger.disputed_pages,
            ),
            device=device_message(self._device),
            memory=memory_message(memory),
            pool=self._pool_message(snapshot),
            tenants=[self._tenant_message(view) for view in snapshot.tenants],
            sessions=[self._session_message(session, views[session.session_id]) for session in self._sessions],
        )

    def tenant(self, name: str) -> pb.Tenant:
        """Of a tenant that is known."""
        return self._tenant_message(next(view for view in self._pool.ledger.snapshot().tenants if view.name == name))

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

    def _tenant_message(self, view: TenantView) -> pb.Tenant:
        page, now_s = self._pool.ledger.page_size_bytes, asyncio.get_running_loop().time()
        tenant = self._pool.ledger.tenant(view.name)
        policy = self._pool.policy
        message = pb.Tenant(
            name=view.name,
            session_count=view.session_count,
            leased_bytes=view.leased_pages * page,
            waiting_bytes=policy.wishes.queued_pages(tenant) * page if tenant is not None else 0,
            waiting_leases=policy.wishes.queue_length(tenant) if tenant is not None else 0,
            longest_wait=duration(policy.longest_wait_s(tenant, now_s) if tenant is not None else 0.0),
            waited_total=view.tally.waited,
            waited_time_total=duration(view.tally.waited_s),
            granted_leases_total=view.tally.granted,
            granted_bytes_total=view.tally.granted_pages * page,
            refused_leases_total=view.tally.refusals.total(),
        )
        put_usage(message, view.usage, page)
        found = self._book.in_force(view.name)
        if found is None:
            if view.owner_uid is not None:
                message.owner_uid = view.owner_uid
            return message
        reservation, source = found
        message.source = source.value
        message.guarantee.CopyFrom(guarantee_message(reservation, self._book.revision))
        message.access.CopyFrom(access_message(reservation.access))
        if reservation.until_s is not None:
            message.until.CopyFrom(timestamp(reservation.until_s))
        if tenant is not None and view.guarantee.min_pages:
            message.promise.CopyFrom(self._promise_message(tenant, now_s))
        return message

    def _promise_message(self, tenant: Tenant, now_s: float) -> pb.Promise:
        view = self._pool.pressure.promise_of(tenant, now_s)
        return promise_message(view, self._pool.ledger.page_size_bytes, time.time(), now_s)

    def _session_message(self, session: EngineSession, view: SessionView) -> pb.Session:
        page, now_s = self._pool.ledger.page_size_bytes, asyncio.get_running_loop().time()
        asks = self._pool.pressure.reclaims.of(session.session_id)
        message = pb.Session(
            session_id=session.session_id,
            tenant=session.tenant,
            pid=session.peer.pid,
            uid=session.peer.uid,
            client_name=session.facts.client_name,
            state=self._sessions.state_of(session),
            leased_bytes=view.leased_pages * page,
            attach_time=timestamp(session.facts.attach_time_s),
            asked_back_bytes=min(sum(ask.page_count for ask in asks), view.leased_pages) * page,
            asked_back_overdue=self._pool.pressure.reclaims.is_overdue(session.session_id, now_s),
        )
        put_usage(message, view.usage, page)
        if asks:
            message.asked_back_since.CopyFrom(duration(now_s - min(ask.asked_s for ask in asks)))
        return message
