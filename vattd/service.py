"""The gRPC edge: requests checked and turned into the pool's words, answers and errors turned back."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from functools import wraps
from typing import Any, TypeVar
from weakref import WeakValueDictionary

import grpc
from google.protobuf.message import Message

from vatt.errors import InvalidRequest, SessionUnknown, TokenRefused, TooBusy, VattError
from vatt.pages import LedgerBug
from vatt.protocol import MAX_PAGES_PER_LEASE, MAX_RUNS_PER_MESSAGE, MAX_USAGE_BYTES
from vatt.usage import Usage
from vatt.v1 import vatt_pb2 as pb
from vatt.v1 import vatt_pb2_grpc
from vattd.crowd import Crowd
from vattd.engine_session import EngineSession
from vattd.handles import parse_run
from vattd.messages import device_message, seconds
from vattd.methods import LARGE_BYTES, Lane, well_formed
from vattd.page_run import PageRun
from vattd.pool import Pool
from vattd.rates import (
    ATTACH_WEIGHT,
    MAX_DELAY_S,
    OF_SESSION,
    OF_USER,
    RUNS_A_MESSAGE,
    STRANGERS,
    STRANGERS_WEIGHT,
    Rates,
)
from vattd.sessions import Attachment, Sessions
from vattd.status_codes import abort
from vattd.wish import Purpose, Wish
from vattention.vmm.driver import HandleKind, PhysicalDriver

log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]
Request = TypeVar("Request")
Response = TypeVar("Response")

MAX_WAIT_S = 3600.0
MAX_REQUEST_ID = 64
# Leases of one user that wait for pages.
MAX_WAITING_OF_USER = 8192
_PURPOSES = {
    pb.LEASE_PURPOSE_ADMIT: Purpose.ADMIT,
    pb.LEASE_PURPOSE_GROW: Purpose.GROW,
    pb.LEASE_PURPOSE_AHEAD: Purpose.AHEAD,
}
_KINDS = {HandleKind.POSIX_FD: pb.HANDLE_KIND_POSIX_FD, HandleKind.SLAB_FD: pb.HANDLE_KIND_SLAB_FD}


def rpc(
    method: Callable[[Any, Request, Context], Awaitable[Response]],
) -> Callable[[Any, Request, Context], Awaitable[Response]]:
    """One call's boundary: our errors go to the caller; anything else is a bug of ours, told as INTERNAL and logged.

    After a LedgerBug nothing may be lent any more: a service has its pool at `pool`. And it has `lane_of`, for large
    requests: see well_formed.
    """

    @wraps(method)
    async def call(self: Any, request: Request, context: Context) -> Response:
        try:
            return await method(self, await well_formed(request, self.lane_of), context)
        except VattError as error:
            await abort(context, error)
        except LedgerBug as error:
            self.pool.broken(error)
            await abort(context, VattError(f"vattd is broken: {error}"))
        except Exception as error:
            log.exception("%s failed", method.__name__)
            await abort(context, VattError(f"{method.__name__} failed in vattd: {error}"))

    return call


class EngineService(vatt_pb2_grpc.EngineServiceServicer):
    """What engines call. It has no admin method. `users` is how fast each user may speak, here and elsewhere."""

    def __init__(self, sessions: Sessions, pool: Pool, driver: PhysicalDriver, incarnation: int, users: Rates) -> None:
        self._sessions, self.pool, self._driver, self._incarnation = sessions, pool, driver, incarnation
        self._each, self._users = Rates(OF_SESSION), users
        self._lanes: WeakValueDictionary[int, Lane] = WeakValueDictionary()
        self._leasing = Crowd(MAX_WAITING_OF_USER)
        self._too_fast = Crowd(OF_USER.per_s * MAX_DELAY_S)

    async def Attach(  # noqa: N802 - gRPC's names
        self, request: pb.AttachRequest, context: Context
    ) -> AsyncIterator[pb.AttachResponse]:
        attachment, key = await self._attach(request, context)
        session, mailbox = attachment.session, attachment.mailbox
        try:
            yield pb.AttachResponse(
                attached=pb.Attached(
                    key=key,
                    protocol_version=session.protocol_version,
                    incarnation=self._incarnation,
                    device=device_message(self._driver.device),
                    page_size_bytes=self._driver.page_size_bytes,
                    max_pages_per_lease=MAX_PAGES_PER_LEASE,
                    max_runs_per_message=MAX_RUNS_PER_MESSAGE,
                    pool_pages=self.pool.ledger.stock.max_pages,
                    refused_claims=[_page_run(run) for run in session.refused_claims],
                )
            )
            async for letter in mailbox.letters():
                yield letter
        finally:
            if session.mailbox is mailbox:  # else a later stream has taken over
                self._sessions.fence(session)

    @rpc
    async def _attach(self, request: pb.AttachRequest, context: Context) -> tuple[Attachment, pb.SessionKey]:
        user = self._sessions.user_of(request.token)
        await (self._wait_as_stranger(ATTACH_WEIGHT) if user is None else self._wait_turn(user, ATTACH_WEIGHT))
        # What is begun is finished, whether the engine still waits for it or not.
        attaching = asyncio.ensure_future(self._sessions.attach(request, time.time()))
        try:
            attachment = await asyncio.shield(attaching)
        except asyncio.CancelledError:
            attaching.add_done_callback(self._fence_unheard)
            raise
        return attachment, _key_of(attachment.session, request)

    def lane_of(self, head: Message) -> Lane:
        """For a large request: claims of a session that is back, or pages that it returns. Raises TokenRefused,
        SessionUnknown, InvalidRequest."""
        if isinstance(head, pb.AttachRequest):
            user = self._sessions.user_of(head.token)
            if user is None:
                raise TokenRefused("not a token of this vattd, or used already: connect to the handle socket anew")
        elif isinstance(head, pb.ReturnPagesRequest):
            user = self._sessions.find(head.key).peer.uid
        else:
            raise InvalidRequest(f"a {head.DESCRIPTOR.name} has at most {LARGE_BYTES} bytes")
        return self._lanes.setdefault(user, Lane())

    async def _session_of(self, key: pb.SessionKey, run_count: int = 0) -> EngineSession:
        """Who speaks of so many runs; if too fast, it waits here. Raises SessionUnknown, InvalidRequest, TooBusy."""
        if run_count > MAX_RUNS_PER_MESSAGE:
            raise InvalidRequest(f"at most {MAX_RUNS_PER_MESSAGE} runs at a time, not {run_count}")
        weight = 1 + run_count / RUNS_A_MESSAGE
        try:
            session = self._sessions.find(key)
        except SessionUnknown:
            await self._wait_as_stranger(weight)
            raise
        if await self._wait_turn(session.peer.uid, weight, session.session_id):
            return self._sessions.find(key)  # it may have ended meanwhile
        return session

    async def _wait_turn(self, user: int, weight: float, session_id: str | None = None) -> bool:
        """Returns whether there was anything to wait for. Raises TooBusy."""
        now_s = asyncio.get_running_loop().time()
        delay_s = self._users.delay_s(user, now_s, weight)
        if session_id is not None:
            delay_s = max(delay_s, self._each.delay_s(session_id, now_s, weight))
        if not delay_s:
            return False
        with self._too_fast.one_more(user, weight):
            await asyncio.sleep(delay_s)
        return True

    async def _wait_as_stranger(self, weight: float) -> None:
        """Before a refusal, which comes at once where too many wait for theirs."""
        with suppress(TooBusy):
            await self._wait_turn(STRANGERS, weight * STRANGERS_WEIGHT)

    def _fence_unheard(self, attaching: asyncio.Future[Attachment]) -> None:
        """The engine broke off before it was answered."""
        if attaching.exception() is None:
            self._sessions.fence(attaching.result().session)

    @rpc
    async def LeasePages(self, request: pb.LeasePagesRequest, context: Context) -> pb.LeasePagesResponse:  # noqa: N802
        session = await self._session_of(request.key)
        wish = None
        try:
            wish = _parse_wish(session.session_id, request, asyncio.get_running_loop().time())
            session.check_may_lease(is_repeat=self.pool.ledger.remembers(session.session_id, wish.request_id))
            with self._leasing.one_more(session.peer.uid):
                runs = await self.pool.lease(wish)
        except VattError as error:
            # What is no wish asks for no pages: its number may be any, and their bytes more than a message can say.
            self.pool.record.refused(session.session_id, 0 if wish is None else wish.page_count, error)
            raise
        return pb.LeasePagesResponse(runs=[self._leased(run) for run in runs])

    @rpc
    async def CancelLease(self, request: pb.CancelLeaseRequest, context: Context) -> pb.CancelLeaseResponse:  # noqa: N802
        session = await self._session_of(request.key)
        _check_request_id(request.request_id)
        return pb.CancelLeaseResponse(returned_pages=self.pool.cancel(session.session_id, request.request_id))

    @rpc
    async def ReturnPages(self, request: pb.ReturnPagesRequest, context: Context) -> pb.ReturnPagesResponse:  # noqa: N802
        session = await self._session_of(request.key, len(request.runs))
        runs = [parse_run(run) for run in request.runs]
        if sum(run.extent.page_count for run in runs) > MAX_PAGES_PER_LEASE:
            raise InvalidRequest(f"at most {MAX_PAGES_PER_LEASE} pages at a time")
        return pb.ReturnPagesResponse(returned_pages=self.pool.give_back(session.session_id, runs))

    @rpc
    async def AnswerReclaim(self, request: pb.AnswerReclaimRequest, context: Context) -> pb.AnswerReclaimResponse:  # noqa: N802
        session = await self._session_of(request.key)
        self.pool.answer_reclaim(session.session_id, request.reclaim_id)
        return pb.AnswerReclaimResponse()

    @rpc
    async def ReportUsage(self, request: pb.ReportUsageRequest, context: Context) -> pb.ReportUsageResponse:  # noqa: N802
        session = await self._session_of(request.key)
        self.pool.report_usage(session.session_id, _parse_usage(request))
        return pb.ReportUsageResponse()

    @rpc
    async def Detach(self, request: pb.DetachRequest, context: Context) -> pb.DetachResponse:  # noqa: N802
        session = await self._session_of(request.key)
        return pb.DetachResponse(returned_pages=self._sessions.end(session, unmapped=True))

    def _leased(self, run: PageRun) -> pb.LeasedRun:
        placement = self._driver.placement(run.extent)
        return pb.LeasedRun(
            run=_page_run(run),
            kind=_KINDS[placement.kind],
            offset_bytes=placement.offset_bytes,
        )


def _key_of(session: EngineSession, request: pb.AttachRequest) -> pb.SessionKey:
    """Who resumes knows the secret, and vattd may not."""
    secret = request.resume.secret if request.HasField("resume") else session.secret
    return pb.SessionKey(session_id=session.session_id, secret=secret)


def _page_run(run: PageRun) -> pb.PageRun:
    return pb.PageRun(first_page_id=run.extent.first, page_count=run.extent.page_count, generation=run.generation)


def _check_request_id(request_id: str) -> None:
    if not 1 <= len(request_id) <= MAX_REQUEST_ID:
        raise InvalidRequest(f"a request_id has 1 to {MAX_REQUEST_ID} characters")


def _parse_usage(request: pb.ReportUsageRequest) -> Usage:
    if request.mapped_pages < 0:
        raise InvalidRequest(f"mapped_pages is at least 0, not {request.mapped_pages}")
    for name in ("token_bytes", "static_reservation_bytes", "paged16_bytes", "paged256_bytes"):
        size_bytes = getattr(request, name)
        if not 0 <= size_bytes <= MAX_USAGE_BYTES:
            raise InvalidRequest(f"{name} is 0 to {MAX_USAGE_BYTES}, not {size_bytes}")
    return Usage(
        mapped_pages=request.mapped_pages,
        token_bytes=request.token_bytes,
        static_reservation_bytes=request.static_reservation_bytes,
        paged16_bytes=request.paged16_bytes,
        paged256_bytes=request.paged256_bytes,
    )


def _parse_wish(session_id: str, request: pb.LeasePagesRequest, now_s: float) -> Wish:
    _check_request_id(request.request_id)
    if not 1 <= request.page_count <= MAX_PAGES_PER_LEASE:
        raise InvalidRequest(f"lease 1 to {MAX_PAGES_PER_LEASE} pages at a time, not {request.page_count}")
    if not 0 <= request.min_page_count <= request.page_count:
        raise InvalidRequest(f"min_page_count is 0 to page_count, not {request.min_page_count}")
    purpose = _PURPOSES.get(request.purpose)
    if purpose is None:
        raise InvalidRequest("purpose is ADMIT, GROW or AHEAD")
    wait_s = seconds(request.wait)
    if not 0 <= wait_s <= MAX_WAIT_S:
        raise InvalidRequest(f"wait is 0 to {MAX_WAIT_S:.0f} s, not {wait_s}")
    if wait_s and purpose is not Purpose.ADMIT:
        raise InvalidRequest(f"only an ADMIT waits: {purpose.name} is granted or refused at once")
    return Wish(
        session_id=session_id,
        request_id=request.request_id,
        page_count=request.page_count,
        min_page_count=request.min_page_count or request.page_count,
        purpose=purpose,
        deadline_s=now_s + wait_s,
    )
