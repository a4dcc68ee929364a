"""One instant of a vattd, and the message that says it. Nothing of it changes any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vatt.v1 import vatt_pb2 as pb
from vattd.journal import SessionFacts
from vattd.messages import (
    access_message,
    duration,
    guarantee_message,
    promise_message,
    put_usage,
    timestamp,
)
from vattd.pressure import PromiseView
from vattd.reservation import Reservation
from vattd.snapshot import SessionView, TenantView


@dataclass(frozen=True, slots=True)
class TenantInstant:
    """A tenant, what it waits for, what was set for it and by whom, and how far its min is kept if it has one."""

    view: TenantView
    waiting_pages: int
    waiting_leases: int
    longest_wait_s: float
    reservation: Reservation | None
    source: str
    promise: PromiseView | None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked back of a session, and for how long."""

    page_count: int
    length_s: float
    is_overdue: bool


@dataclass(frozen=True, slots=True)
class SessionInstant:
    view: SessionView
    facts: SessionFacts
    state: str
    wanted: Wanted | None


@dataclass(frozen=True, slots=True)
class Instant:
    """`head` is the message less its tenants and sessions: those are many, and are put in by whoever has the time.

    `wall_s` and `now_s` are the instant on the wall clock and on the event loop's.
    """

    head: pb.GetStatusResponse
    tenants: Sequence[TenantInstant]
    sessions: Sequence[SessionInstant]
    revision: int  # of what was set for all tenants
    wall_s: float
    now_s: float

    def message(self) -> pb.GetStatusResponse:
        message = pb.GetStatusResponse()
        message.CopyFrom(self.head)
        message.tenants.extend(self.tenant(one) for one in self.tenants)
        message.sessions.extend(self._session(one) for one in self.sessions)
        return message

    def tenant(self, one: TenantInstant) -> pb.Tenant:
        view, page = one.view, self.head.pool.page_size_bytes
        message = pb.Tenant(
            name=view.name,
            session_count=view.session_count,
            leased_bytes=view.leased_pages * page,
            source=one.source,
            waiting_bytes=one.waiting_pages * page,
            waiting_leases=one.waiting_leases,
            longest_wait=duration(one.longest_wait_s),
            waited_total=view.tally.waited,
            waited_time_total=duration(view.tally.waited_s),
            granted_leases_total=view.tally.granted,
            granted_bytes_total=view.tally.granted_pages * page,
            refused_leases_total=view.tally.refusals.total(),
        )
        put_usage(message, view.usage, page)
        reservation = one.reservation
        if reservation is None:
            if view.owner_uid is not None:
                message.owner_uid = view.owner_uid
            return message
        message.guarantee.CopyFrom(guarantee_message(reservation, self.revision))
        message.access.CopyFrom(access_message(reservation.access))
        if reservation.until_s is not None:
            message.until.CopyFrom(timestamp(reservation.until_s))
        if one.promise is not None:
            message.promise.CopyFrom(promise_message(one.promise, page, self.wall_s, self.now_s))
        return message

    def _session(self, one: SessionInstant) -> pb.Session:
        view, facts, page = one.view, one.facts, self.head.pool.page_size_bytes
        message = pb.Session(
            session_id=view.session_id,
            tenant=view.tenant,
            pid=facts.pid,
            uid=facts.uid,
            client_name=facts.client_name,
            state=one.state,
            leased_bytes=view.leased_pages * page,
            attach_time=timestamp(facts.attach_time_s),
        )
        put_usage(message, view.usage, page)
        if one.wanted is not None:
            message.asked_back_bytes = min(one.wanted.page_count, view.leased_pages) * page
            message.asked_back_since.CopyFrom(duration(one.wanted.length_s))
            message.asked_back_overdue = one.wanted.is_overdue
        return message
