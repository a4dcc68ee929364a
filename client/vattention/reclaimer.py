"""Gives pages back when vattd asks for them, without any call of the engine's."""

from __future__ import annotations

import enum
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from vatt.errors import VattError
from vatt.pages import Extent, page_count_of
from vatt.v1 import vatt_pb2
from vattention.page_cache import PageCache, PageUser
from vattention.returns import give_back_or_keep

log = logging.getLogger(__name__)

# Pages unmapped and returned at one go: a step that needs others waits for these at most.
CHUNK_PAGES = 256
# How long to leave the device, or a step that is mapping pages, alone before asking again.
PROOF_REST_S = 0.005
# The part of the time that vattd gives in which pages are looked for; the rest is for the answer to get there.
SEARCH_PART = 0.8

# Told how many more pages are wanted.
OnPressure = Callable[[int], None]


class ReclaimDepth(enum.Enum):
    """How much a session should give up; each depth includes those before it."""

    IDLE = "idle"  # what no request uses
    RUNNING = "running"  # pages of running requests too


@dataclass(frozen=True, slots=True)
class Reclaim:
    """Pages that vattd wants back."""

    reclaim_id: int
    page_count: int  # all that is wanted when it is told
    depth: ReclaimDepth
    within_s: float

    @classmethod
    def from_wire(cls, wanted: vatt_pb2.Reclaim) -> Reclaim:
        is_running = wanted.depth == vatt_pb2.RECLAIM_DEPTH_RUNNING
        return cls(
            reclaim_id=wanted.reclaim_id,
            page_count=wanted.page_count,
            depth=ReclaimDepth.RUNNING if is_running else ReclaimDepth.IDLE,
            within_s=wanted.within.ToNanoseconds() / 1e9,
        )


@dataclass(frozen=True, slots=True)
class _Asked:
    """A Reclaim, when it was told, and how many pages had been given back by then."""

    reclaim: Reclaim
    told_s: float
    given_pages: int

    def part_over_s(self, part: float) -> float:
        """When this part of the time that vattd gave is over."""
        return self.told_s + part * self.reclaim.within_s


class Reclaimer:
    """Carries out the latest Reclaim, in a thread that the first one starts.

    Idle pages go first: those of the page cache, then those of finished slots, which the device must be done with.
    If running requests are to give up theirs too, what they have over their need goes next, and then the engine is
    asked: `on_pressure` is called with no lock held. What goes wrong is logged, and the Reclaim answered all the same.

    A proof that only waiting can tell of is not waited for here: the answer would be late. The KV cache's background
    does that in its own time. Thread-safe.
    """

    def __init__(
        self,
        pages: PageCache,
        give_back: Callable[[Sequence[Extent]], None],
        answer: Callable[[int], None],
        on_pressure: OnPressure | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`give_back` returns pages to vattd; `answer` tells it that this is all for the Reclaim of that id."""
        self.on_pressure = on_pressure
        self._pages = pages
        self._give_back = give_back
        self._answer = answer
        self._clock = clock
        self._given_pages = 0
        self._next: _Asked | None = None
        self._is_busy = self._is_pressing = self._is_closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def ask(self, reclaim: Reclaim) -> None:
        """Have this one carried out, in place of one that has not begun. Returns at once.

        Where no thread can be started now, that is logged, and tried again with the next Reclaim.
        """
        with self._changed:
            if self._is_closed:
                return
            self._next = _Asked(reclaim, self._clock(), self._given_pages)
            if self._thread is None:
                self._start()
            self._changed.notify_all()

    def close(self) -> None:
        """Begin nothing any more, and wait until nothing is under way. Idempotent.

        A callback under way is not waited for, since it may wait for who closes: the thread ends when it returns.
        """
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            if self._thread is None or self._thread is threading.current_thread():
                return
            self._changed.wait_for(lambda: self._is_pressing or not self._is_busy)
            if self._is_pressing:
                return
        self._thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="vattention-reclaim", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # "can't start new thread": the process or its user has too many
            log.warning("reclaim: no thread to carry it out: %s", error)
            return
        self._thread = thread

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._is_closed)
                asked, self._next = self._next, None
                if self._is_closed or asked is None:
                    return
                self._is_busy = True
            try:
                self._carry_out(asked)
            finally:
                with self._changed:
                    self._is_busy = False
                    self._changed.notify_all()

    def _carry_out(self, asked: _Asked) -> None:
        self._guarded("idle pages", lambda: self._obey(asked))
        if not self._is_closed:  # the session is about to detach: that says more
            self._guarded("the answer", lambda: self._answer(asked.reclaim.reclaim_id))

    def _obey(self, asked: _Asked) -> None:
        if asked.reclaim.depth is ReclaimDepth.IDLE:
            self._give(asked, asked.part_over_s(SEARCH_PART), finished_only=True)
            return
        # Half of the time is the engine's.
        half_s = asked.part_over_s(SEARCH_PART / 2)
        self._give(asked, half_s, finished_only=True)
        self._give(asked, half_s, finished_only=False)
        if self._short(asked) > 0 and not self._is_interrupted():
            self._press(self._short(asked))
            self._give(asked, asked.part_over_s(SEARCH_PART), finished_only=False)

    def _give(self, asked: _Asked, until_s: float, *, finished_only: bool) -> None:
        """Return idle pages until that is enough, or no more are idle, or the time is over."""
        users = self._pages.users()
        while (short := self._short(asked)) > 0 and not self._is_interrupted():
            if self._give_some(min(short, CHUNK_PAGES), users, finished_only=finished_only):
                continue
            if not any(user.idle_pages(finished_only=finished_only) for user in users):
                return
            if self._clock() >= until_s:
                return
            with self._changed:
                self._changed.wait_for(self._is_interrupted, PROOF_REST_S)

    def _give_some(self, page_count: int, users: list[PageUser], *, finished_only: bool) -> bool:
        """Return about so many idle pages; were there any? A user that fails is taken from the list."""
        extents = self._pages.give_up(page_count)
        for user in list(users):
            missing = page_count - page_count_of(extents)
            if missing > 0:
                try:
                    extents += user.gather_idle(missing, finished_only=finished_only)
                except Exception:  # another one's pages may still be had
                    log.exception("reclaim: a KV cache cannot give up idle pages")
                    users.remove(user)
        if not extents:
            return False
        # Before they go: a Reclaim that is told once vattd has them is for others.
        self._given_pages += page_count_of(extents)
        give_back_or_keep(self._give_back, extents, self._keep)
        return True

    def _keep(self, refused: Sequence[Extent]) -> None:
        """Take pages that were counted as given, and did not go, back into the page cache."""
        with self._changed:
            self._given_pages -= page_count_of(refused)
            if self._next is not None:  # it may have been told in between
                given_pages = min(self._next.given_pages, self._given_pages)
                self._next = replace(self._next, given_pages=given_pages)
        self._pages.put(refused)

    def _short(self, asked: _Asked) -> int:
        """Pages that are still wanted."""
        return asked.reclaim.page_count - (self._given_pages - asked.given_pages)

    def _is_interrupted(self) -> bool:
        """A later Reclaim says anew how much is wanted."""
        return self._is_closed or self._next is not None

    def _press(self, page_count: int) -> None:
        """Ask the engine."""
        on_pressure = self.on_pressure
        with self._changed:
            if on_pressure is None or self._is_closed:
                return
            self._is_pressing = True
            self._changed.notify_all()
        try:
            self._guarded("on_pressure", lambda: on_pressure(page_count))
        finally:
            with self._changed:
                self._is_pressing = False

    def _guarded(self, what: str, action: Callable[[], None]) -> None:
        """The thread's boundary: what goes wrong in `action` must not take the thread with it."""
        try:
            action()
        except (Exception, SystemExit) as error:
            if self._is_closed:
                log.debug("reclaim: %s, while the session was closing: %s", what, error)
            elif isinstance(error, VattError):
                log.warning("reclaim: %s: %s", what, error)
            else:
                log.exception("reclaim: %s: unexpected", what)
