"""All wishes that were not answered yet, in their queues or with an award. Pure: counts are pages."""

from __future__ import annotations

import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator

from vattd.wish import Party, Waiting

Key = tuple[str, str]
# Deadlines of wishes that wait no more are swept out when they are this many, and more than the others.
SWEEP_AFTER = 64


class Wishes:
    """Each wish queues, by tenant in order of arrival, or has an award.

    Invariants: a wish is in one of both places; the counters are sums over them; what one wish costs does not grow with
    how many others there are.
    """

    def __init__(self) -> None:
        self._awarded: dict[Key, Waiting] = {}  # in the order in which they are to be served
        self._queues: dict[str, OrderedDict[Key, Waiting]] = {}  # by tenant
        self._awarded_pages: Counter[str] = Counter()
        self._queued_pages: Counter[str] = Counter()
        self._count_of_session: Counter[str] = Counter()
        self._count_of_tenant: Counter[str] = Counter()
        self._tenant_of: dict[Key, str] = {}
        self._deadlines: list[tuple[float, int, Waiting]] = []  # a heap; those that queue no more are passed over
        self._queued_count = 0

    def __iter__(self) -> Iterator[Waiting]:
        """All of them, those with an award first. Copies, so that answering may change them."""
        yield from list(self._awarded.values())
        for queue in list(self._queues.values()):
            yield from list(queue.values())

    @property
    def first(self) -> Waiting | None:
        """One that is to be served before others."""
        return next(iter(self._awarded.values()), None) or next(self.heads(), None)

    @property
    def awarded(self) -> list[Waiting]:
        return list(self._awarded.values())

    @property
    def has_queue(self) -> bool:
        return bool(self._queues)

    @property
    def queue_count(self) -> int:
        return len(self._queues)

    def heads(self) -> Iterator[Waiting]:
        """The first of each queue."""
        return (next(iter(queue.values())) for queue in self._queues.values())

    def head_of(self, party: Party) -> Waiting | None:
        return next(self.queue_of(party), None)

    def queue_of(self, party: Party) -> Iterator[Waiting]:
        return iter(self._queues.get(party.name, {}).values())

    def queue_length(self, party: Party) -> int:
        return len(self._queues.get(party.name, ()))

    def queued(self) -> list[Waiting]:
        return [entry for queue in self._queues.values() for entry in queue.values()]

    def find(self, key: Key) -> Waiting | None:
        if key not in self._tenant_of:
            return None
        return self._awarded.get(key) or self._queues[self._tenant_of[key]][key]

    def is_queued(self, entry: Waiting) -> bool:
        queue = self._queues.get(entry.party.name)
        return queue is not None and queue.get(entry.wish.key) is entry

    def count_of_session(self, session_id: str) -> int:
        return self._count_of_session[session_id]

    def count_of_tenant(self, party: Party) -> int:
        return self._count_of_tenant[party.name]

    def awarded_pages(self, party: Party) -> int:
        return self._awarded_pages[party.name]

    def queued_pages(self, party: Party) -> int:
        return self._queued_pages[party.name]

    @property
    def all_awarded_pages(self) -> int:
        return self._awarded_pages.total()

    @property
    def all_pages(self) -> int:
        """What all wishes ask for."""
        return self._queued_pages.total() + sum(entry.wish.page_count for entry in self._awarded.values())

    # Changing

    def queue(self, entry: Waiting) -> None:
        """A new wish comes last in its tenant's queue."""
        self._take_in(entry)
        self._enter_queue(entry)

    def award(self, entry: Waiting, page_count: int) -> None:
        """To one that queues, or to a new wish."""
        if self.is_queued(entry):
            self._leave_queue(entry)
        else:
            self._take_in(entry)
        entry.awarded_pages = page_count
        self._awarded[entry.wish.key] = entry
        self._awarded_pages[entry.party.name] += page_count

    def postpone(self, entry: Waiting) -> None:
        """Take the award back: it queues again, first of its tenant's."""
        self._leave_awarded(entry)
        entry.awarded_pages = 0
        self._enter_queue(entry)
        self._queues[entry.party.name].move_to_end(entry.wish.key, last=False)

    def remove(self, entry: Waiting) -> None:
        if entry.awarded_pages:
            self._leave_awarded(entry)
        else:
            self._leave_queue(entry)
        del self._tenant_of[entry.wish.key]
        _take(self._count_of_session, entry.wish.session_id, 1)
        _take(self._count_of_tenant, entry.party.name, 1)

    def next_deadline_s(self) -> float | None:
        """Of those that queue."""
        while self._deadlines and not self.is_queued(self._deadlines[0][-1]):
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def overdue(self, now_s: float) -> list[Waiting]:
        """Those that queue although their time is over, which the caller answers now: they are named but once."""
        found = []
        while (deadline_s := self.next_deadline_s()) is not None and deadline_s <= now_s:
            found.append(heapq.heappop(self._deadlines)[-1])
        return list(dict.fromkeys(found))  # one that was postponed has its deadline there twice

    # Inside

    def _take_in(self, entry: Waiting) -> None:
        key = entry.wish.key
        if key in self._tenant_of:
            raise ValueError(f"{entry.wish} waits already")
        self._tenant_of[key] = entry.party.name
        self._count_of_session[entry.wish.session_id] += 1
        self._count_of_tenant[entry.party.name] += 1

    def _enter_queue(self, entry: Waiting) -> None:
        self._queues.setdefault(entry.party.name, OrderedDict())[entry.wish.key] = entry
        self._queued_pages[entry.party.name] += entry.wish.page_count
        self._queued_count += 1
        if len(self._deadlines) > 2 * self._queued_count + SWEEP_AFTER:
            self._deadlines = [one for one in self._deadlines if self.is_queued(one[-1]) and one[-1] is not entry]
            heapq.heapify(self._deadlines)
        heapq.heappush(self._deadlines, (entry.wish.deadline_s, entry.number, entry))

    def _leave_queue(self, entry: Waiting) -> None:
        name = entry.party.name
        queue = self._queues[name]
        del queue[entry.wish.key]
        if not queue:
            del self._queues[name]
        _take(self._queued_pages, name, entry.wish.page_count)
        self._queued_count -= 1

    def _leave_awarded(self, entry: Waiting) -> None:
        del self._awarded[entry.wish.key]
        _take(self._awarded_pages, entry.party.name, entry.awarded_pages)


def _take(counter: Counter[str], key: str, number: int) -> None:
    counter[key] -= number
    if not counter[key]:
        del counter[key]
