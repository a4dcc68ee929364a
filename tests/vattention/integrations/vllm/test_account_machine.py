"""One engine's account on a live vattd: two ranks, orders, leases and asks at random. A block that the budget gave out
has memory on every rank, whatever happened before, and what is held is what the account says."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from tests.daemon import Vattd
from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.kv_memory import KVMemory
from vattention.integrations.vllm.ranks import Ranks
from vattention.page_source import LeasePurpose
from vattention.session import Session

PAGE = 64 << 10
POOL_PAGES = 60
BLOCKS = 40
GEOMETRIES = {
    "block_of_pages": BlockGeometry(BLOCKS, tuple(Stripe(n * BLOCKS * PAGE, PAGE, PAGE) for n in range(2)), PAGE),
    "pages_of_blocks": BlockGeometry(BLOCKS, (Stripe(0, PAGE // 4, PAGE // 4),), PAGE),
    "across_pages": BlockGeometry(BLOCKS, (Stripe(0, 3 * PAGE // 2, 3 * PAGE // 2),), PAGE),
}


@pytest.fixture(scope="module")
def small_vattd() -> Iterator[Path]:
    with Vattd("--pool-max", str(POOL_PAGES * PAGE)) as vattd:
        yield vattd.socket_dir


@contextmanager
def two_ranks(socket_dir: Path, geometry: BlockGeometry) -> Iterator[list[KVMemory]]:
    with tempfile.TemporaryDirectory() as directory, ExitStack() as closed:
        memories = []
        for rank in range(2):
            session = closed.enter_context(Session.connect("engine", socket_dir=socket_dir))
            memories.append(KVMemory(session, geometry, Path(directory) / "private" / f"{rank}.sock"))
        yield memories


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_what_the_budget_gives_out_has_memory_on_every_rank(small_vattd: Path, geometry: BlockGeometry) -> None:
    class AccountMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.undo = ExitStack()
            self.memories = self.undo.enter_context(two_ranks(small_vattd, geometry))
            self.ranks = Ranks([memory.path for memory in self.memories])
            self.undo.callback(self.ranks.close)
            facts = self.ranks.attach()
            self.budget = Budget(facts.geometry, facts.credit_pages)
            self.written: dict[int, int] = {0: 0}
            self.taken: list[int] = []

        @precondition(lambda self: self.budget.room() > 0)
        @rule()
        def take(self) -> None:
            block = self.budget.take()
            assert block not in self.written
            assert block not in self.taken
            self.taken.append(block)

        @precondition(lambda self: self.taken)
        @rule(at=st.integers(0, 1000))
        def drop(self, at: int) -> None:
            block = self.taken.pop(at % len(self.taken))
            self.written.pop(block, None)
            self.budget.drop(block)

        @rule(page_count=st.integers(1, 20), least=st.integers(1, 20), purpose=st.sampled_from(LeasePurpose))
        def lease(self, page_count: int, least: int, purpose: LeasePurpose) -> None:
            granted = self.ranks.lease(page_count, min(least, page_count), purpose)
            assert granted.page_count == 0 or min(least, page_count) <= granted.page_count <= page_count
            assert bool(granted.page_count) != bool(granted.refusal)
            self.budget.lend(granted.page_count)

        @rule(block_count=st.integers(1, 6))
        def lease_for_blocks(self, block_count: int) -> None:
            wanted = self.budget.room() + block_count
            page_count = self.budget.pages_for(block_count)
            if wanted > self.budget.bare_blocks:
                assert page_count == 0  # no memory makes more blocks than there are
                return
            granted = self.ranks.lease(page_count, page_count, LeasePurpose.GROW)
            self.budget.lend(granted.page_count)
            if granted.page_count:
                assert self.budget.room() >= wanted

        @rule(page_count=st.integers(1, 20))
        def give_up(self, page_count: int) -> None:
            free = self.budget.free_pages
            assert self.budget.give_up(page_count) == min(page_count, max(0, free))

        @rule()
        def step(self) -> None:
            """All orders so far, and then a model that writes to every block that is in use."""
            self.ranks.carry_out(self.budget.orders(0, Usage()))
            for block in self.taken:
                self.written.setdefault(block, len(self.written) % 200 + 1)
                for memory in self.memories:
                    for stripe in geometry.stripes:
                        begin = stripe.offset_bytes + block * stripe.stride_bytes
                        memory.tensor[begin : begin + stripe.size_bytes].fill_(self.written[block])
            for memory in self.memories:
                assert memory.leased_pages >= self.budget.credit_pages  # what was given up goes back soon
                assert memory.needed_pages <= memory.mapped_pages <= self.budget.credit_pages
                assert memory.needed_pages == len(geometry.pages([0, *self.taken]))

        @invariant()
        def blocks_hold_what_was_written(self) -> None:
            for block, value in self.written.items():
                begin = geometry.stripes[-1].offset_bytes + block * geometry.stripes[-1].stride_bytes
                for memory in self.memories if block else []:
                    assert memory.tensor[begin] == value
                    assert memory.tensor[begin + geometry.stripes[-1].size_bytes - 1] == value

        def teardown(self) -> None:
            self.ranks.carry_out(self.budget.orders(0, Usage()))
            deadline_s = time.monotonic() + 20
            while any(memory.leased_pages != self.budget.credit_pages for memory in self.memories):
                assert time.monotonic() < deadline_s, "pages that were given up did not go back"
            self.undo.close()

    run_state_machine_as_test(AccountMachine, settings=settings(max_examples=12, stateful_step_count=40, deadline=None))
