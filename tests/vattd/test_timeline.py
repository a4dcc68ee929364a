"""The ring of samples: bounded in time and in tenants, and nothing in it is lost to the sum."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vattd.timeline import MOST_TENANTS_A_SAMPLE, NOTHING, Amounts, Picture, Timeline, draw, sample

REACH_S, EVERY_S = 900.0, 5.0
SIZES = st.integers(0, 1 << 44)
AMOUNTS = st.builds(Amounts, SIZES, SIZES, SIZES)
NAMES = st.integers(0, 50).map(lambda number: f"t{number}")
TENANTS = st.dictionaries(NAMES, AMOUNTS, max_size=50)
INSTANTS = st.lists(st.tuples(st.floats(0, 60), TENANTS, st.none() | SIZES), max_size=30)


def timeline() -> Timeline:
    return Timeline(REACH_S, EVERY_S)


def total(tenants: dict[str, Amounts]) -> Amounts:
    return Amounts.total(tenants.values())


def columns(picture: Picture) -> list[Amounts]:
    """What all have together, at each time."""
    return [
        Amounts.total([*(series[index] for series in picture.tenants.values()), picture.others[index]])
        for index in range(len(picture.ages_s))
    ]


@given(INSTANTS, st.integers(0, 15))
def test_at_each_time_the_tenants_and_the_others_have_what_all_had(
    instants: list[tuple[float, dict[str, Amounts], int | None]], most_tenants: int
) -> None:
    line, now_s = Timeline(1e6, EVERY_S), 0.0
    for step_s, tenants, free_bytes in instants:
        now_s += step_s
        line.add(sample(now_s, tenants, free_bytes))
    picture = draw(line.samples(now_s), now_s, most_tenants)
    assert columns(picture) == [total(tenants) for _, tenants, _ in instants]
    assert list(picture.free_bytes) == [free_bytes for *_, free_bytes in instants]
    assert len(picture.tenants) <= most_tenants


@given(st.lists(st.floats(0, 120), max_size=300), st.floats(0, 2000))
def test_what_is_drawn_is_in_order_and_within_reach_however_samples_come(steps_s: list[float], later_s: float) -> None:
    line, now_s = timeline(), 0.0
    for step_s in steps_s:
        now_s += step_s
        line.add(sample(now_s, {}, 0))
        assert len(line) <= line.most
    ages_s = list(draw(line.samples(now_s + later_s), now_s + later_s, 12).ages_s)
    assert ages_s == sorted(ages_s, reverse=True)
    assert all(0 <= age_s <= REACH_S for age_s in ages_s)


def test_at_the_pace_it_is_made_for_it_reaches_all_the_way_back() -> None:
    line = timeline()
    for number in range(1000):
        line.add(sample(number * EVERY_S, {}, 0))
    ages_s = draw(line.samples(999 * EVERY_S), 999 * EVERY_S, 12).ages_s
    assert ages_s[0] == REACH_S
    assert ages_s[-1] == 0.0


@given(TENANTS)
def test_of_many_tenants_a_sample_names_the_largest(tenants: dict[str, Amounts]) -> None:
    one = sample(0.0, tenants, None)
    assert len(one.tenants) <= MOST_TENANTS_A_SAMPLE
    assert NOTHING not in one.tenants.values()
    left_out = [amounts.size for name, amounts in tenants.items() if name not in one.tenants]
    assert max(left_out, default=0) <= min((a.size for a in one.tenants.values()), default=0)
    assert Amounts.total([*one.tenants.values(), one.others]) == total(tenants)


def test_a_tenant_that_was_large_once_keeps_its_name_while_that_is_shown() -> None:
    line = timeline()
    line.add(sample(0.0, {"short": Amounts(leased_bytes=100), "long": Amounts(leased_bytes=1)}, 0))
    line.add(sample(5.0, {"long": Amounts(leased_bytes=60), "other": Amounts(waiting_bytes=50)}, 0))
    assert list(draw(line.samples(5.0), 5.0, 2).tenants) == ["long", "short"]
    assert draw(line.samples(5.0), 5.0, 2).others == (NOTHING, Amounts(waiting_bytes=50))
    assert list(draw(line.samples(901.0), 901.0, 2).tenants) == ["long", "other"]


def test_time_does_not_run_backwards() -> None:
    line = timeline()
    line.add(sample(10.0, {}, 0))
    with pytest.raises(ValueError, match="after"):
        line.add(sample(9.0, {}, 0))


@pytest.mark.parametrize(("reach_s", "every_s"), [(0.0, 1.0), (1.0, 0.0), (1.0, 2.0)])
def test_what_is_no_timeline_cannot_be_made(reach_s: float, every_s: float) -> None:
    with pytest.raises(ValueError, match="not a timeline"):
        Timeline(reach_s, every_s)
