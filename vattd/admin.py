"""The operator's edge: everything about this vattd at one instant, and the verbs that change something."""

from __future__ import annotations

import math
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from vatt.errors import InvalidRequest, TooBusy
from vatt.names import check_tenant_name
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd.audit import AuditLog
from vattd.event_feed import EventFeed
from vattd.guarantee import Access
from vattd.messages import (
    event_message,
    guarantee_message,
    mode_of,
    page_map_message,
    seconds,
)
from vattd.methods import Lane
from vattd.page_map import MAX_CELLS
from vattd.page_maps import PageMaps
from vattd.pool import Pool
from vattd.service import Context, rpc
from vattd.sessions import DRAINING, Sessions
from vattd.status import DaemonState, Status
from vattd.tenant_book import Change, TenantBook

# gRPC metadata: who types, by the client's own word.
CALLER_KEY = "vatt-caller"
MAX_CALLER = 200
MAX_WATCHERS = 64
# How long sessions are waited for before a shrink: an idle one answers within a second.
SHRINK_WAIT_S = 1.0
MAX_DURATION_S = 10 * 365 * 86400.0


class AdminService(vatt_pb2_grpc.AdminServiceServicer):
    """What operators see and do."""

    def __init__(
        self,
        status: Status,
        sessions: Sessions,
        pool: Pool,
        book: TenantBook,
        audit: AuditLog,
        maps: PageMaps,
    ) -> None:
        self._status, self._sessions, self.pool = status, sessions, pool
        self._book, self._audit, self._maps = book, audit, maps
        self._feeds: set[EventFeed] = set()
        self._lane = Lane()

    def lane_of(self, head: Message) -> Lane:
        """Who reaches the admin socket is the operator."""
        return self._lane

    @rpc
    async def GetStatus(self, request: pb.GetStatusRequest, context: Context) -> pb.GetStatusResponse:  # noqa: N802
        return self._status.message(await self.pool.memory())

    @rpc
    async def Reserve(self, request: pb.ReserveRequest, context: Context) -> pb.ReserveResponse:  # noqa: N802
        with self._audited("reserve", request, context):
            await self._book.reserve(request.tenant, _parse_change(request))
        return pb.ReserveResponse(tenant=self._status.tenant(request.tenant))

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
            if self._status.state not in (DaemonState.SERVING, DaemonState.DRAINING):
                raise InvalidRequest(f"vattd is {self._status.state.value}: there is nothing to drain")
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
