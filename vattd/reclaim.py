"""Who was asked for pages back, how many, and what became of it.

Pure: time is an argument. Of those above their min the ones furthest above it by weight are asked, idle pages first;
who does not answer in time is passed over, and the next ones are asked.
"""

from __future__ import annotations

import enum
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from vattd.share_out import Depth, Holder, share_out

# Who answered that it has no more to give is asked again this much later.
ASK_AGAIN_S = 0.5


class Reason(enum.Enum):
    """Why pages are asked back, with how deep they may be asked for."""

    PROMISE = "another tenant's min is short"
    LIMIT = "the tenant's max was lowered"
    QUEUE = "others wait for pages"
    OPERATOR = "an operator asks for what is idle"
    DRAIN = "an operator has vattd drained"
    EVICTION = "an operator asks this session to leave"

    @property
    def depth(self) -> Depth:
        return Depth.RUNNING if self in (Reason.PROMISE, Reason.LIMIT, Reason.EVICTION) else Depth.IDLE


@dataclass(frozen=True, slots=True)
class Request:
    """What to tell a session: all that is wanted of it now."""

    reclaim_id: int
    session_id: str
    page_count: int
    depth: Depth
    within_s: float
    reason: Reason


@dataclass(slots=True, eq=False)
class Ask:
    """Pages wanted of one session for one reason, asked for at one time. It ends when they came, or when nobody wants
    them any more."""

    session_id: str
    reason: Reason
    depth: Depth
    page_count: int  # still wanted
    asked_s: float  # since when they are wanted without a break: who gave less than was asked is asked for the rest
    answer_by_s: float
    reclaim_id: int = 0
    answered_s: float | None = None  # when the session said that it has no more to give
    was_ignored: bool = False

    def is_live(self, now_s: float) -> bool:
        """May pages still come by it?"""
        return self.answered_s is None and now_s < self.answer_by_s


@dataclass(slots=True)
class ReclaimCounts:
    """Since vattd started."""

    asked_pages: int = 0
    asked: int = 0
    answered: int = 0
    ignored: int = 0
    killed: int = 0


class Reclaims:
    """The open asks.

    Invariants, which hold after each review: for no reason a session is asked for more than it holds; what is asked for
    one, of sessions that may still answer, is never more than is missing for it, and of a tenant's than it can spare.
    """

    def __init__(self, within_s: float, kill_after_s: float | None) -> None:
        self.within_s, self._kill_after_s = within_s, kill_after_s
        self.counts = ReclaimCounts()
        self._asks: dict[tuple[str, Reason], list[Ask]] = {}  # the oldest first
        self._last_id = 0
        self._told: set[str] = set()  # sessions that must be told what is wanted of them now

    def __bool__(self) -> bool:
        return bool(self._asks)

    @property
    def has_news(self) -> bool:
        """Is there a session to be told something?"""
        return bool(self._told)

    def is_waiting(self, reason: Reason, now_s: float) -> bool:
        """May pages still come that were asked for this reason?"""
        return any(ask.is_live(now_s) for ask in self._for(reason))

    def are_overdue(self, asks: Iterable[Ask], now_s: float) -> bool:
        """Did the session that these are of let the time go by without a word, or without giving what it must give?"""
        return any(
            ask.was_ignored or (ask.reason.depth is Depth.RUNNING and now_s >= ask.asked_s + self.within_s)
            for ask in asks
        )

    def of(self, session_id: str) -> list[Ask]:
        return [ask for reason in Reason for ask in self._asks.get((session_id, reason), ())]

    def by_session(self) -> dict[str, list[Ask]]:
        """Of those of which something is wanted."""
        found: defaultdict[str, list[Ask]] = defaultdict(list)
        for (session_id, _), asks in self._asks.items():
            found[session_id] += asks
        return found

    # What is wanted

    def want(self, reason: Reason, page_count: int, holders: Iterable[Holder], now_s: float) -> None:
        """Ask `holders` for so many pages in all, less what has been asked of them already: idle ones first.

        With 0, nothing is wanted for this reason any more. Those above their min by most, by weight, give most.
        """
        if page_count <= 0:
            self.drop(reason)
            return
        # Who gave what it could of the idle ones has none left, whatever it reports: it is asked deeper.
        holders = [replace(holder, idle_pages=0) if self._gave_idle(holder, reason) else holder for holder in holders]
        self._let_off(reason, page_count, holders, now_s)
        # Who does not listen cannot give anything now, but its time runs: a promise must not end there.
        for listens in (True, False):
            live: Counter[str] = Counter()
            for ask in self._for(reason):
                live[ask.session_id] += ask.page_count if ask.is_live(now_s) else 0
            asked = {
                holder.session_id
                for holder in holders
                if holder.listens is listens and self._may_ask(holder.session_id, reason, now_s)
            }
            for session_id, (pages, depth) in share_out(
                page_count - live.total(), reason.depth, holders, live, asked
            ).items():
                self._ask(session_id, reason, pages, depth, now_s)

    def want_all(self, holder: Holder, reason: Reason, page_count: int, now_s: float) -> None:
        """Ask one session for so many pages, whatever others are asked."""
        if page_count > 0:
            before = self._asks.pop((holder.session_id, reason), ())
            since_s = min((ask.asked_s for ask in before), default=now_s)
            self._ask(holder.session_id, reason, page_count, reason.depth, now_s, since_s)

    def may_ask_anew(self, session_id: str, reason: Reason, now_s: float) -> bool:
        """Was it not asked for this reason yet, or did it answer some time ago?"""
        return all(
            ask.answered_s is not None and now_s >= ask.answered_s + ASK_AGAIN_S
            for ask in self._asks.get((session_id, reason), ())
        )

    def tell_again(self, session_id: str) -> None:
        """Nobody listened when the session was asked."""
        if self.of(session_id):
            self._told.add(session_id)

    def drop(self, reason: Reason) -> None:
        for ask in self._for(reason):
            self._forget(ask)

    def take_requests(self, held_pages: Mapping[str, int], now_s: float) -> list[Request]:
        """What sessions are to be told, once: the whole of what is wanted of them."""
        for ask in self._all():
            self._cut(ask, held_pages.get(ask.session_id, 0))
        requests = []
        for session_id in sorted(self._told | self._untold()):
            asks = [ask for ask in self.of(session_id) if ask.answered_s is None]
            # Idle pages that somebody would like are not to be had from running requests: they are told of later.
            depth = max((ask.depth for ask in asks), default=Depth.IDLE)
            asks = [ask for ask in asks if ask.depth is depth]
            pages = min(sum(ask.page_count for ask in asks), held_pages.get(session_id, 0))
            if pages:
                requests.append(self._tell(session_id, asks, pages, now_s))
        self._told.clear()
        return requests

    # What came of it

    def returned(self, session_id: str, page_count: int) -> None:
        """A session returned pages. They are counted for the first reason that wants some."""
        for ask in self.of(session_id):
            part = min(page_count, ask.page_count)
            ask.page_count -= part
            page_count -= part
            if not ask.page_count:
                self._forget(ask)
                if ask.answered_s is None and not ask.was_ignored:
                    self.counts.answered += 1

    def answered(self, session_id: str, reclaim_id: int, now_s: float) -> None:
        """A session says that it gave what it could. An old id says nothing of what was asked since."""
        for ask in self.of(session_id):
            if ask.reclaim_id and ask.reclaim_id <= reclaim_id and ask.answered_s is None:
                ask.answered_s = now_s
                if not ask.was_ignored:
                    self.counts.answered += 1
                if ask.reason is Reason.OPERATOR:
                    self._forget(ask)

    def ended(self, session_id: str) -> None:
        for ask in self.of(session_id):
            self._forget(ask)

    def note_ignored(self, now_s: float) -> list[Ask]:
        """Asks whose time went by without an answer, each once."""
        ignored = [
            ask
            for ask in self._all()
            if ask.reclaim_id and not ask.was_ignored and ask.answered_s is None and now_s >= ask.answer_by_s
        ]
        for ask in ignored:
            ask.was_ignored = True
            if ask.reason is Reason.OPERATOR:  # it is for the operator to ask again
                self._forget(ask)
        self.counts.ignored += len(ignored)
        return ignored

    def to_kill(self, may_be_killed: Callable[[str], bool], now_s: float) -> Ask | None:
        """Of those whose pages a promise waits for longer than the operator allows, the one that was asked first."""
        if self._kill_after_s is None:
            return None
        late = [
            ask
            for ask in self._for(Reason.PROMISE)
            if now_s >= ask.asked_s + self._kill_after_s and may_be_killed(ask.session_id)
        ]
        return min(late, key=lambda ask: ask.asked_s, default=None)

    def promise_state(self, now_s: float) -> tuple[float | None, list[str]]:
        """Until when those asked for promised pages have time, and the sessions whose time for it is over."""
        asks = self._for(Reason.PROMISE)
        late = sorted({ask.session_id for ask in asks if now_s >= ask.asked_s + self.within_s})
        in_time_s = [ask.asked_s + self.within_s for ask in asks if now_s < ask.asked_s + self.within_s]
        return max(in_time_s, default=None), late

    def next_change_s(self, now_s: float) -> float | None:
        """When something becomes overdue, may be asked again, or is to be killed for."""
        times_s = []
        for ask in self._all():
            times_s += [ask.answer_by_s, ask.asked_s + self.within_s]
            if ask.answered_s is not None:
                times_s.append(ask.answered_s + ASK_AGAIN_S)
            if self._kill_after_s is not None and ask.reason is Reason.PROMISE:
                times_s.append(ask.asked_s + self._kill_after_s)
        return min((time_s for time_s in times_s if time_s > now_s), default=None)

    # Inside

    def _all(self) -> list[Ask]:
        return [ask for asks in self._asks.values() for ask in asks]

    def _for(self, reason: Reason) -> list[Ask]:
        return [ask for ask in self._all() if ask.reason is reason]

    def _untold(self) -> set[str]:
        """Sessions that are asked for something, and were told of nothing that they have not answered."""
        waiting = [ask for ask in self._all() if ask.answered_s is None]
        return {ask.session_id for ask in waiting} - {ask.session_id for ask in waiting if ask.reclaim_id}

    def _tell(self, session_id: str, asks: list[Ask], page_count: int, now_s: float) -> Request:
        self._last_id += 1
        for ask in asks:
            if not ask.reclaim_id:  # its time runs from when the session is told
                ask.answer_by_s = now_s + self.within_s
            ask.reclaim_id = self._last_id
        within_s = min((ask.answer_by_s for ask in asks if ask.is_live(now_s)), default=now_s) - now_s
        return Request(self._last_id, session_id, page_count, asks[0].depth, within_s, asks[0].reason)

    def _may_ask(self, session_id: str, reason: Reason, now_s: float) -> bool:
        """Not who was asked and did not answer: pages will not come sooner by asking again. Nor for idle ones who is to
        give what it runs with."""
        if any(ask.answered_s is None and ask.depth > reason.depth for ask in self.of(session_id)):
            return False
        return all(
            ask.is_live(now_s)
            or (ask.answered_s is not None and (ask.depth < reason.depth or now_s >= ask.answered_s + ASK_AGAIN_S))
            for ask in self._asks.get((session_id, reason), ())
        )

    def _gave_idle(self, holder: Holder, reason: Reason) -> bool:
        asks = self._asks.get((holder.session_id, reason), ())
        return reason.depth is not Depth.IDLE and any(ask.answered_s is not None for ask in asks)

    def _ask(
        self, session_id: str, reason: Reason, page_count: int, depth: Depth, now_s: float, since_s: float | None = None
    ) -> None:
        asks = self._asks.setdefault((session_id, reason), [])
        # Who gave less than was asked is asked anew, for what is missing by now; it is wanted since it was asked first.
        short = [ask.asked_s for ask in asks if ask.answered_s is not None]
        asked_s = since_s if since_s is not None else min(short, default=now_s)
        self._asks[session_id, reason] = [
            *(ask for ask in asks if ask.answered_s is None),
            Ask(session_id, reason, depth, page_count, asked_s, now_s + self.within_s),
        ]
        self.counts.asked += 1
        self.counts.asked_pages += page_count
        self._told.add(session_id)

    def _let_off(self, reason: Reason, page_count: int, holders: list[Holder], now_s: float) -> None:
        """Where less is missing by now, or a tenant can spare less, ask for less: what was asked last is let off."""
        spare_pages = {holder.tenant: holder.spare_pages for holder in holders}
        room = {holder.session_id: min(holder.held_pages, holder.spare_pages) for holder in holders}
        tenant_of = {holder.session_id: holder.tenant for holder in holders}
        for ask in sorted(self._for(reason), key=lambda ask: ask.answer_by_s):
            most = room.get(ask.session_id, 0)
            if most and ask.is_live(now_s):
                most = min(most, page_count, spare_pages[tenant_of[ask.session_id]])
            if ask.page_count > most and ask.answered_s is None:
                self._told.add(ask.session_id)
            self._cut(ask, most)
            if most:
                room[ask.session_id] -= ask.page_count
            if most and ask.is_live(now_s):
                page_count -= ask.page_count
                spare_pages[tenant_of[ask.session_id]] -= ask.page_count

    def _cut(self, ask: Ask, page_count: int) -> None:
        """Want no more of it than this."""
        ask.page_count = min(ask.page_count, page_count)
        if not ask.page_count:
            self._forget(ask)

    def _forget(self, ask: Ask) -> None:
        asks = self._asks[ask.session_id, ask.reason]
        asks.remove(ask)
        if not asks:
            del self._asks[ask.session_id, ask.reason]
