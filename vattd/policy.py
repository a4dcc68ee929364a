"""Who may lease now, who waits, and what is set aside for whom.

Pure: time is an argument, and pages are numbers here; which ones a tenant gets is the stock's to say.

- Within its min a tenant is served before all others. A hard min is set aside always; a soft one as far as its tenant
  asks for it: then nothing that is free, or comes back, goes to those who are above their own min.
- What is left goes to whoever asks. A running request (GROW) never waits for others to return theirs: it has its pages
  or is refused. New ones (ADMIT) queue, in order within a tenant; between tenants in order of arrival too, but as if a
  wish had come `ageing_s` later for each share (by weight) that its tenant has already. So weights count, and no wish
  is passed by for ever.
- For the first of them that lacks pages the free ones are gathered, for a bounded time; then the others may pass for as
  long, then they are gathered again, and longer.
- What nobody needs yet (AHEAD) is refused while pages are gathered, or somebody of the same tenant queues.
"""

from __future__ import annotations

import heapq
import itertools

from vatt.errors import LimitExceeded, PoolExhausted, VattError, WaitHopeless
from vattd.gathering import gathering_phase
from vattd.guarantee import MinMode
from vattd.wish import Books, Party, Purpose, Timing, Waiting, Wish
from vattd.wishes import Wishes

# What a refused GROW wanted within its min is set aside for so long: the engine will ask again.
CLAIM_S = 5.0


class Policy:
    """Wishes, and what each of them may have.

    Invariants, which tests/vattd/policy_world.py checks:
    - no award takes a tenant above its max, and all awards and leases together never pass the capacity;
    - what is free is never less than what hard mins are not used, but for those that were set after it was lent;
    - a tenant that asks within its soft min waits for nothing but pages that others must return;
    - no page is free while a wish could have it, save one that is set aside, or gathered for a bounded time.
    """

    def __init__(self, books: Books, timing: Timing) -> None:
        self._books, self._timing = books, timing
        self.wishes = Wishes()
        self._claims: dict[str, tuple[int, float]] = {}  # by tenant: refused to a GROW within its min, and until when
        self._gathering: Waiting | None = None
        self._held_up: Waiting | None = None  # the first one that waits for pages of its own tenant
        self._numbers = itertools.count()

    def add(self, wish: Wish, party: Party, now_s: float) -> Waiting:
        """Take a wish in; `award` says what it gets. Raises what it is refused with at once."""
        entry = Waiting(wish, party, now_s, next(self._numbers))
        hopeless = self._why_hopeless(entry)
        if hopeless is not None:
            raise hopeless
        if wish.purpose is Purpose.ADMIT:
            self.wishes.queue(entry)
            return entry
        room = self.room(party, now_s) if self._may_have_some(entry) else 0
        if room < wish.min_page_count:
            if wish.purpose is Purpose.GROW:
                self._note_claim(entry, now_s)
            raise PoolExhausted(wish.min_page_count, room)
        self._award(entry, min(wish.page_count, room))
        return entry

    def remove(self, entry: Waiting) -> None:
        """Forget a wish: it was served, or refused, or its session went away."""
        self.wishes.remove(entry)
        if self._gathering is entry:
            self._gathering = None
        if self._held_up is entry:
            self._held_up = None

    def postpone(self, entry: Waiting) -> None:
        """The pages that were awarded cannot be made now: it waits again, at the head of its tenant's queue."""
        self.wishes.postpone(entry)

    def award(self, now_s: float) -> list[tuple[Waiting, VattError]]:
        """Give wishes that queue what they may have now. Returns those whose time to wait is over, with the refusal:
        they are to be removed, and then `award` is to be called again."""
        self._award_heads(now_s)
        return [(entry, self._refusal(entry, now_s)) for entry in self.wishes.overdue(now_s)]

    def recheck(self) -> list[tuple[Waiting, VattError]]:
        """After a guarantee changed: wishes that can no longer be met, each with why.

        What a tenant was awarded above its new max queues again.
        """
        for entry in self.wishes.awarded:
            is_above = self.pages_of(entry.party) > self._ceiling(entry.party)
            if is_above and entry.wish.purpose is Purpose.ADMIT:
                self.postpone(entry)
        checked = [(entry, self._why_hopeless(entry)) for entry in self.wishes.queued()]
        return [(entry, error) for entry, error in checked if error is not None]

    # Figures

    def room(self, party: Party, now_s: float) -> int:
        """The most pages that this tenant may be lent now."""
        return self._room(party, self._aside_pages(now_s), now_s)

    def pages_of(self, party: Party) -> int:
        """What a tenant holds, and what is being made for it."""
        return party.held_pages + self.wishes.awarded_pages(party)

    @property
    def free_pages(self) -> int:
        """Lent to nobody and awarded to nobody. Below 0 if the device lost memory to other programs."""
        return self._books.capacity_pages - self._books.lent_pages - self.wishes.all_awarded_pages

    def set_aside(self, party: Party, now_s: float) -> int:
        """The pages that a tenant's min keeps from others now."""
        unused = max(0, party.guarantee.min_pages - self.pages_of(party))
        if party.guarantee.mode is MinMode.HARD:
            return unused
        return min(unused, self.claimed_pages(party, now_s))

    def claimed_pages(self, party: Party, now_s: float) -> int:
        """What a tenant waits for within its min, or was refused lately: who was refused may wait for the same by now.

        A wish that reaches beyond the min is none that was promised, nor is one behind it.
        """
        claim, until_s = self._claims.get(party.name, (0, now_s))
        unused, queued = party.guarantee.min_pages - self.pages_of(party), 0
        for entry in self.wishes.queue_of(party):
            if queued + entry.wish.page_count > unused:
                break
            queued += entry.wish.page_count
        return max(queued, claim if now_s < until_s else 0)

    def promise_gap(self, now_s: float) -> int:
        """Pages that are promised and asked for, and neither free nor held: others must return them."""
        free_pages = max(0, self.free_pages)
        if free_pages >= self._books.promised_pages:
            return 0
        return max(0, sum(self._aside_pages(now_s)) - free_pages)

    def hard_gap(self, now_s: float) -> int:
        """Of hard mins alone, which come before soft ones."""
        return max(0, self._aside_pages(now_s)[0] - max(0, self.free_pages))

    def head_gap(self, now_s: float) -> tuple[Waiting, int] | None:
        """Who waits for pages without a promise, and how many are missing: the one they are gathered for, if any is."""
        entry = self._gathering or self._held_up
        if entry is None:
            return None
        return entry, max(0, self._hope(entry, now_s) - self.room(entry.party, now_s))

    def longest_wait_s(self, party: Party, now_s: float) -> float:
        return max((now_s - entry.since_s for entry in self.wishes.queue_of(party)), default=0.0)

    def next_change_s(self, now_s: float) -> float | None:
        """When the next decision changes by itself: a wish's time is over, or a time to gather, or a claim."""
        times_s = [until_s for _, until_s in self._claims.values()]
        deadline_s = self.wishes.next_deadline_s()
        if deadline_s is not None:
            times_s.append(deadline_s)
        if self._gathering is not None and self._gathering.gathered_since_s is not None:
            since_s = self._gathering.gathered_since_s
            times_s.append(gathering_phase(since_s, now_s, self._timing.head_hold_s)[1])
        return min((time_s for time_s in times_s if time_s > now_s), default=None)

    # Inside

    def _award_heads(self, now_s: float) -> None:
        self._gathering = self._held_up = None
        pages_a_weight = self._pages_a_weight() if self.wishes.queue_count > 1 else 1.0  # who is alone is first
        heads = [self._ranked(entry, pages_a_weight) for entry in self.wishes.heads()]
        heapq.heapify(heads)
        aside_pages = self._aside_pages(now_s) if heads else (0, 0)
        closed = False  # to those above their min: pages are gathered for one ahead of them
        while heads:
            entry = heapq.heappop(heads)[-1]
            is_promised = self._is_within_min(entry)
            if (closed and not is_promised) or not self._try(entry, aside_pages, now_s):
                closed = closed or self._gathers_for(entry, is_promised, now_s)
                continue
            aside_pages = self._aside_pages(now_s)
            follower = self.wishes.head_of(entry.party)
            if follower is not None:
                heapq.heappush(heads, self._ranked(follower, pages_a_weight))

    def _aside_pages(self, now_s: float) -> tuple[int, int]:
        """What hard mins keep from others now, and soft ones."""
        hard = soft = 0
        for party in self._books.promised():
            aside = self.set_aside(party, now_s)
            if party.guarantee.mode is MinMode.HARD:
                hard += aside
            else:
                soft += aside
        return hard, soft

    def _room(self, party: Party, aside_pages: tuple[int, int], now_s: float) -> int:
        hard, soft = aside_pages
        guarantee, has, free = party.guarantee, self.pages_of(party), self.free_pages
        if guarantee.mode is MinMode.HARD:
            hard -= self.set_aside(party, now_s)
        else:
            soft -= self.set_aside(party, now_s)
        within_min = min(guarantee.min_pages - has, free - hard)
        return max(0, min(max(within_min, free - hard - soft), self._ceiling(party) - has))

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

    def _may_have_some(self, entry: Waiting) -> bool:
        """May it have pages now at all? What is only wanted ahead must not be somebody's that waits for pages."""
        is_needed = entry.wish.purpose is not Purpose.AHEAD
        return is_needed or (self._gathering is None and self.wishes.head_of(entry.party) is None)

    def _ranked(self, entry: Waiting, pages_a_weight: float) -> tuple[bool, float, int, Waiting]:
        """Lower is served first: promises, then by age, later for each share that the tenant has beyond its min."""
        party = entry.party
        above_pages = max(0, self.pages_of(party) - party.guarantee.min_pages)
        later_s = self._timing.ageing_s * above_pages / (pages_a_weight * party.guarantee.weight)
        above_min = not self._is_within_min(entry)
        return above_min, entry.since_s + (later_s if above_min else 0.0), entry.number, entry

    def _pages_a_weight(self) -> float:
        """What all mins leave, for each weight of those that hold or want pages; at least a page."""
        parties = {party.name: party for party in self._books.holding()}
        parties.update((entry.party.name, entry.party) for entry in (*self.wishes.heads(), *self.wishes.awarded))
        rest = self._books.limit_pages - sum(party.guarantee.min_pages for party in self._books.promised())
        return max(1.0, rest / sum(party.guarantee.weight for party in parties.values()))

    def _try(self, entry: Waiting, aside_pages: tuple[int, int], now_s: float) -> bool:
        """Award the wish what it may have, if it can hope for no more, or cannot wait any longer for it."""
        wish, room = entry.wish, self._room(entry.party, aside_pages, now_s)
        if room < wish.min_page_count or (wish.may_wait(now_s) and room < self._hope(entry, now_s, room)):
            return False
        self._award(entry, min(room, wish.page_count))
        return True

    def _gathers_for(self, entry: Waiting, is_promised: bool, now_s: float) -> bool:
        """Are free pages to be kept for this wish, that lacks some, from those behind it?

        Not for one within its min (they are set aside for it already), nor for one that would lack pages even if all
        came back that others have above their mins: its own tenant's pages keep it waiting, or what others were
        promised, or the device.
        """
        if is_promised or self._gathering is not None or not entry.wish.may_wait(now_s):
            return False
        hope, party = self._hope(entry, now_s), entry.party
        most = min(self._ceiling(party), self._books.capacity_pages - self._kept_pages(party, now_s))
        if self.pages_of(party) + hope > most:
            if hope <= most:
                self._held_up = self._held_up or entry
            return False
        self._gathering = entry
        if entry.gathered_since_s is None:
            entry.gathered_since_s = now_s
        return gathering_phase(entry.gathered_since_s, now_s, self._timing.head_hold_s)[0]

    def _hope(self, entry: Waiting, now_s: float, room: int = 0) -> int:
        """What a wish waits for: all of it, or as much as there could be. It is known to have this room."""
        wish, party = entry.wish, entry.party
        if room >= wish.page_count:
            return wish.page_count
        most = min(self._ceiling(party), self._books.limit_pages - self._kept_pages(party, now_s))
        return max(wish.min_page_count, min(wish.page_count, most))

    def _kept_pages(self, party: Party, now_s: float) -> int:
        """What others have of their mins, or are to have: no award within a min changes it."""
        return sum(
            min(other.guarantee.min_pages, self.pages_of(other)) + self.set_aside(other, now_s)
            for other in self._books.promised()
            if other is not party
        )

    def _award(self, entry: Waiting, page_count: int) -> None:
        self.wishes.award(entry, page_count)
        self._spend_claim(entry.party, page_count)

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
