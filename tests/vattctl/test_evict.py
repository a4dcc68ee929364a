"""`vattctl evict`, `drain` and `shrink`: what an operator does to sessions and to the daemon."""

from __future__ import annotations

import signal

import grpc
import pytest

from tests.daemon import Vattd
from tests.raw_engine import RawEngine, reason_of
from tests.vattctl.command import (
    answer,
    audit,
    done,
    engine_process,
    on_a_terminal,
    refused,
    running,
)
from vatt.v1 import vatt_pb2 as pb


def test_without_a_terminal_nobody_is_asked_and_nothing_is_killed_without_yes() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, engine_process(vattd, "chat", 16) as (process, session_id):
        for option in ([], ["--kill"]):
            assert "add --yes" in refused(vattd, "evict", session_id, *option)
        assert process.poll() is None
        assert answer(vattd, "status")["sessions"][0]["state"] == "attached"
        assert audit(vattd) == []
        said = done(vattd, "evict", session_id, "--kill", "--yes", "--wait")
        assert f"process {process.pid} of session {session_id} (chat) was killed" in said
        assert f"session {session_id} is gone" in said
        assert process.wait(10) == -signal.SIGKILL
        [line] = audit(vattd)
        assert line["arguments"] == {"session_id": session_id, "kill": True}
        assert line["caller"].endswith("vattctl evict")


def test_at_a_terminal_it_asks_and_no_is_no() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, engine_process(vattd, "chat", 16) as (process, session_id):
        with on_a_terminal(vattd, "evict", session_id, "--kill") as terminal:
            terminal.read_until(f"Kill process {process.pid}, session {session_id} (chat) that leases 1.00 MiB? [y/N]")
            terminal.type("n\n")
            terminal.read_until("nothing was done")
            assert terminal.wait() == 1
        assert process.poll() is None
        with on_a_terminal(vattd, "evict", session_id, "--kill") as terminal:
            terminal.read_until("[y/N]")
            terminal.type("y\n")
            assert terminal.wait() == 0
        assert process.wait(10) == -signal.SIGKILL


def test_a_session_that_is_asked_to_leave_is_waited_for_until_its_pages_are_back() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        runs = engine.lease(16)
        session_id = engine.key.session_id
        said = refused(vattd, "evict", session_id, "--yes", "--wait", "100ms")
        assert (
            f"session {session_id} (chat) holds 1.00 MiB: `vattctl evict {session_id} --kill` ends its process" in said
        )
        with pytest.raises(grpc.RpcError) as denied:
            engine.lease(1)
        assert reason_of(denied.value) == "SESSION_EVICTED"
        with running(vattd, "evict", session_id, "--yes", "--wait") as waiting:
            assert waiting.stdout is not None
            assert "was asked to leave: it holds 1.00 MiB" in waiting.stdout.readline()
            engine.give_back(runs)
            out, err = waiting.communicate(timeout=20)
            assert waiting.returncode == 0, err
            assert f"session {session_id} holds nothing any more" in out
        engine.detach()


def test_an_unknown_session_is_refused_with_where_to_look() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert "no session '7-7': see `vattctl status`" in refused(vattd, "evict", "7-7", "--kill", "--yes")


def test_who_names_a_tenant_is_told_its_sessions() -> None:
    with (
        Vattd("--pool-max", "64MiB") as vattd,
        RawEngine(vattd.sockets, "chat") as one,
        RawEngine(vattd.sockets, "chat") as two,
    ):
        said = refused(vattd, "evict", "chat", "--yes")
        ids = ", ".join(sorted((one.key.session_id, two.key.session_id)))
        assert f"no session 'chat': chat is a tenant, name one of its sessions ({ids}), see `vattctl status`" in said
        done(vattd, "reserve", "batch", "--min", "1MiB")
        said = refused(vattd, "evict", "batch", "--yes")
        assert "no session 'batch': batch is a tenant that has no session now, see `vattctl status`" in said
        one.detach()
        two.detach()


def test_a_process_with_several_sessions_is_not_killed_unawares() -> None:
    with (
        Vattd("--pool-max", "64MiB") as vattd,
        RawEngine(vattd.sockets, "chat") as one,
        RawEngine(vattd.sockets, "batch") as other,
    ):
        said = refused(vattd, "evict", one.key.session_id, "--kill")
        assert f"it has other sessions too, {other.key.session_id} (batch)" in said
        one.detach()
        other.detach()


def test_a_drain_refuses_new_requests_until_it_is_resumed() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(16)
        said = done(vattd, "drain")
        assert said == "vattd is drained, 1.00 MiB still leased; `vattctl drain --resume` ends it\n"
        assert answer(vattd, "status")["daemon"]["state"] == "draining"
        assert "draining, up for" in done(vattd, "status")
        with pytest.raises(grpc.RpcError) as denied:
            engine.lease(1, purpose=pb.LEASE_PURPOSE_ADMIT)
        assert reason_of(denied.value) == "DRAINING"
        engine.lease(1)  # a running request may grow
        done(vattd, "drain", "--resume")
        assert answer(vattd, "status")["daemon"]["state"] == "serving"
        engine.lease(1, purpose=pb.LEASE_PURPOSE_ADMIT)
        engine.detach()
        assert [line["verb"] for line in audit(vattd)] == ["drain", "drain"]


def test_a_drain_waits_until_nothing_is_leased_or_names_who_still_holds() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        runs = engine.lease(16)
        said = refused(vattd, "drain", "--wait", "100ms")
        assert f"1.00 MiB still leased by {engine.key.session_id} (chat) 1.00 MiB" in said
        assert "`vattctl drain --resume` ends it" in said
        with on_a_terminal(vattd, "drain", "--wait") as terminal:
            terminal.read_until("1.00 MiB still leased by")
            engine.give_back(runs)
            terminal.read_until("nothing is leased")
            assert terminal.wait() == 0
        engine.detach()


def test_who_waits_for_a_drain_hears_when_it_is_called_off() -> None:
    with Vattd("--pool-max", "64MiB") as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(16)
        with on_a_terminal(vattd, "drain", "--wait") as terminal:
            terminal.read_until("still leased by")
            done(vattd, "drain", "--resume")
            terminal.read_until("the drain is over: vattd is serving")
            assert terminal.wait() == 1
        engine.detach()


def test_a_resume_has_nothing_to_wait_for() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        assert "leave out --wait" in refused(vattd, "drain", "--resume", "--wait", status=2)


def test_a_shrink_says_what_went_back_to_the_device() -> None:
    arguments = ["--pool-max", "64MiB", "--headroom", "0", "--idle-after", "1h"]
    with Vattd(*arguments) as vattd, RawEngine(vattd.sockets, "chat") as engine:
        engine.give_back(engine.lease(32))
        assert done(vattd, "shrink", "--ask-engines") == "2.00 MiB went back to the device\n"
        assert "nothing went back" in done(vattd, "shrink")
        engine.detach()
        assert [line["arguments"] for line in audit(vattd)] == [{"ask_sessions": True}, {}]


def test_without_a_daemon_every_verb_says_what_to_type_and_exits_3() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        vattd.stop(signal.SIGKILL)
        start = f"`vattd start --gpu host --socket-dir {vattd.socket_dir}`"
        for command in (
            ["reserve", "chat", "--min", "1MiB"],
            ["unreserve", "chat"],
            ["evict", "1-1", "--yes"],
            ["drain", "--wait"],
            ["shrink"],
            ["tenants"],
            ["status"],
        ):
            assert start in refused(vattd, *command, status=3), command
