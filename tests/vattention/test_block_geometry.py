"""Which pages numbered blocks need, against a model that looks at every byte."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vattention.block_geometry import BlockGeometry, Stripe, joined


@st.composite
def some_stripes(draw: st.DrawFn) -> list[Stripe]:
    """Few strides, so that stripes of one stride are often neighbours."""
    strides = draw(st.lists(st.integers(1, 24), min_size=1, max_size=3))
    stripes = []
    for _ in range(draw(st.integers(1, 5))):
        stride = draw(st.sampled_from(strides))
        stripes.append(Stripe(draw(st.integers(0, 30)), stride, draw(st.integers(1, stride))))
    return stripes


@st.composite
def geometries(draw: st.DrawFn) -> BlockGeometry:
    return BlockGeometry(draw(st.integers(1, 40)), tuple(draw(some_stripes())), draw(st.integers(1, 16)))


def bytes_of(stripes: list[Stripe] | tuple[Stripe, ...], block: int) -> set[int]:
    begins = [(each.offset_bytes + block * each.stride_bytes, each.size_bytes) for each in stripes]
    return {byte for begin, size in begins for byte in range(begin, begin + size)}


def pages_of(geometry: BlockGeometry, block: int) -> set[int]:
    return {byte // geometry.page_size_bytes for byte in bytes_of(geometry.stripes, block)}


@given(geometries(), st.data())
def test_a_page_is_needed_by_the_blocks_that_have_bytes_in_it(geometry: BlockGeometry, data: st.DataObject) -> None:
    blocks = data.draw(st.lists(st.integers(0, geometry.block_count - 1), unique=True))
    needed = Counter(page for block in blocks for page in pages_of(geometry, block))
    assert Counter(geometry.page_uses(blocks).tolist()) == needed
    assert geometry.pages(blocks).tolist() == sorted(needed)


@given(geometries())
def test_the_range_ends_with_the_page_of_its_last_byte(geometry: BlockGeometry) -> None:
    last = max(page for block in range(geometry.block_count) for page in pages_of(geometry, block))
    assert geometry.page_count == last + 1
    assert geometry.virtual_bytes == (last + 1) * geometry.page_size_bytes


@given(some_stripes())
def test_joined_stripes_hold_the_same_bytes_of_every_block_and_touch_no_more(stripes: list[Stripe]) -> None:
    merged = joined(stripes)
    for block in range(4):
        assert bytes_of(merged, block) == bytes_of(stripes, block)
    assert joined(merged) == merged
    for left in merged:
        for right in merged:
            follows = left.offset_bytes < right.offset_bytes <= left.offset_bytes + left.size_bytes
            spans = right.offset_bytes + right.size_bytes - left.offset_bytes
            assert not (follows and left.stride_bytes == right.stride_bytes >= spans)


@given(geometries())
def test_no_cluster_needs_more_pages_than_is_said_and_each_block_is_in_one(geometry: BlockGeometry) -> None:
    clusters = range(geometry.cluster_of(geometry.block_count - 1) + 1)
    for cluster in clusters:
        assert len(geometry.pages(geometry.blocks_of(cluster))) <= geometry.cluster_pages
    assert [block for cluster in clusters for block in geometry.blocks_of(cluster)] == list(range(geometry.block_count))
    assert all(block in geometry.blocks_of(geometry.cluster_of(block)) for block in range(geometry.block_count))


@given(geometries())
def test_a_cluster_ends_where_a_page_does_and_no_shorter_run_does(geometry: BlockGeometry) -> None:
    def ends_with_a_page(block_count: int) -> bool:
        return all(block_count * each.stride_bytes % geometry.page_size_bytes == 0 for each in geometry.stripes)

    assert geometry.cluster_blocks == geometry.block_count or ends_with_a_page(geometry.cluster_blocks)
    assert not any(map(ends_with_a_page, range(1, geometry.cluster_blocks)))


def test_what_is_no_geometry_and_no_block_is_refused() -> None:
    stripe = Stripe(0, 8, 8)
    for offset, stride, size in ((-1, 8, 8), (0, 8, 9), (0, 8, 0), (0, 0, 0)):
        with pytest.raises(InvalidRequest, match="not a stripe"):
            Stripe(offset, stride, size)
    for block_count, stripes, page_size in ((0, (stripe,), 4), (1, (), 4), (1, (stripe,), 0)):
        with pytest.raises(InvalidRequest, match="not a geometry"):
            BlockGeometry(block_count, stripes, page_size)
    geometry = BlockGeometry(3, (stripe,), 4)
    for block in (-1, 3):
        with pytest.raises(InvalidRequest, match=f"block {block} of 3"):
            geometry.pages([0, block])
    assert geometry.pages([]).tolist() == []
