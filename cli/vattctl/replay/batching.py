"""Continuous batching in virtual time: the same rules for every way of holding KV.

A step is: who is done leaves, every running request grows by a token, and requests that wait are admitted in the order
of their arrival, prompt and all, while there is room for them and for some growth. Where the running ones outgrow the
budget, the youngest goes back to the head of the queue, with what it has made so far as a part of its prompt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vattctl.replay.trace import Request

Counts = npt.NDArray[np.int64]

# Left free for the growth of what runs when a request is admitted.
RESERVE_FRACTION = 0.01
# With nothing to do, virtual time goes on by so much at most.
IDLE_S = 1.0


class OutOfBlocks(Exception):
    """The lengths do not fit in the budget."""


class Memory(Protocol):
    """One way to hold the KV of up to `slot_count` requests, counted in blocks of its own."""

    @property
    def slot_count(self) -> int: ...
    @property
    def budget_blocks(self) -> int: ...
    @property
    def grows(self) -> bool:
        """Whether a request may need more blocks than it began with."""

    def blocks(self, lengths: Counts) -> int:
        """Blocks that slots of these lengths need. An empty slot needs none."""

    def admit(self, prompt_tokens: int) -> int:
        """A free slot."""

    def hold(self, lengths: Counts) -> None:
        """Have memory behind every slot's tokens. Raises OutOfBlocks, and has changed nothing then."""

    def free(self, slot: int, length: int) -> None:
        """End the use of a slot that holds so many tokens."""

    def rest(self) -> None:
        """What is done between two steps, while the model computes."""


class VirtualClock:
    """Seconds since the replay began. Call it for the time."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True, slots=True)
class Step:
    """The batch after one step, or after several with nothing to do."""

    step_count: int
    lengths: Counts  # of every slot; the batch's own array
    running: int
    waiting: int


@dataclass(slots=True)
class Waiting:
    """A request in the queue, the first time or after a preemption."""

    prompt_tokens: int
    output_tokens: int


class Batch:
    """One engine's life with one trace.

    Invariants: `_lengths[slot]` and `_left[slot]` are 0 unless the slot is in `_running`, which is in the order of
    admission; the memory holds `_lengths` after every step.
    """

    def __init__(
        self,
        requests: Sequence[Request],
        memory: Memory,
        step_s: float,
        speed: float,
        clock: VirtualClock | None = None,
    ) -> None:
        """`speed` divides arrival times; 0: all requests wait from the start. The batch sets the `clock`."""
        self._memory = memory
        self._step_s = step_s
        self._arrivals = [0 if speed == 0 else int(np.ceil(r.arrival_s / speed / step_s)) for r in requests]
        self._requests = requests
        self._arrived = 0
        self._queue: deque[Waiting] = deque()
        self._running: list[int] = []
        self._lengths: Counts = np.zeros(memory.slot_count, dtype=np.int64)
        self._left: Counts = np.zeros(memory.slot_count, dtype=np.int64)
        self._limit_blocks = memory.budget_blocks
        if memory.grows:
            self._limit_blocks -= int(memory.budget_blocks * RESERVE_FRACTION)
        self.clock = clock or VirtualClock()
        self.steps = 0
        self.preemptions = 0
        self.finished = 0

    def run(self, observe: Callable[[Step], None]) -> None:
        """Until every request is done. The largest request must fit in the budget by itself."""
        while self.finished < len(self._requests):
            self.clock.now_s = self.steps * self._step_s
            self._arrive()
            self._leave()
            self._go_on()
            self._memory.rest()
            step_count = 1 if self._running or self._queue else self._idle_steps()
            self.steps += step_count
            observe(Step(step_count, self._lengths, len(self._running), len(self._queue)))

    @property
    def all_admitted(self) -> bool:
        """Has every request been admitted, so that from now on the batch only drains?"""
        return self._arrived == len(self._requests) and not self._queue

    def _arrive(self) -> None:
        while self._arrived < len(self._requests) and self._arrivals[self._arrived] <= self.steps:
            request = self._requests[self._arrived]
            self._queue.append(Waiting(request.prompt_tokens, request.output_tokens))
            self._arrived += 1

    def _idle_steps(self) -> int:
        if self._arrived == len(self._requests):
            return 1
        return max(1, min(self._arrivals[self._arrived] - self.steps, int(IDLE_S / self._step_s)))

    def _leave(self) -> None:
        """Free the slots of requests that made their last token in the step before."""
        done = [slot for slot in self._running if self._left[slot] == 0] if self._running else []
        for slot in done:
            self._end(slot)
        self.finished += len(done)

    def _go_on(self) -> None:
        wanted = self._lengths + (self._lengths > 0)
        self._admit(wanted)
        while self._running:
            try:
                self._memory.hold(wanted)
                break
            except OutOfBlocks:
                self._preempt(wanted)
        self._lengths = wanted
        self._left -= wanted > 0

    def _admit(self, wanted: Counts) -> None:
        while self._queue and len(self._running) < self._memory.slot_count:
            head = self._queue[0]
            if self._running and not self._fits(wanted, head.prompt_tokens):
                return
            slot = self._memory.admit(head.prompt_tokens)
            wanted[slot], self._left[slot] = head.prompt_tokens, head.output_tokens
            self._running.append(slot)
            self._queue.popleft()

    def _fits(self, wanted: Counts, prompt_tokens: int) -> bool:
        lengths = wanted.copy()
        lengths[int(np.argmin(wanted))] = prompt_tokens  # a free slot; which one makes no difference here
        return self._memory.blocks(lengths) <= self._limit_blocks

    def _preempt(self, wanted: Counts) -> None:
        if len(self._running) == 1:
            raise OutOfBlocks(f"{int(wanted.max())} tokens of one request do not fit")
        slot = self._running[-1]
        # The token that this step would have stored is made already.
        self._queue.appendleft(Waiting(int(wanted[slot]), int(self._left[slot])))
        wanted[slot] = 0
        self._end(slot)
        self.preemptions += 1

    def _end(self, slot: int) -> None:
        self._running.remove(slot)
        self._memory.free(slot, int(self._lengths[slot]))
        self._lengths[slot] = self._left[slot] = 0
