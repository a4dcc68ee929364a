"""A KV cache: what is written is read back, whatever its slots go through, and pages are where its figures say."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.vattention.host_pages import HostPages
from tests.vattention.token_values import SPEC, check, same_bytes, spec_of, tokens, write
from vatt.errors import Closed, DriverError, InvalidRequest, OutOfMemory, PoolExhausted
from vatt.pages import Extent
from vattention.kvcache import KVCache, KVCacheStats
from vattention.layout import KVCacheSpec, Layout
from vattention.mapper import Mapper
from vattention.vmm.host_mapping import HostMapping

PAGE = 4096
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]
# Heads of K and V alike; of different sizes; one latent vector and no V (MLA).
HEADS = {"alike": (2, 12, None), "different": (2, 12, 7), "latent": (1, 36, 0)}
each_layout = pytest.mark.parametrize("layout", list(Layout), ids=lambda layout: layout.value)


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def cache(request: pytest.FixtureRequest, host_pages: HostPages) -> Iterator[KVCache]:
    with KVCache(host_pages, spec_of(request.param), background=False) as cache:
        yield cache


def pages_for(cache: KVCache, *lengths: int) -> int:
    """The pool's pages that slots of these lengths fill, by the arithmetic that a reader would do."""
    page_size_bytes, ratio = cache.geometry.page_size_bytes, cache.geometry.pool_pages_per_page
    return sum(
        band.column_count * -(-length * band.token_bytes // page_size_bytes) * ratio
        for band in cache.geometry.bands
        for length in lengths
    )


def figures(cache: KVCache) -> tuple[int, int, list[int]]:
    """What an operation that is refused leaves as it was."""
    stats = cache.stats()
    return stats.mapped_bytes - stats.kept_bytes, stats.token_bytes, cache._rows.table.length.tolist()


# Bytes


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@each_layout
def test_every_byte_is_read_back_while_slots_grow_fork_finish_and_are_used_again(
    layout: Layout, dtype: torch.dtype, heads: str
) -> None:
    num_kv_heads, head_size, value_head_size = HEADS[heads]
    spec = KVCacheSpec(3, num_kv_heads, head_size, dtype, 4, 600, layout, value_head_size)
    host = HostPages()
    with KVCache(host, spec, background=False) as cache:
        lengths = [150, 0, 400, 0]
        cache.step(lengths)
        write(cache, 0, 1, 0, 150)
        write(cache, 2, 2, 0, 400)
        fork = cache.fork_slot(2, 333)
        for _ in range(40):
            for slot, seed in ((0, 1), (2, 2), (fork, 3)):
                had = cache.length(slot)
                cache.grow(slot, had + 5)
                write(cache, slot, seed, had, had + 5)
            cache.settle()
        check(cache, 0, 1, 350)
        check(cache, 2, 2, 600)
        check(cache, fork, 2, 333)
        check(cache, fork, 3, 533, start=333)
        cache.free_slot(2)
        again = cache.acquire_slot(500)
        cache.grow(again, 500)
        write(cache, again, 4, 0, 500)
        check(cache, again, 4, 500)
        check(cache, 0, 1, 350)
        check(cache, fork, 2, 333)
        check(cache, fork, 3, 533, start=333)
    host.close()


@pytest.mark.parametrize("heads", HEADS)
@each_layout
def test_the_layouts_own_tensors_are_the_same_memory_as_the_views_of_each_layer(
    layout: Layout, heads: str, host_pages: HostPages
) -> None:
    num_kv_heads, head_size, value_head_size = HEADS[heads]
    spec = KVCacheSpec(3, num_kv_heads, head_size, torch.float16, 4, 600, layout, value_head_size)
    with KVCache(host_pages, spec, background=False) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 200)
        write(cache, slot, 1, 0, 200)
        whole = cache.tensors()
        has_value = value_head_size != 0
        assert len(whole) == (1 if layout is Layout.MEGACACHE else 3) * (1 + has_value)
        for at, expected in enumerate(tokens(spec, 1)[: 1 + has_value]):
            if layout is Layout.MEGACACHE:
                assert same_bytes(whole[at][slot, :200].transpose(0, 1), expected[:, :200])
                continue
            for layer in range(3):
                assert same_bytes(whole[3 * at + layer][slot, :200], expected[layer, :200])


def test_views_have_the_shape_that_attention_wants(cache: KVCache) -> None:
    for layer in range(SPEC.num_layers):
        for view in cache.layer(layer):
            assert view.shape == (4, 1000, 2, 12)
            assert view.stride(0) * 4 % cache.geometry.page_size_bytes == 0
            assert view.stride(3) == 1
            if cache.layout is Layout.PER_HEAD:  # a head's tokens are beside each other
                assert view.stride(1) == 12
                assert view.stride(2) * 4 % cache.geometry.page_size_bytes == 0
            else:
                assert view.stride(2) == 12


def test_a_model_with_one_latent_vector_a_token_has_values_without_elements(host_pages: HostPages) -> None:
    for layout in Layout:
        with KVCache(host_pages, spec_of(layout, value_head_size=0), background=False) as cache:
            key, value = cache.layer(0)
            assert (tuple(key.shape), tuple(value.shape)) == ((4, 1000, 2, 12), (4, 1000, 2, 0))
            cache.grow(cache.acquire_slot(), 100)
            assert cache.stats().token_bytes == 100 * 3 * 2 * 12 * 4


@pytest.mark.parametrize("query_tokens", [200, 1, 7], ids=["prefill", "decode", "chunk"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@each_layout
def test_attention_over_the_views_is_bit_for_bit_that_over_contiguous_copies(
    layout: Layout, dtype: torch.dtype, query_tokens: int, host_pages: HostPages
) -> None:
    spec = spec_of(layout, dtype=dtype, head_size=16, value_head_size=16)
    generator = torch.Generator().manual_seed(5)
    with KVCache(host_pages, spec, background=False) as cache:
        cache.step([200, 200, 200, 0])
        for slot in range(3):
            write(cache, slot, slot, 0, 200)
        query = torch.rand(3, 2 * spec.num_kv_heads, query_tokens, 16, generator=generator).to(dtype)
        for layer in range(spec.num_layers):
            strided = [view[:3, :200].transpose(1, 2) for view in cache.layer(layer)]
            copies = [view.contiguous() for view in strided]
            is_prefill = query_tokens == 200
            one, other = (
                scaled_dot_product_attention(query, k, v, is_causal=is_prefill, enable_gqa=True)
                for k, v in (strided, copies)
            )
            assert torch.equal(one, other)
            assert not one.isnan().any()


@each_layout
def test_latent_attention_over_the_views_is_bit_for_bit_that_over_contiguous_copies(
    layout: Layout, host_pages: HostPages
) -> None:
    spec = spec_of(layout, num_kv_heads=1, head_size=40, value_head_size=0)
    with KVCache(host_pages, spec, background=False) as cache:
        cache.grow(cache.acquire_slot(), 333)
        write(cache, 0, 1, 0, 333)
        query = torch.rand(1, 8, 1, 40)
        for layer in range(spec.num_layers):
            latent = cache.layer(layer)[0][:1, :333].transpose(1, 2)
            copy = latent.contiguous()
            one, other = (
                scaled_dot_product_attention(query, key.expand(1, 8, -1, -1), key[..., :32].expand(1, 8, -1, -1))
                for key in (latent, copy)
            )
            assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@each_layout
def test_fp8_is_copied_in_and_out_as_it_is(layout: Layout, dtype: torch.dtype, host_pages: HostPages) -> None:
    """All 256 patterns, numbers or not."""
    patterns = torch.arange(256, dtype=torch.uint8).view(dtype)
    spec = KVCacheSpec(2, 4, 64, dtype, 2, 100, layout)
    with KVCache(host_pages, spec, background=False) as cache:
        cache.grow(cache.acquire_slot(), 10)
        for view in cache.layer(1):
            view[0, :10] = patterns.view(4, 64)
            assert same_bytes(view[0, 7].reshape(256), patterns)
        fork = cache.fork_slot(0)
        assert same_bytes(cache.layer(1)[0][fork, 9].reshape(256), patterns)


# Growing


def test_tokens_stay_as_a_slot_grows_token_by_token(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 37)
    write(cache, slot, 1, 0, 37)
    for count in range(38, 400):
        cache.grow(slot, count)
        assert cache.capacity(slot) >= cache.length(slot) == count
        write(cache, slot, 1, count - 1, count)
    check(cache, slot, 1, 399)


def test_growth_runs_ahead_by_no_more_than_half_of_what_is_mapped(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    for count in range(1, 1001):
        cache.grow(slot, count)
        mapped, needed = cache.stats().mapped_bytes // PAGE, pages_for(cache, count)
        assert needed <= mapped <= max(needed + needed // 2, needed + pages_for(cache, 1))


def test_growing_rows_in_turn_leaves_short_lists_of_kernel_mappings(host_pages: HostPages) -> None:
    with KVCache(host_pages, spec_of(Layout.PER_LAYER), background=False) as cache:
        slots = [cache.acquire_slot() for _ in range(4)]
        for count in range(1, 1001):
            cache.grow_many(dict.fromkeys(slots, count))
        stats = cache.stats()
        assert stats.kernel_run_count <= stats.mapped_bytes // PAGE / 2
        first, end = cache._range.address, cache._range.end
        kernel_mappings = 0
        for line in Path("/proc/self/maps").read_text().splitlines():
            start = int(line.split("-")[0], 16)
            kernel_mappings += first <= start < end and "vattd-slab" in line
        assert 0 < kernel_mappings <= stats.kernel_run_count


def test_a_prefill_is_one_run_a_column(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 1000)
    assert cache.stats().kernel_run_count <= sum(band.column_count for band in cache.geometry.bands)


@pytest.mark.parametrize("ratio", [2, 8])
@each_layout
def test_a_page_of_several_pool_pages_is_mapped_and_counted_as_one(
    layout: Layout, ratio: int, host_pages: HostPages
) -> None:
    with KVCache(host_pages, spec_of(layout, page_size_bytes=ratio * PAGE), background=False) as cache:
        assert cache.geometry.page_size_bytes == ratio * PAGE
        first, second = cache.acquire_slot(), cache.acquire_slot()
        cache.grow_many({first: 333, second: 1})
        assert cache.stats().mapped_bytes == pages_for(cache, 333, 1) * PAGE
        assert cache.stats().mapped_bytes % (ratio * PAGE) == 0
        write(cache, first, 1, 0, 333)
        write(cache, second, 2, 0, 1)
        fork = cache.fork_slot(first)
        cache.grow(fork, 400)
        write(cache, fork, 3, 333, 400)
        cache.shrink(first, 300)
        for slot, seed, count in ((first, 1, 300), (second, 2, 1), (fork, 1, 333)):
            check(cache, slot, seed, count)
        check(cache, fork, 3, 400, start=333)


def test_a_shrunk_slot_keeps_its_first_tokens_and_gives_the_other_pages_back(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 900)
    write(cache, slot, 1, 0, 900)
    cache.shrink(slot, 100)
    assert cache.stats().mapped_bytes == pages_for(cache, 100) * PAGE
    assert cache.length(slot) == 100
    check(cache, slot, 1, 100)
    cache.grow(slot, 500)
    check(cache, slot, 1, 100)
    write(cache, slot, 1, 100, 500)
    check(cache, slot, 1, 500)


def test_shrinking_with_keep_ahead_leaves_what_the_next_step_would_map(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 900)
    cache.shrink(slot, 500)
    mapped = cache.stats().mapped_bytes
    cache.grow(slot, 900)
    cache.shrink(slot, 500, keep_ahead=True)
    assert mapped < cache.stats().mapped_bytes < pages_for(cache, 900) * PAGE


# Steps


def test_a_step_gives_every_slot_its_length_and_frees_those_without_tokens(cache: KVCache) -> None:
    cache.step([10, 0, 300, 0])
    assert [cache.length(0), cache.length(2)] == [10, 300]
    for slot, seed in ((0, 1), (2, 2)):
        write(cache, slot, seed, 0, cache.length(slot))
    mapped = cache.stats().mapped_bytes
    cache.step(np.array([11, 5, 0, 0]))
    assert [cache.length(0), cache.length(1)] == [11, 5]
    with pytest.raises(InvalidRequest, match="slot 2 is not in use"):
        cache.length(2)
    check(cache, 0, 1, 10)
    stats = cache.stats()
    assert stats.kept_bytes == pages_for(cache, 300) * PAGE, "rows that leave are kept"
    assert stats.mapped_bytes == mapped + pages_for(cache, 5) * PAGE
    assert stats.token_bytes == 16 * SPEC.token_bytes


def test_a_shorter_length_in_a_step_unmaps_nothing(cache: KVCache) -> None:
    cache.step([900, 0, 0, 0])
    mapped = cache.stats().mapped_bytes
    cache.step([20, 0, 0, 0])
    assert (cache.length(0), cache.stats().mapped_bytes) == (20, mapped)


def test_a_step_of_one_token_each_finds_its_pages_mapped_by_the_background(cache: KVCache) -> None:
    lengths = np.array([100, 101, 250, 0])
    cache.step(lengths)
    for _ in range(300):
        cache.settle()
        lengths[:3] += 1
        mapped = cache.stats().mapped_pages_total
        cache.step(lengths)
        assert cache.stats().mapped_pages_total == mapped


@pytest.mark.parametrize(
    "lengths",
    [
        [1, 2, 3],
        [1, 2, 3, 4, 5],
        [[1, 2, 3, 4]],
        [-1, 0, 0, 0],
        [1001, 0, 0, 0],
        [1.0, 2.0, 3.0, 4.0],
        [True, False, True, False],
        np.array([1, 1, 1, 1], dtype=np.bool_),
        np.array([1, 1, 1, np.iinfo(np.uint64).max], dtype=np.uint64),
        [1 << 70, 0, 0, 0],
        ["1", "2", "3", "4"],
        [None, 1, 1, 1],
        None,
        7,
    ],
    ids=str,
)
def test_lengths_that_make_no_sense_are_refused_and_change_nothing(lengths: Any, host_pages: HostPages) -> None:
    with KVCache(host_pages, SPEC, background=False) as cache:
        cache.step([5, 6, 0, 0])
        before = figures(cache)
        for call in (cache.step, cache.needed_pages):
            with pytest.raises(InvalidRequest):
                call(lengths)
        assert figures(cache) == before


def test_the_callers_array_of_lengths_may_change_after_the_step(cache: KVCache) -> None:
    lengths = np.array([5, 6, 7, 8], dtype=np.int64)
    cache.step(lengths)
    lengths[:] = 999
    assert [cache.length(slot) for slot in range(4)] == [5, 6, 7, 8]


def test_needed_pages_are_what_a_step_maps(cache: KVCache) -> None:
    lengths = [700, 0, 1, 43]
    assert cache.needed_pages(lengths) == pages_for(cache, *lengths)
    cache.step(lengths)
    assert cache.stats().mapped_bytes == cache.needed_pages(lengths) * PAGE


# Refusals: all or nothing


@each_layout
def test_a_growth_that_is_refused_changes_nothing(layout: Layout) -> None:
    host = HostPages(page_count=48)
    with KVCache(host, spec_of(layout), background=False) as cache:
        first, second = cache.acquire_slot(), cache.acquire_slot()
        cache.grow(first, 84)
        write(cache, first, 1, 0, 84)
        before = figures(cache)
        for wanted in ({first: 300, second: 300}, {second: 700}):
            with pytest.raises(PoolExhausted):
                cache.grow_many(wanted)
            assert figures(cache) == before
        with pytest.raises(PoolExhausted):
            cache.step([85, 1, 1000, 0])
        assert figures(cache) == before
        assert cache._rows.table.used == [first, second]
        check(cache, first, 1, 84)
        cache.grow(second, 126)
    assert host.mapper.mapped_pages == 0
    host.close()
    assert host.leased_pages == 0


def test_a_refused_step_leaves_tokens_that_it_would_have_forgotten_and_slots_that_it_would_have_freed() -> None:
    host = HostPages(page_count=60)
    with KVCache(host, spec_of(Layout.FUSED), background=False) as cache:
        cache.step([100, 50, 60, 0])
        for slot, seed in enumerate((1, 2, 3)):
            write(cache, slot, seed, 0, cache.length(slot))
        with pytest.raises(PoolExhausted):
            cache.step([20, 0, 1000, 30])
        assert cache._rows.table.length.tolist() == [100, 50, 60, 0]
        assert cache._rows.table.used == [0, 1, 2]
        for slot, seed in enumerate((1, 2, 3)):
            check(cache, slot, seed, cache.length(slot))
    host.close()


class FailingMapper(Mapper):
    """Fails at one call of `map`, counted down from `fail_in`."""

    fail_in = 0
    error: Exception = DriverError("the driver fails", call="map")

    def map(self, address: int, extents: Sequence[Extent]) -> None:
        self.fail_in -= 1
        if self.fail_in == 0:
            raise self.error
        super().map(address, extents)


def failing_host(page_count: int = 4096) -> tuple[HostPages, FailingMapper]:
    mappers: list[FailingMapper] = []

    def mapper_of(driver: HostMapping) -> Mapper:
        mappers.append(FailingMapper(driver))
        return mappers[0]

    return HostPages(page_count, mapper_of=mapper_of), mappers[0]


OPERATIONS: dict[str, Callable[[KVCache], object]] = {
    "grow_many": lambda cache: cache.grow_many({0: 400, 1: 500}),
    "step": lambda cache: cache.step([400, 0, 60, 70]),
    "fork": lambda cache: cache.fork_slot(0),
    "fork of a part": lambda cache: cache.fork_slot(1, 123),
    "shrink within shared pages": lambda cache: cache.shrink(2, 77),
    "step within shared pages": lambda cache: cache.step([200, 300, 77, 90]),
    "map_common": lambda cache: cache.map_common(50),
}


CUTTING = ("step", "shrink within shared pages", "step within shared pages")


@pytest.mark.parametrize("operation", OPERATIONS)
@each_layout
def test_an_operation_that_fails_at_any_driver_call_changes_nothing(layout: Layout, operation: str) -> None:
    host, mapper = failing_host()
    with KVCache(host, spec_of(layout, value_head_size=7), background=False) as cache:
        cache.step([200, 300, 0, 0])
        write(cache, 0, 1, 0, 200)
        write(cache, 1, 2, 0, 300)
        assert cache.fork_slot(0) == 2
        before = figures(cache)
        for fail_at in range(1, 1000):
            mapper.fail_in = fail_at
            try:
                OPERATIONS[operation](cache)
            except DriverError:
                mapped_bytes, _, lengths = figures(cache)
                assert lengths == before[2]
                # A slot that was to end within shared pages may have got a page of its own there.
                own_pages = sum(band.column_count for band in cache.geometry.bands) if operation in CUTTING else 0
                assert before[0] <= mapped_bytes <= before[0] + own_pages * PAGE
                assert host.mapper.mapped_pages * PAGE == cache.stats().mapped_bytes
                for slot, seed, count in ((0, 1, 200), (1, 2, 300), (2, 1, 200)):
                    check(cache, slot, seed, count)
                continue
            break
        assert fail_at > 1
        mapper.fail_in = 0
        for slot, seed, count in ((0, 1, 200), (1, 2, 300), (2, 1, 77)):
            if slot in cache._rows.table.used:
                check(cache, slot, seed, min(count, cache.length(slot)))
    host.close()
    assert host.leased_pages == 0


@each_layout
def test_a_new_request_keeps_the_pages_of_the_row_it_begins_in_though_others_are_short(layout: Layout) -> None:
    probe = HostPages()
    with KVCache(probe, spec_of(layout), background=False) as cache:
        pool_pages = pages_for(cache, 350, 100, 20)
    probe.close()
    host = HostPages(pool_pages)
    with KVCache(host, spec_of(layout), background=False) as cache:
        cache.step([300, 100, 20, 0])
        cache.step([0, 100, 20, 0])
        cache.step([350, 100, 20, 0])
        assert cache.capacity(0) >= 350
        write(cache, 0, 1, 0, 350)
        check(cache, 0, 1, 350)
        cache.step([0, 100, 20, 0])
        with pytest.raises(PoolExhausted):
            cache.step([1000, 100, 20, 0])
        cache.step([200, 100, 300 - 200, 0])
        assert cache.capacity(2) >= 100
    host.close()


def test_pages_ahead_are_given_up_before_a_growth_is_refused() -> None:
    host = HostPages(page_count=30)
    with KVCache(host, SPEC, background=False) as cache:  # 6 columns: 5 pages a column, 42 tokens a page
        slot = cache.acquire_slot()
        cache.grow(slot, 4 * 42)  # the next step would take 2 pages a column; there is 1
        cache.grow(slot, 5 * 42)
        assert cache.stats().mapped_bytes == 30 * PAGE
    host.close()


def test_pages_ahead_are_given_up_too_when_the_device_has_no_memory_left() -> None:
    host, mapper = failing_host()
    mapper.error = OutOfMemory("none left")
    with KVCache(host, SPEC, background=False) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 4 * 42)
        mapped = cache.stats().mapped_bytes
        mapper.fail_in = 1
        cache.grow(slot, 5 * 42)
        assert cache.stats().mapped_bytes == mapped + 6 * PAGE
    host.close()


def test_what_makes_no_sense_is_refused(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 10)
    for call in (
        lambda: cache.grow(slot, 1001),
        lambda: cache.grow(slot, -1),
        lambda: cache.grow(slot + 1, 1),
        lambda: cache.grow(-1, 1),
        lambda: cache.grow(slot, True),
        lambda: cache.grow(True, 1),
        lambda: cache.grow(slot, 13.5),  # type: ignore[arg-type]
        lambda: cache.grow(slot, "15"),  # type: ignore[arg-type]
        lambda: cache.grow_many({slot: 11, 3: 1}),
        lambda: cache.shrink(slot, 1.5),  # type: ignore[arg-type]
        lambda: cache.layer(1.0),  # type: ignore[arg-type]
        lambda: cache.shrink(slot, 11),
        lambda: cache.shrink(slot, -1),
        lambda: cache.fork_slot(slot, 11),
        lambda: cache.fork_slot(slot, -1),
        lambda: cache.fork_slot(3),
        lambda: cache.acquire_slot(1001),
        lambda: cache.map_common(-1),
        lambda: cache.free_slot(3),
        lambda: cache.layer(3),
        lambda: cache.layer(-1),
        lambda: cache.set_budget(-1),
        lambda: cache.set_budget(1.0),  # type: ignore[arg-type]
        lambda: cache.keep_finished(1.5),
        lambda: cache.keep_finished(float("nan")),
    ):
        with pytest.raises(InvalidRequest):
            call()
    assert (cache._rows.table.used, cache.length(slot)) == ([slot], 10)
    for _ in range(3):
        cache.acquire_slot()
    fulls: list[Callable[[], int]] = [
        cache.acquire_slot,
        lambda: cache.acquire_slot(5),
        lambda: cache.fork_slot(slot),
    ]
    for full in fulls:
        with pytest.raises(InvalidRequest, match="all 4 slots"):
            full()
    assert cache.length(slot) == 10


# Budgets and idle pages


@each_layout
def test_a_budget_is_never_passed_and_idle_pages_go_before_it_refuses(layout: Layout, host_pages: HostPages) -> None:
    with KVCache(host_pages, spec_of(layout), background=False) as cache:
        budget = pages_for(cache, 500)
        cache.set_budget(budget)
        cache.keep_finished(1.0)
        for lengths in ([500, 0, 0, 0], [0, 400, 0, 0], [0, 0, 100, 200], [0, 300, 100, 0], [60, 0, 0, 300]):
            for slot in cache._rows.table.used:
                if not lengths[slot]:
                    cache.free_slot(slot)
            cache.step(lengths)
            assert cache.stats().mapped_bytes <= budget * PAGE
            cache.settle()
            assert cache.stats().mapped_bytes <= budget * PAGE
        before = figures(cache)
        with pytest.raises(PoolExhausted) as refused:
            cache.step([500, 60, 60, 60])
        assert refused.value.requested_pages > refused.value.free_pages
        assert figures(cache) == before
        cache.set_budget(None)
        cache.step([500, 60, 60, 60])
        assert cache.stats().mapped_bytes > budget * PAGE


@each_layout
def test_a_step_has_the_pages_of_the_slots_that_end_in_it(layout: Layout, host_pages: HostPages) -> None:
    with KVCache(host_pages, spec_of(layout), background=False) as cache:
        cache.set_budget(pages_for(cache, 500))
        cache.step([500, 0, 0, 0])
        cache.step([0, 400, 0, 0])
        assert (cache._rows.table.used, cache.length(1)) == ([1], 400)


def test_a_budget_below_what_is_mapped_lets_nothing_grow(host_pages: HostPages) -> None:
    with KVCache(host_pages, SPEC, background=False) as cache:
        cache.step([500, 0, 0, 0])
        cache.set_budget(0)
        with pytest.raises(PoolExhausted):
            cache.step([1000, 0, 0, 0])
        assert cache.length(0) == 500


def test_idle_pages_are_released_at_once_when_asked(cache: KVCache, host_pages: HostPages) -> None:
    cache.step([500, 300, 0, 0])
    write(cache, 1, 2, 0, 300)
    cache.step([0, 300, 0, 0])
    kept = cache.stats().kept_bytes
    assert kept == pages_for(cache, 500) * PAGE
    assert cache.release_idle() * PAGE == kept
    assert (cache.stats().kept_bytes, cache.stats().mapped_bytes) == (0, pages_for(cache, 300) * PAGE)
    assert cache.release_idle() == 0
    check(cache, 1, 2, 300)


def test_a_freed_slot_gives_its_pages_to_the_next_request_that_they_fit(cache: KVCache) -> None:
    cache.step([200, 300, 0, 0])
    write(cache, 1, 2, 0, 300)
    cache.free_slot(0)
    mapped = cache.stats().mapped_pages_total
    assert cache.acquire_slot(150) == 0
    cache.grow(0, 150)
    assert cache.stats().mapped_pages_total == mapped
    write(cache, 0, 3, 0, 150)
    check(cache, 0, 3, 150)
    check(cache, 1, 2, 300)


def test_an_announced_request_has_its_pages_mapped_before_it_grows(cache: KVCache) -> None:
    slot = cache.acquire_slot(777)
    assert cache.stats().mapped_bytes == 0
    cache.settle()
    mapped = cache.stats().mapped_pages_total
    cache.grow(slot, 777)
    assert cache.stats().mapped_pages_total == mapped


def test_release_ends_every_slot_and_gives_all_back_and_the_cache_goes_on(cache: KVCache) -> None:
    cache.step([500, 300, 0, 7])
    cache.release()
    assert (cache.stats().mapped_bytes, cache._rows.table.used) == (0, [])
    cache.step([0, 100, 0, 0])
    write(cache, 1, 3, 0, 100)
    check(cache, 1, 3, 100)


# Several caches


@pytest.mark.parametrize("layouts", [(Layout.PER_LAYER, Layout.FUSED), (Layout.MEGACACHE, Layout.FUSED)])
def test_caches_of_one_session_do_not_disturb_each_other(layouts: tuple[Layout, Layout], host_pages: HostPages) -> None:
    one_spec, other_spec = (spec_of(layout) for layout in layouts)
    with KVCache(host_pages, one_spec) as one, KVCache(host_pages, other_spec) as other:
        for cache, seed in ((one, 1), (other, 2)):
            cache.grow(cache.acquire_slot(), 200)
            write(cache, 0, seed, 0, 200)
        one.shrink(0, 20)
        other.grow(0, 400)
        check(one, 0, 1, 20)
        check(other, 0, 2, 200)


def test_a_cache_that_is_short_gets_what_another_one_of_the_session_keeps() -> None:
    host = HostPages(page_count=100)
    one = KVCache(host, spec_of(Layout.FUSED), background=False)
    other = KVCache(host, spec_of(Layout.MEGACACHE, page_size_bytes=2 * PAGE), background=False)
    one.step([500, 100, 0, 0])
    write(one, 1, 1, 0, 100)
    one.step([0, 100, 0, 0])
    assert one.stats().kept_bytes > 0
    other.grow(other.acquire_slot(), 450)
    write(other, 0, 2, 0, 450)
    check(one, 1, 1, 100)
    check(other, 0, 2, 450)
    assert one.stats().mapped_bytes + other.stats().mapped_bytes == host.mapper.mapped_pages * PAGE <= 100 * PAGE
    with pytest.raises(PoolExhausted):
        other.grow(0, 1000)
    assert one.length(1) == 100
    host.close()
    assert host.leased_pages == 0


# Threads


def test_threads_work_on_different_slots_while_the_background_runs() -> None:
    """Two grow, fork, shrink and free slots of one cache, a third steps another cache of the session."""
    host = HostPages(page_count=1500)
    shared = KVCache(host, spec_of(Layout.MEGACACHE, max_batch_size=8))
    stepped = KVCache(host, spec_of(Layout.FUSED))
    failures: list[BaseException] = []

    def live(seed: int) -> None:
        for life in range(6):
            slot = shared.acquire_slot(50 * life)
            for count in range(20, 320, 20):
                shared.grow(slot, count)
                write(shared, slot, seed, count - 20, count)
            fork = shared.fork_slot(slot, 111 + life)
            shared.grow(fork, 300)
            write(shared, fork, seed + 1, 111 + life, 300)
            shared.shrink(slot, 150 + life)
            check(shared, slot, seed, 150 + life)
            shared.free_slot(slot)
            check(shared, fork, seed, 111 + life)
            check(shared, fork, seed + 1, 300, start=111 + life)
            shared.free_slot(fork)

    def step() -> None:
        for life in range(6):
            for count in range(0, 200, 2):
                stepped.step([count + 1, count + 2, life * count, 30])
                write(stepped, 1, life, count, count + 2)
            check(stepped, 1, life, 200)
            stepped.step([0, 0, 0, 1])

    def guarded(target: Callable[..., None], *args: int) -> None:
        try:
            target(*args)
        except BaseException as failure:  # noqa: BLE001 - a thread's boundary; raised below
            failures.append(failure)

    threads = [threading.Thread(target=guarded, args=args) for args in ((live, 10), (live, 20), (step,))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    assert shared.settle(10)
    assert stepped.settle(10)
    mapped_bytes = shared.stats().mapped_bytes + stepped.stats().mapped_bytes
    assert mapped_bytes == host.mapper.mapped_pages * PAGE
    host.close()
    assert host.leased_pages == 0


# The end


def test_the_fence_is_asked_when_a_slot_ends_and_its_failure_keeps_the_slot(host_pages: HostPages) -> None:
    seen: list[int] = []
    with KVCache(
        host_pages, SPEC, fence=lambda: seen.append(host_pages.mapper.mapped_pages), background=False
    ) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 100)
        mapped = host_pages.mapper.mapped_pages

        def broken() -> None:
            raise RuntimeError("the device does not answer")

        with pytest.raises(RuntimeError):
            cache.free_slot(slot, fence=broken)
        with pytest.raises(RuntimeError):
            cache.shrink(slot, 5, fence=broken)
        assert (host_pages.mapper.mapped_pages, cache.length(slot)) == (mapped, 100)
        cache.free_slot(slot)
    assert seen == [mapped]


def test_a_closed_cache_says_so_and_leaves_nothing_mapped(cache: KVCache, host_pages: HostPages) -> None:
    cache.grow(cache.acquire_slot(), 100)
    cache.close()
    cache.close()
    assert host_pages.mapper.mapped_pages == 0
    calls: list[Callable[[], object]] = [
        lambda: cache.layer(0),
        cache.tensors,
        cache.acquire_slot,
        cache.stats,
        cache.release_idle,
        cache.memory_report,
        lambda: cache.grow(0, 1),
        lambda: cache.step([0, 0, 0, 0]),
        lambda: cache.fork_slot(0),
        lambda: cache.map_common(1),
        lambda: cache.set_budget(5),
    ]
    for call in calls:
        with pytest.raises(Closed):
            call()
    assert cache.usage().mapped_pages == 0
    host_pages.pages.close()
    assert host_pages.leased_pages == 0


def holdings(host: HostPages) -> dict[str, object]:
    """What a cache could leave behind in this process."""
    maps = Path("/proc/self/maps").read_text()
    return {
        "mapped": host.mapper.mapped_pages,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "kernel mappings": sum("vattd-slab" in line for line in maps.splitlines()),
        "ranges": host.driver._table.reservations(),
    }


def test_fifty_caches_leave_nothing_behind() -> None:
    host = HostPages()
    with KVCache(host, SPEC) as first:
        first.step([1, 0, 0, 0])  # the slab is here from now on
        before = holdings(host)
        for cycle in range(50):
            cache = KVCache(host, spec_of(list(Layout)[cycle % 4], value_head_size=(None, 7, 0)[cycle // 3 % 3]))
            cache.step([150, 300, 0, 0])
            fork = cache.fork_slot(1)
            cache.grow(fork, 400)
            cache.free_slot(1)
            cache.acquire_slot(700)
            cache.close()
            assert holdings(host) == before
    host.close()
    assert host.leased_pages == 0


def test_the_figures_of_a_cache_agree_with_each_other(cache: KVCache, host_pages: HostPages) -> None:
    cache.step([500, 300, 33, 0])
    cache.step([500, 0, 33, 0])
    cache.fork_slot(0)
    stats: KVCacheStats = cache.stats()
    assert stats.mapped_bytes == host_pages.mapper.mapped_pages * PAGE
    assert stats.mapped_pages_total - stats.unmapped_pages_total == host_pages.mapper.mapped_pages
    assert stats.token_bytes <= 1033 * SPEC.token_bytes
    assert stats.leased_bytes >= stats.mapped_bytes + stats.cached_bytes
    assert stats.static_reservation_bytes == 4000 * SPEC.token_bytes
    report, usage = cache.memory_report(), cache.usage()
    assert usage.token_bytes == stats.token_bytes
    assert report.utilization == stats.token_bytes / stats.mapped_bytes


@each_layout
def test_a_slot_that_no_step_has_given_a_length_is_not_ended_by_a_step_without_one(layout: Layout) -> None:
    host = HostPages()
    with KVCache(host, spec_of(layout)) as cache:
        held = cache.acquire_slot(100)
        cache.grow(held, 60)
        write(cache, held, 1, 0, 60)
        cache.step([0 if slot == held else 50 for slot in range(4)])
        with pytest.raises(InvalidRequest, match="in use"):
            cache.acquire_slot()
        assert cache.length(held) == 60
        check(cache, held, 1, 60)
        cache.step([70 if slot == held else 50 for slot in range(4)])
        check(cache, held, 1, 60)
        cache.step([0 if slot == held else 50 for slot in range(4)])  # now it has had one
        assert cache.acquire_slot() == held
        fork = held
        cache.free_slot(held)
        assert cache.fork_slot((fork + 1) % 4, 30) == fork
        cache.step([0 if slot == fork else 50 for slot in range(4)])
        assert cache.length(fork) == 30
        cache.step([0 if slot == fork else 50 for slot in range(4)], zero_ends=True)
        assert cache.acquire_slot() == fork
    host.close()
