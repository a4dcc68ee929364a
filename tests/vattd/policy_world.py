"""A pool's decisions in virtual time: the real ledger, stock, policy, pressure, workshop and upkeep, and engines that
are made up. What it checks of them after every step is what vattd/policy.py and vattd/reclaim.py promise."""

from __future__ import annotations

import enum
import heapq
import math
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any, TypeVar, cast

from tests.vattd.fake_driver import FakeDriver
from vatt.errors import (
    LimitExceeded,
    OutOfMemory,
    PoolExhausted,
    VattError,
    WaitHopeless,
)
from vatt.pages import Extent
from vatt.usage import Usage
from vattd.driver_thread import DriverThread, Urgency
from vattd.gathering import gathering_phase
from vattd.guarantee import Access, Guarantee, MinMode
from vattd.ledger import Ledger
from vattd.lending import Answer, Lending
from vattd.page_run import PageRun
from vattd.policy import Policy
from vattd.pressure import DYING_S, Pressure, PromiseState, Review
from vattd.reclaim import Reason, Reclaims, Request
from vattd.share_out import Depth
from vattd.stock import Stock
from vattd.tenants import Tenant
from vattd.upkeep import Upkeep
from vattd.wish import Party, Purpose, Timing, Waiting, Wish
from vattd.workshop import Slice, Workshop

T = TypeVar("T")

TENANTS = ("a", "b", "c", "d")
MAX_ENGINES = 8
UID = 1000
ACCESS = Access(frozenset({UID}))
PAGE_SIZE = 1 << 20  # two pages are a slice of background work
KILL_S = 0.2  # at most so long lives a process after SIGKILL
HANG_S = 9.0  # unless it hangs
MAX_TURNS = 300  # of one event: more are a busy loop


class Manner(enum.Enum):
    """What an engine does when it is asked for pages."""

    GIVES = "gives what it is asked for in time"
    GIVES_IDLE = "gives what it does not use and answers"
    DALLIES = "gives it when the time is over"
    IS_MUTE = "does nothing"


ANY_MANNER = list(Manner)


class Killing(enum.Enum):
    """What SIGKILL does to an engine."""

    ENDS_IT = "ends it"
    IS_REFUSED = "the kernel refuses it: the process is another user's"
    HANGS = "the process ends late: it hangs in the kernel"


ANY_KILLING = [Killing.ENDS_IT] * 8 + [Killing.IS_REFUSED, Killing.HANGS]


@dataclass(frozen=True, slots=True)
class Setting:
    """A world's rules, in seconds and pages. Where it is `is_orderly`, waits are bounded: nothing is changed but by
    engines, which hold what they lease for `life_s` at most, and grow above a min only if they have none."""

    pool_pages: int = 40
    shares_zone: bool = True
    kill_after_s: float | None = None
    within_s: float = 1.0
    head_hold_s: float = 2.0
    ageing_s: float = 10.0
    life_s: float = 8.0
    is_slow: bool = False  # driver calls take time
    is_orderly: bool = False
    headroom_pages: int = 0

    @property
    def longest_wait_s(self) -> float:
        """How long the oldest wish waits at most where that is bounded; H is head_hold_s, L is life_s.

        After L its tenant holds nothing, so that it is first. Pages come back within L of when gathering begins, so the
        first time to gather that is as long is enough: the k-th lasts k H, k = ceil(L/H), and begins after H k (k - 1).
        If it became first in the midst of a time that is over too soon, that one and the recess after it, of L + H at
        most each, go by until the next, which is longer.
        """
        hold_s, life_s = self.head_hold_s, self.life_s
        k = math.ceil(life_s / hold_s)
        return life_s + hold_s * k * (k - 1) + 2 * (life_s + hold_s) + life_s


@dataclass(slots=True, eq=False)
class Running:
    """A request of an engine, and what it leased for it."""

    ends_s: float
    runs: list[PageRun] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Engine:
    session_id: str
    tenant: Tenant
    manner: Manner
    killing: Killing
    requests: list[Running] = field(default_factory=list)
    idle: list[PageRun] = field(default_factory=list)
    listens: bool = True
    killed_s: float | None = None
    was_spared: bool = False  # SIGKILL was refused
    has_ended: bool = False

    @property
    def is_dying(self) -> bool:
        return self.killed_s is not None

    @property
    def idle_pages(self) -> int:
        return _pages(self.idle)

    @property
    def held_pages(self) -> int:
        return self.idle_pages + sum(_pages(request.runs) for request in self.requests)


@dataclass(slots=True, eq=False)
class _Asked:
    """A wish that was taken in: for whom, and what to do with the pages."""

    engine: Engine
    entry: Waiting
    request: Running | None  # of a GROW


class WatchedPolicy(Policy):
    """Checks each award when it is made."""

    def _award(self, entry: Waiting, page_count: int) -> None:
        super()._award(entry, page_count)
        party, now_s = entry.party, self.now_s()
        assert entry.wish.min_page_count <= page_count <= entry.wish.page_count
        assert self.pages_of(party) <= self._ceiling(party), "above its max"
        others = [other for other in self._books.promised() if other is not party]
        hard = sum(unused_min(self, other) for other in others if other.guarantee.mode is MinMode.HARD)
        assert self.free_pages >= hard, "an award from what is kept for a hard min"
        if self.pages_of(party) > party.guarantee.min_pages:
            soft = sum(self.set_aside(other, now_s) for other in others if other.guarantee.mode is MinMode.SOFT)
            assert self.free_pages >= hard + soft, "above its min with what another one's min lacks"
        self.award_count += 1

    def postpone(self, entry: Waiting) -> None:
        super().postpone(entry)
        self.postponed_count += 1

    award_count = postponed_count = 0
    now_s: Callable[[], float]


class Device(FakeDriver):
    """Has memory for `memory_pages`."""

    def __init__(self, memory_pages: int, *, shares_zone: bool) -> None:
        super().__init__(recycles=shares_zone, fresh_is_zero=not shares_zone)
        self.page_size_bytes = PAGE_SIZE
        self.memory_pages = memory_pages

    def _enter(self, call: str, extent: Extent) -> None:
        if call == "create" and len(self.created) + extent.page_count > self.memory_pages:
            raise OutOfMemory("other programs use it")


class _Thread:
    """Calls at once."""

    async def run(self, urgency: Urgency, call: Callable[[Extent], None], extent: Extent) -> None:
        call(extent)


class World:
    """`turn` is the loop of `Pool.run`, without asyncio."""

    def __init__(self, setting: Setting, rng: Random) -> None:
        self.setting, self.rng = setting, rng
        self.now_s = 1000.0 * rng.random()
        stock = Stock(setting.pool_pages, shares_zone=setting.shares_zone)
        self.stock = stock
        self.ledger = Ledger(stock, page_size_bytes=PAGE_SIZE, incarnation=1)
        self.device = Device(setting.pool_pages, shares_zone=setting.shares_zone)
        self.workshop = Workshop(stock, self.device, cast(DriverThread, _Thread()))
        self.upkeep = Upkeep(
            self.ledger, self.workshop, min_pages=0, headroom_pages=setting.headroom_pages, idle_after_s=5.0
        )
        self.policy = WatchedPolicy(self.ledger, Timing(setting.head_hold_s, setting.ageing_s))
        self.policy.now_s = lambda: self.now_s
        self.reclaims = Reclaims(setting.within_s, setting.kill_after_s)
        self.pressure = Pressure(self.ledger, self.policy, self.reclaims, self._listens)
        self.lending = Lending(self.ledger, self.policy, self.pressure, self.workshop, self.upkeep, self._answer)
        self.engines: dict[str, Engine] = {}
        self.under_way: Slice | None = None
        self.counts: Counter[str] = Counter()
        self._asked: dict[tuple[str, str], _Asked] = {}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0
        self._calm_since_s = self.now_s  # since when nothing was done to the promises but by engines
        self._promised_since_s: dict[tuple[str, str], float] = {}  # heads within their min
        self._oldest: tuple[Waiting | None, float] = (None, self.now_s)
        self._hard_is_held = True
        self._has_postponed = False  # it would be awarded the same pages at once: the pool sleeps first
        self._has_refused = False  # that leaves room for others: the loop goes round once more
        self.is_over = False

    # What engines and operators do

    def attach(self, tenant: str, manner: Manner) -> Engine:
        self._count += 1
        session_id = f"s{self._count}"
        self.lending.open_session(session_id, tenant, UID)
        engine = Engine(session_id, self.ledger.tenant_of(session_id), manner, self.rng.choice(ANY_KILLING))
        self.engines[session_id] = engine
        self.turn()
        return engine

    def admit(self, engine: Engine, page_count: int, fewest: int, wait_s: float) -> None:
        self._ask(engine, page_count, fewest, wait_s, None, Purpose.ADMIT)

    def grow(self, engine: Engine, page_count: int, fewest: int) -> None:
        if engine.requests:
            self._ask(engine, page_count, fewest, 0.0, self.rng.choice(engine.requests), Purpose.GROW)

    def want_ahead(self, engine: Engine, page_count: int) -> None:
        """Pages that no request needs yet."""
        self._ask(engine, page_count, 1, 0.0, None, Purpose.AHEAD)

    def cancel(self, engine: Engine) -> None:
        """The oldest wish of this engine."""
        for asked in self._asked.values():
            if asked.engine is engine:
                self.lending.cancel(engine.session_id, asked.entry.wish.request_id)
                break
        self.turn()

    def finish(self, engine: Engine, request: Running, *, keeps: bool) -> None:
        """A request ends; its pages go back, or stay with the engine for later ones."""
        if request not in engine.requests:
            return
        engine.requests.remove(request)
        if keeps:
            engine.idle += request.runs
            self._report(engine)
        else:
            self.give_back(engine, request.runs)
        self.turn()

    def give_back(self, engine: Engine, runs: list[PageRun]) -> None:
        assert self.lending.give_back(engine.session_id, runs) == _pages(runs)
        self._report(engine)

    def end(self, engine: Engine, *, unmapped: bool) -> None:
        if engine.has_ended:
            return
        engine.has_ended = True
        del self.engines[engine.session_id]
        self.lending.end_session(engine.session_id, unmapped=unmapped)
        self.turn()

    def fence(self, engine: Engine) -> None:
        """Its stream breaks."""
        engine.listens = False
        self.lending.fence(engine.session_id)
        self._disturb()
        self.turn()

    def attach_again(self, engine: Engine) -> None:
        if not engine.listens:
            engine.listens = True
            self.reclaims.tell_again(engine.session_id)
            self._disturb()
            self.turn()

    def configure(self, tenant: str, guarantee: Guarantee | None) -> None:
        """None: it has none any more. The caller sees to it that the mins fit."""
        if guarantee is None:
            self.lending.unconfigure(tenant)
        else:
            self.lending.configure(tenant, guarantee, ACCESS)
        self._hard_is_held = False
        self._disturb()
        self.turn()

    def set_memory(self, page_count: int) -> None:
        """So much the device gives us from now on; what we have stays."""
        self.device.memory_pages = page_count
        self._disturb()

    def ask_all(self) -> None:
        self.pressure.ask_all(self.now_s)
        self.turn()

    def ask_to_leave(self, session_id: str) -> None:
        self.pressure.ask_to_leave(session_id)
        self.turn()

    def shrink(self) -> None:
        self.upkeep.shrink(lambda: None)
        self.turn()

    def advance(self, seconds: float) -> None:
        """As time goes by, the pool wakes when it said it would, and never else."""
        until_s = self.now_s + seconds
        while True:
            wake_s = self.wake_s()
            event_s = self._events[0][0] if self._events else math.inf
            next_s = min(wake_s, event_s)
            if next_s > until_s:
                break
            self._nothing_happens_before(next_s)
            self.now_s = next_s
            if event_s <= wake_s:
                heapq.heappop(self._events)[2]()
            else:
                self.turn()
            self.check()
        self._nothing_happens_before(until_s)
        self.now_s = until_s

    def settle(self) -> None:
        """Nobody asks any more, and all give back what they hold: every wait ends, and nothing is left of it."""
        self.is_over = True
        self.set_memory(self.setting.pool_pages)
        for engine in list(self.engines.values()):
            for request in list(engine.requests):
                self.finish(engine, request, keeps=False)
            self.give_back(engine, _take(engine.idle, engine.idle_pages))
            self.turn()
        for _ in range(1000):
            if not self._asked:
                break
            self.advance(1.0)
        assert not self._asked, "a wait never ended"
        self.check()
        policy = self.policy
        leftovers = [name for name, value in vars(policy.wishes).items() if name != "_deadlines" and value]
        assert not leftovers, f"left over: {leftovers}"
        assert policy.wishes.next_deadline_s() is None
        if not any(engine.held_pages for engine in self.engines.values()):
            self.advance(10.0)
            assert not self.reclaims, "somebody who holds nothing is asked for pages"

    # The loop

    def turn(self) -> None:
        for _ in range(MAX_TURNS):
            if self.under_way is not None:
                return
            self.lending.serve(self.now_s)
            for zone in self.ledger.forget_empty_tenants():
                self.device.drop_zone(zone)
            work = self._next_slice()
            self._press()
            if work is None and self._has_refused:
                continue
            if work is None:
                self.upkeep.rested()
                self._check_rest()
                return
            if self.setting.is_slow and self.rng.random() < 0.3:
                self.under_way = work
                self._at(self.now_s + 0.05 * self.rng.random(), self._driver_is_done)
                return
            _run(self.workshop.do(work, lambda: self.now_s))
        raise AssertionError("a busy loop")

    def _driver_is_done(self) -> None:
        work, self.under_way = self.under_way, None
        assert work is not None
        _run(self.workshop.do(work, lambda: self.now_s))
        self.turn()

    def _next_slice(self) -> Slice | None:
        self._has_refused, postponed = False, self.policy.postponed_count
        work = self.lending.next_slice(self.now_s)
        self._has_postponed = self.policy.postponed_count > postponed
        if self._has_refused or self._has_postponed:
            assert self.is_device_short or not self._hard_is_held, "awarded what cannot be made, on a sound device"
        return work

    def _press(self) -> None:
        dying = [e for e in self.engines.values() if e.killed_s is not None and self.now_s < e.killed_s + DYING_S]
        dying_pages = sum(engine.held_pages for engine in dying)
        asked_s = {ask.session_id: ask.asked_s for ask in reversed(self._asks(Reason.PROMISE))}  # the first of each
        review = self.lending.review(self.now_s)
        self._check_asks(review)
        for request in review.requests:
            self.counts["requests"] += 1
            self._tell(request)
        if review.victim is not None:
            self._check_victim(review.victim.session_id, dying_pages, asked_s)
            self._kill(self.engines[review.victim.session_id])

    def _answer(self, entry: Waiting, answer: Answer) -> None:
        asked = self._asked.pop(entry.wish.key)
        if isinstance(answer, VattError):
            self._has_refused = True
            self.counts[f"refused {entry.wish.purpose.value}"] += 1
            return
        self.counts[f"granted {entry.wish.purpose.value}"] += 1
        self.counts["waited"] += self.now_s > entry.since_s
        engine, request = asked.engine, asked.request
        if entry.wish.purpose is Purpose.AHEAD:
            engine.idle += answer
            self._report(engine)
            self._at(self.now_s + self.setting.life_s * self.rng.random(), lambda: self._lets_go(engine, list(answer)))
            return
        if request is None or request not in engine.requests:
            request = Running(self.now_s + self.setting.life_s * self.rng.random())
            engine.requests.append(request)
            keeps_for_s = (self.now_s + self.setting.life_s - request.ends_s) * self.rng.random()
            self._at(request.ends_s, lambda: self._ends(engine, request, keeps_for_s))
        request.runs += answer
        self._report(engine)

    def wake_s(self) -> float:
        """When the pool looks again without anything happening."""
        if self.under_way is not None:
            return math.inf
        change_s = self.lending.next_change_s(self.now_s)
        return math.inf if change_s is None else change_s

    # Engines

    def _ask(
        self,
        engine: Engine,
        page_count: int,
        fewest: int,
        wait_s: float,
        request: Running | None,
        purpose: Purpose,
    ) -> None:
        if engine.has_ended or not engine.listens or self.is_over:
            return
        self._count += 1
        wish = Wish(
            engine.session_id, f"r{self._count}", page_count, min(fewest, page_count), purpose, self.now_s + wait_s
        )
        is_due = self._is_due_by_hard_min(engine.tenant, wish)
        hopeless = self._why_hopeless(engine.tenant, wish)
        before, claims = self._fingerprint(), dict(self.policy._claims)
        is_taken = purpose is Purpose.AHEAD and (self.policy._gathering or self.policy.wishes.head_of(engine.tenant))
        try:
            entry = self.lending.take_in(wish, self.now_s)
        except (PoolExhausted, LimitExceeded, OutOfMemory) as refusal:
            reason = type(refusal)
            assert self._fingerprint() == before, "a refusal changed something"
            is_short = reason is PoolExhausted or refusal is self.workshop.shortage
            assert reason is hopeless or (hopeless is None and is_short)
            assert purpose is not Purpose.AHEAD or self.policy._claims == claims
            assert hopeless is not None or purpose is not Purpose.ADMIT
            assert not is_due, f"refused within a hard min: {wish}"
            self.counts[f"refused {purpose.value} at once"] += 1
            self.turn()
            return
        assert hopeless is None, f"{wish} can never be met"
        assert not is_taken, "lent ahead of need what somebody waits for"
        self._asked[wish.key] = _Asked(engine, entry, request)
        self.lending.serve(self.now_s)
        if is_due:
            assert entry.awarded_pages == page_count, f"not granted at once within a hard min: {wish}"
            self.counts["due by a hard min"] += 1
        self.turn()

    def _ends(self, engine: Engine, request: Running, keeps_for_s: float) -> None:
        if engine.has_ended or request not in engine.requests:
            return
        keeps = self.rng.random() < 0.3
        self.finish(engine, request, keeps=keeps)
        if keeps:
            runs = request.runs
            self._at(self.now_s + keeps_for_s, lambda: self._lets_go(engine, runs))

    def _lets_go(self, engine: Engine, runs: list[PageRun]) -> None:
        generations = {run.generation for run in runs}  # some of the pages may have been given back meanwhile
        mine = [run for run in engine.idle if run.generation in generations]
        if not engine.has_ended and mine:
            engine.idle = [run for run in engine.idle if run.generation not in generations]
            self.give_back(engine, mine)
            self.turn()

    def _tell(self, request: Request) -> None:
        engine = self.engines[request.session_id]
        assert 0 < request.page_count <= engine.held_pages
        if not engine.listens or engine.manner is Manner.IS_MUTE:
            return
        delay_s = self.setting.within_s * self.rng.uniform(0.0, 0.9)
        if engine.manner is Manner.DALLIES:
            delay_s += self.setting.within_s
        self._at(self.now_s + delay_s, lambda: self._obey(engine, request))

    def _obey(self, engine: Engine, request: Request) -> None:
        if engine.has_ended or not engine.listens:
            return
        # A later Reclaim says anew how much is wanted, and is obeyed instead of this one; none of it is counted twice.
        asks = [ask for ask in self.reclaims.of(engine.session_id) if ask.answered_s is None]
        if asks and asks[0].reclaim_id == request.reclaim_id:
            left = min(request.page_count, sum(ask.page_count for ask in asks))
            runs = _take(engine.idle, min(left, engine.idle_pages))
            left -= _pages(runs)
            while left > 0 and request.depth is Depth.RUNNING and engine.manner is not Manner.GIVES_IDLE:
                if not engine.requests:
                    break
                preempted = engine.requests.pop(self.rng.randrange(len(engine.requests)))
                runs += preempted.runs
                left -= _pages(preempted.runs)
            self.give_back(engine, runs)
        self.reclaims.answered(engine.session_id, request.reclaim_id, self.now_s)
        self.turn()

    def _kill(self, engine: Engine) -> None:
        if engine.killing is Killing.IS_REFUSED:
            assert not engine.was_spared, "tried again"
            engine.was_spared = True
            self.pressure.note_unkillable(engine.session_id)
            return
        self.counts["killed"] += 1
        self.pressure.note_killed(engine.session_id, self.now_s)
        engine.killed_s = self.now_s
        lives_s = KILL_S * self.rng.random() if engine.killing is Killing.ENDS_IT else HANG_S
        self._at(self.now_s + lives_s, lambda: self.end(engine, unmapped=False))

    def _report(self, engine: Engine) -> None:
        used = engine.held_pages - engine.idle_pages
        self.ledger.report_usage(engine.session_id, Usage(engine.held_pages, used * PAGE_SIZE))

    def _listens(self, session_id: str) -> bool:
        return self.engines[session_id].listens

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (time_s, self._count, event))

    def _disturb(self) -> None:
        self._calm_since_s = self.now_s

    # What must hold

    def check(self) -> None:
        """After every step."""
        policy, stock = self.policy, self.stock
        counts = stock.pages_by_state
        assert sum(counts.values()) == self.setting.pool_pages
        assert min(counts.values()) >= 0
        held: Counter[str] = Counter()
        for engine in self.engines.values():
            held[engine.tenant.name] += engine.held_pages
        assert stock.lent_pages == held.total()
        awarded = self._check_wishes()
        assert policy.free_pages == stock.capacity_pages - held.total() - awarded.total()
        assert policy.free_pages >= 0 or self.is_device_short, "more is awarded than there is"
        for tenant in self.tenants:
            assert tenant.held_pages == held[tenant.name]
        self._check_hard_mins()
        if self.is_device_short:
            self._disturb()
        if self.under_way is None:
            self._check_waits()
            if not self.is_device_short:  # else one may have been postponed, since its pages cannot be made now
                self._check_heads()

    def _check_wishes(self) -> Counter[str]:
        """Each is found where it should be, and the counters are right. Returns what is awarded to tenants."""
        wishes = self.policy.wishes
        awarded: Counter[str] = Counter()
        queued: Counter[str] = Counter()
        of_session: Counter[str] = Counter()
        of_tenant: Counter[str] = Counter()
        deadlines = {entry.wish.key: deadline_s for deadline_s, _, entry in wishes._deadlines}
        for entry in wishes:
            assert wishes.find(entry.wish.key) is entry
            of_session[entry.wish.session_id] += 1
            of_tenant[entry.party.name] += 1
            if entry.awarded_pages:
                awarded[entry.party.name] += entry.awarded_pages
            else:
                queued[entry.party.name] += entry.wish.page_count
                assert deadlines[entry.wish.key] == entry.wish.deadline_s
        assert wishes._count_of_session == of_session
        assert wishes._count_of_tenant == of_tenant
        assert wishes._queued_pages == queued
        assert wishes._awarded_pages == awarded
        return awarded

    @property
    def tenants(self) -> list[Tenant]:
        found = [self.ledger.tenant(name) for name in TENANTS]
        return [tenant for tenant in found if tenant is not None]

    @property
    def is_idle(self) -> bool:
        return self.under_way is None

    @property
    def is_device_short(self) -> bool:
        is_trying = self.now_s >= self.workshop.retry_s and self.workshop.shortage is None
        return self.stock.is_short or not is_trying or self.device.memory_pages < self.setting.pool_pages

    def _check_hard_mins(self) -> None:
        """Once they are free they stay so."""
        is_held = self.policy.free_pages >= self._unused_hard_pages() and not self.is_device_short
        assert is_held or not self._hard_is_held or self.is_device_short, "a hard min was lent"
        self._hard_is_held = is_held

    def _unused_hard_pages(self) -> int:
        promised = [tenant for tenant in self.ledger.promised() if tenant.guarantee.mode is MinMode.HARD]
        return sum(unused_min(self.policy, tenant) for tenant in promised)

    def _is_due_by_hard_min(self, tenant: Tenant, wish: Wish) -> bool:
        is_first = wish.purpose is Purpose.GROW or self.policy.wishes.head_of(tenant) is None
        is_first &= wish.purpose is not Purpose.AHEAD
        is_hard = tenant.guarantee.mode is MinMode.HARD
        is_within = wish.page_count <= tenant.guarantee.min_pages - self.policy.pages_of(tenant)
        return self._hard_is_held and not self.is_device_short and is_first and is_hard and is_within

    def _why_hopeless(self, tenant: Tenant, wish: Wish) -> type[VattError] | None:
        most = self.setting.pool_pages - counts_broken(self.stock)
        limit = min(most, tenant.guarantee.max_pages or most)
        if wish.min_page_count > limit:
            return LimitExceeded
        for other in self.ledger.promised():
            if other is not tenant:
                is_hard = other.guarantee.mode is MinMode.HARD
                has = other.guarantee.min_pages if is_hard else self.policy.pages_of(other)
                most -= min(other.guarantee.min_pages, has)
        return WaitHopeless if wish.min_page_count > most else None

    def _check_heads(self) -> None:
        """No page is free that a head could take, but for those that are gathered for one ahead of it."""
        policy = self.policy
        gathering = policy._gathering
        for head in policy.wishes.heads():
            most = min(head.wish.page_count, policy._reachable_pages(head.party))
            if policy.room(head.party, self.now_s) < max(most, head.wish.min_page_count):
                continue
            assert gathering is not None, f"{head} could be served"
            assert gathering.gathered_since_s is not None
            assert gathering_phase(gathering.gathered_since_s, self.now_s, self.setting.head_hold_s)[0]
            assert not policy._is_within_min(head)
            pages_a_weight = policy._pages_a_weight()
            assert policy._ranked(gathering, pages_a_weight) < policy._ranked(head, pages_a_weight)
        if gathering is not None:
            assert gathering.wish.key in self._asked, "gathering for nobody"

    def _check_waits(self) -> None:
        setting, now_s = self.setting, self.now_s
        within = {}
        oldest: Waiting | None = None
        for head in self.policy.wishes.heads():
            if self.policy._is_within_min(head):
                within[head.wish.key] = self._promised_since_s.get(head.wish.key, now_s)
            if oldest is None or head.since_s < oldest.since_s:
                oldest = head
        self._promised_since_s = within
        donors = [engine for engine in self.engines.values() if engine.tenant.held_pages]
        can_be_made = setting.kill_after_s is not None and all(donor.killing is Killing.ENDS_IT for donor in donors)
        if can_be_made or all(donor.manner is Manner.GIVES for donor in donors):
            bound_s = (len(self.engines) + 2) * (setting.within_s + KILL_S) + (setting.kill_after_s or 0.0)
            for key, since_s in within.items():
                short_s = now_s - max(since_s, self._calm_since_s)
                assert short_s <= bound_s, f"{self._asked[key].entry} is short for {short_s:.1f} s, within its min"
        if oldest is not self._oldest[0]:
            self._oldest = oldest, now_s
        if setting.is_orderly and oldest is not None:
            waited_s = now_s - self._oldest[1]
            self.counts["longest ms"] = max(self.counts["longest ms"], int(1000 * waited_s))
            assert waited_s <= setting.longest_wait_s, f"{oldest} is the oldest for {waited_s:.1f} s"

    def _asks(self, reason: Reason) -> list[Any]:
        asks = [ask for session_id in self.engines for ask in self.reclaims.of(session_id)]
        return [ask for ask in asks if ask.reason is reason]

    def _check_asks(self, review: Review) -> None:
        """Right after a review."""
        if not self.reclaims:
            return
        policy, now_s = self.policy, self.now_s
        head = policy.head_gap(now_s)
        over = {
            tenant.name: max(0, tenant.held_pages - (tenant.guarantee.max_pages or 0))
            for tenant in self.ledger.limited()
        }
        missing = {
            Reason.PROMISE: policy.promise_gap(now_s),
            Reason.LIMIT: sum(over.values()),
            Reason.QUEUE: head[1] if head else 0,
        }
        if self.pressure._is_being_kept() and not missing[Reason.PROMISE]:
            del missing[Reason.PROMISE]
        by_tenant: Counter[tuple[str, Reason]] = Counter()
        asked: Counter[Reason] = Counter()
        of_session: Counter[tuple[str, Reason]] = Counter()
        for engine in self.engines.values():
            for ask in self.reclaims.of(engine.session_id):
                assert ask.page_count > 0
                of_session[engine.session_id, ask.reason] += ask.page_count
                if ask.is_live(now_s):
                    asked[ask.reason] += ask.page_count
                    by_tenant[engine.tenant.name, ask.reason] += ask.page_count
        for (session_id, reason), page_count in of_session.items():
            assert page_count <= self.engines[session_id].held_pages, f"{session_id} is asked for more than it has"
            assert reason in (Reason.OPERATOR, Reason.EVICTION, Reason.DRAIN) or missing.get(reason, 1), (
                f"{reason} is over"
            )
        for reason, page_count in missing.items():
            assert asked[reason] <= page_count, f"{reason}: {asked[reason]} asked, {page_count} missing"
        for (name, reason), page_count in by_tenant.items():
            tenant = self.ledger.tenant(name)
            assert tenant is not None
            if reason is Reason.LIMIT:
                assert page_count <= over[name]
            elif (reason is Reason.PROMISE and reason in missing) or (
                reason is Reason.QUEUE and head and head[0].party is not tenant
            ):
                above = max(0, tenant.held_pages - tenant.guarantee.min_pages)
                assert page_count <= above, f"{name} is asked below its min for {reason}"

    def _check_victim(self, session_id: str, dying_pages: int, asked_s: dict[str, float]) -> None:
        kill_after_s, engine = self.setting.kill_after_s, self.engines[session_id]
        assert kill_after_s is not None
        assert not engine.is_dying
        assert engine.tenant.held_pages > engine.tenant.guarantee.min_pages
        assert self.policy.promise_gap(self.now_s) > dying_pages, "those who die already have enough"
        assert self.now_s >= asked_s[session_id] + kill_after_s
        assert engine.manner is not Manner.GIVES or not engine.listens, "killed although it gives what it is asked for"

    def _check_rest(self) -> None:
        """The pool has nothing to do: to ask it again at once, or to ask for its figures, changes nothing."""
        awards, now_s = self.policy.award_count, self.now_s
        if not self.is_device_short:  # else one that was postponed may be awarded the same pages again and again
            assert not self.policy.award(now_s)
            assert self.policy.award_count == awards, "an award was left to make"
        assert self.wake_s() > now_s

    def check_promises(self) -> None:
        """What status says of each tenant's min agrees with itself."""
        for tenant in self.tenants:
            view = self.pressure.promises_of([tenant], self.now_s)[0]
            unused = unused_min(self.policy, tenant)
            assert 0 <= view.missing_pages <= unused
            assert 0 <= view.lent_pages <= unused
            assert (view.state is PromiseState.HELD) == (view.missing_pages == 0)
            assert view.deadline_s is None or (view.state is PromiseState.PENDING and view.deadline_s > self.now_s)
            assert bool(view.broken_by) == (view.state is PromiseState.BROKEN)

    def _nothing_happens_before(self, time_s: float) -> None:
        """Where the pool sleeps it has nothing to do: it misses no moment."""
        is_unsettled = self.under_way is not None or self.is_device_short or self._has_postponed
        if is_unsettled or time_s == math.inf or self.rng.random() > 0.1:
            return
        then_s = self.now_s
        middle_s = (then_s + time_s) / 2
        if not then_s < middle_s < time_s:
            return
        self.now_s = middle_s
        awards, requests, killed = self.policy.award_count, self.counts["requests"], self.counts["killed"]
        asked = list(self._asked)
        self.turn()
        assert list(self._asked) == asked, "a wish was answered at a time at which the pool would have slept"
        assert self.policy.award_count == awards
        assert (self.counts["requests"], self.counts["killed"]) == (requests, killed)

    def _fingerprint(self) -> object:
        """All that a refusal must leave as it is. What a GROW was refused within a min is remembered: that is meant."""
        policy = self.policy
        held = [(tenant.name, tenant.held_pages) for tenant in self.tenants]
        wishes = policy.wishes
        counters = (dict(wishes._awarded_pages), dict(wishes._queued_pages), dict(wishes._count_of_session))
        return held, list(wishes), counters, self.stock.pages_by_state, policy._gathering


def unused_min(policy: Policy, tenant: Party) -> int:
    return max(0, tenant.guarantee.min_pages - policy.pages_of(tenant))


def counts_broken(stock: Stock) -> int:
    return stock.max_pages - stock.limit_pages


def _pages(runs: list[PageRun] | tuple[PageRun, ...]) -> int:
    return sum(run.extent.page_count for run in runs)


def _take(runs: list[PageRun], page_count: int) -> list[PageRun]:
    """Take so many pages out of the list."""
    taken = []
    while page_count > 0:
        run = runs.pop()
        first, rest = run.extent.split(min(page_count, run.extent.page_count))
        taken.append(PageRun(first, run.generation))
        page_count -= first.page_count
        if rest is not None:
            runs.append(PageRun(rest, run.generation))
    return taken


def _run(coroutine: Coroutine[Any, Any, T]) -> T:
    """Of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    raise AssertionError("it waited")


# Random worlds


def random_setting(rng: Random) -> Setting:
    is_orderly = rng.random() < 0.3
    return Setting(
        shares_zone=rng.random() < 0.5,
        kill_after_s=rng.choice([None, 2.0, 5.0]),
        head_hold_s=rng.choice([0.5, 2.0, 7.3]) if is_orderly else rng.choice([0.0, 0.7, 2.0]),
        ageing_s=rng.choice([0.0, 3.0, 10.0]),
        life_s=rng.choice([2.0, 8.0]) if is_orderly else rng.choice([2.0, 8.0, 40.0]),
        is_slow=rng.random() < 0.4 and not is_orderly,
        is_orderly=is_orderly,
        headroom_pages=rng.choice([0, 0, 2]),
    )


def random_guarantee(world: World, tenant: str, rng: Random) -> Guarantee | None:
    """One whose min fits beside the others'."""
    if rng.random() < 0.25:
        return None
    min_pages = rng.choice([0, 0, rng.randint(1, 12), rng.randint(1, 30)])
    guarantee = Guarantee(min_pages, None, rng.choice([1, 1, 2, 5, 1000]), rng.choice(list(MinMode)))
    return fitting_guarantee(world, tenant, guarantee, rng.choice([None, None, rng.randint(0, 20)]))


def fitting_guarantee(world: World, tenant: str, wanted: Guarantee, above_min_pages: int | None) -> Guarantee:
    """One whose min fits beside the others', and whose max is so much above it."""
    others = sum(other.guarantee.min_pages for other in world.ledger.promised() if other.name != tenant)
    min_pages = min(wanted.min_pages, world.setting.pool_pages - others)
    max_pages = None if above_min_pages is None else max(1, min_pages + above_min_pages)
    return Guarantee(min_pages, max_pages, wanted.weight, wanted.mode)


def random_wish(world: World, tenant: Tenant, rng: Random) -> tuple[int, int]:
    page_count = rng.choice([1, 1, 2, 3, rng.randint(1, 10), rng.randint(1, world.setting.pool_pages + 4)])
    fewest = page_count if rng.random() < 0.6 else rng.randint(1, page_count)
    if world.setting.is_orderly:  # nothing that another one's promise, or its own max, can stand against
        mins = sum(other.guarantee.min_pages for other in world.ledger.promised() if other is not tenant)
        most = world.setting.pool_pages - mins
        page_count = max(1, min(page_count, most, tenant.guarantee.max_pages or most))
    return page_count, min(fewest, page_count)


def begin(world: World, rng: Random) -> None:
    """Some tenants, with guarantees."""
    for tenant in TENANTS:
        if rng.random() < 0.7:
            guarantee = random_guarantee(world, tenant, rng)
            if guarantee is not None:
                world.configure(tenant, guarantee)
    for _ in range(4):
        world.attach(rng.choice(TENANTS), rng.choice(ANY_MANNER))


def step(world: World, rng: Random) -> None:
    """One random thing happens."""
    orderly = world.setting.is_orderly
    engines = [engine for engine in world.engines.values() if not engine.is_dying]
    engine = rng.choice(engines) if engines else None
    dice = rng.random()
    if engine is None or (dice < 0.02 and len(engines) < MAX_ENGINES):
        world.attach(rng.choice(TENANTS), rng.choice(ANY_MANNER))
    elif dice < 0.38:
        wait_s = rng.choice([0.0, 1.0, 10.0, 60.0, 1000.0])
        world.admit(engine, *random_wish(world, engine.tenant, rng), wait_s)
    elif dice < 0.55:
        page_count, fewest = random_wish(world, engine.tenant, rng)
        guarantee = engine.tenant.guarantee
        if not orderly or not guarantee.min_pages or engine.tenant.held_pages + page_count <= guarantee.min_pages:
            world.grow(engine, page_count, fewest)
    elif dice < 0.57:
        world.cancel(engine)
    elif dice < 0.60:
        world.want_ahead(engine, rng.randint(1, 10))
    elif dice < 0.65:
        if engine.requests:
            world.finish(engine, rng.choice(engine.requests), keeps=rng.random() < 0.2 and not orderly)
    elif dice < 0.665:
        world.end(engine, unmapped=rng.random() < 0.5)
    elif dice < 0.70:
        if not orderly:
            _disturb(world, engine, rng)
    else:
        world.advance(rng.choice([0.01, 0.1, 0.5, 2.0]) * rng.random())
    world.check()


def _disturb(world: World, engine: Engine, rng: Random) -> None:
    dice = rng.random()
    if dice < 0.4:
        tenant = rng.choice(TENANTS)
        world.configure(tenant, random_guarantee(world, tenant, rng))
    elif dice < 0.6:
        pool_pages = world.setting.pool_pages
        if world.is_idle:
            world.set_memory(rng.choice([pool_pages, pool_pages, rng.randint(0, pool_pages)]))
    elif dice < 0.7:
        world.fence(engine)
    elif dice < 0.85:
        world.attach_again(rng.choice(list(world.engines.values())))
    elif dice < 0.93:
        if rng.random() < 0.5:
            world.ask_all()
        else:
            world.ask_to_leave(engine.session_id)
    else:
        world.shrink()
