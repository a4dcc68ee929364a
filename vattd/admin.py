"""The operator's edge: everything about this vattd at one instant, and the verbs that change something."""

from __future__ import annotations

import asyncio
import enum
import math
import os
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from vatt.errors import InvalidRequest, TooBusy
from vatt.names import check_tenant_name
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd import __version__
from vattd.audit import AuditLog
from vattd.engine_session import EngineSession
from vattd.event_feed import EventFeed
from vattd.guarantee import Access
from vattd.messages import (
    access_message,
    device_message,
    duration,
    event_message,
    guarantee_message,
    memory_message,
    mode_of,
    page_map_message,
    promise_message,
    put_usage,
    reclaim_counts_message,
    seconds,
    timestamp,
)
from vattd.methods import Lane
from vattd.page_map import MAX_CELLS
from vattd.page_maps import PageMaps
from vattd.pool import Pool
from vattd.recovery import Recovery
from vattd.service import Context, rpc
from vattd.sessions import DRAINING, Sessions
from vattd.snapshot import SessionView, Snapshot, TenantView
from vattd.tenant_book import Change, TenantBook
from vattd.tenants import Tenant
from vattention.vmm.driver import PhysicalDriver

# gRPC metadata: who types, by the client's own word.
CALLER_KEY = "vatt-caller"
MAX_CALLER = 200
MAX_WATCHERS = 64
# How long sessions are waited for before a shrink: an idle one answers within a second.
SHRINK_WAIT_S = 1.0
MAX_DURATION_S = 10 * 365 * 86400.0


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


class AdminService(vatt_pb2_grpc.AdminServiceServicer):
    """What operators see and do."""

    def __init__(
        self,
        facts: DaemonFacts,
        sessions: Sessions,
        pool: Pool,
        driver: PhysicalDriver,
        book: TenantBook,
        audit: AuditLog,
        recovery: Recovery,
    ) -> None:
        self._recovery = recovery
        self._facts, self._sessions, self.pool, self._driver = facts, sessions, pool, driver
        self._book, self._audit = book, audit
        self._maps = PageMaps(pool.ledger)
        self._feeds: set[EventFeed] = set()
        self._lane = Lane()

    def lane_of(self, head: Message) -> Lane:
        """Who reaches the admin socket is the operator."""
        return self._lane

    @rpc
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        memory = await self.pool.memory()
        snapshot = self.pool.ledger.snapshot()
        views = {view.session_id: view for view in snapshot.sessions}
        state = self._facts.state
        if state is DaemonState.SERVING and self.pool.draining:
            state = DaemonState.DRAINING
        return pb.GetStatusResponse(
            daemon=pb.Daemon(
                version=__version__,
                incarnation=self._facts.incarnation,
                pid=os.getpid(),
                start_time=timestamp(self._facts.start_time_s),
                state=state.value,
                recovered_sessions_total=self._recovery.recovered_total,
                lost_sessions_total=self._recovery.lost_total,
                disputed_pages_total=self.pool.ledger.disputed_pages,
            ),
            device=device_message(self._driver.device),
            memory=memory_message(memory),
            pool=self._pool_message(snapshot),
            tenants=[self._tenant_message(view) for view in snapshot.tenants],
            sessions=[self._session_message(session, views[session.session_id]) for session in self._sessions],
        )

    @rpc
    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveResponse:  # noqa: N802
        with self._audited("reserve", request, context):
            await self._book.reserve(request.tenant, _parse_change(request))
        view = next(view for view in self.pool.ledger.snapshot().tenants if view.name == request.tenant)
        return pb.ReserveResponse(tenant=self._tenant_message(view))

    @rpc
    async def Unreserve(self, request: pb.UnreserveRequest, context: Context) -> pb.UnreserveResponse:  # noqa: N802
        with self._audited("unreserve", request, context):
            check_tenant_name(request.tenant)
            await self._book.unreserve(request.tenant)
        return pb.UnreserveResponse(guarantee=guarantee_of(self._book, request.tenant))

    @rpc
    async def Shrink(self, request: pb.ShrinkRequest, context: Context) -> pb.ShrinkResponse:  # noqa: N802
        with self._audited("shrink", request, context):
            if request.ask_sessions:
                await self.pool.ask_idle_back(SHRINK_WAIT_S)
            freed_pages = await self.pool.shrink()
        return pb.ShrinkResponse(freed_bytes=freed_pages * self._page_size_bytes)

    @rpc
    async def Evict(self, request: pb.EvictRequest, context: Context) -> pb.EvictResponse:  # noqa: N802
        with self._audited("evict", request, context):
            session = self._sessions.get(request.session_id)
            if request.kill:
                self._sessions.kill(session.session_id, "an operator evicts it")
            else:
                self._sessions.evict(session)
        held = {view.session_id: view.leased_pages for view in self.pool.ledger.session_views()}
        return pb.EvictResponse(leased_bytes=held.get(request.session_id, 0) * self._page_size_bytes)

    @rpc
    async def Drain(self, request: pb.DrainRequest, context: Context) -> pb.DrainResponse:  # noqa: N802
        with self._audited("drain", request, context):
            if self._facts.state is not DaemonState.SERVING:
                raise InvalidRequest(f"vattd is {self._facts.state.value}: there is nothing to drain")
            if request.resume:
                self.pool.resume()
                notice = pb.Notice(kind=pb.Notice.KIND_RESUMED, message="vattd takes new requests again")
            else:
                self.pool.drain()
                notice = DRAINING
            self._sessions.tell_all(notice)
        return pb.DrainResponse(leased_bytes=self.pool.ledger.lent_pages * self._page_size_bytes)

    @rpc
    async def GetPageMap(self, request: pb.GetPageMapRequest, context: Context) -> pb.GetPageMapResponse:  # noqa: N802
        if not 1 <= request.cell_count <= MAX_CELLS:
            raise InvalidRequest(f"a map has 1 to {MAX_CELLS} cells, not {request.cell_count}")
        return page_map_message(await self._maps.draw(request.cell_count))

    async def WatchEvents(self, request: pb.WatchEventsRequest, context: Context) -> AsyncIterator[pb.Event]:  # noqa: N802
        feed = await self._open_feed(request, context)
        try:
            async for what, missed in feed.read(follow=request.follow):
                yield event_message(what, self._page_size_bytes, missed)
        finally:
            feed.close()
            self._feeds.discard(feed)

    @rpc
    async def _open_feed(self, request: pb.WatchEventsRequest, context: Context) -> EventFeed:
        if request.after < 0 or request.min_lease_bytes < 0:
            raise InvalidRequest("`after` and `min_lease_bytes` are at least 0")
        if len(self._feeds) >= MAX_WATCHERS:
            raise TooBusy(f"{MAX_WATCHERS} watch events already, the most that can: end some")
        feed = EventFeed(self.pool.happenings, request.after, -(-request.min_lease_bytes // self._page_size_bytes))
        self._feeds.add(feed)
        return feed

    def close(self) -> None:
        """End every stream."""
        for feed in self._feeds:
            feed.close()

    @property
    def _page_size_bytes(self) -> int:
        return self.pool.ledger.page_size_bytes

    @contextmanager
    def _audited(self, verb: str, request: Message, context: Context) -> Iterator[None]:
        metadata = dict(context.invocation_metadata() or ())
        caller = str(metadata.get(CALLER_KEY, "unknown"))[:MAX_CALLER]
        arguments = MessageToDict(request, preserving_proto_field_name=True)
        with self._audit.entry(verb, caller, arguments):
            yield

    def _pool_message(self, snapshot: Snapshot) -> pb.Pool:
        page, ledger = snapshot.page_size_bytes, self.pool.ledger
        shortage = self.pool.shortage
        passes_on = ledger.stock.shares_zone
        return pb.Pool(
            page_size_bytes=page,
            min_bytes=self.pool.limits.min_bytes,
            max_bytes=snapshot.max_pages * page,
            pages_by_state=[
                pb.PagesInState(state=state.value, page_count=count) for state, count in snapshot.pages_by_state.items()
            ],
            peak_leased_bytes=snapshot.peak_leased_pages * page,
            peak_mapped_bytes=snapshot.peak_mapped_pages * page,
            waiting_pages=self.pool.waiting_pages,
            created_pages_total=snapshot.created_pages_total,
            scrubbed_pages_total=snapshot.scrubbed_pages_total,
            destroyed_pages_total=snapshot.destroyed_pages_total,
            shortage="" if shortage is None else str(shortage),
            promised_bytes=sum(tenant.guarantee.min_pages for tenant in ledger.promised()) * page,
            kept_free_bytes=self.pool.kept_free_pages * page,
            reclaims=reclaim_counts_message(self.pool.pressure.reclaims.counts),
            scrub=ledger.stock.scrub.value,
            isolated=not passes_on,
            context_bytes=self.pool.context_bytes,
        )

    def _tenant_message(self, view: TenantView) -> pb.Tenant:
        page, now_s = self._page_size_bytes, asyncio.get_running_loop().time()
        tenant = self.pool.ledger.tenant(view.name)
        policy = self.pool.policy
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
        view = self.pool.pressure.promise_of(tenant, now_s)
        return promise_message(view, self._page_size_bytes, time.time(), now_s)

    def _session_message(self, session: EngineSession, view: SessionView) -> pb.Session:
        page, now_s = self._page_size_bytes, asyncio.get_running_loop().time()
        asks = self.pool.pressure.reclaims.of(session.session_id)
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
            asked_back_overdue=self.pool.pressure.reclaims.is_overdue(session.session_id, now_s),
        )
        put_usage(message, view.usage, page)
        if asks:
            message.asked_back_since.CopyFrom(duration(now_s - min(ask.asked_s for ask in asks)))
        return message


def guarantee_of(book: TenantBook, tenant: str) -> pb.Guarantee:
    """What a tenant has now, as its sessions are told."""
    found = book.in_force(tenant)
    return guarantee_message(found[0] if found is not None else None, book.revision)


def _parse_change(request: pb.ReserveRequest) -> Change:
    """Raises InvalidRequest."""
    if request.HasField("max_bytes") and request.max_bytes < 0:
        raise InvalidRequest(f"a max is at least 1 byte, or 0 for none, not {request.max_bytes}")
    if request.min_mode and mode_of(request.min_mode) is None:
        raise InvalidRequest(f"min_mode {request.min_mode} is none that this vattd knows")
    access = None
    if request.HasField("access"):
        ids = (*request.access.uids, *request.access.gids)
        if any(not 0 <= number < 1 << 32 for number in ids):
            raise InvalidRequest("the ids of users and groups are 0 to 4294967295")
        access = Access(frozenset(request.access.uids), frozenset(request.access.gids))
    until_s = None
    if request.HasField("duration"):
        length_s = seconds(request.duration)
        if length_s and not 1 <= length_s <= MAX_DURATION_S:
            raise InvalidRequest(f"a reservation holds for 1 s to {MAX_DURATION_S:.0f} s, not {length_s:g} s")
        until_s = time.time() + length_s if length_s else math.inf
    return Change(
        min_bytes=request.min_bytes if request.HasField("min_bytes") else None,
        max_bytes=request.max_bytes if request.HasField("max_bytes") else None,
        weight=request.weight if request.HasField("weight") else None,
        mode=mode_of(request.min_mode),
        access=access,
        until_s=until_s,
    )
