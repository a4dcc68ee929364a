"""Crowds: nobody has more waiting than may wait, and who waits no more is forgotten."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vatt.errors import TooBusy
from vattd.crowd import Crowd


@given(weights=st.lists(st.tuples(st.sampled_from("ab"), st.integers(64, 640)), max_size=50))
def test_a_user_has_so_much_waiting_and_no_more(weights: list[tuple[str, int]]) -> None:
    crowd, waiting = Crowd(20), {"a": 0.0, "b": 0.0}
    with ExitStack() as all_of_them:
        for user, parts in weights:
            weight = parts / 64
            if waiting[user] and waiting[user] + weight > 20:
                with pytest.raises(TooBusy, match="wait already"), crowd.one_more(user, weight):
                    pass
            else:
                all_of_them.enter_context(crowd.one_more(user, weight))
                waiting[user] += weight
        assert len(crowd) == sum(weight > 0 for weight in waiting.values())
    assert len(crowd) == 0


def test_one_that_is_heavier_than_all_that_may_wait_waits_alone() -> None:
    crowd = Crowd(20)
    with crowd.one_more("a", 30):
        with pytest.raises(TooBusy), crowd.one_more("a"):
            pass
        with crowd.one_more("b"):
            pass
    with crowd.one_more("a"):
        pass
