from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.vattention.host_pages import HostPages
from tests.vattention.token_values import SPEC, check, write
from vatt.errors import Closed, InvalidRequest, OutOfMemory, PoolExhausted
from vattention.kvcache import KVCache
from vattention.layout import Layout


@pytest.fixture(params=list(Layout), ids=lambda layout: layout.value)
def cache(request: pytest.FixtureRequest, host_pages: HostPages) -> Iterator[KVCache]:
    with KVCache(host_pages, dataclasses.replace(SPEC, layout=request.param)) as cache:
        yield cache


def test_views_have_the_shape_that_attention_wants(cache: KVCache) -> None:
    for layer in range(SPEC.num_layers):
        for view in cache.layer(layer):
            assert view.shape == (4, 1000, 2, 12)
            assert view.stride(0) * 4 % cache.geometry.page_size_bytes == 0
            assert view.stride()[2:] == (12, 1)


def test_tokens_stay_as_a_slot_grows_token_by_token(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 37)
    write(cache, slot, 1, 0, 37)
    for count in range(38, 400):
        cache.grow(slot, count)
        assert cache.capacity(slot) >= cache.length(slot) == count
        write(cache, slot, 1, count - 1, count)
    check(cache, slot, 1, 399)


def test_growth_runs_ahead_by_a_third_of_what_is_mapped_at_most(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    columns, page = cache.geometry.column_count, cache.geometry.page_size_bytes
    for count in range(1, 1001):
        cache.grow(slot, count)
        mapped = cache.stats().mapped_bytes // page // columns
        assert mapped - cache.geometry.pages_for(count) <= mapped // 3


def test_growing_rows_in_turn_leaves_short_lists_of_kernel_mappings(cache: KVCache) -> None:
    slots = [cache.acquire_slot() for _ in range(4)]
    for count in range(1, 1001):
        cache.grow_many(dict.fromkeys(slots, count))
    stats = cache.stats()
    pages = stats.mapped_bytes // cache.geometry.page_size_bytes
    assert stats.kernel_run_count <= pages / 2
    first, end = cache._range.address, cache._range.end
    kernel_mappings = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        start = int(line.split("-")[0], 16)
        kernel_mappings += first <= start < end and "vattd-slab" in line
    assert 0 < kernel_mappings <= stats.kernel_run_count


def test_a_prefill_is_one_run_a_column(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 1000)
    assert cache.stats().kernel_run_count <= cache.geometry.column_count


def test_a_freed_slot_gives_its_pages_to_the_next(
    cache: KVCache, host_pages: HostPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_pages.pages, "_work_waits", lambda: False)  # no refill, and nothing is given back
    first, second = cache.acquire_slot(), cache.acquire_slot()
    cache.grow_many({first: 200, second: 300})
    write(cache, first, 1, 0, 200)
    write(cache, second, 2, 0, 300)
    leases = host_pages.lease_count
    cache.free_slot(first)
    assert cache.acquire_slot() == first
    cache.grow(first, 100)
    write(cache, first, 3, 0, 100)
    check(cache, first, 3, 100)
    check(cache, second, 2, 300)
    assert host_pages.lease_count == leases


def test_a_shrunk_slot_keeps_its_first_tokens(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 900)
    write(cache, slot, 1, 0, 900)
    before = cache.stats().mapped_bytes
    cache.shrink(slot, 100)
    assert cache.stats().mapped_bytes < before
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
    assert mapped < cache.stats().mapped_bytes


@pytest.mark.parametrize("layouts", [(Layout.PER_LAYER, Layout.FUSED), (Layout.FUSED, Layout.FUSED)])
def test_caches_of_one_session_do_not_disturb_each_other(layouts: tuple[Layout, Layout], host_pages: HostPages) -> None:
    specs = [dataclasses.replace(SPEC, layout=layout) for layout in layouts]
    with KVCache(host_pages, specs[0]) as one, KVCache(host_pages, specs[1]) as other:
        for cache, seed in ((one, 1), (other, 2)):
            cache.grow(cache.acquire_slot(), 200)
            write(cache, 0, seed, 0, 200)
        one.shrink(0, 20)
        other.grow(0, 400)
        check(one, 0, 1, 20)
        check(other, 0, 2, 200)


def test_a_growth_that_is_refused_changes_nothing() -> None:
    pages = HostPages(page_count=30)
    try:
        cache = KVCache(pages, SPEC)  # 6 columns: 5 pages a column, 42 tokens a page
        first, second = cache.acquire_slot(), cache.acquire_slot()
        cache.grow(first, 84)
        write(cache, first, 1, 0, 84)
        before = cache.stats()
        with pytest.raises(PoolExhausted):
            cache.grow_many({first: 126, second: 126})
        after = cache.stats()
        assert (after.mapped_bytes, after.token_bytes) == (before.mapped_bytes, before.token_bytes)
        assert (cache.length(first), cache.length(second)) == (84, 0)
        check(cache, first, 1, 84)
        cache.grow(second, 126)
    finally:
        pages.close()


def test_pages_ahead_are_given_up_before_a_growth_is_refused() -> None:
    pages = HostPages(page_count=30)
    try:
        cache = KVCache(pages, SPEC)
        slot = cache.acquire_slot()
        cache.grow(slot, 4 * 42)  # the next step would take 2 pages a column; there is 1
        cache.grow(slot, 5 * 42)
        assert cache.stats().mapped_bytes == 30 * 4096
    finally:
        pages.close()


def test_pages_ahead_are_given_up_too_when_the_device_has_no_memory_left(
    host_pages: HostPages, monkeypatch: pytest.MonkeyPatch
) -> None:
    with KVCache(host_pages, SPEC) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 4 * 42)
        map_runs, asked = cache._map_runs, []

        def short(slots: object, page_counts: list[int]) -> None:
            asked.append(page_counts)
            if page_counts != [1]:
                raise OutOfMemory("none left")
            map_runs(slots, page_counts)  # type: ignore[arg-type]

        monkeypatch.setattr(cache, "_map_runs", short)
        cache.grow(slot, 5 * 42)
        assert asked == [[2], [1]]


def test_what_makes_no_sense_is_refused(cache: KVCache) -> None:
    slot = cache.acquire_slot()
    cache.grow(slot, 10)
    for call in (
        lambda: cache.grow(slot, 1001),
        lambda: cache.grow(slot, -1),
        lambda: cache.grow(slot + 1, 1),
        lambda: cache.grow(-1, 1),
        lambda: cache.grow(slot, True),
        lambda: cache.grow(slot, 13.5),  # type: ignore[arg-type]
        lambda: cache.grow(slot, "15"),  # type: ignore[arg-type]
        lambda: cache.shrink(slot, 1.5),  # type: ignore[arg-type]
        lambda: cache.layer(1.0),  # type: ignore[arg-type]
        lambda: cache.shrink(slot, 11),
        lambda: cache.shrink(slot, -1),
        lambda: cache.free_slot(3),
        lambda: cache.layer(3),
        lambda: cache.layer(-1),
    ):
        with pytest.raises(InvalidRequest):
            call()
    for _ in range(3):
        cache.acquire_slot()
    with pytest.raises(InvalidRequest, match="all 4 slots"):
        cache.acquire_slot()
    assert cache.length(slot) == 10


def test_the_fence_is_passed_before_pages_are_unmapped_and_its_failure_keeps_them(host_pages: HostPages) -> None:
    seen: list[int] = []
    with KVCache(host_pages, SPEC, fence=lambda: seen.append(host_pages.mapper.mapped_pages)) as cache:
        slot = cache.acquire_slot()
        cache.grow(slot, 100)
        mapped = host_pages.mapper.mapped_pages

        def broken() -> None:
            raise RuntimeError("the device does not answer")

        with pytest.raises(RuntimeError):
            cache.free_slot(slot, fence=broken)
        assert (host_pages.mapper.mapped_pages, cache.length(slot)) == (mapped, 100)
        cache.free_slot(slot)
    assert seen == [mapped]


def test_a_closed_cache_says_so_and_leaves_nothing_mapped(cache: KVCache, host_pages: HostPages) -> None:
    cache.grow(cache.acquire_slot(), 100)
    cache.close()
    cache.close()
    assert host_pages.mapper.mapped_pages == 0
    for call in (lambda: cache.layer(0), cache.acquire_slot, cache.stats, lambda: cache.grow(0, 1)):
        with pytest.raises(Closed):
            call()
    host_pages.pages.close()
    assert host_pages.leased_pages == 0


def test_attention_over_the_views_is_attention_over_plain_tensors(cache: KVCache) -> None:
    slots = [cache.acquire_slot() for _ in range(3)]
    cache.grow_many(dict.fromkeys(slots, 200))
    for slot in slots:
        write(cache, slot, slot, 0, 200)
    query = torch.rand(3, SPEC.num_kv_heads, 5, SPEC.head_size)
    for layer in range(SPEC.num_layers):
        k, v = (view[:3, :200].transpose(1, 2) for view in cache.layer(layer))
        attention = torch.nn.functional.scaled_dot_product_attention
        plain = attention(query, k.contiguous(), v.contiguous())
        torch.testing.assert_close(attention(query, k, v), plain)
