"""What happens: leases, sessions, asks, promises, the device; kept for a while, and told to whoever listens.

Pure: the clock is the caller's.
"""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from heapq import merge

# Kept to be shown to who looks later. Leases and asks are many, and would push out all the rest.
KEPT_FREQUENT = 1024
KEPT_OTHERS = 1024


class Kind(enum.Enum):
    """The words are API: see Event in vatt.proto."""

    VATTD_STARTED = "vattd_started"
    LEASE_GRANTED = "lease_granted"
    LEASE_REFUSED = "lease_refused"
    SESSION_ATTACHED = "session_attached"
    SESSION_FENCED = "session_fenced"
    SESSION_RESUMED = "session_resumed"
    SESSION_EVICTED = "session_evicted"
    SESSION_KILLED = "session_killed"
    SESSION_ENDED = "session_ended"
    RECLAIM_ASKED = "reclaim_asked"
    RECLAIM_ANSWERED = "reclaim_answered"
    RECLAIM_IGNORED = "reclaim_ignored"
    GUARANTEE_CHANGED = "guarantee_changed"
    PROMISE_BROKEN = "promise_broken"
    PROMISE_KEPT = "promise_kept"
    DRAIN_BEGAN = "drain_began"
    DRAIN_ENDED = "drain_ended"
    SHORTAGE_BEGAN = "shortage_began"
    SHORTAGE_ENDED = "shortage_ended"
    PAGES_QUARANTINED = "pages_quarantined"
    RECOVERY_ENDED = "recovery_ended"

    @property
    def is_lease(self) -> bool:
        return self in (Kind.LEASE_GRANTED, Kind.LEASE_REFUSED)

    @property
    def is_frequent(self) -> bool:
        """Does it happen with every request, or with every turn while memory is short?"""
        return self.is_lease or self in (Kind.RECLAIM_ASKED, Kind.RECLAIM_ANSWERED)


class EndCause(enum.Enum):
    """Why a session is no more. The words are API, as those above."""

    DETACHED = "detached"  # it said so itself
    EXITED = "exited"  # its process did
    EVICTED = "evicted"  # it left, or its process exited, after an operator asked it to
    KILLED = "killed"  # vattd sent SIGKILL
    LOST = "lost"  # an earlier vattd's, whose process ended before it was back


@dataclass(frozen=True, slots=True)
class Happening:
    """One thing that happened. What does not apply is empty; `waited_s` is None where nothing was waited for."""

    sequence: int
    time_s: float  # since the epoch
    kind: Kind
    tenant: str = ""
    session_id: str = ""
    page_count: int = 0
    reason: str = ""
    waited_s: float | None = None
    message: str = ""


Listener = Callable[[Happening], None]


class Happenings:
    """The last of what happened, and how often each kind did.

    Invariants: sequences rise by one from 1; `counts` sums to the last one. Belongs to the event loop.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` gives seconds since the epoch."""
        self._clock = clock
        self._frequent: deque[Happening] = deque(maxlen=KEPT_FREQUENT)
        self._others: deque[Happening] = deque(maxlen=KEPT_OTHERS)
        self._listeners: dict[int, Listener] = {}  # by the number that each was given
        self._last_listener = 0
        self.last_sequence = 0
        self.counts: Counter[Kind] = Counter()
        self.ends: Counter[EndCause] = Counter()

    def note(
        self,
        kind: Kind,
        *,
        tenant: str = "",
        session_id: str = "",
        page_count: int = 0,
        reason: str = "",
        waited_s: float | None = None,
        message: str = "",
    ) -> None:
        self.last_sequence += 1
        what = Happening(
            self.last_sequence, self._clock(), kind, tenant, session_id, page_count, reason, waited_s, message
        )
        self.counts[kind] += 1
        (self._frequent if kind.is_frequent else self._others).append(what)
        for listener in self._listeners.values():
            listener(what)

    def note_end(self, cause: EndCause, *, tenant: str, session_id: str, page_count: int) -> None:
        """A session has ended, and so many pages came back."""
        self.ends[cause] += 1
        self.note(Kind.SESSION_ENDED, tenant=tenant, session_id=session_id, page_count=page_count, reason=cause.value)

    def since(self, sequence: int) -> list[Happening]:
        """What is kept of what came after this one, in order."""
        kept = merge(self._frequent, self._others, key=lambda what: what.sequence)
        return [what for what in kept if what.sequence > sequence]

    def latest(self, most: int) -> list[Happening]:
        """The last of what happened, the latest first, for people: no granted leases, a third of one kind at most."""
        frequent = (what for what in reversed(self._frequent) if what.kind is not Kind.LEASE_GRANTED)
        latest: list[Happening] = []
        shown: Counter[Kind] = Counter()
        for what in merge(frequent, reversed(self._others), key=lambda what: -what.sequence):
            if shown[what.kind] < most // 3:
                shown[what.kind] += 1
                latest.append(what)
            if len(latest) == most:
                break
        return latest

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Have `listener` told of all that comes, until what is returned is called. It must not raise or wait."""
        self._last_listener += 1
        number = self._last_listener
        self._listeners[number] = listener

        def stop() -> None:
            self._listeners.pop(number, None)

        return stop
