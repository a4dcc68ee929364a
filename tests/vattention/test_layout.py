"""How a KV cache's bytes lie in virtual memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vattention.layout import MAX_RUN_AHEAD, MAX_RUN_AHEAD_PER_LAYER, Geometry, KVCacheSpec, Layout, RowArithmetic

KIB = 1 << 10
MIB = 1 << 20
LLAMA_3_8B = KVCacheSpec(32, 8, 128, torch.float16, max_batch_size=8, max_context_length=8192)
PHI_2 = KVCacheSpec(32, 32, 80, torch.float16, max_batch_size=8, max_context_length=2048)
DEEPSEEK_V3 = KVCacheSpec(61, 1, 576, torch.bfloat16, max_batch_size=8, max_context_length=8192, value_head_size=0)
DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn, torch.float8_e5m2]


@st.composite
def geometries(draw: st.DrawFn, max_layers: int = 40, max_slots: int = 64) -> Geometry:
    """All layouts; V of K's size, of another, and none; the pool's page and multiples of it."""
    pool_page_size_bytes = draw(st.sampled_from([4 * KIB, 64 * KIB, 2 * MIB]))
    ratio = draw(st.sampled_from([None, 1, 2, 3, 16]))
    spec = KVCacheSpec(
        num_layers=draw(st.integers(1, max_layers)),
        num_kv_heads=draw(st.integers(1, 16)),
        head_size=draw(st.integers(1, 256)),
        dtype=draw(st.sampled_from(DTYPES)),
        max_batch_size=draw(st.integers(1, max_slots)),
        max_context_length=draw(st.integers(1, 100_000)),
        layout=draw(st.sampled_from(Layout)),
        value_head_size=draw(st.none() | st.just(0) | st.integers(1, 256)),
        page_size_bytes=None if ratio is None else ratio * pool_page_size_bytes,
    )
    return Geometry.of(spec, draw(st.sampled_from(["host", "cuda"])), pool_page_size_bytes)


def capacity_of_one_page_a_column(spec: KVCacheSpec, layout: Layout, page_count: int = 1) -> int:
    geometry = Geometry(spec, layout, 2 * MIB, pool_pages_per_page=1, keeps_runs=False)
    return int(RowArithmetic(geometry).capacity(np.full(len(geometry.bands), page_count)))


@pytest.mark.parametrize(
    ("spec", "layout", "column_count", "tokens"),
    [
        (LLAMA_3_8B, Layout.PER_LAYER, 64, 1024),
        (LLAMA_3_8B, Layout.PER_HEAD, 512, 8192),
        (LLAMA_3_8B, Layout.MEGACACHE, 2, 32),
        (LLAMA_3_8B, Layout.FUSED, 1, 16),
        (PHI_2, Layout.MEGACACHE, 2, 12),
        (PHI_2, Layout.FUSED, 1, 6),
        (DEEPSEEK_V3, Layout.PER_LAYER, 61, 1820),
        (DEEPSEEK_V3, Layout.MEGACACHE, 1, 29),
        (DEEPSEEK_V3, Layout.FUSED, 1, 29),
    ],
)
def test_a_growth_step_takes_as_many_pages_and_holds_as_many_tokens_as_the_model_says(
    spec: KVCacheSpec, layout: Layout, column_count: int, tokens: int
) -> None:
    geometry = Geometry(spec, layout, 2 * MIB, pool_pages_per_page=1, keeps_runs=False)
    assert sum(band.column_count for band in geometry.bands) == column_count
    assert capacity_of_one_page_a_column(spec, layout) == tokens


def test_tokens_that_do_not_divide_a_page_lie_across_two() -> None:
    """phi-2: 320 KiB a token, 6.4 tokens a page of 2 MiB."""
    assert PHI_2.token_bytes == 320 * KIB
    counts = [capacity_of_one_page_a_column(PHI_2, Layout.FUSED, pages) for pages in range(6)]
    assert counts == [0, 6, 12, 19, 25, 32]


def test_a_static_reservation_is_every_slot_at_its_longest() -> None:
    assert LLAMA_3_8B.static_reservation_bytes == 8 << 30
    assert DEEPSEEK_V3.token_bytes == 61 * 576 * 2


def test_keys_and_values_of_different_size_lie_in_two_bands_with_pages_of_their_own() -> None:
    spec = KVCacheSpec(4, 2, 192, torch.bfloat16, 3, 1000, layout=Layout.PER_LAYER, value_head_size=128)
    keys, values = Geometry.of(spec, "host", 4 * KIB).bands
    assert (keys.column_count, keys.token_bytes, values.column_count, values.token_bytes) == (4, 768, 4, 512)
    assert values.offset_bytes == 4 * keys.column_bytes


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.int8, "float16"])
def test_only_floating_point_keys_and_values_are_kept(dtype: Any) -> None:
    with pytest.raises(InvalidRequest):
        KVCacheSpec(2, 2, 64, dtype, max_batch_size=4, max_context_length=4096)


def test_the_default_layout_follows_the_page_size_of_the_backend() -> None:
    assert Geometry.of(LLAMA_3_8B, "cuda", 2 * MIB).layout is Layout.FUSED
    assert Geometry.of(LLAMA_3_8B, "host", 64 * KIB).layout is Layout.PER_LAYER


@settings(deadline=None)
@given(geometries(), st.data())
def test_pages_for_tokens_are_enough_and_no_page_too_many(geometry: Geometry, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(0, geometry.spec.max_context_length))
    pages = RowArithmetic(geometry).pages(tokens)
    for band, page_count in zip(geometry.bands, pages.tolist(), strict=True):
        token_bytes = tokens * band.token_bytes
        assert (page_count - 1) * geometry.page_size_bytes < token_bytes <= page_count * geometry.page_size_bytes
        assert page_count <= band.pages_per_row


@settings(deadline=None)
@given(geometries(), st.data())
def test_whole_pages_are_those_that_tokens_leave_no_part_of_empty(geometry: Geometry, data: st.DataObject) -> None:
    arithmetic = RowArithmetic(geometry)
    tokens = data.draw(st.integers(0, geometry.spec.max_context_length))
    whole, needed = arithmetic.whole_pages(tokens), arithmetic.pages(tokens)
    for band, whole_count, needed_count in zip(geometry.bands, whole.tolist(), needed.tolist(), strict=True):
        assert whole_count == tokens * band.token_bytes // geometry.page_size_bytes
        assert 0 <= needed_count - whole_count <= 1
    through = int(arithmetic.tokens_through(whole))
    assert through <= tokens
    assert (arithmetic.whole_pages(through) >= whole).all()
    assert through == 0 or (arithmetic.whole_pages(through - 1) < whole).any()


@settings(deadline=None)
@given(geometries(), st.data())
def test_the_capacity_of_pages_is_the_most_tokens_that_need_no_more(geometry: Geometry, data: st.DataObject) -> None:
    arithmetic, limit = RowArithmetic(geometry), geometry.spec.max_context_length
    pages = np.array([data.draw(st.integers(0, band.pages_per_row)) for band in geometry.bands])
    capacity = int(arithmetic.capacity(pages))
    assert (arithmetic.pages(capacity) <= pages).all()
    assert capacity == limit or (arithmetic.pages(capacity + 1) > pages).any()
    tokens = data.draw(st.integers(0, limit))
    assert arithmetic.capacity(arithmetic.pages(tokens)) >= tokens


@settings(deadline=None)
@given(geometries(), st.data())
def test_sums_for_many_rows_are_those_of_each_row(geometry: Geometry, data: st.DataObject) -> None:
    arithmetic = RowArithmetic(geometry)
    tokens = data.draw(st.lists(st.integers(0, geometry.spec.max_context_length), min_size=1, max_size=5))
    pages = arithmetic.pages(np.array(tokens))
    assert pages.tolist() == [arithmetic.pages(count).tolist() for count in tokens]
    columns = [band.column_count * geometry.pool_pages_per_page for band in geometry.bands]
    by_hand = [sum(count * weight for count, weight in zip(row, columns, strict=True)) for row in pages.tolist()]
    assert arithmetic.pool_pages(pages).tolist() == by_hand
    for sums in (arithmetic.capacity, arithmetic.tokens_through, arithmetic.run_ahead):
        assert sums(pages).tolist() == [sums(row).tolist() for row in pages]


@settings(deadline=None)
@given(geometries(max_layers=5, max_slots=4))
def test_rows_start_on_pages_hold_the_longest_context_and_share_no_byte(geometry: Geometry) -> None:
    page, spec = geometry.page_size_bytes, geometry.spec
    rows = []
    for band in geometry.bands:
        assert band.row_bytes == band.pages_per_row * page
        assert spec.max_context_length * band.token_bytes <= band.row_bytes
        assert band.row_bytes - page < spec.max_context_length * band.token_bytes
        for column in range(band.column_count):
            for row in range(spec.max_batch_size):
                start = band.offset_bytes + column * band.column_bytes + row * band.row_bytes
                rows.append((start, start + band.row_bytes))
    rows.sort()
    assert all(start % page == 0 for start, _ in rows)
    assert [start for start, _ in rows] == [0, *(end for _, end in rows[:-1])]
    assert rows[-1][1] == geometry.virtual_bytes
    assert geometry.virtual_bytes >= spec.static_reservation_bytes
    assert geometry.virtual_bytes % (page // geometry.pool_pages_per_page) == 0


@settings(deadline=None)
@given(geometries())
def test_the_columns_hold_every_byte_of_a_token_once(geometry: Geometry) -> None:
    assert sum(band.column_count * band.token_bytes for band in geometry.bands) == geometry.spec.token_bytes
    assert len(geometry.bands) == len({band.token_bytes for band in geometry.bands})


@settings(deadline=None)
@given(geometries(), st.data())
def test_a_row_that_grows_runs_little_ahead_and_stays_in_its_place(geometry: Geometry, data: st.DataObject) -> None:
    per_row = np.array([band.pages_per_row for band in geometry.bands])
    mapped = np.array([data.draw(st.integers(0, count)) for count in per_row.tolist()])
    ahead = RowArithmetic(geometry).run_ahead(mapped)
    assert (ahead >= 0).all()
    assert (mapped + ahead <= per_row).all()
    assert (ahead[mapped == 0] == 0).all(), "a new row takes what it needs"
    assert (ahead[(mapped > 0) & (mapped < per_row)] >= 1).all()
    few = MAX_RUN_AHEAD_PER_LAYER if geometry.keeps_runs and geometry.columns_per_layer else 1
    assert (ahead <= np.maximum(few, np.minimum(mapped // 64, MAX_RUN_AHEAD))).all()
    assert (ahead <= np.maximum(1, mapped // 2)).all()


@pytest.mark.parametrize("ratio", [1, 2, 32])
def test_a_page_of_several_pool_pages_is_a_whole_number_of_them(ratio: int) -> None:
    spec = KVCacheSpec(4, 2, 64, torch.float16, 3, 1000, layout=Layout.MEGACACHE, page_size_bytes=ratio * 64 * KIB)
    geometry = Geometry.of(spec, "host", 64 * KIB)
    assert (geometry.page_size_bytes, geometry.pool_pages_per_page) == (ratio * 64 * KIB, ratio)
    assert RowArithmetic(geometry).pool_pages(np.array([1])) == 2 * ratio


@pytest.mark.parametrize("page_size_bytes", [1, 64 * KIB - 1, 96 * KIB, 32 * KIB])
def test_a_page_that_pool_pages_do_not_add_up_to_is_refused_with_both_sizes_and_a_way_out(page_size_bytes: int) -> None:
    spec = KVCacheSpec(4, 2, 64, torch.float16, 3, 1000, page_size_bytes=page_size_bytes)
    with pytest.raises(InvalidRequest) as refused:
        Geometry.of(spec, "host", 64 * KIB)
    way_out = "vattd start --page-size 32768" if page_size_bytes == 32 * KIB else "Ask for 65536 bytes"
    for part in (str(page_size_bytes), "65536", way_out):
        assert part in str(refused.value)
    with pytest.raises(InvalidRequest, match=r"2 MiB.*fused layout"):
        Geometry.of(spec, "cuda", 2 * MIB)


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 0},
        {"num_kv_heads": -1},
        {"head_size": 1.5},
        {"head_size": 0},
        {"max_batch_size": True},
        {"max_context_length": "8192"},
        {"dtype": "float16"},
        {"layout": "fused"},
        {"value_head_size": -1},
        {"value_head_size": 0.0},
        {"page_size_bytes": 0},
        {"page_size_bytes": True},
    ],
)
def test_a_spec_that_makes_no_sense_is_refused_by_name(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {
        "num_layers": 2,
        "num_kv_heads": 2,
        "head_size": 64,
        "dtype": torch.float16,
        "max_batch_size": 4,
        "max_context_length": 1024,
    }
    with pytest.raises(InvalidRequest, match=next(iter(change))):
        KVCacheSpec(**{**fields, **change})


@pytest.mark.parametrize("page_size_bytes", [0, -4096, 4097])
def test_a_page_that_splits_an_element_is_refused(page_size_bytes: int) -> None:
    with pytest.raises(InvalidRequest, match="whole"):
        Geometry(LLAMA_3_8B, Layout.FUSED, page_size_bytes, pool_pages_per_page=1, keeps_runs=False)
