"""What is missing for whom, and which sessions are to give it back.

Pure: it reads the ledger and the policy, and keeps the asks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from vatt.errors import SessionUnknown
from vattd.guarantee import MinMode
from vattd.policy import Policy
from vattd.reclaim import ASK_AGAIN_S, Ask, Reason, Reclaims, Request
from vattd.share_out import Holder
from vattd.snapshot import SessionView
from vattd.wish import Party

# A process ends within a moment of SIGKILL, unless it hangs in the kernel: after this its pages are missed again.
DYING_S = 2.0


class Holdings(Protocol):
    """The ledger, as far as it is read here."""

    @property
    def page_size_bytes(self) -> int: ...
    @property
    def capacity_pages(self) -> int:
        """What could be lent at one time now."""

    @property
    def max_pages(self) -> int:
        """The pool's limit."""

    def limited(self) -> Iterable[Party]:
        """Tenants with a max."""

    def tenant_of(self, session_id: str) -> Party:
        """Raises SessionUnknown."""

    def session_views(self) -> Iterable[SessionView]: ...


class PromiseState(enum.Enum):
    HELD = "held"  # all that the tenant asked for within its min it has; a hard min lies ready as a whole
    PENDING = "pending"  # others were asked for what is missing, and their time is not over
    BROKEN = "broken"  # their time is over


@dataclass(frozen=True, slots=True)
class PromiseView:
    """How far a tenant's min is kept."""

    state: PromiseState
    missing_pages: int = 0
    lent_pages: int = 0  # of a soft min: what its tenant does not use and others have
    deadline_s: float | None = None
    broken_by: tuple[str, ...] = ()  # sessions, or "device"


@dataclass(frozen=True, slots=True)
class Review:
    """What follows from a look at everything: whom to tell what, whose silence to note, whom to kill."""

    requests: list[Request]
    ignored: list[Ask]
    victim: Ask | None


class Pressure:
    """Asks sessions for what is missing.

    For a promise, those above their min are asked as deep as it needs; for one that only waits its turn, idle pages
    are asked for and nothing that a request uses; a tenant above its max is asked for what it has too much.
    """

    def __init__(
        self,
        ledger: Holdings,
        policy: Policy,
        reclaims: Reclaims,
        listens: Callable[[str], bool],
    ) -> None:
        """`listens` says whether a session's stream is up, so that it can be told."""
        self.reclaims = reclaims
        self._ledger, self._policy, self._listens = ledger, policy, listens
        self._killed: dict[str, float] = {}  # sessions, and when
        self._unkillable: set[str] = set()
        self._is_draining = False
        self._leaving: set[str] = set()  # sessions that an operator asked to leave

    def review(self, now_s: float) -> Review:
        reclaims = self.reclaims
        ignored = reclaims.note_ignored(now_s)
        gap = self._policy.promise_gap(now_s)
        head = self._policy.head_gap(now_s)
        over = {tenant.name: self._over_max(tenant) for tenant in self._ledger.limited() if self._over_max(tenant)}
        if not (reclaims or reclaims.has_news or gap or head or over or self._is_draining or self._leaving):
            return Review([], ignored, None)
        self._ask_those_who_leave(now_s)
        if gap or not self._is_being_kept():
            reclaims.want(Reason.PROMISE, gap, self._holders(self._above_min) if gap else (), now_s)
        limit = self._holders(lambda tenant: over.get(tenant.name, 0)) if over else ()
        reclaims.want(Reason.LIMIT, sum(over.values()), limit, now_s)
        if head is None:
            reclaims.drop(Reason.QUEUE)
        else:
            waits, missing = head
            # Who waits has used what it has idle, but the tenant's other sessions have not.
            queue = [
                holder
                for holder in self._holders(lambda t: t.held_pages if t is waits.party else self._above_min(t))
                if holder.session_id != waits.wish.session_id
            ]
            reclaims.want(Reason.QUEUE, missing, queue, now_s)
        held = {view.session_id: view.leased_pages for view in self._ledger.session_views()}
        dying = [session_id for session_id, killed_s in self._killed.items() if now_s < killed_s + DYING_S]
        is_enough = gap <= sum(held.get(session_id, 0) for session_id in dying)  # theirs come back in a moment
        victim = None if is_enough else reclaims.to_kill(self._may_kill, now_s)
        return Review(reclaims.take_requests(held, now_s), ignored, victim)

    def note_killed(self, session_id: str, now_s: float) -> None:
        """The victim of a review has been sent SIGKILL."""
        self._killed[session_id] = now_s
        self.reclaims.counts.killed += 1

    def note_unkillable(self, session_id: str) -> None:
        """The kernel refuses to end that victim: another one has to be found."""
        self._unkillable.add(session_id)

    def ask_all(self, now_s: float) -> None:
        """An operator wants what no request uses: ask every session for it."""
        for holder in self._holders(lambda tenant: tenant.held_pages):
            if holder.listens:
                self.reclaims.want_all(holder, Reason.OPERATOR, holder.idle_pages, now_s)

    def ask_to_leave(self, session_id: str) -> None:
        """An operator wants all that this session has, from now on."""
        self._leaving.add(session_id)

    def drain(self) -> None:
        """An operator wants all that no request uses, from now on."""
        self._is_draining = True

    def end_drain(self) -> None:
        self._is_draining = False
        self.reclaims.drop(Reason.DRAIN)

    def _ask_those_who_leave(self, now_s: float) -> None:
        """Requests end bit by bit: who gave what it could is asked again for what it has by then."""
        if not (self._is_draining or self._leaving):
            return
        for holder in self._holders(lambda tenant: tenant.held_pages):
            is_leaving = holder.session_id in self._leaving
            reason = Reason.EVICTION if is_leaving else Reason.DRAIN
            if (is_leaving or self._is_draining) and self.reclaims.may_ask_anew(holder.session_id, reason, now_s):
                pages = holder.held_pages if is_leaving else holder.idle_pages
                self.reclaims.want_all(holder, reason, pages, now_s)

    def session_ended(self, session_id: str) -> None:
        self.reclaims.ended(session_id)
        self._killed.pop(session_id, None)
        self._unkillable.discard(session_id)
        self._leaving.discard(session_id)

    def promises_of(self, tenants: Sequence[Party], now_s: float) -> list[PromiseView]:
        """How far each one's min is kept. What is missing takes a look at every tenant: one for all, not one each."""
        policy = self._policy
        free_pages = max(0, policy.free_pages)
        lent_pages = [self._lent_pages(tenant, free_pages) for tenant in tenants]
        aside_pages = [policy.set_aside(tenant, now_s) for tenant in tenants]
        if not any(aside_pages):
            return [PromiseView(PromiseState.HELD, lent_pages=lent) for lent in lent_pages]
        gaps = {MinMode.HARD: policy.hard_gap(now_s), MinMode.SOFT: policy.promise_gap(now_s)}
        deadline_s, late = self.reclaims.promise_state(now_s)
        if not late and self._ledger.capacity_pages < self._ledger.max_pages:
            late = ["device"]
        views = []
        for tenant, lent, aside in zip(tenants, lent_pages, aside_pages, strict=True):
            missing = min(aside, gaps[tenant.guarantee.mode])
            if not missing:
                views.append(PromiseView(PromiseState.HELD, lent_pages=lent))
            elif deadline_s is not None:
                views.append(PromiseView(PromiseState.PENDING, missing, lent, deadline_s))
            else:
                state = PromiseState.BROKEN if late else PromiseState.PENDING
                views.append(PromiseView(state, missing, lent, broken_by=tuple(late)))
        return views

    def _lent_pages(self, tenant: Party, free_pages: int) -> int:
        """Of its soft min, what it does not use and others have."""
        if tenant.guarantee.mode is not MinMode.SOFT:
            return 0
        return max(0, tenant.guarantee.min_pages - self._policy.pages_of(tenant) - free_pages)

    def next_change_s(self, now_s: float) -> float | None:
        times_s = [killed_s + DYING_S for killed_s in self._killed.values()]
        change_s = self.reclaims.next_change_s(now_s)
        if change_s is not None:
            times_s.append(change_s)
        if self._is_draining or self._leaving:  # what is idle is another with every report
            times_s.append(now_s + ASK_AGAIN_S)
        return min((time_s for time_s in times_s if time_s > now_s), default=None)

    def _is_being_kept(self) -> bool:
        """Are pages being made for a tenant with a min? If they cannot be, they are missing as before, and whoever was
        asked for them has had its time."""
        return any(entry.party.guarantee.min_pages for entry in self._policy.wishes.awarded)

    def _above_min(self, tenant: Party) -> int:
        return max(0, tenant.held_pages - tenant.guarantee.min_pages)

    def _over_max(self, tenant: Party) -> int:
        most = tenant.guarantee.max_pages
        return 0 if most is None else max(0, tenant.held_pages - most)

    def _may_kill(self, session_id: str) -> bool:
        try:
            tenant = self._ledger.tenant_of(session_id)
        except SessionUnknown:
            return False
        is_left = session_id not in self._killed and session_id not in self._unkillable
        return is_left and self._above_min(tenant) > 0

    def _holders(self, spare: Callable[[Party], int]) -> Iterable[Holder]:
        """Sessions of tenants that have something to spare."""
        return list(self._find_holders(spare))

    def _find_holders(self, spare: Callable[[Party], int]) -> Iterator[Holder]:
        for view in self._ledger.session_views():
            tenant = self._ledger.tenant_of(view.session_id)
            spare_pages = spare(tenant)
            if view.leased_pages and spare_pages > 0:
                yield Holder(
                    session_id=view.session_id,
                    tenant=tenant.name,
                    weight=tenant.guarantee.weight,
                    spare_pages=spare_pages,
                    held_pages=view.leased_pages,
                    idle_pages=self._idle_pages(view),
                    listens=self._listens(view.session_id),
                )

    def _idle_pages(self, view: SessionView) -> int:
        """By the session's own word, nothing uses these."""
        used = -(-view.usage.token_bytes // self._ledger.page_size_bytes)
        return max(0, view.leased_pages - used)
