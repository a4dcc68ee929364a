"""What a status means, in words, and what to type."""

from __future__ import annotations

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from vatt.v1 import vatt_pb2 as pb
from vattd.health import LONG_WAIT_S, MOST_NAMES, Finding, Level, findings

NOW_S = 1_800_000_000.0
MIB = 1 << 20


def status(state: str = "serving", **parts: object) -> pb.GetStatusResponse:
    """Of a vattd that is well, but for `parts`."""
    made = pb.GetStatusResponse(
        daemon=pb.Daemon(state=state),
        device=pb.Device(backend="cuda", uuid="GPU-1", name="a GPU"),
        pool=pb.Pool(page_size_bytes=2 * MIB, max_bytes=1 << 30, scrub="cross-tenant"),
    )
    made.MergeFrom(pb.GetStatusResponse(**parts))  # type: ignore[arg-type]  # the fields' own types
    return made


def found(one: pb.GetStatusResponse) -> list[Finding]:
    return findings(one, NOW_S)


def promised(state: pb.Promise.State.ValueType, *broken_by: str, missing_bytes: int = 8 * MIB) -> pb.Tenant:
    promise = pb.Promise(state=state, missing_bytes=missing_bytes, broken_by=broken_by)
    return pb.Tenant(name="chat", promise=promise)


def session(state: str = "attached", number: int = 1, **fields: int) -> pb.Session:
    return pb.Session(session_id=f"47-{number}", tenant="batch", state=state, **fields)  # type: ignore[arg-type]


def test_of_a_vattd_that_serves_and_keeps_its_promises_nothing_is_said() -> None:
    tenants = [promised(pb.Promise.STATE_HELD, missing_bytes=0), pb.Tenant(name="batch")]
    assert found(status(tenants=tenants, sessions=[session()])) == []


@pytest.mark.parametrize(
    ("state", "level", "words"),
    [
        ("device_lost", Level.ERROR, "The device is lost"),
        ("broken", Level.ERROR, "vattd is broken"),
        ("shutting_down", Level.WARNING, "is stopping"),
        ("draining", Level.WARNING, "drained"),
        ("dreaming", Level.ERROR, "dreaming"),
    ],
)
def test_a_vattd_that_does_not_serve_is_the_first_thing_said(state: str, level: Level, words: str) -> None:
    [one] = found(status(state))
    assert one.level is level
    assert words in one.what


def test_a_drain_says_how_to_end_it_on_this_device() -> None:
    [one] = found(status("draining"))
    assert one.commands == ("vattctl drain --resume --gpu GPU-1",)


def test_a_broken_promise_names_who_keeps_what_is_missing_and_how_to_get_it() -> None:
    overdue = session(asked_back_overdue=True, asked_back_bytes=8 * MIB)
    [one] = found(status(tenants=[promised(pb.Promise.STATE_BROKEN, "47-1")], sessions=[overdue]))
    assert one.level is Level.ERROR
    assert one.what == "The promise to chat is broken: 8.00 MiB is missing, kept by 47-1 (batch)."
    assert one.commands == ("vattctl evict 47-1 --gpu GPU-1",)


def test_a_promise_that_the_device_breaks_names_no_session_to_evict() -> None:
    [one] = found(status(tenants=[promised(pb.Promise.STATE_BROKEN, "device")]))
    assert "other programs on the device" in one.what
    assert one.commands == ()


def test_of_many_who_break_a_promise_the_first_are_named() -> None:
    names = [f"47-{number}" for number in range(30)]
    [one] = found(status(tenants=[promised(pb.Promise.STATE_BROKEN, *names)]))
    assert "47-4 and 25 more" in one.what
    assert len(one.commands) == MOST_NAMES


def test_a_promise_that_is_on_its_way_says_how_long_others_have() -> None:
    tenant = promised(pb.Promise.STATE_PENDING)
    tenant.promise.deadline.CopyFrom(Timestamp(seconds=int(NOW_S) + 7))
    [one] = found(status(tenants=[tenant]))
    assert one.level is Level.WARNING
    assert "they have 7.0 s more" in one.why


def test_who_keeps_what_was_asked_back_is_named_where_no_promise_names_it() -> None:
    [one] = found(status(sessions=[session(asked_back_overdue=True, asked_back_bytes=2 * MIB)]))
    assert one.level is Level.WARNING
    assert one.what == "2.00 MiB asked back is not given by 47-1 (batch)."


@pytest.mark.parametrize(
    ("state", "level", "kill"),
    [
        ("fenced", Level.WARNING, False),
        ("silent", Level.WARNING, True),
        ("recovering", Level.NOTE, False),
        ("evicted", Level.NOTE, False),
    ],
)
def test_sessions_in_another_state_than_attached_are_told_together(state: str, level: Level, kill: bool) -> None:
    [one] = found(status(sessions=[session(state, 1), session(), session(state, 2)]))
    assert one.level is level
    assert "47-1 (batch), 47-2 (batch)" in one.what
    assert any("--kill" in command for command in one.commands) is kill


def test_a_wait_is_told_when_it_is_long() -> None:
    tenant = pb.Tenant(name="chat", waiting_leases=2, waiting_bytes=6 * MIB)
    tenant.longest_wait.FromMilliseconds(int(LONG_WAIT_S * 1000) - 1)
    assert found(status(tenants=[tenant])) == []
    tenant.longest_wait.FromSeconds(int(LONG_WAIT_S))
    [one] = found(status(tenants=[tenant]))
    assert one.what == "chat has waited 30 s for memory, 6.00 MiB in all."


def test_a_device_that_gives_no_memory_is_an_error_and_says_where_to_look() -> None:
    one, *_ = found(status(pool=pb.Pool(shortage="cuMemCreate: out of memory")))
    assert one.level is Level.ERROR
    assert "cuMemCreate: out of memory" in one.what
    assert one.commands == ("nvidia-smi",)


def test_a_tenant_over_a_max_that_was_lowered_is_noted_and_one_within_it_is_not() -> None:
    guarantee = pb.Guarantee(max_bytes=5 * MIB)  # two pages
    over, within = (pb.Tenant(name="t", leased_bytes=size * MIB, guarantee=guarantee) for size in (6, 4))
    assert found(status(tenants=[within])) == []
    [one] = found(status(tenants=[over]))
    assert one.what == "t is over its max by 2.00 MiB."


def test_pages_that_nobody_may_have_are_told_with_their_size() -> None:
    quarantined = pb.PagesInState(state="quarantined", page_count=3)
    [note] = found(status(pool=pb.Pool(pages_by_state=[quarantined])))
    assert note.what.startswith("6.00 MiB is in quarantine")
    [warning] = found(status(daemon=pb.Daemon(disputed_pages_total=2)))
    assert warning.what.startswith("4.00 MiB is claimed by two sessions")


def test_that_old_bytes_can_be_read_is_said_on_a_gpu_and_not_on_the_host() -> None:
    never = status(pool=pb.Pool(scrub="never"))
    assert [one.level for one in found(never)] == [Level.NOTE]
    never.device.backend = "host"
    assert found(never) == []


def test_the_worst_comes_first() -> None:
    every = status(
        "draining",
        tenants=[promised(pb.Promise.STATE_BROKEN, "47-1")],
        sessions=[session("recovering", 2), session("fenced", 3)],
        pool=pb.Pool(shortage="no memory"),
    )
    levels = [one.level for one in found(every)]
    assert levels == sorted(levels, key=list(Level).index)
    assert levels[0] is Level.ERROR
    assert levels[-1] is Level.NOTE
