"""Whose turn it is, and who gives memory up for whom."""

from __future__ import annotations

import bisect
import logging
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

from vatt.errors import InvalidRequest, LimitExceeded, OutOfMemory, PoolExhausted, TooBusy
from vattention.chat.answer import Answer, Finish, FinishReason
from vattention.chat.draft import Draft
from vattention.chat.memory import Memory
from vattention.chat.prefix import Prefix

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Totals:
    """Since the engine began."""

    answers: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    prefilled_tokens: int = 0
    generated_tokens: int = 0
    given_up: int = 0  # times that a conversation's slot was given up for others


class Scheduler:
    """Steps the running drafts in turn, so that nobody waits for another's whole answer.

    When memory is short, the idle conversation that was used least recently gives its slot up; where none is idle, the
    draft that came last does, and waits until another has ended. So the first that came always gets on, unless it
    is alone and still cannot grow: then its answer ends for want of memory.

    Invariant: each running draft has a prefix of its own; at most `slot_count` prefixes hold a slot; the waiting
    are in the order in which they came. Only the worker's thread uses it.
    """

    def __init__(self, memory: Memory, max_waiting: int) -> None:
        self._memory = memory
        self._max_waiting = max_waiting
        self._running: deque[Draft] = deque()  # the first has its turn
        self._waiting: list[Draft] = []
        self._owners: dict[Draft, Prefix | None] = {}  # the conversation's prefix; None: any that fits
        self._prefixes: list[Prefix] = []
        # Fewer than there are slots after memory was short; one more with each answer that ends.
        self._most_running = memory.slot_count
        self._uses = 0
        self.totals = Totals()

    @property
    def has_work(self) -> bool:
        return bool(self._running or self._waiting)

    @property
    def keeps_idle(self) -> bool:
        """Is memory held that no answer under way uses?"""
        return any(True for _ in self._idle())

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    @property
    def prefixes(self) -> list[Prefix]:
        """Those that hold a slot."""
        return [prefix for prefix in self._prefixes if prefix.holds_slot]

    # Answers

    def begin(self, draft: Draft, prefix: Prefix | None) -> None:
        """Have it generated when its turn comes: from `prefix`, or from whichever idle one has most in common.

        Raises TooBusy if too many wait, and Draining or SessionEvicted where an operator wants no new requests.
        """
        self._memory.check_admits()
        if len(self._waiting) >= self._max_waiting:
            raise TooBusy(f"{len(self._waiting)} answers wait already: try again when some have ended")
        self._owners[draft] = prefix
        self._waiting.append(draft)

    def cancel(self, answer: Answer) -> None:
        for draft in [*self._running, *self._waiting]:
            if draft.answer is answer:
                self._end(draft, Finish(FinishReason.CANCELLED))

    def end_all(self, finish: Finish) -> None:
        for draft in [*self._running, *self._waiting]:
            self._end(draft, finish)

    def step(self) -> None:
        """One step of the draft whose turn it is. One that fails ends, and harms no other.

        Under a drain idle conversations go: vattd cannot ask for them, since their slots are in use as far as it knows.
        """
        self._admit()
        while self._memory.is_draining and self._give_up_idle():
            pass
        if not self._running:
            return
        draft = self._running[0]
        try:
            self._free_a_slot_for(draft)
            finish = draft.step()
        except (PoolExhausted, LimitExceeded, OutOfMemory) as shortage:
            self._make_way(draft, shortage)
        except Exception as error:  # noqa: BLE001  whatever a model may raise is the answer's end
            log.warning("an answer failed: %r", error)
            self._fail(draft, error)
        else:
            if finish is not None:
                self._end(draft, finish)
            else:
                self._running.rotate(-1)

    # Prefixes

    def new_prefix(self, *, is_owned: bool) -> Prefix:
        prefix = Prefix(self._memory, is_owned=is_owned)
        self._prefixes.append(prefix)
        return prefix

    def forget(self, prefix: Prefix) -> None:
        """The conversation is over. Raises InvalidRequest while it is being answered."""
        if prefix not in self._prefixes:
            return
        if any(prefix in (draft.prefix, self._owners[draft]) for draft in self._owners):
            raise InvalidRequest("the conversation is being answered: cancel() the answer first")
        self._prefixes.remove(prefix)
        prefix.give_up()

    def give_up_pages(self, page_count: int) -> None:
        """Give up slots until about so many pages are idle: those of idle conversations, then running ones."""
        while self._memory.idle_pages() < page_count:
            if not (self._give_up_idle() or self._park(self._youngest())):
                return

    # Inside

    def _admit(self) -> None:
        while self._waiting and len(self._running) < max(1, self._most_running):
            draft = self._waiting.pop(0)
            self._running.append(draft)
            try:
                draft.enter(self._owners[draft] or self._best_prefix(draft))
            except Exception as error:  # noqa: BLE001  as in step(): a device that does not answer, say
                self._fail(draft, error)

    def _best_prefix(self, draft: Draft) -> Prefix:
        """The idle one with most in common, if that is worth more than what it holds besides; else a new one."""
        wanted = draft.prompt_token_ids
        idle = [prefix for prefix in self._idle() if not prefix.is_owned]
        best = max(idle, key=lambda prefix: prefix.common(wanted), default=None)
        if best is not None and best.common(wanted) * 2 >= best.length:
            return best
        return self.new_prefix(is_owned=False)

    def _free_a_slot_for(self, draft: Draft) -> None:
        """Running drafts are no more than slots, so if all are taken, an idle prefix has one."""
        if draft.prefix is not None and draft.prefix.holds_slot:
            return
        if len(self.prefixes) >= self._memory.slot_count:
            self._give_up_idle()

    def _make_way(self, draft: Draft, shortage: Exception) -> None:
        """For another try of `draft`, whose turn it still is; unless it waits itself, or ends."""
        if self._give_up_idle():
            return
        if len(self._running) > 1:
            self._park(self._youngest())
        else:
            self._end(draft, Finish(FinishReason.MEMORY, f"no memory for another token: {shortage}", shortage))

    def _give_up_idle(self) -> bool:
        """The least recently used idle prefix gives its slot up; False if there is none."""
        prefix = min(self._idle(), key=lambda idle: idle.last_used, default=None)
        if prefix is None:
            return False
        prefix.give_up()
        self.totals.given_up += 1
        self._drop_if_empty(prefix)
        return True

    def _park(self, draft: Draft | None) -> bool:
        """The running draft gives its slot up and waits; False for None."""
        if draft is None or draft.prefix is None:
            return False
        prefix = draft.prefix
        self._running.remove(draft)
        draft.leave()
        bisect.insort(self._waiting, draft, key=lambda one: one.number)
        self._most_running = len(self._running)
        prefix.give_up()
        self.totals.given_up += 1
        self._drop_if_empty(prefix)
        return True

    def _youngest(self) -> Draft | None:
        return max(self._running, key=lambda draft: draft.number, default=None)

    def _idle(self) -> Iterator[Prefix]:
        used = {id(draft.prefix) for draft in self._running}
        return (prefix for prefix in self.prefixes if id(prefix) not in used)

    def _fail(self, draft: Draft, error: Exception) -> None:
        """What the cache holds after an error is anybody's guess."""
        prefix = draft.prefix
        self._end(draft, Finish(FinishReason.FAILED, str(error), error))
        if prefix is not None:
            prefix.give_up()
            self._drop_if_empty(prefix)

    def _end(self, draft: Draft, finish: Finish) -> None:
        prefix = draft.prefix
        if draft in self._running:
            self._running.remove(draft)
            self._most_running = min(self._memory.slot_count, self._most_running + 1)
        else:
            self._waiting.remove(draft)
        del self._owners[draft]
        draft.leave()
        if prefix is not None:
            self._uses += 1
            prefix.last_used = self._uses
            self._drop_if_empty(prefix)
        draft.end(finish)
        self._count(draft)

    def _count(self, draft: Draft) -> None:
        counts = draft.answer.counts
        self.totals.answers += 1
        self.totals.prompt_tokens += counts.prompt
        self.totals.reused_tokens += counts.reused
        self.totals.prefilled_tokens += counts.prefilled
        self.totals.generated_tokens += counts.generated

    def _drop_if_empty(self, prefix: Prefix) -> None:
        """A prefix that no conversation owns is nothing once it holds nothing."""
        if not prefix.is_owned and not prefix.holds_slot and prefix in self._prefixes:
            self._prefixes.remove(prefix)
