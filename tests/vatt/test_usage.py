"""Usages add up, and hold nothing but counts."""

from __future__ import annotations

from dataclasses import astuple, fields
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.usage import Usage, total_of

USAGES = st.builds(Usage, *[st.integers(0, 1 << 50)] * len(fields(Usage)))


@given(USAGES, USAGES, USAGES)
def test_usages_add_up_figure_by_figure_in_any_order(one: Usage, two: Usage, three: Usage) -> None:
    assert one + two == two + one
    assert (one + two) + three == one + (two + three)
    assert one + Usage() == one
    assert astuple(one + two) == tuple(map(sum, zip(astuple(one), astuple(two), strict=True)))


@given(st.lists(USAGES, max_size=5))
def test_many_add_up_in_one_go_to_what_they_do_one_by_one(usages: list[Usage]) -> None:
    assert total_of(usages) == sum(usages, Usage())


@pytest.mark.parametrize("name", [field.name for field in fields(Usage)])
@pytest.mark.parametrize("number", [-1, 1.0, True, None, "1"])
def test_what_is_no_count_is_refused(name: str, number: Any) -> None:
    with pytest.raises(ValueError, match="not a usage"):
        Usage(**{name: number})
