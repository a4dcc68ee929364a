"""Pages that are leased and imported but not mapped yet, so that a growth step needs no round trip."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from vatt.errors import Closed, InvalidRequest, VattError
from vatt.pages import Extent, FreeExtents
from vattention import fork_guard
from vattention.demand import IDLE, Demand
from vattention.page_source import LeasePurpose, PageSource

log = logging.getLogger(__name__)

# How often the background looks again while the engine is active, and the most often that it reports.
TICK_S = 0.25
# Between two rounds of work, so that many small takes and puts make one message.
PAUSE_S = 0.005
# After a refused refill the background leaves vattd alone for so long; a take asks at once all the same.
REFILL_BACKOFF_S = 1.0


class PageCache:
    """The session's unmapped pages, dealt by runs.

    Invariant: a page is in `_free`, or somebody took it and has not put it back, or it belongs to the source; never
    two. A thread keeps `_free` between the watermarks and reports mapped pages. It waits on a condition, without any
    timeout while there is nothing to keep and nothing to say. What goes wrong there is not raised there: the next
    `take` asks vattd itself and is told. Thread-safe.
    """

    def __init__(
        self,
        source: PageSource,
        mapped_pages: Callable[[], int],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._source = source
        self._mapped_pages = mapped_pages
        self._clock = clock
        self._birth = fork_guard.Birth()
        self._free = FreeExtents()
        self._demand = Demand()
        self._growth_steps: dict[int, int] = {}
        self._reported_pages = 0
        self._report_after_s = self._rest_until_s = float("-inf")
        self._closed = False
        self._changed = threading.Condition()
        # Held while asking for pages, so that a take waits for a refill under way instead of asking beside it.
        self._leasing = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="vattention-pages", daemon=True)
        self._thread.start()

    @property
    def page_count(self) -> int:
        """Pages that lie here now."""
        return self._free.page_count

    def set_growth_step(self, owner: object, page_count: int) -> None:
        """Say what one growth step of all of `owner`'s slots can take; 0 forgets the owner."""
        self._birth.check()
        with self._changed:
            self._growth_steps.pop(id(owner), None)
            if page_count:
                self._growth_steps[id(owner)] = page_count
            self._demand.step_pages = sum(self._growth_steps.values())
            self._changed.notify_all()

    def take(self, runs: Sequence[int]) -> list[list[Extent]]:
        """A list of extents for each run length asked, each as few as possible: all of them, or an error.

        What is missing is leased at once (GROW). Raises PoolExhausted or LimitExceeded with the pages that were
        missing.
        """
        self._birth.check()
        if any(run < 1 for run in runs):
            raise InvalidRequest(f"a run has at least one page: {list(runs)}")
        wanted = sum(runs)
        with self._changed:
            self._check_open()
            if self._free.page_count >= wanted:
                return self._deal(runs, wanted)
        with self._leasing:
            while True:
                with self._changed:
                    self._check_open()
                    missing = wanted - self._free.page_count
                    if missing <= 0:
                        return self._deal(runs, wanted)
                self._keep(self._source.lease(missing, purpose=LeasePurpose.GROW))

    def put(self, extents: Sequence[Extent]) -> None:
        """Bring back pages that are mapped nowhere any more, or add pages that were leased elsewhere."""
        self._birth.check()
        self._keep(extents)

    def close(self) -> None:
        """Stop the background and give every page here back. Idempotent; in a forked child it does nothing."""
        if not self._birth.is_here:
            return
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        with self._changed:
            pages = self._free.take(self._free.page_count)
        if pages:
            self._source.give_back(pages)

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("the session is closed")

    def _deal(self, runs: Sequence[int], wanted: int) -> list[list[Extent]]:
        dealt: list[list[Extent]] = [[] for _ in runs]
        # Longest first: a short run would else break up the only extent that a long one fits in.
        for at in sorted(range(len(runs)), key=lambda at: -runs[at]):
            run = self._free.take_run(runs[at])
            dealt[at] = [run] if run is not None else self._free.take(runs[at])
        self._demand.note(wanted, self._clock())
        self._changed.notify_all()
        return dealt

    def _keep(self, extents: Sequence[Extent]) -> None:
        """Lay pages in; after close() they go straight back."""
        with self._changed:
            if not self._closed:
                for extent in extents:
                    self._free.give_back(extent)
                self._changed.notify_all()
                return
        self._source.give_back(extents)

    def _run(self) -> None:
        """The background thread."""
        while True:
            with self._changed:
                while not self._closed and not self._work_waits():
                    self._changed.wait(None if self._is_idle() else TICK_S)
                if self._closed:
                    return
            try:
                self._tend()
            except VattError as error:
                log.debug("page cache: %s", error)
                self._rest_until_s = self._clock() + REFILL_BACKOFF_S
            except Exception:  # the thread's boundary: a bug here must not take the engine with it
                log.exception("page cache: unexpected")
                self._rest_until_s = self._clock() + REFILL_BACKOFF_S
            with self._changed:
                self._changed.wait_for(lambda: self._closed, PAUSE_S)

    def _is_idle(self) -> bool:
        marks = self._demand.watermarks(self._clock())
        return marks == IDLE and self._free.page_count == 0 and self._reported_pages == self._mapped_pages()

    def _work_waits(self) -> bool:
        now_s = self._clock()
        if now_s < self._rest_until_s:
            return False
        marks = self._demand.watermarks(now_s)
        return not marks.low_pages <= self._free.page_count <= marks.high_pages or self._report_is_due(now_s)

    def _report_is_due(self, now_s: float) -> bool:
        return now_s >= self._report_after_s and self._reported_pages != self._mapped_pages()

    def _tend(self) -> None:
        """Refill, or give back, to the high watermark, and report what is mapped."""
        with self._leasing:
            with self._changed:
                marks = self._demand.watermarks(self._clock())
                is_short = self._free.page_count < marks.low_pages
                short = marks.high_pages - self._free.page_count if is_short else 0
                excess = self._free.page_count - marks.high_pages
                surplus = self._free.take(excess) if excess > 0 else []
            if surplus:
                self._give_back(surplus)
            if short > 0:
                self._keep(self._source.lease(short, min_page_count=1, purpose=LeasePurpose.GROW))
        if self._report_is_due(self._clock()):
            mapped_pages = self._mapped_pages()
            self._source.report_usage(mapped_pages)
            self._reported_pages = mapped_pages
            self._report_after_s = self._clock() + TICK_S

    def _give_back(self, surplus: Sequence[Extent]) -> None:
        try:
            self._source.give_back(surplus)
        except VattError:
            self._keep(surplus)
            raise
