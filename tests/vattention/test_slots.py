"""Which row serves a request, and what a row remembers of the last one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vatt.errors import InvalidRequest
from vattention.layout import Geometry, KVCacheSpec, Layout, RowArithmetic
from vattention.slots import SlotTable

# 100 bytes a token in K, 40 in V: 40 tokens fill the first page of K and not yet half of V's.
SPEC = KVCacheSpec(1, 1, 25, torch.float32, 6, 1000, layout=Layout.PER_LAYER, value_head_size=10)
GEOMETRY = Geometry.of(SPEC, "host", 4096)
ARITHMETIC = RowArithmetic(GEOMETRY)


class Done:
    """A proof; that it is there is what counts."""

    def done(self) -> bool:
        return True

    def wait(self) -> None:
        pass


def new_table(slot_count: int = SPEC.max_batch_size) -> SlotTable:
    return SlotTable(slot_count, len(GEOMETRY.bands), ARITHMETIC)


@st.composite
def tables(draw: st.DrawFn) -> SlotTable:
    """Rows in use and free, with and without pages, some of them to be unmapped first; one free row at least."""
    table = new_table()
    used = draw(st.lists(st.booleans(), min_size=table.slot_count, max_size=table.slot_count))
    if all(used):
        used[draw(st.integers(0, len(used) - 1))] = False
    for row, is_used in enumerate(used):
        pages = [draw(st.integers(0, band.pages_per_row)) for band in GEOMETRY.bands]
        table.set_mapped(row, np.array(pages))
        table.shared[row] = [draw(st.integers(0, count)) if draw(st.booleans()) else 0 for count in pages]
        table.claim(row)
        if not is_used:
            table.leave(row, None, 0.0)
    return table


def free_rows(table: SlotTable) -> list[int]:
    return [row for row in range(table.slot_count) if row not in table.used]


@settings(deadline=None)
@given(tables(), st.integers(0, SPEC.max_context_length))
def test_best_fit_is_the_free_row_that_holds_the_tokens_with_the_least_to_spare(
    table: SlotTable, token_count: int
) -> None:
    """Else the one that holds the most. Ties go to the lowest, and a row that must be unmapped first holds nothing."""
    holds = {row: 0 if table.spoilt[row] else int(table.capacity[row]) for row in free_rows(table)}
    fitting = {row: capacity for row, capacity in holds.items() if capacity >= token_count}
    best = min(fitting.values()) if fitting else max(holds.values())
    assert table.best_fit(token_count) == min(row for row, capacity in (fitting or holds).items() if capacity == best)


@settings(deadline=None)
@given(tables())
def test_the_lowest_and_the_barest_free_rows_are_that(table: SlotTable) -> None:
    free = free_rows(table)
    assert table.lowest_free() == min(free)
    bare = table.barest_free()
    assert bare in free
    assert table.mapped[bare].sum() == min(table.mapped[row].sum() for row in free)


def test_no_free_row_is_refused_with_a_way_out() -> None:
    table = new_table(2)
    table.claim(0)
    table.claim(1)
    searches: list[Callable[[], int]] = [lambda: table.best_fit(1), table.lowest_free, table.barest_free]
    for search in searches:
        with pytest.raises(InvalidRequest, match=r"all 2 slots.*max_batch_size"):
            search()


@settings(deadline=None)
@given(tables(), st.data())
def test_the_capacity_is_what_the_pages_of_every_band_hold(table: SlotTable, data: st.DataObject) -> None:
    row = data.draw(st.integers(0, table.slot_count - 1))
    pages = np.array([data.draw(st.integers(0, band.pages_per_row)) for band in GEOMETRY.bands])
    table.set_mapped(row, pages)
    by_hand = min(int(count) * 4096 // band.token_bytes for count, band in zip(pages, GEOMETRY.bands, strict=True))
    assert table.capacity[row] == min(SPEC.max_context_length, by_hand)
    assert (table.shared <= table.mapped).all()


def test_a_row_that_is_left_keeps_its_pages_and_forgets_its_tokens() -> None:
    table, proof = new_table(), Done()
    table.claim(2, expected_tokens=500)
    assert (len(table), table.used, int(table.expected[2])) == (1, [2], 500)
    table.set_mapped(2, np.array([3, 2]))
    table.length[2] = 70
    assert table.token_count == 70
    table.leave(2, proof, 12.5)
    assert (len(table), table.token_count, int(table.expected[2])) == (0, 0, 0)
    assert table.mapped[2].tolist() == [3, 2]
    assert table.capacity[2] == 3 * 4096 // 100
    assert table.marks[2].proofs == (proof,)
    assert table.left_s[2] == 12.5
    assert not table.spoilt[2]
    table.claim(2)
    assert (int(table.length[2]), int(table.expected[2])) == (0, 0)
    assert table.capacity[2] == 3 * 4096 // 100


def test_a_row_is_spoilt_when_it_is_left_with_pages_that_others_hold() -> None:
    table = new_table()
    for row, shared in ((0, [1, 0]), (1, [0, 1]), (2, [0, 0])):
        table.claim(row)
        table.set_mapped(row, np.array([4, 4]))
        table.shared[row] = shared
        table.leave(row, None, 0.0)
    assert table.spoilt.tolist()[:3] == [True, True, False]
    assert table.best_fit(10) == 2


@pytest.mark.parametrize("number", [-1, 6, 1, True, 0.0, "0", None, np.bool_(True)])
def test_what_is_no_row_in_use_is_refused(number: Any) -> None:
    table = new_table()
    table.claim(0)
    with pytest.raises(InvalidRequest, match="not in use"):
        table.check_used(number)
    assert table.check_used(np.int64(0)) == 0


def test_a_row_that_is_used_again_and_again_gathers_no_proofs() -> None:
    table = new_table()
    for _ in range(100):
        table.claim(1)
        table.leave(1, Done(), 0.0)
    assert len(table.marks[1].proofs) == 1
    assert table.marks[1].is_set
