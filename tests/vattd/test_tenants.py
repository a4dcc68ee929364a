"""Guarantees, reclaim and what operators do, against a real vattd and engines that speak the wire by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.daemon import Vattd, pages_of, run_command
from tests.operator import Operator, operator
from tests.raw_engine import RawEngine, in_thread, page_count_of, reason_of
from vatt.v1 import vatt_pb2 as pb

MIB = 1 << 20
POOL = ["--pool-max", "64MiB", "--page-size", "1MiB", "--headroom", "0"]
ADMIT, AHEAD = pb.LEASE_PURPOSE_ADMIT, pb.LEASE_PURPOSE_AHEAD


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    with Vattd(*POOL) as vattd:
        yield vattd


@pytest.fixture
def op(vattd: Vattd) -> Iterator[Operator]:
    with operator(vattd.sockets) as op:
        yield op


def refusal(call: object, *arguments: object, **fields: object) -> tuple[str, str]:
    """The reason and the message that a call is refused with."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, **fields)  # type: ignore[operator]
    return reason_of(caught.value), caught.value.details() or ""


def next_reclaim(engine: RawEngine) -> pb.Reclaim:
    for response in engine.stream:
        if response.HasField("reclaim"):
            reclaim: pb.Reclaim = response.reclaim
            return reclaim
    raise AssertionError("the stream ended")


def next_guarantee(engine: RawEngine) -> pb.Guarantee:
    for response in engine.stream:
        if response.HasField("guarantee"):
            guarantee: pb.Guarantee = response.guarantee
            return guarantee
    raise AssertionError("the stream ended")


def count_of(status: pb.GetStatusResponse, state: str) -> int:
    return pages_of(status)[state]


def part(leased: pb.LeasedRun, page_count: int) -> pb.LeasedRun:
    """The first pages of a run."""
    run = leased.run
    first = pb.PageRun(first_page_id=run.first_page_id, page_count=page_count, generation=run.generation)
    return pb.LeasedRun(run=first, kind=leased.kind)


# What is promised


def test_a_soft_min_is_lent_and_comes_back_within_a_second_when_its_tenant_asks(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=32 * MIB)
    with RawEngine(vattd.sockets, "b") as borrower, RawEngine(vattd.sockets, "a") as owner:
        [lent] = borrower.lease(64)
        assert op.tenant("a").promise.lent_bytes == 32 * MIB
        thread, outcome = in_thread(lambda: owner.lease(32, purpose=ADMIT, wait_s=10))
        begin_s = time.monotonic()
        reclaim = next_reclaim(borrower)
        assert reclaim.page_count == 32
        promise = op.tenant("a").promise
        assert (promise.state, promise.missing_bytes) == (pb.Promise.STATE_PENDING, 32 * MIB)
        borrower.give_back([part(lent, 32)])
        thread.join()
        assert page_count_of(outcome[0]) == 32
        assert time.monotonic() - begin_s < 1
        assert op.tenant("a").promise.state == pb.Promise.STATE_HELD


def test_a_grow_within_a_soft_min_is_refused_at_once_and_then_finds_what_came_back(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=32 * MIB)
    with RawEngine(vattd.sockets, "b") as borrower, RawEngine(vattd.sockets, "a") as owner:
        [lent] = borrower.lease(64)
        assert refusal(owner.lease, 4)[0] == "POOL_EXHAUSTED"
        assert next_reclaim(borrower).page_count == 4
        borrower.give_back([part(lent, 4)])
        # Who borrows gets nothing before it: the pages are set aside.
        assert refusal(borrower.lease, 1)[0] == "POOL_EXHAUSTED"
        assert page_count_of(owner.lease(4)) == 4


def test_a_hard_min_is_lent_to_nobody_and_lies_ready(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=24 * MIB, min_mode=pb.MIN_MODE_HARD)
    assert op.status().pool.kept_free_bytes == 24 * MIB
    op.until(lambda status: count_of(status, "clean") == 24)
    with RawEngine(vattd.sockets, "b") as borrower, RawEngine(vattd.sockets, "a") as owner:
        assert refusal(borrower.lease, 41)[0] == "WAIT_HOPELESS"
        assert page_count_of(borrower.lease(40)) == 40
        assert refusal(borrower.lease, 1)[0] in ("POOL_EXHAUSTED", "WAIT_HOPELESS")
        created = op.status().pool.created_pages_total
        assert page_count_of(owner.lease(24)) == 24
        assert op.status().pool.created_pages_total == created, "a hard min is backed before it is asked for"


def test_a_hard_min_is_backed_though_no_engine_of_its_tenant_runs(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=24 * MIB, min_mode=pb.MIN_MODE_HARD)
    op.until(lambda status: count_of(status, "clean") == 24)
    op.unreserve("a")
    op.until(lambda status: count_of(status, "clean") == 0)


def test_a_wait_that_no_return_could_end_is_refused_at_once(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=40 * MIB)
    with RawEngine(vattd.sockets, "a") as owner, RawEngine(vattd.sockets, "b") as other:
        owner.lease(40)
        begin_s = time.monotonic()
        reason, message = refusal(other.lease, 25, purpose=ADMIT, wait_s=30)
        assert (reason, time.monotonic() - begin_s < 5) == ("WAIT_HOPELESS", True)
        assert "at most 24" in message


def test_a_tenant_gets_no_more_than_its_max_and_waits_only_for_itself(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", max_bytes=8 * MIB)
    with RawEngine(vattd.sockets, "a") as limited, RawEngine(vattd.sockets, "b") as other:
        [first] = limited.lease(8)
        assert refusal(limited.lease, 9, purpose=ADMIT, wait_s=30)[0] == "LIMIT_EXCEEDED"
        assert refusal(limited.lease, 1)[0] == "POOL_EXHAUSTED"
        thread, outcome = in_thread(lambda: limited.lease(4, purpose=ADMIT, wait_s=20))
        op.until(lambda status: status.pool.waiting_pages == 4)
        assert page_count_of(other.lease(50, purpose=ADMIT)) == 50, "nobody waits behind it"
        limited.give_back([part(first, 4)])
        thread.join()
        assert page_count_of(outcome[0]) == 4


def test_a_max_that_is_lowered_is_asked_back_from_its_tenant(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        engine.lease(20)
        op.reserve("a", max_bytes=12 * MIB)
        assert next_reclaim(engine).page_count == 8


def test_sessions_are_told_their_guarantee_when_they_attach_and_when_it_changes(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        assert (engine.guarantee.min_bytes, engine.guarantee.revision) == (0, 0)
        op.reserve("a", min_bytes=5 * MIB, max_bytes=9 * MIB, weight=3)
        told = next_guarantee(engine)
        assert (told.min_bytes, told.max_bytes, told.weight, told.revision) == (5 * MIB, 9 * MIB, 3, 1)
        op.reserve("other", min_bytes=1)
        op.unreserve("a")
        assert next_guarantee(engine).min_bytes == 0
        with RawEngine(vattd.sockets, "a") as later:
            assert not later.guarantee.HasField("max_bytes")


# Who does not answer


def start_borrower(vattd: Vattd, page_count: int) -> subprocess.Popen[str]:
    """An engine of tenant b in a process of its own that leases so many pages, and then does nothing."""
    script = (
        "import sys\nfrom pathlib import Path\nfrom tests.raw_engine import RawEngine\n"
        "from vatt.sockets import Sockets\n"
        f"engine = RawEngine(Sockets(Path({str(vattd.sockets.directory)!r})), 'b')\n"
        f"engine.lease({page_count})\nprint(engine.key.session_id, flush=True)\nsys.stdin.read()\n"
    )
    return subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("kill", [False, True])
def test_who_does_not_answer_is_shown_and_killed_only_where_the_operator_chose_so(kill: bool) -> None:
    options = ["--reclaim-within", "300ms", *(["--reclaim-kill-after", "1s"] if kill else [])]
    with Vattd(*POOL, *options) as vattd, operator(vattd.sockets) as op, start_borrower(vattd, 64) as borrower:
        assert borrower.stdout is not None
        session_id = borrower.stdout.readline().strip()
        borrower.send_signal(signal.SIGSTOP)
        op.reserve("a", min_bytes=32 * MIB)
        with RawEngine(vattd.sockets, "a") as owner:
            thread, outcome = in_thread(lambda: owner.lease(32, purpose=ADMIT, wait_s=3))
            op.until(lambda status: any(t.promise.broken_by == [session_id] for t in status.tenants), within_s=3)
            assert op.tenant("a").promise.state == pb.Promise.STATE_BROKEN
            assert op.session(session_id).asked_back_overdue
            thread.join()
            if kill:
                assert page_count_of(outcome[0]) == 32
                assert op.status().pool.reclaims.killed_total == 1
                assert borrower.wait(10) == -signal.SIGKILL
            else:
                assert reason_of(outcome[0]) == "POOL_EXHAUSTED"
                assert op.status().pool.reclaims.ignored_total >= 1
                borrower.kill()


def test_pages_are_asked_of_the_next_one_when_one_does_not_answer() -> None:
    with Vattd(*POOL, "--reclaim-within", "200ms") as vattd, operator(vattd.sockets) as op:
        op.reserve("a", min_bytes=16 * MIB)
        with RawEngine(vattd.sockets, "b") as deaf, RawEngine(vattd.sockets, "c") as willing:
            deaf.lease(40)
            [lent] = willing.lease(24)
            with RawEngine(vattd.sockets, "a") as owner:
                thread, outcome = in_thread(lambda: owner.lease(16, purpose=ADMIT, wait_s=10))
                wanted = next_reclaim(willing).page_count
                while wanted < 16:  # the larger borrower was asked for most, and keeps silent
                    wanted = next_reclaim(willing).page_count
                willing.give_back([part(lent, 16)])
                thread.join()
                assert page_count_of(outcome[0]) == 16


def test_an_answer_without_pages_sends_vattd_on_to_running_ones(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=16 * MIB)
    with RawEngine(vattd.sockets, "b") as borrower, RawEngine(vattd.sockets, "a") as owner:
        borrower.lease(64)
        refusal(owner.lease, 8)
        first = next_reclaim(borrower)
        assert first.depth == pb.RECLAIM_DEPTH_IDLE, "it reported no tokens, so all of it looked idle"
        answer = pb.AnswerReclaimRequest(key=borrower.key, reclaim_id=first.reclaim_id)
        borrower.stub.AnswerReclaim(answer, timeout=10)
        deeper = next_reclaim(borrower)
        assert (deeper.depth, deeper.page_count) == (pb.RECLAIM_DEPTH_RUNNING, 8)
        assert deeper.reclaim_id > first.reclaim_id


# Who may use a tenant


def as_user(uid: int, gids: list[int], vattd: Vattd, tenant: str) -> str:
    """Attach as another user; "attached", or the reason of the refusal."""
    script = (
        "import os, sys, grpc\nfrom pathlib import Path\nfrom tests.raw_engine import RawEngine, reason_of\n"
        "from vatt.sockets import Sockets\n"
        f"os.setgroups({gids!r}); os.setgid(65534); os.setuid({uid})\n"
        "try:\n"
        f"    engine = RawEngine(Sockets(Path({str(vattd.sockets.directory)!r})), {tenant!r})\n"
        "except grpc.RpcError as error:\n    print(reason_of(error))\n"
        "else:\n    print('attached')\n    engine.close()\n"
    )
    result = subprocess.run(
        [sys.executable, "-B", "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


@pytest.mark.skipif(os.geteuid() != 0, reason="becoming another user needs root")
def test_only_listed_users_and_groups_may_use_a_tenant(vattd: Vattd, op: Operator) -> None:
    vattd.socket_dir.chmod(0o755)
    op.reserve("mine")
    op.reserve("by-user", access=pb.AccessList(uids=[12345]))
    op.reserve("by-group", access=pb.AccessList(gids=[777]))
    assert as_user(12345, [], vattd, "mine") == "TENANT_DENIED", "it is for the user that runs vattd"
    assert as_user(12345, [], vattd, "by-user") == "attached"
    assert as_user(12346, [], vattd, "by-user") == "TENANT_DENIED"
    assert as_user(12346, [1, 777], vattd, "by-group") == "attached"
    assert as_user(12346, [1], vattd, "by-group") == "TENANT_DENIED"
    assert as_user(12345, [], vattd, "unconfigured") == "attached"
    with pytest.raises(grpc.RpcError) as caught:
        RawEngine(vattd.sockets, "by-user")
    details = caught.value.details() or ""
    assert "for uid 12345" in details
    assert "vattctl reserve by-user --allow" in details


# What is refused


@pytest.mark.parametrize(
    ("fields", "reason", "says"),
    [
        ({"tenant": "A!"}, "INVALID_REQUEST", "not a tenant's name"),
        ({"tenant": "a", "min_bytes": -1}, "INVALID_REQUEST", "at least 0"),
        ({"tenant": "a", "min_bytes": 2, "max_bytes": 1}, "INVALID_REQUEST", "more than the max"),
        ({"tenant": "a", "max_bytes": 1}, "INVALID_REQUEST", "less than a page"),
        ({"tenant": "a", "max_bytes": -5}, "INVALID_REQUEST", "or 0 for none"),
        ({"tenant": "a", "weight": 0}, "INVALID_REQUEST", "a weight is 1 to 1000"),
        ({"tenant": "a", "weight": 1001}, "INVALID_REQUEST", "a weight is 1 to 1000"),
        ({"tenant": "a", "min_mode": 17}, "INVALID_REQUEST", "min_mode"),
        ({"tenant": "a", "access": pb.AccessList()}, "INVALID_REQUEST", "nobody may use"),
        ({"tenant": "a", "access": pb.AccessList(uids=[-1])}, "INVALID_REQUEST", "ids of users"),
        ({"tenant": "a", "min_bytes": 65 * MIB}, "OVERCOMMITTED", "1.00 MiB too much"),
        ({"tenant": "a", "min_bytes": 1 << 62}, "OVERCOMMITTED", "too much"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused_and_changes_nothing(
    vattd: Vattd, op: Operator, fields: dict[str, object], reason: str, says: str
) -> None:
    op.reserve("b", min_bytes=0, weight=7)
    before = op.status().tenants
    got, message = refusal(op.reserve, **fields)
    assert got == reason
    assert says in message
    assert op.status().tenants == before
    entries = [json.loads(line) for line in (vattd.state_dir / "host.audit.jsonl").read_text().splitlines()]
    assert [entry["outcome"] for entry in entries] == ["done", reason]


def test_all_mins_together_must_fit_the_pool_and_the_refusal_gives_the_numbers(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=40 * MIB)
    reason, message = refusal(op.reserve, "b", min_bytes=30 * MIB)
    assert reason == "OVERCOMMITTED"
    assert "70.0 MiB together" in message
    assert "6.00 MiB too much" in message
    op.reserve("b", min_bytes=24 * MIB)


def test_unreserving_what_nobody_reserved_is_refused(vattd: Vattd, op: Operator) -> None:
    assert refusal(op.unreserve, "nobody")[0] == "TENANT_UNKNOWN"
    assert refusal(op.admin.Evict, pb.EvictRequest(session_id="1-1"))[0] == "SESSION_UNKNOWN"


# Restarts


def test_reservations_survive_a_restart_and_limited_ones_end_in_time(vattd: Vattd, op: Operator) -> None:
    op.reserve("a", min_bytes=8 * MIB, max_bytes=16 * MIB, weight=5, min_mode=pb.MIN_MODE_HARD)
    op.reserve("b", min_bytes=4 * MIB)
    op.unreserve("b")
    request = pb.ReserveRequest(tenant="brief", min_bytes=4 * MIB)
    request.duration.FromMilliseconds(3000)
    op.admin.Reserve(request)
    before = op.tenant("a")
    assert vattd.stop() == 0
    vattd.start()
    with operator(vattd.sockets) as again:
        after = again.tenant("a")
        assert (after.guarantee, after.access) == (before.guarantee, before.access)
        assert {tenant.name for tenant in again.status().tenants} == {"a", "brief"}
        again.until(lambda status: {tenant.name for tenant in status.tenants} == {"a"})
        assert again.reserve("c").guarantee.revision == 6, "revisions go on"


def test_a_state_file_that_cannot_be_read_keeps_vattd_from_starting_and_is_left_as_it_is(vattd: Vattd) -> None:
    path = vattd.state_dir / "host.tenants.json"
    for text in ("{", "[]", '{"version": 2}', '{"version": 1, "revision": -1, "tenants": {}}', "\udcff"):
        vattd.stop()
        path.write_bytes(text.encode(errors="surrogateescape"))
        result = run_command(
            [
                "vattd",
                "start",
                "--gpu",
                "host",
                "--socket-dir",
                str(vattd.socket_dir),
                "--metrics-address",
                "off",
                *POOL,
            ]
        )
        assert result.returncode == 1
        assert f"{path} cannot be read" in result.stderr
        assert "move it away" in result.stderr
        assert path.read_bytes() == text.encode(errors="surrogateescape")


def test_a_smaller_pool_than_what_was_promised_keeps_vattd_from_starting_with_the_numbers(
    vattd: Vattd, op: Operator
) -> None:
    op.reserve("a", min_bytes=40 * MIB)
    vattd.stop()
    result = run_command(
        ["vattd", "start", "--gpu", "host", "--socket-dir", str(vattd.socket_dir), "--pool-max", "32MiB"]
    )
    assert result.returncode == 1
    assert "40.0 MiB together (a 40.0 MiB), and the pool has 32.0 MiB: 8.00 MiB too much" in result.stderr


def test_whose_user_may_not_use_the_tenant_any_more_cannot_resume_and_keeps_what_it_holds(
    vattd: Vattd, op: Operator
) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        engine.lease(8)
        op.reserve("a", access=pb.AccessList(uids=[12345]))
        engine.stream.cancel()
        op.until(lambda status: [session.state for session in status.sessions] == ["fenced"])
        with pytest.raises(grpc.RpcError) as caught:
            RawEngine(vattd.sockets, "a", resume=engine.key)
        assert reason_of(caught.value) == "TENANT_DENIED"
        assert op.session(engine.key.session_id).leased_bytes == 8 * MIB
        op.reserve("a", access=pb.AccessList(uids=[os.getuid()]))
        RawEngine(vattd.sockets, "a", resume=engine.key).close()


# The configuration file


def test_configured_tenants_are_there_from_the_start_and_a_command_comes_before_them(tmp_path: Path) -> None:
    config = tmp_path / "tenants.toml"
    config.write_text(
        '[tenants.chat]\nmin = "25%"\nmax = "32 MiB"\nweight = 2\nhard = true\n[tenants.batch]\nallow = [0, "@0"]\n'
    )
    with Vattd(*POOL, "--config", str(config)) as vattd, operator(vattd.sockets) as op:
        chat = op.tenant("chat")
        assert (chat.guarantee.min_bytes, chat.guarantee.max_bytes, chat.source) == (16 * MIB, 32 * MIB, "config")
        assert chat.guarantee.min_mode == pb.MIN_MODE_HARD
        assert list(op.tenant("batch").access.gids) == [0]
        op.reserve("chat", min_bytes=8 * MIB)
        assert (op.tenant("chat").source, op.tenant("chat").guarantee.weight) == ("command", 2)
        assert op.unreserve("chat").min_bytes == 16 * MIB
        reason, message = refusal(op.unreserve, "chat")
        assert (reason, "configuration file" in message) == ("INVALID_REQUEST", True)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[tenants", "not TOML"),
        ("[tenant.a]", "unknown key 'tenant'"),
        ("[tenants.a]\nmni = 3", "unknown key 'mni': there are min, max"),
        ("[tenants.A]", "not a tenant's name"),
        ('[tenants.a]\nmin = "8 potatoes"', "[tenants.a]: '8 potatoes' is not a size"),
        ('[tenants.a]\nmin = "120%"', "more than 100%"),
        ("[tenants.a]\nmin = true", "min is a size like"),
        ('[tenants.a]\nmin = "2MiB"\nmax = "1MiB"', "more than the max"),
        ("[tenants.a]\nweight = 1.5", "weight is a whole number"),
        ("[tenants.a]\nhard = 1", "hard is true or false"),
        ('[tenants.a]\nallow = "root"', "allow is a list"),
        ('[tenants.a]\nallow = ["nobody-of-that-name"]', "there is no user 'nobody-of-that-name'"),
        ('[tenants.a]\nmin = "60%"\n[tenants.b]\nmin = "50%"', "too much"),
    ],
)
def test_a_configuration_that_makes_no_sense_is_refused_with_its_place(tmp_path: Path, text: str, says: str) -> None:
    config = tmp_path / "tenants.toml"
    config.write_text(text)
    result = run_command(
        ["vattd", "start", "--gpu", "host", "--socket-dir", str(tmp_path / "s"), "--config", str(config), *POOL]
    )
    assert result.returncode == 1
    assert says in result.stderr
    assert "Traceback" not in result.stderr


# Evicting, draining, shrinking


def test_an_evicted_session_is_asked_for_all_and_gets_no_more(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "a") as engine:
        runs = engine.lease(8)
        op.admin.Evict(pb.EvictRequest(session_id=engine.key.session_id))
        reclaim = next_reclaim(engine)
        assert (reclaim.page_count, reclaim.depth) == (8, pb.RECLAIM_DEPTH_RUNNING)
        assert refusal(engine.lease, 1)[0] == "SESSION_EVICTED"
        assert op.session(engine.key.session_id).state == "evicted"
        assert engine.give_back(runs) == 8
        assert op.session(engine.key.session_id).asked_back_bytes == 0


def test_an_evicted_session_is_told_again_what_it_was_granted(vattd: Vattd, op: Operator) -> None:
    """Its first answer may have been lost: it would not know what to give back."""
    with RawEngine(vattd.sockets, "a") as engine:
        runs = engine.lease(8, request_id="lost")
        op.admin.Evict(pb.EvictRequest(session_id=engine.key.session_id))
        assert engine.lease(8, request_id="lost") == runs


def test_evicting_with_kill_ends_the_process_and_brings_its_pages_back(vattd: Vattd, op: Operator) -> None:
    with start_borrower(vattd, 16) as borrower:
        assert borrower.stdout is not None
        session_id = borrower.stdout.readline().strip()
        op.admin.Evict(pb.EvictRequest(session_id=session_id, kill=True))
        assert borrower.wait(10) == -signal.SIGKILL
        op.until(lambda status: not status.sessions and count_of(status, "leased") == 0)


def test_what_nobody_needs_yet_is_refused_where_somebody_waits(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "a") as engine, RawEngine(vattd.sockets, "b") as reader:
        held = reader.lease(40)
        assert page_count_of(reader.lease(4, fewest=1, purpose=AHEAD)) == 4
        thread, outcome = in_thread(lambda: engine.lease(50, purpose=ADMIT, wait_s=20))
        op.until(lambda status: status.pool.waiting_pages == 50)
        assert refusal(reader.lease, 4, fewest=1, purpose=AHEAD)[0] == "POOL_EXHAUSTED"
        assert page_count_of(reader.lease(1)) == 1, "what runs goes on"
        reader.give_back(held)
        thread.join()
        assert page_count_of(outcome[0]) == 50
        assert page_count_of(reader.lease(4, fewest=1, purpose=AHEAD)) == 4
        op.admin.Drain(pb.DrainRequest())
        assert refusal(reader.lease, 1, purpose=AHEAD)[0] == "DRAINING"
        assert "only an ADMIT waits" in refusal(reader.lease, 1, purpose=AHEAD, wait_s=1)[1]


def test_a_draining_vattd_begins_nothing_new_and_lets_what_runs_grow(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "a") as engine, RawEngine(vattd.sockets, "b") as hoarder:
        hoarder.lease(50)
        thread, outcome = in_thread(lambda: engine.lease(20, purpose=ADMIT, wait_s=20))
        op.until(lambda status: status.pool.waiting_pages == 20)
        op.admin.Drain(pb.DrainRequest())
        thread.join()
        assert reason_of(outcome[0]) == "DRAINING"
        assert op.status().daemon.state == "draining"
        assert refusal(engine.lease, 1, purpose=ADMIT)[0] == "DRAINING"
        assert page_count_of(engine.lease(1)) == 1
        with pytest.raises(grpc.RpcError) as caught:
            RawEngine(vattd.sockets, "c")
        assert reason_of(caught.value) == "DRAINING"
        op.admin.Drain(pb.DrainRequest(resume=True))
        assert page_count_of(engine.lease(1, purpose=ADMIT)) == 1
        kinds: list[pb.Notice.Kind.ValueType] = []
        while len(kinds) < 2:
            letter = next(engine.stream)
            kinds += [letter.notice.kind] if letter.HasField("notice") else []
        assert kinds == [pb.Notice.KIND_DRAINING, pb.Notice.KIND_RESUMED]


def test_idle_memory_goes_back_after_a_quiet_time_or_at_once_when_told(op: Operator, vattd: Vattd) -> None:
    def backed(status: pb.GetStatusResponse) -> int:
        return 64 - count_of(status, "unbacked")

    with RawEngine(vattd.sockets, "a") as engine:
        engine.give_back(engine.lease(32))
        assert backed(op.status()) == 32, "kept for its next lease"
        assert op.admin.Shrink(pb.ShrinkRequest()).freed_bytes == 32 * MIB
        assert backed(op.status()) == 0
        assert page_count_of(engine.lease(32)) == 32
    with Vattd(*POOL, "--idle-after", "200ms") as quick, operator(quick.sockets) as quick_op:
        with RawEngine(quick.sockets, "a") as engine:
            [run] = engine.lease(32)
            engine.give_back([part(run, 24)])
            quick_op.until(lambda status: backed(status) == 8, within_s=5)
            assert page_count_of(engine.lease(24)) == 24


def test_who_answers_and_gives_nothing_is_overdue_too_and_since_it_was_asked_first(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "b") as borrower:
        borrower.lease(32)
        borrower.report(mapped_pages=32, token_bytes=32 * MIB)
        op.admin.Evict(pb.EvictRequest(session_id=borrower.key.session_id))
        ids = []
        while not op.session(borrower.key.session_id).asked_back_overdue:
            ids.append(next_reclaim(borrower).reclaim_id)
            borrower.stub.AnswerReclaim(pb.AnswerReclaimRequest(key=borrower.key, reclaim_id=ids[-1]), timeout=10)
            assert op.session(borrower.key.session_id).asked_back_since.seconds < 5
        session = op.session(borrower.key.session_id)
        assert len(ids) > 1, "it answered each time"
        assert session.asked_back_since.seconds >= 1


def test_what_a_hard_min_lacks_is_not_called_kept_free(vattd: Vattd, op: Operator) -> None:
    with RawEngine(vattd.sockets, "b") as borrower:
        borrower.lease(60)
        op.reserve("a", min_bytes=16 * MIB, min_mode=pb.MIN_MODE_HARD)
        assert op.status().pool.kept_free_bytes == 4 * MIB


def test_two_vattds_do_not_share_one_place_for_reservations(tmp_path: Path) -> None:
    with Vattd(*POOL, "--state-dir", str(tmp_path)):
        with pytest.raises(
            RuntimeError, match=r"another vattd keeps its reservations in .* choose another --state-dir"
        ):
            Vattd(*POOL, "--state-dir", str(tmp_path))
    Vattd(*POOL, "--state-dir", str(tmp_path)).close()
