"""Blocks backed and dropped at random, on pages leased from a live vattd, against a dict of what was written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from tests.vattention.host_pages import Work, WorkProof
from vatt.errors import Closed, DriverError, InvalidRequest, PoolExhausted
from vatt.pages import Extent, FreeExtents, page_count_of
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.block_memory import BlockMemory
from vattention.mapper import AddressRange, Mapper
from vattention.page_cache import deal
from vattention.session import Session

PAGE = 64 << 10
PAGES = 12
BLOCKS = st.lists(st.integers(0, 11), min_size=1, max_size=5, unique=True)


def geometries() -> list[BlockGeometry]:
    """Blocks of a part of a page, of whole pages, of several stripes, and with room between them."""
    return [
        BlockGeometry(12, (Stripe(0, PAGE // 4, PAGE // 4),), PAGE),
        BlockGeometry(12, (Stripe(0, 2 * PAGE, 2 * PAGE),), PAGE),
        BlockGeometry(12, (Stripe(0, 100_000, 100_000), Stripe(12 * 100_000, 30_000, 30_000)), PAGE),
        BlockGeometry(12, (Stripe(5_000, 3 * PAGE, 70_000), Stripe(80_000, 3 * PAGE, 1_000)), PAGE),
    ]


class Trouble:
    """Makes calls fail now and then: as many of the next ones as the machine drew."""

    def __init__(self) -> None:
        self.verdicts: list[bool] = []

    def strikes(self) -> bool:
        return bool(self.verdicts) and self.verdicts.pop()


class FailingMapper:
    """Stands before a session's mapper. A call that fails has done nothing; nothing is unmapped under running work."""

    def __init__(self, mapper: Mapper, trouble: Trouble, work: Work) -> None:
        self._mapper = mapper
        self._trouble = trouble
        self._work = work
        self.device = mapper.device

    def reserve(self, size_bytes: int) -> AddressRange:
        return self._mapper.reserve(size_bytes)

    def free(self, reserved: AddressRange) -> None:
        self._strike("free")
        self._mapper.free(reserved)

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        self._strike("map")
        self._mapper.map(address, extents)

    def unmap(self, address: int, page_count: int) -> list[Extent]:
        self._work.check_unused(address, page_count * PAGE)
        self._strike("unmap")
        return self._mapper.unmap(address, page_count)

    def pages_at(self, address: int, page_count: int) -> list[Extent]:
        return self._mapper.pages_at(address, page_count)

    def _strike(self, call: str) -> None:
        if self._trouble.strikes():
            raise DriverError("out of luck", call=call)


class RefusingStore:
    """Leased pages, refused now and then though there are enough."""

    def __init__(self, extents: Sequence[Extent], trouble: Trouble) -> None:
        self.free = FreeExtents(extents)
        self._trouble = trouble

    def take(self, runs: Sequence[int], after: Sequence[int | None] | None = None) -> list[list[Extent]]:
        if sum(runs) > self.free.page_count or self._trouble.strikes():
            raise PoolExhausted(sum(runs), 0)
        return deal(self.free, runs, after)

    def put(self, extents: Sequence[Extent]) -> None:
        for extent in extents:
            self.free.give_back(extent)  # raises if it lies here already

    def page_ids(self) -> set[int]:
        extents = self.free.take(self.free.page_count)
        self.put(extents)
        return {page for extent in extents for page in extent.page_ids}


class BlockMemoryMachine(RuleBasedStateMachine):
    """Every backed block reads back what was written; every page is in the store or mapped, and never both."""

    socket_dir: Path

    def __init__(self) -> None:
        super().__init__()
        self.session = session = Session.connect("blocks", socket_dir=self.socket_dir)
        self.leased = session.lease(PAGES)
        self.trouble, self.work = Trouble(), Work()
        self.store = RefusingStore(self.leased, self.trouble)
        self.mapper = FailingMapper(session.mapper, self.trouble, self.work)
        self.written: dict[int, int] = {}  # by backed block
        self.seed = 0

    @initialize(which=st.sampled_from(geometries()))
    def open(self, which: BlockGeometry) -> None:
        self.memory = BlockMemory(self.mapper, self.store, which, fence=self.fence)  # type: ignore[arg-type]
        self.bytes = self.memory.tensor.numpy()

    def fence(self) -> WorkProof:
        if self.trouble.strikes():
            raise DriverError("the device does not answer", call="fence")
        return self.work.fence()

    def parts(self, block: int) -> Iterator[npt.NDArray[np.uint8]]:
        for stripe in self.memory.geometry.stripes:
            begin = stripe.offset_bytes + block * stripe.stride_bytes
            yield self.bytes[begin : begin + stripe.size_bytes]

    def write(self, block: int) -> None:
        """As work of the device, which may read it for a while."""
        self.seed = self.seed % 255 + 1
        self.work.submitted += 1
        for part in self.parts(block):
            part[:] = self.seed
            self.work.note(part.ctypes.data, part.nbytes)
        self.written[block] = self.seed

    @contextmanager
    def troubled(self, verdicts: list[bool]) -> Iterator[None]:
        """What goes wrong in here has changed nothing, but for idle pages."""
        self.trouble.verdicts = list(verdicts)
        needed = set(self.memory.geometry.pages(self.written).tolist())
        try:
            yield
        except (PoolExhausted, DriverError):
            assert {block for block in range(12) if self.memory.is_backed(block)} == set(self.written)
            assert set(self.memory.geometry.pages(self.written).tolist()) == needed <= self.mapped()
        finally:
            self.trouble.verdicts = []

    def mapped(self) -> set[int]:
        """Pages of the range that the driver has something at."""
        found = set()
        for page in range(self.memory.geometry.page_count):
            try:
                self.session.mapper.pages_at(self.memory._address(page), 1)
            except DriverError:
                continue
            found.add(page)
        return found

    @rule(blocks=BLOCKS, verdicts=st.lists(st.booleans(), max_size=6))
    def back(self, blocks: list[int], verdicts: list[bool]) -> None:
        wanted = [block for block in blocks if block not in self.written]
        with self.troubled(verdicts):
            self.memory.back(wanted)
            for block in wanted:
                self.write(block)

    @rule(blocks=BLOCKS, verdicts=st.lists(st.booleans(), max_size=1))
    def drop(self, blocks: list[int], verdicts: list[bool]) -> None:
        gone = [block for block in blocks if block in self.written]
        with self.troubled(verdicts):
            self.memory.drop(gone)
            for block in gone:
                del self.written[block]

    @rule(count=st.integers(0, PAGES), wait=st.booleans(), verdicts=st.lists(st.booleans(), max_size=3))
    def trim(self, count: int, wait: bool, verdicts: list[bool]) -> None:
        before, kept = self.memory.mapped_pages, self.memory.kept_pages
        with self.troubled(verdicts):
            trimmed = self.memory.trim(count, wait=wait)
            assert trimmed == before - self.memory.mapped_pages <= count
            if wait or self.work.over == self.work.submitted:
                assert trimmed == min(count, kept)

    @rule(blocks=BLOCKS)
    def what_makes_no_sense_is_refused(self, blocks: list[int]) -> None:
        for operation, backed in ((self.memory.back, True), (self.memory.drop, False)):
            wrong = [block for block in blocks if (block in self.written) == backed]
            attempts = [[*blocks, blocks[0]], [12], [-1], *([wrong] if wrong else [])]
            for attempt in attempts:
                with pytest.raises(InvalidRequest):
                    operation(attempt)

    @rule(data=st.data())
    def rewrite(self, data: st.DataObject) -> None:
        if self.written:
            self.write(data.draw(st.sampled_from(sorted(self.written))))

    @rule()
    def finish_work(self) -> None:
        self.work.finish()

    @invariant()
    def blocks_are_as_written(self) -> None:
        for block, seed in self.written.items():
            assert all((part == seed).all() for part in self.parts(block))

    @invariant()
    def every_page_is_in_the_store_or_mapped_and_counted_once(self) -> None:
        mapped = self.mapped()
        behind = [self.session.mapper.pages_at(self.memory._address(page), 1)[0].first for page in mapped]
        assert sorted([*behind, *self.store.page_ids()]) == sorted(
            page for extent in self.leased for page in extent.page_ids
        )
        needed = set(self.memory.geometry.pages(self.written).tolist())
        assert needed <= mapped
        assert (self.memory.mapped_pages, self.memory.kept_pages) == (len(mapped), len(mapped - needed))
        assert sum(drop.kept_pages for drop in self.memory._drops.values()) == self.memory.kept_pages

    def teardown(self) -> None:
        with self.session:
            if hasattr(self, "memory"):
                self.close()
            assert self.session.mapper.mapped_pages == 0
            self.session.give_back(self.leased)

    def close(self) -> None:
        """At the third try, on every way."""
        for verdicts in ([True], [False, True], []):
            self.trouble.verdicts = verdicts
            try:
                self.memory.close()
            except DriverError:
                with pytest.raises(Closed):
                    self.memory.back([0])
        self.memory.close()
        assert self.store.free.page_count == page_count_of(self.leased) == PAGES
        assert self.memory.mapped_pages == 0


def test_blocks_live_random_lives_in_pages_that_are_lent_refused_and_hard_to_map(vattd_socket_dir: Path) -> None:
    class Machine(BlockMemoryMachine):
        socket_dir = vattd_socket_dir

    run_state_machine_as_test(Machine, settings=settings(max_examples=40, stateful_step_count=30, deadline=None))
