"""Random lives of a serving system over vattention's functions, against a model of the contract in a few lines."""

from __future__ import annotations

import io
import re
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import vattention
from tests.vattention.serving import tokens_are, write_tokens
from vatt.errors import PoolExhausted
from vattention import upstream
from vattention.kv_blocks import KVBlocks
from vattention.upstream import OUT_OF_PAGES

LAYERS, HEADS, ROWS, CONTEXT = 2, 2, 5, 32
LAYOUTS = ("per_layer", "megacache", "fused")
# Of one column in per_layer. The last has tokens larger than a page.
TOKENS_PER_PAGE = (10.3, 8.0, 2.5, 0.7)
# Pages of the cache's own size: the pool has more than the largest limit, so that every OOM is the limit's.
MOST_PAGES, POOL_PAGES = 30, 40

# What becomes of a row in a step: None: it goes on as it is. Up to 3: so many tokens more. Else: so many tokens.
GROWTHS = {"+1": 1, "+2": 2, "+3": 3}
move = st.one_of(st.none(), st.sampled_from(sorted(GROWTHS)), st.integers(0, CONTEXT), st.just(0))

# Has the device read these bytes for a while, and waits until it has stopped reading: nothing on the host.
Compute = Callable[[Sequence[torch.Tensor]], None]


@dataclass(frozen=True, slots=True)
class Case:
    """Where a machine runs: a vattd that the environment leads to."""

    page_size_bytes: int  # of the pool
    multiples: tuple[int, ...] = (1,)  # a cache's page sizes, in the pool's pages
    use: Compute = lambda rows: None
    rest: Callable[[], None] = lambda: None
    set_layout: Callable[[str], None] = lambda layout: None


class UpstreamMachine(RuleBasedStateMachine):
    """The model: a length for each row, and the limit. What is mapped is read from the cache where a promise is about
    kept pages; all else follows from the lengths."""

    case: Case

    def __init__(self) -> None:
        super().__init__()
        self.lengths = [0] * ROWS  # promised
        self.stepped = [0] * ROWS  # backed by a step, and written
        self.seeds = [0] * ROWS
        self.seed = 0

    @initialize(
        layout=st.sampled_from(LAYOUTS),
        tokens_per_page=st.sampled_from(TOKENS_PER_PAGE),
        multiple=st.integers(0, 1),
        pages=st.integers(0, MOST_PAGES),
        settles=st.booleans(),
    )
    def begin(self, layout: str, tokens_per_page: float, multiple: int, pages: int, settles: bool) -> None:
        self.settles = settles  # before every look; else the background may be at it while calls come
        self.page_size = self.case.page_size_bytes * self.case.multiples[multiple % len(self.case.multiples)]
        head_size = int(self.page_size / tokens_per_page / HEADS / 2)
        self.columns, per_token = {"per_layer": (2 * LAYERS, 1), "megacache": (2, LAYERS), "fused": (1, 2 * LAYERS)}[
            layout
        ]
        self.token_bytes = per_token * HEADS * head_size * 2
        # What the caller takes for a block: it knows of a megacache, and not of VATTENTION_LAYOUT.
        self.block_columns = 2 if layout == "megacache" else 2 * LAYERS
        self.block_token_bytes = (LAYERS if layout == "megacache" else 1) * HEADS * head_size * 2
        self.case.set_layout("fused" if layout == "fused" else "per_layer")
        shape = (LAYERS, HEADS, head_size, ROWS, CONTEXT, 0, torch.float16)
        tensors = vattention.init_kvcache(*shape, self.page_size, layout == "megacache")
        if layout == "megacache":
            tensors = [tensor[:, :, layer] for tensor in tensors for layer in range(LAYERS)]
        self.views = tensors
        self.lengths, self.stepped = [0] * ROWS, [0] * ROWS
        self.total = 0
        self.is_deferred = True
        self.reserve(pages, 0)

    def blocks(self, length: int) -> int:
        """That are counted for a row."""
        tokens_per_block = self.page_size // self.block_token_bytes
        if tokens_per_block:
            return -(-length // tokens_per_block)
        return -(-length * self.block_token_bytes // self.page_size)

    def pages(self, length: int) -> int:
        """That a row fills in each column."""
        return -(-length * self.token_bytes // self.page_size)

    def is_too_much(self, lengths: Sequence[int]) -> bool:
        return sum(map(self.pages, lengths)) * self.columns > self.total * self.block_columns

    def capacity(self, pages: int) -> int:
        return min(CONTEXT, pages * self.page_size // self.token_bytes)

    @property
    def opened(self) -> KVBlocks:
        assert upstream._process.open is not None
        return upstream._process.open.blocks

    def rows_mapped(self) -> list[tuple[int, int]]:
        """Pages a column and length of every row, when the background has nothing to do at the moment."""
        assert self.opened.cache.settle()
        return list(zip(self.mapped(), self.lengths, strict=True))

    def mapped(self) -> list[int]:
        return [int(count) for count in self.opened.cache.mapped_pages()[:, 0]]

    @rule(pages=st.integers(0, MOST_PAGES), odd_bytes=st.integers(0, 4095))
    def reserve(self, pages: int, odd_bytes: int) -> None:
        self.total = max(self.total, pages // self.block_columns)
        answer = vattention.reserve_physical_pages(pages * self.page_size + odd_bytes)
        assert answer == self.total * self.block_columns

    @rule(length=st.integers(0, CONTEXT))
    def alloc(self, length: int) -> None:
        mapped = [has for has, _ in self.rows_mapped()]
        row = vattention.alloc_new_batch_idx(length)
        free = [number for number in range(ROWS) if self.lengths[number] == 0]
        if not free:
            assert row == -1
            return
        capacity = {number: self.capacity(mapped[number]) for number in free}
        fits = [number for number in free if capacity[number] >= length]
        best = min(fits, key=capacity.__getitem__) if fits else max(free, key=capacity.__getitem__)
        assert row == best
        self.lengths[row] = length

    @rule(row=st.integers(0, ROWS - 1))
    def free(self, row: int) -> None:
        vattention.free_batch_idx(row)
        self.lengths[row] = self.stepped[row] = 0

    @rule(moves=st.lists(move, min_size=ROWS, max_size=ROWS), mode=st.sampled_from(["eager", "kept", "async"]))
    def step(self, moves: list[str | int | None], mode: str) -> None:
        wanted = [self.moved(length, to) for length, to in zip(self.lengths, moves, strict=True)]
        if self.is_too_much(wanted):
            with pytest.raises(RuntimeError, match=re.escape(OUT_OF_PAGES)) as raised:
                self.take_step(wanted, mode)
            assert isinstance(raised.value.__cause__, PoolExhausted)
            return  # and all is as before, the invariants say
        self.step_to(wanted, mode)

    @rule(
        row=st.integers(0, ROWS - 1), length=st.integers(1, CONTEXT), mode=st.sampled_from(["eager", "kept", "async"])
    )
    def step_as_far_as_pages_reach(self, row: int, length: int, mode: str) -> None:
        """Else most steps are refused."""
        wanted = list(self.lengths)
        wanted[row] = length
        while self.is_too_much(wanted) and any(wanted):
            wanted[wanted.index(max(wanted))] //= 2
        self.step_to(wanted, mode)

    def step_to(self, wanted: list[int], mode: str) -> None:
        self.take_step(wanted, mode)
        mapped = self.mapped()
        assert all(has >= self.pages(length) for has, length in zip(mapped, wanted, strict=True))
        if mode == "eager":
            assert all(has == 0 for has, length in zip(mapped, wanted, strict=True) if length == 0)
        self.write(wanted)

    def take_step(self, wanted: list[int], mode: str) -> None:
        if mode == "async":
            vattention.step_async(list(wanted))
        else:
            vattention.step(list(wanted), mode == "eager")

    def moved(self, length: int, to: str | int | None) -> int:
        if to is None or (isinstance(to, str) and length == 0):
            return length
        return min(CONTEXT, length + GROWTHS[to]) if isinstance(to, str) else to

    def write(self, wanted: list[int]) -> None:
        """What the model does with a step: write the new tokens, then read all of them."""
        self.case.rest()
        for row, length in enumerate(wanted):
            if length and not self.stepped[row]:
                self.seed += 1
                self.seeds[row] = self.seed
            if length > self.stepped[row]:
                write_tokens(self.views, row, self.seeds[row], self.stepped[row], length)
        self.lengths, self.stepped = list(wanted), list(wanted)
        self.case.use([view[row, :length] for view in self.views for row, length in enumerate(wanted) if length])

    @rule(deferred=st.booleans())
    def set_deferred(self, deferred: bool) -> None:
        vattention.set_deferred_reclamation(deferred)
        self.is_deferred = deferred

    @rule()
    def rest(self) -> None:
        if not self.is_deferred:
            eventually(lambda: not any(has for has, length in self.rows_mapped() if length == 0))

    @rule(verbose=st.booleans())
    def show(self, verbose: bool) -> None:
        vattention.set_verbose(verbose)
        with redirect_stdout(io.StringIO()) as out:
            vattention.show_allocator_state()
        lines = out.getvalue().splitlines()[2:]
        assert len(lines) == (ROWS if verbose else 0)
        for row, line in enumerate(lines):
            number, length, _, needed = map(int, line.split(" : "))
            assert (number, length, needed) == (row, self.lengths[row], self.blocks(self.lengths[row]))

    @rule()
    def release(self) -> None:
        vattention.release_kvcache_physical()
        self.lengths, self.stepped = [0] * ROWS, [0] * ROWS
        assert self.opened.mapped_blocks() == [0] * ROWS

    @invariant()
    def free_blocks_follow_from_the_lengths(self) -> None:
        assert vattention.num_free_kvblocks() == self.total - sum(map(self.blocks, self.lengths))

    @invariant()
    def no_more_is_mapped_than_the_limit(self) -> None:
        if not self.settles:
            assert sum(self.mapped()) * self.columns <= self.total * self.block_columns
            return
        mapped = [has for has, _ in self.rows_mapped()]
        assert sum(mapped) * self.columns <= self.total * self.block_columns
        assert self.opened.cache.stats().mapped_bytes == sum(mapped) * self.columns * self.page_size

    @invariant()
    def every_token_is_as_it_was_written(self) -> None:
        for row, length in enumerate(self.stepped):
            assert tokens_are(self.views, row, self.seeds[row], length)

    def teardown(self) -> None:
        vattention.cleanup()
        vattention.cleanup()


def eventually(holds: Callable[[], bool]) -> None:
    """The background leaves vattd alone for a while after a refusal; then it goes on."""
    deadline_s = time.monotonic() + 5
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def run_machine(case: Case, example_count: int) -> None:
    class Machine(UpstreamMachine):
        pass

    Machine.case = case
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=example_count,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
        ),
    )
