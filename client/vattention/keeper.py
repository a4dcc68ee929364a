"""The background of a KV cache: maps pages before the step that needs them, and lets go of pages that nobody needs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from vatt.errors import Closed, VattError
from vattention.layout import Counts
from vattention.lookahead import MAX_STEPS_AHEAD, spare_steps, steps_ahead
from vattention.marks import Mark
from vattention.page_cache import PageCache
from vattention.rows import RowNumbers, Rows

log = logging.getLogger(__name__)

# Pages mapped at one go: a step that needs others waits for these at most.
CHUNK_PAGES = 64
# How long to leave vattd alone after it refused pages that are not due yet, and the device before it is asked again.
SHORT_REST_S = 0.1
PROOF_REST_S = 0.005
# Some proofs can only be waited for: after so long, that is done.
PROOF_PATIENCE_S = 0.25


@dataclass(frozen=True, slots=True)
class KeepPolicy:
    """What is kept mapped although nobody needs it now. Fractions of the pages that the tenant may have."""

    # Of finished slots, for the next requests. On an hour of chat requests it spares three maps of four.
    finished_fraction: float = 0.10
    # Of running slots, over what their tokens will soon fill: what a shorter request took over from a longer one.
    surplus_fraction: float = 0.04
    # A finished slot's pages go after this time, whatever the fractions say: an idle engine keeps nothing.
    keep_s: float = 30.0


# Rows to extend, the pages that each gets in each band, and whether the next step needs them.
Ahead = tuple[RowNumbers, Counts, bool]


class Keeper:
    """One round of upkeep at a time, and a thread that does them.

    A round does one chunk of work: first what running rows will need, the nearest first; then what is spoilt, over the
    limits, or too old. What goes wrong here is not raised here: the step that needs the pages asks itself, and is told.
    """

    def __init__(
        self, rows: Rows, pages: PageCache, share_pages: Callable[[], int], clock: Callable[[], float]
    ) -> None:
        self.policy = KeepPolicy()
        self._rows = rows
        self._pages = pages
        self._share_pages = share_pages
        self._clock = clock
        self._short_until_s = float("-inf")
        self._asked: Mark | None = None  # the mark that was not done when last asked, and since when
        self._asked_since_s = 0.0
        # Steps by one token each that no row will need anything for.
        self.spare_steps = 0
        self._due = threading.Event()
        self._calm = threading.Condition()
        self._is_calm = True
        self._closed = False
        self._is_held_up = False  # by who held the rows in the last round, or by the device, which uses a page yet
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        self._thread = threading.Thread(target=self._run, name="vattention-keeper", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Something has changed: look again."""
        self.spare_steps = 0
        if not self._due.is_set():
            self._due.set()

    def note_step(self, *, jumps: bool) -> None:
        """A step was served by what is mapped; with `jumps`, some row grew by more than a token."""
        self.spare_steps -= 1
        if (jumps or self.spare_steps < 0) and not self._due.is_set():
            self._due.set()

    def set_finished_fraction(self, fraction: float) -> None:
        self.policy = replace(self.policy, finished_fraction=fraction)

    def stop(self) -> None:
        self._closed = True
        self._due.set()
        with self._calm:
            self._calm.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def settle(self, timeout_s: float) -> bool:
        """Wait until there is nothing left to do; False if that takes longer. Without a thread, do it here."""
        if self._thread is None:
            return self._settle_here(timeout_s)
        with self._calm:
            self._is_calm = False
        self._due.set()
        with self._calm:
            return self._calm.wait_for(lambda: self._is_calm or self._closed, timeout_s)

    def _settle_here(self, timeout_s: float) -> bool:
        """What is due later, on a clock that may be the caller's, is not waited for."""
        deadline_s = time.monotonic() + timeout_s
        while self.tend(self._clock()) == 0 or self._is_held_up:
            if time.monotonic() >= deadline_s:
                return False
            if self._is_held_up:
                self._due.clear()
                self._due.wait(PROOF_REST_S)
        return True

    def _run(self) -> None:
        rest_s: float | None = None
        while not self._closed:
            self._due.wait(rest_s)
            self._due.clear()
            if self._closed:
                return
            try:
                rest_s = self.tend(self._clock())
                while rest_s == 0 and not self._closed:
                    rest_s = self.tend(self._clock())
            except Closed:
                return
            except VattError as error:
                log.debug("mapping ahead: %s", error)
                rest_s = SHORT_REST_S
            except Exception:  # the thread's boundary: a bug here must not take the engine with it
                log.exception("mapping ahead: unexpected")
                rest_s = 1.0
            with self._calm:
                self._is_calm = not self._due.is_set() and (rest_s is None or rest_s > PROOF_REST_S)
                self._calm.notify_all()

    def tend(self, now_s: float) -> float | None:
        """One round. How long to rest: 0 if there is more to do, None until somebody wakes us."""
        rows = self._rows
        with rows.mapping_if_free() as held:
            self._is_held_up = not held
            if not held:
                return PROOF_REST_S
            with rows.state:
                ahead, goals = self._needs_ahead()
            if ahead is not None and now_s >= self._short_until_s:
                which, extra, is_due = ahead
                if self._extend(which, extra, is_due=is_due):
                    rows.expect(which, goals)
                else:
                    self._short_until_s = now_s + SHORT_REST_S
                return 0
            rest_s = self._trim(goals, now_s)
            if ahead is None:
                return rest_s
            short_s = self._short_until_s - now_s
            return short_s if rest_s is None else min(rest_s, short_s)

    def _extend(self, which: RowNumbers, extra: Counts, *, is_due: bool) -> bool:
        """False if it could not be done now, for whatever reason: pages are let go of all the same."""
        try:
            return self._rows.extend_ahead(which, extra, is_due=is_due)
        except Closed:
            raise
        except VattError as error:
            log.debug("mapping ahead: %s", error)
            return False

    # What to map

    def _needs_ahead(self) -> tuple[Ahead | None, Counts]:
        """The rows to extend next and by how much, and the tokens that each row should have room for.

        The `state` lock is held.
        """
        table, arithmetic = self._rows.table, self._rows.arithmetic
        limit = self._rows.max_context_length
        goals = np.zeros(table.slot_count, dtype=np.int64)
        used = np.flatnonzero(table.in_use)
        if not len(used):
            return None, goals
        length, mapped = table.length[used], table.mapped[used]
        steps = np.arange(MAX_STEPS_AHEAD + 1)
        tokens = np.minimum(length[:, None] + np.where(length[:, None] > 0, steps, 0), limit)
        lacking = np.maximum(arithmetic.pages(tokens) - mapped[:, None, :], 0)
        missing_pages = arithmetic.pool_pages(lacking).sum(axis=0)
        ahead_steps = steps_ahead(missing_pages, self._rows.pace)
        goals[used] = np.maximum(tokens[:, ahead_steps], np.minimum(table.expected[used], limit))
        lack = np.maximum(arithmetic.pages(goals[used]) - mapped, 0)
        short = np.flatnonzero(lack.any(axis=1))
        slack = table.capacity[used] - length
        if not len(short):
            self.spare_steps = spare_steps(missing_pages, self._rows.pace)
            return None, goals
        self.spare_steps = 0
        nearest = short[np.argsort(slack[short], kind="stable")]
        return self._chunk(used[nearest], mapped[nearest], lack[nearest], is_due=bool(slack[short].min() <= 1)), goals

    def _chunk(self, rows: RowNumbers, mapped: Counts, lack: Counts, *, is_due: bool) -> Ahead:
        """As many of the rows as one go may map; of a very long row only a part."""
        arithmetic = self._rows.arithmetic
        extra = np.where(lack > 0, np.maximum(lack, arithmetic.run_ahead(mapped)), 0)
        page_counts = arithmetic.pool_pages(extra)
        fit = int(np.searchsorted(np.cumsum(page_counts), CHUNK_PAGES, side="right"))
        if fit == 0:  # a part of one row: the same tokens' pages in every band
            part = CHUNK_PAGES / int(page_counts[0])
            return rows[:1], np.maximum(np.minimum(1, extra[:1]), (extra[:1] * part).astype(np.int64)), is_due
        return rows[:fit], extra[:fit], is_due

    # What to let go

    def _trim(self, goals: Counts, now_s: float) -> float | None:
        """Let go of one row's pages, if there are any to let go of and the device is done with them."""
        rows, arithmetic = self._rows, self._rows.arithmetic
        with rows.state:
            table = rows.table
            mapped, in_use, spoilt = table.mapped.copy(), table.in_use.copy(), table.spoilt.copy()
            floor = arithmetic.pages(np.maximum(goals, table.length))
            # Growing takes a run at least, and so up to a page less than one over the need.
            runs_over = np.maximum(arithmetic.run_ahead(floor) - 1, 0)
            floor = np.where(in_use[:, None], floor + runs_over, 0)
            age_s = now_s - table.left_s
            stays = table.common & ~spoilt  # mapped by map_common: nobody's left-over
        over = np.where(stays, 0, arithmetic.pool_pages(np.maximum(mapped - floor, 0)))
        finished = np.where(in_use, 0, over)
        for row in np.flatnonzero(finished).tolist():
            if spoilt[row] or age_s[row] >= self.policy.keep_s:
                return self._let_go(row, int(finished[row]), floor[row], now_s)
        share = self._share_pages()
        needed = int(arithmetic.pool_pages(np.minimum(mapped, floor)).sum())
        free = max(0, share - needed - int(finished.sum()))
        for kept, limit in (
            (finished, min(int(share * self.policy.finished_fraction), max(0, share - needed))),
            (np.where(in_use, over, 0), min(int(share * self.policy.surplus_fraction), free // 16)),
        ):
            excess = int(kept.sum()) - limit
            if excess > 0:
                row = int(kept.argmax())
                return self._let_go(row, excess, floor[row], now_s)
        ages = age_s[finished > 0]
        return max(0.001, self.policy.keep_s - float(ages.max())) if len(ages) else None

    def _let_go(self, row: int, page_count: int, floor: Counts, now_s: float) -> float:
        if not self._device_is_done(row, now_s):
            self._is_held_up = True
            return PROOF_REST_S
        self._pages.put(self._rows.cut_most(row, page_count, floor))
        return 0

    def _device_is_done(self, row: int, now_s: float) -> bool:
        """Asks, and comes back later; waits only for a proof that has been asked for long, as some must be."""
        mark = self._rows.mark_of(row)
        if mark.done():
            return True
        if self._asked is not mark:
            self._asked, self._asked_since_s = mark, now_s
        return now_s - self._asked_since_s >= PROOF_PATIENCE_S  # then it is waited for
