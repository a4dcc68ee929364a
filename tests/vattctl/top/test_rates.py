"""Rates from the counters of two answers, and the curves that they make."""

from __future__ import annotations

import pytest
from google.protobuf.duration_pb2 import Duration

from tests.vattctl.top.answers import history, reading, status, tenant
from vatt.v1 import vatt_pb2 as pb
from vattctl.top.curve import curve
from vattctl.top.history import KEPT_POINTS
from vattctl.top.rates import Rates, rates


def counted(name: str, leases: int, **fields: int) -> pb.Tenant:
    return tenant(name, granted_leases_total=leases, **fields)


def test_a_rate_is_what_was_counted_between_two_answers_by_the_time_between_them() -> None:
    before = reading(10.0, status([counted("a", 5, granted_bytes_total=100), counted("b", 7, refused_leases_total=2)]))
    after = reading(12.0, status([counted("a", 9, granted_bytes_total=500), counted("b", 7, refused_leases_total=3)]))
    measured = rates(before, after)
    assert measured is not None
    assert measured[0] == Rates(2.0, 200.0, 0.5, 0.0)
    assert measured[1] == {"a": Rates(2.0, 200.0, 0.0, 0.0), "b": Rates(0.0, 0.0, 0.5, 0.0)}


def test_a_tenant_that_is_new_or_was_forgotten_counts_from_nothing() -> None:
    before = reading(0.0, status([counted("forgotten", 100)]))
    after = reading(1.0, status([counted("forgotten", 3), counted("new", 4)]))
    measured = rates(before, after)
    assert measured is not None
    assert {name: one.leases_per_s for name, one in measured[1].items()} == {"forgotten": 3.0, "new": 4.0}


def test_another_vattd_has_nothing_to_do_with_the_counts_of_the_one_before() -> None:
    before = reading(0.0, status([counted("a", 100)], incarnation=1))
    assert rates(before, reading(1.0, status([counted("a", 101)], incarnation=2))) is None


def test_a_wait_is_the_mean_of_those_that_were_granted_or_the_longest_that_goes_on() -> None:
    def waited(waits: int, in_all_s: int, longest_ms: int) -> pb.GetStatusResponse:
        one = tenant("a", waited_total=waits, waited_time_total=Duration(seconds=in_all_s))
        one.longest_wait.FromMilliseconds(longest_ms)
        return status([one])

    for longest_ms, wait_s in ((0, 3.0), (2000, 3.0), (4500, 4.5)):
        measured = rates(reading(0.0, waited(1, 10, 0)), reading(1.0, waited(3, 16, longest_ms)))
        assert measured is not None
        assert measured[0].wait_s == measured[1]["a"].wait_s == wait_s


def test_the_first_answer_has_no_rates() -> None:
    made = history(reading(0.0, status([counted("a", 5)])))
    assert made.rates() is None
    assert made.rates("a") is None
    assert made.leases() == [None]


def test_curves_have_a_point_an_answer_and_gaps_where_vattd_did_not_answer() -> None:
    made = history(*(reading(at_s, status([counted("a", leases)])) for at_s, leases in ((0, 0), (1, 3), (4, 9))))
    assert made.leases() == made.leases("a") == [None, 3.0, None, None, 2.0]
    made.add(reading(100_000.0, status([counted("a", 9)])))
    assert len(made.leases()) == KEPT_POINTS, "however long vattd was away"


def test_a_tenant_that_is_gone_leaves_no_curve_and_another_gets_its_mark() -> None:
    made = history(reading(0.0, status([counted("a", 0), counted("b", 0)])))
    assert made.seats == {"a": 0, "b": 1}
    made.add(reading(1.0, status([counted("b", 0)])))
    assert made.leases("a") == []
    made.add(reading(2.0, status([counted("b", 0), counted("c", 0)])))
    assert made.seats == {"b": 1, "c": 0}, "a mark stays while its tenant does"


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([], "    "),
        ([0.0, 0.0], "  ▁▁"),
        ([None, 0.0, 5.0, 10.0], " ▁▅█"),
        ([9.0, 9.0, 0.0, 1.0, None, 8.0], "▁▂ █"),
    ],
)
def test_a_curve_shows_the_last_values_against_the_highest_of_them(values: list[float | None], drawn: str) -> None:
    assert curve(values, 4) == drawn


def test_a_curve_without_room_is_empty() -> None:
    assert curve([1.0, 2.0], 0) == ""
