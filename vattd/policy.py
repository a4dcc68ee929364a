"""Who may lease now, who waits, and what is set aside for whom.

Pure: time is an argument, and pages are numbers here; which ones a tenant gets is the stock's to say.

- Within its min a tenant is served before all others. A hard min is set aside always; a soft one as far as its tenant
  asks for it: then nothing that is free, or comes back, goes to those who are above their own min.
- What is left goes to whoever asks. A running request (GROW) never waits for others to return theirs: it has its pages
  or is refused. New ones (ADMIT) queue, in order within a tenant; between tenants in order of arrival too, but as if a
  wish had come `ageing_s` later for each share (by weight) that its tenant has already. So weights count, and no wish
  is passed by for ever.
- For the first of them that lacks pages the free ones are gathered, for a bounded time; then the others may pass for a
  while, then they are gathered again, and longer.
"""

from __future__ import annotations

import enum
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol

from vatt.errors import LimitExceeded, PoolExhausted, VattError, WaitHopeless
from vattd.guarantee import Guarantee, MinMode

# What a refused GROW wanted within its min is set aside for so long: the engine will ask again.
CLAIM_S = 5.0


class Purpose(enum.Enum):
    ADMIT = "admit"  # a new request: may queue
    GROW = "grow"  # a running one: it holds pages, so it must never wait for others to return theirs


@dataclass(frozen=True, slots=True)
class Wish:
    """A lease that is asked for. Of two with the same session and request id the second is a repeat of the first."""

    session_id: str
    request_id: str
    page_count: int
    min_page_count: int
    purpose: Purpose
    deadline_s: float  # until then it may queue

    def __post_init__(self) -> None:
        if not 1 <= self.min_page_count <= self.page_count:
            raise ValueError(f"not a wish: {self}")

    @property
    def key(self) -> tuple[str, str]:
        return self.session_id, self.request_id

    def may_wait(self, now_s: float) -> bool:
        return self.purpose is Purpose.ADMIT and now_s < self.deadline_s


class Party(Protocol):
    """A tenant, as policy sees it."""

    @property
    def name(self) -> str: ...
    @property
    def guarantee(self) -> Guarantee: ...
    @property
    def held_pages(self) -> int:
        """Leased by its sessions."""


class Books(Protocol):
    """The ledger, as policy sees it."""

    @property
    def capacity_pages(self) -> int:
        """What could be lent at one time now. Less than `limit_pages` while other programs use the device's memory."""

    @property
    def limit_pages(self) -> int: ...
    @property
    def lent_pages(self) -> int: ...
    def promised(self) -> Iterable[Party]:
        """Tenants with a min."""

    def holding(self) -> Iterable[Party]:
        """Tenants that hold pages."""


@dataclass(slots=True, eq=False)
class Waiting:
    """A wish that was not served yet. `awarded_pages` may be made and lent to it; 0: it queues."""

    wish: Wish
    party: Party
    since_s: float
    awarded_pages: int = 0
    gathered_since_s: float | None = None  # when pages were first gathered for it


@dataclass(frozen=True, slots=True)
class Timing:
    """`head_hold_s` is how long pages are gathered at first for a wish that others could be served before; `ageing_s`
    how much later than it came a wish counts, for each share that its tenant has beyond its min."""

    head_hold_s: float = 5.0
    ageing_s: float = 10.0

    def __post_init__(self) -> None:
        if self.head_hold_s < 0 or self.ageing_s < 0:
            raise ValueError(f"not times: {self}")


class Policy:
    """Wishes, and what each of them may have.

    Invariants, which the state machine in tests/vattd/test_policy.py checks:
    - no award takes a tenant above its max, and all awards and leases together never pass the capacity;
    - what is free is never less than what hard mins are not used, but for those that were set after it was lent;
    - a tenant that asks within its soft min waits for nothing but pages that others must return;
    - no page is free while a wish could have it, save one that is set aside, or gathered for a bounded time.
    """

    def __init__(self, books: Books, timing: Timing) -> None:
        self._books, self._timing = books, timing
        self._awarded: dict[tuple[str, str], Waiting] = {}  # in the order in which they are to be served
        self._queues: dict[str, OrderedDict[tuple[str, str], Waiting]] = {}  # ADMITs, by tenant, in order of arrival
        self._awarded_pages: Counter[str] = Counter()
        self._queued_pages: Counter[str] = Counter()
        self._leases_of: Counter[str] = Counter()  # by session
        self._claims: dict[str, tuple[int, float]] = {}  # by tenant: refused to a GROW within its min, and until when
        self._gathering: Waiting | None = None

    # Wishes

    def __iter__(self) -> Iterator[Waiting]:
        """All wishes, those with an award first. Copies, so that serving may change them."""
        yield from list(self._awarded.values())
        for queue in list(self._queues.values()):
            yield from list(queue.values())

    @property
    def awarded(self) -> list[Waiting]:
        return list(self._awarded.values())

    @property
    def has_queue(self) -> bool:
        return bool(self._queues)

    def find(self, key: tuple[str, str]) -> Waiting | None:
        return self._awarded.get(key) or next((q[key] for q in self._queues.values() if key in q), None)

    def count_of(self, session_id: str) -> int:
        """How many wishes of a session wait."""
        return self._leases_of[session_id]

    def queued_pages(self, party: Party) -> int:
        return self._queued_pages[party.name]

    def queued(self, party: Party) -> list[Waiting]:
        return list(self._queues.get(party.name, {}).values())

    def add(self, wish: Wish, party: Party, now_s: float) -> Waiting:
        """Take a wish in; `award` says what it gets. Raises what it is refused with at once."""
        if self.find(wish.key) is not None:
            raise ValueError(f"{wish} waits already")
        entry = Waiting(wish, party, now_s)
        hopeless = self._why_hopeless(entry)
        if hopeless is not None:
            raise hopeless
        if wish.purpose is Purpose.GROW:
            room = self.room(party, now_s)
            if room < wish.min_page_count:
                self._note_claim(entry, now_s)
                raise PoolExhausted(wish.min_page_count, room)
            self._award(entry, min(wish.page_count, room))
        else:
            self._queues.setdefault(party.name, OrderedDict())[wish.key] = entry
            self._queued_pages[party.name] += wish.page_count
        self._leases_of[wish.session_id] += 1
        return entry

    def remove(self, entry: Waiting) -> None:
        """Forget a wish: it was served, or refused, or its session went away."""
        key, name = entry.wish.key, entry.party.name
        if self._awarded.pop(key, None) is not None:
            self._awarded_pages[name] -= entry.awarded_pages
        else:
            self._unqueue(entry)
        self._leases_of[entry.wish.session_id] -= 1
        for counter, which in ((self._awarded_pages, name), (self._leases_of, entry.wish.session_id)):
            if not counter[which]:
                del counter[which]

    def postpone(self, entry: Waiting) -> None:
        """The pages that were awarded cannot be made now: it waits again, at the head of its tenant's queue."""
        del self._awarded[entry.wish.key]
        self._awarded_pages[entry.party.name] -= entry.awarded_pages
        entry.awarded_pages = 0
        queue = self._queues.setdefault(entry.party.name, OrderedDict())
        queue[entry.wish.key] = entry
        queue.move_to_end(entry.wish.key, last=False)
        self._queued_pages[entry.party.name] += entry.wish.page_count

    def award(self, now_s: float) -> list[tuple[Waiting, VattError]]:
        """Give wishes that queue what they may have now. Returns those whose time to wait is over, with the refusal."""
        self._gathering = None
        if not self._queues:
            return []
        pages_a_weight = self._pages_a_weight()
        heads = [self._ranked(entry, pages_a_weight) for entry in self._heads()]
        heapq.heapify(heads)
        closed = False  # to those above their min: pages are gathered for one ahead of them
        while heads:
            entry = heapq.heappop(heads)[-1]
            is_promised = self._is_within_min(entry)
            if (closed and not is_promised) or not self._try(entry, now_s):
                closed = closed or self._gathers_for(entry, is_promised, now_s)
                continue
            follower = next(iter(self._queues.get(entry.party.name, {}).values()), None)
            if follower is not None:
                heapq.heappush(heads, self._ranked(follower, pages_a_weight))
        return [(entry, self._refusal(entry, now_s)) for entry in self._queued_all() if not entry.wish.may_wait(now_s)]

    def recheck(self) -> list[tuple[Waiting, VattError]]:
        """After a guarantee changed: wishes that can no longer be met, each with why."""
        checked = [(entry, self._why_hopeless(entry)) for entry in self._queued_all()]
        return [(entry, error) for entry, error in checked if error is not None]

    # Figures

    def room(self, party: Party, now_s: float) -> int:
        """The most pages that this tenant may be lent now."""
        guarantee, has, free = party.guarantee, self.pages_of(party), self.free_pages
        hard = soft = 0
        for other in self._books.promised():
            if other is not party:
                aside = self.set_aside(other, now_s)
                if other.guarantee.mode is MinMode.HARD:
                    hard += aside
                else:
                    soft += aside
        within_min = min(guarantee.min_pages - has, free - hard)
        return max(0, min(max(within_min, free - hard - soft), self._ceiling(party) - has))

    def pages_of(self, party: Party) -> int:
        """What a tenant holds, and what is being made for it."""
        return party.held_pages + self._awarded_pages[party.name]

    @property
    def free_pages(self) -> int:
        """Lent to nobody and awarded to nobody. Below 0 if the device lost memory to other programs."""
        return self._books.capacity_pages - self._books.lent_pages - self._awarded_pages.total()

    def set_aside(self, party: Party, now_s: float) -> int:
        """The pages that a tenant's min keeps from others now."""
        unused = max(0, party.guarantee.min_pages - self.pages_of(party))
        if party.guarantee.mode is MinMode.HARD:
            return unused
        return min(unused, self.claimed_pages(party, now_s))

    def claimed_pages(self, party: Party, now_s: float) -> int:
        """What a tenant waits for, or was refused lately."""
        claim, until_s = self._claims.get(party.name, (0, now_s))
        return self._queued_pages[party.name] + (claim if now_s < until_s else 0)

    def promise_gap(self, now_s: float) -> int:
        """Pages that are promised and asked for, and neither free nor held: others must return them."""
        return max(0, sum(self.set_aside(party, now_s) for party in self._books.promised()) - self.free_pages)

    def head_gap(self, now_s: float) -> tuple[Party, int] | None:
        """For whom pages are gathered without a promise, and how many are missing."""
        if self._gathering is None:
            return None
        entry = self._gathering
        return entry.party, max(0, entry.wish.page_count - self.room(entry.party, now_s))

    def longest_wait_s(self, party: Party, now_s: float) -> float:
        return max((now_s - entry.since_s for entry in self.queued(party)), default=0.0)

    def next_change_s(self, now_s: float) -> float | None:
        """When the next decision changes by itself: a wish's time is over, or a time to gather, or a claim."""
        times_s = [entry.wish.deadline_s for entry in self._queued_all()]
        times_s += [until_s for _, until_s in self._claims.values()]
        if self._gathering is not None and self._gathering.gathered_since_s is not None:
            since_s = self._gathering.gathered_since_s
            times_s.append(since_s + _phase(now_s - since_s, self._timing.head_hold_s)[1])
        return min((time_s for time_s in times_s if time_s > now_s), default=None)

    # Inside

    def _ceiling(self, party: Party) -> int:
        limit = self._books.limit_pages
        return limit if party.guarantee.max_pages is None else min(limit, party.guarantee.max_pages)

    def _reachable_pages(self, party: Party) -> int:
        """What the tenant could have if all came back that is not promised to others."""
        kept = 0
        for other in self._books.promised():
            if other is not party:
                minimum = other.guarantee.min_pages
                kept += minimum if other.guarantee.mode is MinMode.HARD else min(minimum, self.pages_of(other))
        return max(0, min(self._ceiling(party), self._books.limit_pages - kept))

    def _why_hopeless(self, entry: Waiting) -> VattError | None:
        """Why waiting would not help, if it would not."""
        fewest, ceiling = entry.wish.min_page_count, self._ceiling(entry.party)
        if fewest > ceiling:
            return LimitExceeded(fewest, ceiling)
        reachable = self._reachable_pages(entry.party)
        return WaitHopeless(fewest, reachable) if fewest > reachable else None

    def _is_within_min(self, entry: Waiting) -> bool:
        return self.pages_of(entry.party) + entry.wish.page_count <= entry.party.guarantee.min_pages

    def _heads(self) -> list[Waiting]:
        return [next(iter(queue.values())) for queue in self._queues.values()]

    def _queued_all(self) -> list[Waiting]:
        return [entry for queue in self._queues.values() for entry in queue.values()]

    def _ranked(self, entry: Waiting, pages_a_weight: float) -> tuple[bool, float, float, int, Waiting]:
        """Lower is served first: promises, then by age, later for each share that the tenant has beyond its min."""
        party = entry.party
        above_pages = max(0, self.pages_of(party) - party.guarantee.min_pages)
        later_s = self._timing.ageing_s * above_pages / (pages_a_weight * party.guarantee.weight)
        above_min = not self._is_within_min(entry)
        return above_min, entry.since_s + (later_s if above_min else 0.0), entry.since_s, id(entry), entry

    def _pages_a_weight(self) -> float:
        """What all mins leave, for each weight of those that hold or want pages; at least a page."""
        parties = {party.name: party for party in self._books.holding()}
        parties.update((entry.party.name, entry.party) for entry in self._heads())
        rest = self._books.limit_pages - sum(party.guarantee.min_pages for party in self._books.promised())
        return max(1.0, rest / sum(party.guarantee.weight for party in parties.values()))

    def _try(self, entry: Waiting, now_s: float) -> bool:
        """Award the wish what it may have, if that is all of it, or enough when it cannot wait any longer."""
        room, wish = self.room(entry.party, now_s), entry.wish
        if room < (wish.page_count if wish.may_wait(now_s) else wish.min_page_count):
            return False
        self._unqueue(entry)
        self._award(entry, min(room, wish.page_count))
        return True

    def _gathers_for(self, entry: Waiting, is_promised: bool, now_s: float) -> bool:
        """Are free pages to be kept for this wish, that lacks some, from those behind it?

        Not for one within its min (they are set aside for it already), nor for one that its own max keeps waiting.
        """
        own_room = self._ceiling(entry.party) - self.pages_of(entry.party)
        if is_promised or own_room < entry.wish.page_count or self._gathering is not None:
            return False
        if not entry.wish.may_wait(now_s):
            return False
        self._gathering = entry
        if entry.gathered_since_s is None:
            entry.gathered_since_s = now_s
        return _phase(now_s - entry.gathered_since_s, self._timing.head_hold_s)[0]

    def _award(self, entry: Waiting, page_count: int) -> None:
        entry.awarded_pages = page_count
        self._awarded[entry.wish.key] = entry
        self._awarded_pages[entry.party.name] += page_count
        self._spend_claim(entry.party, page_count)

    def _unqueue(self, entry: Waiting) -> None:
        name = entry.party.name
        queue = self._queues[name]
        del queue[entry.wish.key]
        self._queued_pages[name] -= entry.wish.page_count
        if not queue:
            del self._queues[name], self._queued_pages[name]

    def _refusal(self, entry: Waiting, now_s: float) -> VattError:
        self._note_claim(entry, now_s)
        return PoolExhausted(entry.wish.min_page_count, self.room(entry.party, now_s))

    def _note_claim(self, entry: Waiting, now_s: float) -> None:
        """Remember what was refused within a min, so that it is asked back and kept for the next try."""
        unused = entry.party.guarantee.min_pages - self.pages_of(entry.party)
        if entry.wish.min_page_count <= unused:
            self._claims[entry.party.name] = (min(entry.wish.page_count, unused), now_s + CLAIM_S)

    def _spend_claim(self, party: Party, page_count: int) -> None:
        if party.name in self._claims:
            claim, until_s = self._claims.pop(party.name)
            if claim > page_count:
                self._claims[party.name] = (claim - page_count, until_s)


def _phase(elapsed_s: float, hold_s: float) -> tuple[bool, float]:
    """Are pages gathered now, and until when after the beginning is that so?

    The first time for `hold_s`, then longer by as much each time, with a recess of `hold_s` after each. So others pass
    again and again, and however slowly pages come back, one time is long enough.
    """
    if hold_s == 0:
        return False, float("inf")
    end_s, length_s = hold_s, hold_s
    while True:
        if elapsed_s < end_s:
            return True, end_s
        if elapsed_s < end_s + hold_s:
            return False, end_s + hold_s
        length_s += hold_s
        end_s += hold_s + length_s
