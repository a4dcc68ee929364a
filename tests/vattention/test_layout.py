from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vattention.layout import MAX_PAGES_AHEAD, Geometry, KVCacheSpec, Layout

LLAMA_3_8B = KVCacheSpec(32, 8, 128, torch.float16, max_batch_size=8, max_context_length=8192)
MIB = 1 << 20

specs = st.builds(
    KVCacheSpec,
    num_layers=st.integers(1, 40),
    num_kv_heads=st.integers(1, 16),
    head_size=st.integers(1, 256),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn]),
    max_batch_size=st.integers(1, 64),
    max_context_length=st.integers(1, 100_000),
    layout=st.sampled_from(Layout),
)
geometries = st.builds(
    lambda spec, page: Geometry.of(spec, "host", page), specs, st.sampled_from([4096, 64 << 10, 2 * MIB])
)


def test_a_page_group_holds_as_many_tokens_as_the_design_says() -> None:
    per_layer = Geometry(LLAMA_3_8B, Layout.PER_LAYER, 2 * MIB)
    fused = Geometry(LLAMA_3_8B, Layout.FUSED, 2 * MIB)
    assert (per_layer.column_count, per_layer.tokens_in(1)) == (64, 1024)
    assert (fused.column_count, fused.tokens_in(1)) == (1, 16)
    assert LLAMA_3_8B.static_reservation_bytes == 8 << 30


@pytest.mark.parametrize("dtype", [torch.bool, torch.complex64, torch.int8, "float16"])
def test_only_floating_point_keys_and_values_are_kept(dtype: Any) -> None:
    with pytest.raises(InvalidRequest):
        KVCacheSpec(2, 2, 64, dtype, max_batch_size=4, max_context_length=4096)


def test_the_default_layout_follows_the_page_size_of_the_backend() -> None:
    assert Geometry.of(LLAMA_3_8B, "cuda", 2 * MIB).layout is Layout.FUSED
    assert Geometry.of(LLAMA_3_8B, "host", 64 << 10).layout is Layout.PER_LAYER


@given(geometries, st.data())
def test_pages_for_tokens_are_enough_and_no_page_too_many(geometry: Geometry, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(0, geometry.spec.max_context_length))
    pages = geometry.pages_for(tokens)
    assert geometry.tokens_in(pages) >= tokens
    assert pages * geometry.page_size_bytes >= tokens * geometry.token_bytes
    assert pages == 0 or (pages - 1) * geometry.page_size_bytes < tokens * geometry.token_bytes


@given(geometries)
def test_rows_start_on_pages_and_hold_the_longest_context(geometry: Geometry) -> None:
    assert geometry.row_bytes % geometry.page_size_bytes == 0
    assert geometry.row_bytes % geometry.spec.dtype.itemsize == 0
    assert geometry.row_bytes >= geometry.spec.max_context_length * geometry.token_bytes
    assert geometry.virtual_bytes >= geometry.spec.static_reservation_bytes
    last = geometry.offset_bytes(
        geometry.column_count - 1, geometry.spec.max_batch_size - 1, geometry.pages_per_row - 1
    )
    assert last + geometry.page_size_bytes == geometry.virtual_bytes


@given(geometries, st.data())
def test_a_growth_step_covers_the_need_stays_in_the_row_and_runs_little_ahead(
    geometry: Geometry, data: st.DataObject
) -> None:
    mapped = data.draw(st.integers(0, geometry.pages_per_row))
    tokens = data.draw(st.integers(0, geometry.spec.max_context_length))
    pages = geometry.growth_pages(mapped, tokens)
    missing = max(0, geometry.pages_for(tokens) - mapped)
    assert missing <= pages <= geometry.pages_per_row - mapped
    assert pages <= max(missing, min(MAX_PAGES_AHEAD, max(1, mapped // 2)))
    if missing == 0 or mapped == 0:
        assert pages == missing


@pytest.mark.parametrize(
    "change",
    [
        {"num_layers": 0},
        {"num_kv_heads": -1},
        {"head_size": 1.5},
        {"max_batch_size": True},
        {"max_context_length": "8192"},
        {"dtype": "float16"},
        {"layout": "fused"},
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


def test_a_page_that_splits_an_element_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="whole"):
        Geometry(LLAMA_3_8B, Layout.FUSED, 4097)
