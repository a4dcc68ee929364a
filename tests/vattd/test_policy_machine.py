"""The policy under random lives of tenants, engines and the device, as hypothesis chooses and shrinks them.

`test_soak_of_the_policy` in test_policy.py is the long form; the world checks itself after each step of either.
"""

from __future__ import annotations

from random import Random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vattd.policy_world import (
    ANY_MANNER,
    MAX_ENGINES,
    TENANTS,
    Engine,
    Manner,
    Setting,
    World,
    fitting_guarantee,
)
from vattd.guarantee import Guarantee, MinMode

PAGES = st.integers(1, 44)
WEIGHTS = st.sampled_from([1, 2, 1000])


class PolicyMachine(RuleBasedStateMachine):
    world: World | None = None

    @initialize(
        shares_zone=st.booleans(),
        kill_after_s=st.sampled_from([None, 2.0]),
        head_hold_s=st.sampled_from([0.0, 0.7, 2.0]),
        ageing_s=st.sampled_from([0.0, 10.0]),
        is_slow=st.booleans(),
        seed=st.integers(0, 1 << 16),
    )
    def begin(
        self,
        shares_zone: bool,
        kill_after_s: float | None,
        head_hold_s: float,
        ageing_s: float,
        is_slow: bool,
        seed: int,
    ) -> None:
        setting = Setting(
            shares_zone=shares_zone,
            kill_after_s=kill_after_s,
            head_hold_s=head_hold_s,
            ageing_s=ageing_s,
            is_slow=is_slow,
        )
        self.world = World(setting, Random(seed))

    def engine(self, number: int) -> Engine:
        """Any one; the first comes when it is asked for."""
        assert self.world is not None
        engines = [engine for engine in self.world.engines.values() if not engine.is_dying]
        return engines[number % len(engines)] if engines else self.world.attach(TENANTS[0], Manner.GIVES)

    @precondition(lambda self: self.world is not None and len(self.world.engines) < MAX_ENGINES)
    @rule(tenant=st.sampled_from(TENANTS), manner=st.sampled_from(ANY_MANNER))
    def attach(self, tenant: str, manner: Manner) -> None:
        assert self.world is not None
        self.world.attach(tenant, manner)

    @rule(number=st.integers(0, 7), pages=PAGES, fewest=PAGES, wait_s=st.sampled_from([0.0, 1.0, 30.0, 1000.0]))
    def admit(self, number: int, pages: int, fewest: int, wait_s: float) -> None:
        assert self.world is not None
        self.world.admit(self.engine(number), pages, fewest, wait_s)

    @rule(number=st.integers(0, 7), pages=PAGES, fewest=PAGES)
    def grow(self, number: int, pages: int, fewest: int) -> None:
        assert self.world is not None
        self.world.grow(self.engine(number), pages, fewest)

    @rule(number=st.integers(0, 7), pages=PAGES)
    def want_ahead(self, number: int, pages: int) -> None:
        assert self.world is not None
        self.world.want_ahead(self.engine(number), pages)

    @rule(number=st.integers(0, 7))
    def cancel(self, number: int) -> None:
        assert self.world is not None
        self.world.cancel(self.engine(number))

    @rule(number=st.integers(0, 7), keeps=st.booleans())
    def finish(self, number: int, keeps: bool) -> None:
        assert self.world is not None
        engine = self.engine(number)
        if engine.requests:
            self.world.finish(engine, engine.requests[0], keeps=keeps)

    @rule(number=st.integers(0, 7), unmapped=st.booleans())
    def end(self, number: int, unmapped: bool) -> None:
        assert self.world is not None
        self.world.end(self.engine(number), unmapped=unmapped)

    @rule(
        tenant=st.sampled_from(TENANTS),
        min_pages=st.integers(0, 40),
        above=st.sampled_from([None, 0, 3, 20]),
        weight=WEIGHTS,
        mode=st.sampled_from(list(MinMode)),
    )
    def reserve(self, tenant: str, min_pages: int, above: int | None, weight: int, mode: MinMode) -> None:
        assert self.world is not None
        self.world.configure(
            tenant, fitting_guarantee(self.world, tenant, Guarantee(min_pages, None, weight, mode), above)
        )

    @rule(tenant=st.sampled_from(TENANTS))
    def unreserve(self, tenant: str) -> None:
        assert self.world is not None
        self.world.configure(tenant, None)

    @rule(number=st.integers(0, 7))
    def lose_its_stream(self, number: int) -> None:
        assert self.world is not None
        self.world.fence(self.engine(number))

    @rule(number=st.integers(0, 7))
    def attach_again(self, number: int) -> None:
        assert self.world is not None
        self.world.attach_again(self.engine(number))

    @precondition(lambda self: self.world is not None and self.world.is_idle)
    @rule(memory_pages=st.integers(0, 80))
    def other_programs_use_the_device(self, memory_pages: int) -> None:
        assert self.world is not None
        self.world.set_memory(min(memory_pages, self.world.setting.pool_pages))

    @rule()
    def ask_all(self) -> None:
        assert self.world is not None
        self.world.ask_all()

    @rule(seconds=st.floats(0.001, 12.0))
    def wait(self, seconds: float) -> None:
        assert self.world is not None
        self.world.advance(seconds)

    @invariant()
    def all_promises_hold(self) -> None:
        if self.world is not None:
            self.world.check()
            self.world.check_promises()

    def teardown(self) -> None:
        if self.world is not None:
            self.world.settle()


TestPolicyMachine = PolicyMachine.TestCase
TestPolicyMachine.settings = settings(max_examples=300, stateful_step_count=40, deadline=None)
