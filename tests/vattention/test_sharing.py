"""Slots that share pages: each goes on by itself, and a page behind several rows counts once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.vattention.host_pages import HostPages, page_ids_of, working_host
from tests.vattention.token_values import check, spec_of, write
from vatt.errors import PoolExhausted
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout

PAGE = 4096
each_layout = pytest.mark.parametrize("layout", list(Layout), ids=lambda layout: layout.value)
HEADS: dict[str, dict[str, int | None]] = {
    "alike": {},
    "different": {"value_head_size": 7},
    "latent": {"num_kv_heads": 1, "head_size": 30, "value_head_size": 0},
}


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def cache(request: pytest.FixtureRequest, host_pages: HostPages) -> Iterator[KVCache]:
    with KVCache(host_pages, spec_of(request.param), background=False) as cache:
        yield cache


def mapped_pages(cache: KVCache) -> int:
    return cache.stats().mapped_bytes // PAGE


def partial_pages(cache: KVCache, token_count: int) -> int:
    """Pages that so many tokens fill in part."""
    bands = cache.geometry.bands
    return sum(band.column_count * (token_count * band.token_bytes % PAGE > 0) for band in bands)


def fill(cache: KVCache, slot: int, seed: int, start: int, end: int) -> None:
    cache.grow(slot, end)
    write(cache, slot, seed, start, end)


def new_filled(cache: KVCache, seed: int, token_count: int) -> int:
    slot = cache.acquire_slot()
    fill(cache, slot, seed, 0, token_count)
    return slot


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("token_count", [0, 1, 128, 400, 401])
@each_layout
def test_a_fork_shares_whole_pages_and_copies_the_rest(
    layout: Layout, token_count: int, heads: str, host_pages: HostPages
) -> None:
    with KVCache(host_pages, spec_of(layout, **HEADS[heads]), background=False) as cache:
        source = new_filled(cache, 1, 401)
        before = mapped_pages(cache)
        fork = cache.fork_slot(source, token_count)
        assert cache.length(fork) == token_count
        assert mapped_pages(cache) == before + partial_pages(cache, token_count)
        assert mapped_pages(cache) == host_pages.mapper.mapped_pages
        check(cache, fork, 1, token_count)
        whole = len(list(page_ids_of(cache, fork))) - partial_pages(cache, token_count)
        assert len(set(page_ids_of(cache, fork)) & set(page_ids_of(cache, source))) == whole


def test_both_sides_of_a_fork_go_on_by_themselves(cache: KVCache) -> None:
    source = new_filled(cache, 1, 333)
    fork = cache.fork_slot(source)
    fill(cache, fork, 2, 333, 500)
    fill(cache, source, 3, 333, 450)
    for slot, seed, end in ((fork, 2, 500), (source, 3, 450)):
        check(cache, slot, 1, 333)
        check(cache, slot, seed, end, start=333)


def test_what_is_shared_counts_once_in_what_a_step_needs(cache: KVCache) -> None:
    source = new_filled(cache, 1, 500)
    cache.settle()
    fork = cache.fork_slot(source)
    lengths = [0] * 4
    lengths[source] = lengths[fork] = 500
    alone = cache.needed_pages([500, 0, 0, 0])
    assert cache.needed_pages(lengths) == alone + partial_pages(cache, 500)
    lengths[fork] = 100
    assert cache.needed_pages(lengths) - alone <= partial_pages(cache, 100)
    assert cache.stats().token_bytes <= 500 * cache.spec.token_bytes + partial_pages(cache, 500) * PAGE


@pytest.mark.parametrize("count", [0, 1, 64, 128, 200, 399])
@pytest.mark.parametrize("way", ["shrink", "shrink and keep ahead", "step"])
def test_a_slot_that_ends_within_shared_pages_writes_to_its_own_from_there(
    cache: KVCache, way: str, count: int
) -> None:
    source = new_filled(cache, 1, 400)
    fork = cache.fork_slot(source)
    other_fork = cache.fork_slot(source, 390)
    if way == "step":
        lengths = [0] * 4
        lengths[source], lengths[fork], lengths[other_fork] = 400, max(count, 1), 390
        count = max(count, 1)
        cache.step(lengths)
    else:
        cache.shrink(fork, count, keep_ahead=way.endswith("ahead"))
    check(cache, fork, 1, count)
    fill(cache, fork, 2, count, 450)
    check(cache, source, 1, 400)
    check(cache, other_fork, 1, 390)
    check(cache, fork, 1, count)
    check(cache, fork, 2, 450, start=count)
    cache.shrink(source, count // 2)
    fill(cache, source, 3, count // 2, 500)
    check(cache, other_fork, 1, 390)
    check(cache, fork, 1, count)
    check(cache, fork, 2, 450, start=count)
    check(cache, source, 3, 500, start=count // 2)


def test_a_step_that_is_refused_leaves_shared_tokens_as_they_were() -> None:
    host = HostPages(page_count=150)
    with KVCache(host, spec_of(Layout.FUSED), background=False) as cache:
        source = new_filled(cache, 1, 400)
        fork = cache.fork_slot(source)
        with pytest.raises(PoolExhausted):
            cache.step([400, 100, 900, 0])
        assert (cache.length(source), cache.length(fork)) == (400, 400)
        check(cache, fork, 1, 400)
        cache.step([400, 200, 0, 0])
        fill(cache, fork, 2, 200, 300)
        check(cache, source, 1, 400)
    host.close()
    assert host.leased_pages == 0


def test_a_slot_gets_a_page_of_its_own_although_idle_pages_hold_all_that_is_free() -> None:
    host = HostPages(page_count=100)
    with KVCache(host, spec_of(Layout.FUSED), background=False) as cache:
        source = new_filled(cache, 1, 400)
        fork = cache.fork_slot(source)
        cache.free_slot(new_filled(cache, 2, (100 - mapped_pages(cache)) * PAGE // 576))
        assert mapped_pages(cache) == 100
        cache.shrink(fork, 100)
        check(cache, fork, 1, 100)
    host.close()


@each_layout
def test_a_freed_slot_whose_pages_others_share_is_never_handed_on_with_them(
    layout: Layout, host_pages: HostPages
) -> None:
    with KVCache(host_pages, spec_of(layout), background=False) as cache:
        for way in ("acquire", "acquire for many", "step", "fork"):
            source = new_filled(cache, 1, 400)
            fork = cache.fork_slot(source)
            shared = set(page_ids_of(cache, source)) & set(page_ids_of(cache, fork))
            cache.free_slot(source)
            if way == "step":
                cache.step([5 if slot in (source, fork) else 0 for slot in range(4)])
                cache.step([400 if slot in (source, fork) else 0 for slot in range(4)])
                check(cache, fork, 1, 5)
                write(cache, fork, 1, 5, 400)
                new = source
            elif way == "fork":
                new = cache.fork_slot(fork, 0)
            else:
                new = cache.acquire_slot(300 if way.endswith("many") else None)
            fill(cache, new, 2, 0, 400)
            assert not set(page_ids_of(cache, new)) & shared & set(page_ids_of(cache, fork))
            check(cache, fork, 1, 400)
            check(cache, new, 2, 400)
            cache.release()
            assert host_pages.mapper.mapped_pages == 0


def test_the_last_slot_of_a_fork_takes_its_pages_with_it(cache: KVCache, host_pages: HostPages) -> None:
    source = new_filled(cache, 1, 400)
    fork = cache.fork_slot(source)
    cache.free_slot(source)
    cache.settle()
    assert cache.stats().kept_bytes == 0  # what others hold is not kept for the next request
    check(cache, fork, 1, 400)
    cache.free_slot(fork)
    cache.release_idle()
    assert host_pages.mapper.mapped_pages == 0


def test_slots_with_common_pages_read_what_one_of_them_wrote(cache: KVCache, host_pages: HostPages) -> None:
    cache.step([50, 50, 50, 50])
    for slot in range(4):
        write(cache, slot, slot, 0, 50)
    before = mapped_pages(cache)
    cache.map_common(100)
    per_row = sum(band.column_count * -(-100 * band.token_bytes // PAGE) for band in cache.geometry.bands)
    assert mapped_pages(cache) == before + per_row == host_pages.mapper.mapped_pages
    end = min(cache.capacity(slot) for slot in range(4))
    cache.step([end] * 4)
    first = max(
        -(-int(pages) * PAGE // band.token_bytes)
        for pages, band in zip(cache._rows.arithmetic.pages(50), cache.geometry.bands, strict=True)
    )
    write(cache, 2, 9, first, end)
    for slot in range(4):
        check(cache, slot, slot, 50)
        check(cache, slot, 9, end, start=first)
    cache.release()
    assert host_pages.mapper.mapped_pages == 0


def test_common_pages_in_empty_slots_are_for_all_to_write(cache: KVCache, host_pages: HostPages) -> None:
    """As upstream's measurements use them: one prompt's worth of memory behind every slot."""
    cache.map_common(300)
    per_row = sum(band.column_count * -(-300 * band.token_bytes // PAGE) for band in cache.geometry.bands)
    assert mapped_pages(cache) == per_row
    cache.map_common(0)
    assert mapped_pages(cache) == per_row


# What it saves


def saved_by_fan_out(layout: Layout, prompt: int, answer: int, tokens_a_page: int) -> float:
    """The part of the pages that four answers to one prompt spare over four requests with a copy of it each."""
    layers = 4
    column_layers = 1 if layout is Layout.PER_LAYER else layers
    head_size = PAGE // tokens_a_page // column_layers // 2
    assert head_size * 2 * column_layers * tokens_a_page == PAGE
    limit = prompt + answer
    spec = KVCacheSpec(layers, 1, head_size, torch.float16, 4, limit, layout, page_size_bytes=PAGE)
    used = []
    for is_shared in (True, False):
        host = HostPages(page_count=20_000)
        with KVCache(host, spec, background=False) as cache:
            cache.grow(cache.acquire_slot(), prompt)
            for _ in range(3):
                if is_shared:
                    cache.fork_slot(0)
                else:
                    cache.grow(cache.acquire_slot(), prompt)
            cache.step([limit] * 4)
            used.append(host.mapper.mapped_pages)
        host.close()
    return 1 - used[0] / used[1]


def test_four_answers_to_one_prompt_spare_what_was_reckoned() -> None:
    """Llama-3-8B in pages of 2 MiB: 32 tokens a page in megacache, 1024 per layer. A prompt of 2k, answers of 400."""
    assert saved_by_fan_out(Layout.MEGACACHE, 2000, 400, tokens_a_page=32) == pytest.approx(0.62, abs=0.01)
    assert saved_by_fan_out(Layout.PER_LAYER, 1000, 400, tokens_a_page=1024) == 0.0


# Random lives


class SharingMachine(RuleBasedStateMachine):
    """Slots are forked, grow, are cut back and end in any order; none ever sees what another one wrote after the fork,
    and nothing is unmapped while the device works on it."""

    def __init__(self) -> None:
        super().__init__()
        self.host, self.work = working_host(page_count=400)
        self.cache: KVCache
        self.slots: dict[int, list[tuple[int, int, int]]] = {}  # (seed, start, end): who wrote which tokens
        self.seed = 0

    @initialize(
        layout=st.sampled_from(Layout),
        heads=st.sampled_from(sorted(HEADS)),
        page_size_bytes=st.sampled_from([None, 2 * PAGE]),
    )
    def open(self, layout: Layout, heads: str, page_size_bytes: int | None) -> None:
        spec = spec_of(
            layout, max_batch_size=6, max_context_length=400, page_size_bytes=page_size_bytes, **HEADS[heads]
        )
        self.cache = KVCache(self.host, spec, fence=self.work.fence, background=False)

    def length(self, slot: int) -> int:
        return self.slots[slot][-1][2] if self.slots[slot] else 0

    def written(self, slot: int, start: int, end: int) -> None:
        assert self.cache.capacity(slot) >= end
        self.seed += 1
        write(self.cache, slot, self.seed, start, end)
        self.work.use(self.cache, slot, end)
        self.slots[slot].append((self.seed, start, end))

    def cut(self, slot: int, token_count: int) -> list[tuple[int, int, int]]:
        return [(seed, start, min(end, token_count)) for seed, start, end in self.slots[slot] if start < token_count]

    @precondition(lambda self: len(self.slots) < 6)
    @rule(announced=st.none() | st.integers(0, 400))
    def acquire(self, announced: int | None) -> None:
        slot = self.cache.acquire_slot(announced)
        assert slot not in self.slots
        self.slots[slot] = []

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), more=st.integers(1, 200))
    def grow(self, data: st.DataObject, more: int) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        had = self.length(slot)
        count = min(400, had + more)
        try:
            self.cache.grow(slot, count)
        except PoolExhausted:
            return
        if count > had:
            self.written(slot, had, count)

    @precondition(lambda self: 0 < len(self.slots) < 6)
    @rule(data=st.data(), is_whole=st.booleans())
    def fork(self, data: st.DataObject, is_whole: bool) -> None:
        source = data.draw(st.sampled_from(sorted(self.slots)))
        count = self.length(source) if is_whole else data.draw(st.integers(0, self.length(source)))
        try:
            slot = self.cache.fork_slot(source, None if is_whole else count)
        except PoolExhausted:
            return
        assert slot not in self.slots
        self.slots[slot] = self.cut(source, count)
        self.work.use(self.cache, slot, count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data(), keep_ahead=st.booleans())
    def shrink(self, data: st.DataObject, keep_ahead: bool) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        count = data.draw(st.integers(0, self.length(slot)))
        try:
            self.cache.shrink(slot, count, keep_ahead=keep_ahead)
        except PoolExhausted:
            return
        self.slots[slot] = self.cut(slot, count)

    @rule(data=st.data())
    def step(self, data: st.DataObject) -> None:
        """Slots end, begin, grow and are cut back at once."""
        lengths = [
            data.draw(st.sampled_from([0, self.length(slot), min(400, self.length(slot) + 1)]) | st.integers(0, 400))
            if slot in self.slots
            else data.draw(st.sampled_from([0, 0, 60]))
            for slot in range(6)
        ]
        try:
            self.cache.step(lengths, zero_ends=True)
        except PoolExhausted:
            return
        for slot, count in enumerate(lengths):
            had = self.length(slot) if slot in self.slots else 0
            if count == 0:
                self.slots.pop(slot, None)
                continue
            self.slots[slot] = self.cut(slot, count) if slot in self.slots else []
            if count > had:
                self.written(slot, had, count)

    @precondition(lambda self: self.slots)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.slots)))
        self.cache.free_slot(slot)
        del self.slots[slot]

    @rule()
    def finish_work(self) -> None:
        self.work.finish()

    @rule()
    def settle(self) -> None:
        self.cache.settle()

    @rule()
    def release_idle(self) -> None:
        self.cache.release_idle()
        assert self.cache.stats().kept_bytes == 0

    @invariant()
    def every_slot_holds_its_own_tokens(self) -> None:
        for slot, pieces in self.slots.items():
            assert self.cache.length(slot) == self.length(slot) <= self.cache.capacity(slot)
            for seed, start, end in pieces:
                check(self.cache, slot, seed, end, start=start)

    @invariant()
    def every_page_counts_once(self) -> None:
        if not hasattr(self, "cache"):
            return
        pages = {page for slot in range(6) for page in page_ids_of(self.cache, slot)}
        assert mapped_pages(self.cache) == len(pages) == self.host.mapper.mapped_pages
        usage = self.cache.usage()
        assert usage.token_bytes <= usage.mapped_pages * PAGE

    def teardown(self) -> None:
        if hasattr(self, "cache"):
            self.cache.close()
        assert self.host.mapper.mapped_pages == 0
        self.host.close()
        assert self.host.leased_pages == 0


TestSharingMachine = SharingMachine.TestCase
TestSharingMachine.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
