"""vLLM's pool of blocks on a budget of pages, against a look at every block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from vattention.block_geometry import BlockGeometry, Stripe
from vattention.integrations.vllm.block_pool import PagedBlockPool
from vattention.integrations.vllm.budget import Budget

PAGE = 1024
BLOCKS = 24
# A block of two pages; four blocks in one; blocks that end in the middle of one.
BLOCK_BYTES = {"pages_a_block": 2 * PAGE, "blocks_a_page": PAGE // 4, "across": 3 * PAGE // 2}


@pytest.mark.parametrize("caching", [False, True], ids=["plain", "caching"])
@pytest.mark.parametrize("block_bytes", BLOCK_BYTES.values(), ids=BLOCK_BYTES)
def test_a_block_is_used_or_cached_or_bare_and_the_first_two_have_memory(block_bytes: int, caching: bool) -> None:
    geometry = BlockGeometry(BLOCKS, (Stripe(0, block_bytes, block_bytes),), PAGE)

    class PoolMachine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.budget = Budget(geometry, geometry.cluster_pages)
            self.pool = PagedBlockPool(self.budget, num_gpu_blocks=BLOCKS, enable_caching=caching, hash_block_size=16)
            self.used: list[Any] = []
            self.hashes = 0

        @rule(page_count=st.integers(1, 12))
        def lend(self, page_count: int) -> None:
            self.budget.lend(page_count)

        @rule(page_count=st.integers(1, 12))
        def give_up(self, page_count: int) -> None:
            free_pages = self.budget.free_pages
            given = self.budget.give_up(page_count)
            assert given == min(page_count, max(0, free_pages))

        @rule(count=st.integers(1, 5))
        def allocate(self, count: int) -> None:
            if count > self.pool.get_num_free_blocks():
                with pytest.raises(ValueError, match="Cannot get"):
                    self.pool.get_new_blocks(count)
                return
            idle = self.idle()
            bare_room = self.budget.room()
            blocks = self.pool.get_new_blocks(count)
            assert len({block.block_id for block in blocks} | {block.block_id for block in self.used}) == len(
                blocks
            ) + len(self.used)
            # Prefixes are evicted only where there is no room left, the longest unused first.
            evicted = [block.block_id for block in blocks if block.block_id in idle]
            assert evicted == idle[: max(0, count - bare_room)]
            assert all(block.block_hash is None for block in blocks)
            self.used += blocks

        @precondition(lambda self: caching and self.used)
        @rule(at=st.integers(0, 100))
        def cache(self, at: int) -> None:
            block = self.used[at % len(self.used)]
            if block.block_hash is None:
                self.hashes += 1
                self.pool._insert_block_hash(f"hash-{self.hashes}".encode(), block, num_tokens=16)

        @precondition(lambda self: self.used)
        @rule(order=st.permutations(range(6)))
        def free(self, order: Sequence[int]) -> None:
            ended = [self.used[at] for at in order if at < len(self.used)]
            self.used = [block for block in self.used if all(block is not each for each in ended)]
            self.pool.free_blocks(ended)

        @precondition(lambda self: self.pool.idle_count)
        @rule()
        def hit(self) -> None:
            block = self.pool.blocks[self.idle()[-1]]
            self.pool.touch([block])
            self.used.append(block)

        @rule(page_count=st.integers(1, 12))
        def evict(self, page_count: int) -> None:
            before = self.budget.free_pages
            self.pool.evict_idle(page_count)
            assert self.budget.free_pages >= before + page_count or not self.pool.idle_count

        @rule(count=st.integers(0, 4))
        def keep(self, count: int) -> None:
            newest = self.idle()[-count:] if count else []
            self.pool.keep_idle(count)
            assert self.idle() == newest

        @rule()
        def reset(self) -> None:
            assert self.pool.reset_prefix_cache() is (not self.used)

        def idle(self) -> list[int]:
            """The blocks that only the prefix cache holds, the longest unused first."""
            return [block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()]

        @invariant()
        def every_block_is_in_one_place(self) -> None:
            used, idle = {block.block_id for block in self.used}, set(self.idle())
            assert not used & idle
            assert 0 not in used | idle
            assert self.pool.idle_count == len(idle)
            assert self.pool.used_count == len(used)
            assert self.budget.taken_blocks == len(used | idle) + 1
            assert self.budget.bare_blocks == BLOCKS - 1 - len(used | idle)
            needed = geometry.pages([0, *used, *idle])
            assert len(needed) <= self.budget.promised_pages
            assert self.budget.free_pages >= 0
            assert all(block.block_hash is None for block in self.pool.blocks if block.block_id not in used | idle)
            assert 0 <= self.pool.get_usage() <= 1

    run_state_machine_as_test(PoolMachine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))
