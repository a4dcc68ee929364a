"""One tenant's engine: continuous batching with pages from a pool, by the rules of vattctl.replay.batching.

In a step, what is done leaves and what runs grows by a token, for which the pages that came free are used first; then
new requests begin if their prompts' pages are there. Each request needs a page more every PAGE_TOKENS steps, so it is
enough to count how many do at each remainder, and steps in which nothing happens cost nothing.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass

from benchmarks.tenancy.account import Account
from benchmarks.tenancy.pool import Ask, Pool
from benchmarks.tenancy.workload import PAGE_TOKENS, STEP_S, Workload

# A request is delayed if it waited longer for memory, in all.
DELAY_S = 1.0
# An engine asks for the first of its queue only, as a scheduler does that begins its requests in order.
ASKED_AHEAD = 1


@dataclass(slots=True, eq=False)
class Request:
    number: int
    prompt_tokens: int
    output_tokens: int  # what is still to be made
    queued_step: int
    began_step: int = 0

    def pages_after(self, steps: int) -> int:
        """What it holds when it has run so many steps."""
        return -(-(self.prompt_tokens + steps - 1) // PAGE_TOKENS)

    @property
    def end_step(self) -> int:
        """In this step it leaves."""
        return self.began_step + self.output_tokens

    @property
    def remainder(self) -> int:
        """Steps after the one it began in, of which this is the remainder by PAGE_TOKENS, begin a page."""
        return (self.began_step + 1 - self.prompt_tokens) % PAGE_TOKENS


class Engine:
    """Invariants: `_running` is in the order of admission, and holds what the account holds but for granted asks;
    `_crossing[r]` is how many of it begin a page in steps of remainder r; asks are for the queue's first, in order.
    """

    def __init__(self, workload: Workload, account: Account, pool: Pool) -> None:
        self.account, self._pool = account, pool
        self._workload = workload
        self._arrivals = workload.begin_steps.tolist()
        self._prompts, self._outputs = workload.prompt_tokens.tolist(), workload.output_tokens.tolist()
        self._arrived = 0
        self._queue: deque[Request] = deque()
        self._asks: deque[Ask] = deque()
        self._running: dict[int, Request] = {}
        self._ends: defaultdict[int, list[Request]] = defaultdict(list)
        self._crossing = [0] * PAGE_TOKENS
        self.waits_s = [0.0] * len(workload)
        self.delayed = 0
        self.finished = 0
        self.preemptions = 0

    @property
    def is_queueing(self) -> bool:
        return bool(self._queue)

    def next_step(self, step: int) -> int | None:
        """The first step from this one on in which it has anything to do. None: it is done."""
        if self._running or self._queue:
            return step
        return max(step, self._arrivals[self._arrived]) if self._arrived < len(self._arrivals) else None

    def step(self, step: int, now_s: float) -> None:
        account = self.account
        if account.wanted_pages or self._crossing[step % PAGE_TOKENS] or step in self._ends:
            self._go_on(step, now_s)
        if self._queue or (self._arrived < len(self._arrivals) and self._arrivals[self._arrived] <= step):
            self._arrive(step)
            self._begin(step, now_s)

    def _go_on(self, step: int, now_s: float) -> None:
        freed = self._leave(step)
        if self.account.wanted_pages:
            while freed < min(self.account.wanted_pages, self.account.held_pages):
                freed += self._preempt(step)
            self._pool.give_back(self.account, freed, now_s)
            self._pool.answer(self.account, now_s)
            self._pool.serve(now_s)
            freed = 0
        remainder = step % PAGE_TOKENS
        while self._crossing[remainder] > freed:
            if self._pool.grow(self.account, self._crossing[remainder] - freed, now_s):
                return
            freed += self._preempt(step)
        self._give_back(freed - self._crossing[remainder], now_s)

    def _give_back(self, page_count: int, now_s: float) -> None:
        if page_count:
            self._pool.give_back(self.account, page_count, now_s)
            self._pool.serve(now_s)

    def _leave(self, step: int) -> int:
        """Returns how many pages came free."""
        freed = 0
        for request in self._ends.pop(step, ()):
            if self._running.get(request.number) is request:  # else it was preempted
                del self._running[request.number]
                freed += self._end(request, step)
                self.finished += 1
        return freed

    def _preempt(self, step: int) -> int:
        """The youngest goes back to the head of the queue. Returns how many pages came free."""
        while self._asks and not self._asks[-1].granted:  # another request comes before these now
            self._pool.withdraw(self._asks.pop())
        if self._asks:  # the youngest has not even begun
            return self._asks.pop().page_count
        _, request = self._running.popitem()
        freed = self._end(request, step)
        made = step - request.began_step  # the token that this step would have stored is made already
        again = Request(
            request.number,
            request.prompt_tokens + made,
            request.output_tokens - made,
            queued_step=step,
        )
        self._queue.appendleft(again)
        self.preemptions += 1
        return freed

    def _end(self, request: Request, step: int) -> int:
        self._crossing[request.remainder] -= 1
        return request.pages_after(step - request.began_step)

    def _arrive(self, step: int) -> None:
        while self._arrived < len(self._arrivals) and self._arrivals[self._arrived] <= step:
            number = self._arrived
            self._queue.append(
                Request(number, self._prompts[number], self._outputs[number], queued_step=self._arrivals[number])
            )
            self._arrived += 1

    def _begin(self, step: int, now_s: float) -> None:
        while self._queue:
            asked = len(self._asks)
            while len(self._asks) < min(ASKED_AHEAD, len(self._queue)):
                pages = self._queue[len(self._asks)].pages_after(1)
                self._asks.append(self._pool.ask(self.account, pages, now_s))
            if len(self._asks) > asked:
                self._pool.serve(now_s)
            if not self._asks[0].granted:
                return
            self._asks.popleft()
            self._run(self._queue.popleft(), step)

    def _run(self, request: Request, step: int) -> None:
        request.began_step = step
        self._note_wait(request, step)
        self._running[request.number] = request
        self._ends[request.end_step].append(request)
        self._crossing[request.remainder] += 1

    def _note_wait(self, request: Request, step: int) -> None:
        before_s = self.waits_s[request.number]
        self.waits_s[request.number] = wait_s = before_s + (step - request.queued_step) * STEP_S
        self.delayed += before_s <= DELAY_S < wait_s
