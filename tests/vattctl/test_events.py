"""`vattctl events` as operators and scripts see it."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from tests.daemon import Vattd
from tests.raw_engine import RawEngine
from tests.vattctl.command import done, refused, running
from vatt.v1 import vatt_pb2 as pb
from vattctl.events import render


@pytest.fixture
def vattd() -> Iterator[Vattd]:
    with Vattd("--pool-max", "64MiB") as vattd:
        yield vattd


def test_the_past_is_shown_a_line_an_event_and_small_leases_only_if_wanted(vattd: Vattd) -> None:
    with RawEngine(vattd.sockets, "chat") as engine:
        engine.lease(4)
        engine.detach()
    lines = done(vattd, "events").splitlines()
    assert [line.split()[2] for line in lines] == ["vattd_started", "session_attached", "session_ended"]
    assert "chat" in lines[1]
    assert "detached" in lines[2]
    every = done(vattd, "events", "--min-lease", "0").splitlines()
    assert [line.split()[2] for line in every][2] == "lease_granted"
    assert "256 KiB" in every[2]
    assert done(vattd, "events", "--last", "1", "--min-lease", "0") == every[-1] + "\n"
    assert done(vattd, "events", "--last", "0") == ""
    told = [json.loads(line) for line in done(vattd, "events", "-o", "json", "--min-lease", "0").splitlines()]
    assert [event["kind"] for event in told][1:3] == ["session_attached", "lease_granted"]
    assert told[2]["bytes"] == 256 << 10
    assert done(vattd, "events", "--after", str(told[-1]["sequence"])) == ""


def test_following_goes_on_until_ctrl_c(vattd: Vattd) -> None:
    with running(vattd, "events", "-f") as process:
        assert process.stdout is not None
        assert process.stdout.readline().split()[2] == "vattd_started"
        with RawEngine(vattd.sockets, "chat") as engine:
            assert process.stdout.readline().split()[2] == "session_attached"
            engine.detach()
            assert process.stdout.readline().split()[2] == "session_ended"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_follower_is_told_when_vattd_stops(vattd: Vattd) -> None:
    with running(vattd, "events", "-f") as process:
        assert process.stdout is not None
        assert "vattd_started" in process.stdout.readline()
        with RawEngine(vattd.sockets, "chat") as engine:
            engine.detach()
        assert "session_attached" in process.stdout.readline()
        vattd.stop()
        assert process.wait(20) == 3
        assert process.stderr is not None
        assert "has stopped" in process.stderr.read()


def test_bad_words_and_no_daemon_are_told(vattd: Vattd) -> None:
    assert "not a size" in refused(vattd, "events", "--min-lease", "many", status=2)
    vattd.stop()
    assert "vattd start" in refused(vattd, "events", status=3)


def test_a_line_says_what_applies_and_what_was_missed() -> None:
    event = pb.Event(
        time=Timestamp(seconds=1),
        kind="lease_granted",
        tenant="chat",
        session_id="7-1",
        bytes=3 << 20,
        waited=Duration(seconds=2),
        missed=5,
    )
    missed, line = [text.plain for text in render(event)]
    assert "5 events were missed" in missed
    assert line.split()[2:] == ["lease_granted", "chat", "7-1", "3.00", "MiB", "after", "2.0", "s"]
    [short] = [text.plain for text in render(pb.Event(kind="one_of_tomorrow", reason="WHY"))]
    assert short.split()[2:] == ["one_of_tomorrow", "WHY"]
