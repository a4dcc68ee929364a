"""Descriptors whose closing takes long hold up nobody but who made them."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.vattd.lingering import lingering
from vatt.v1 import vatt_pb2 as pb
from vattd.closer import Closer
from vattd.handles import HandleConnection
from vattd.outbox import Outboxes
from vattd.page_run import PageRun
from vattd.peer import Peer

LONG_S = 60
SOON_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.001)


def test_one_that_does_not_close_holds_up_its_users_others_and_nobody_elses() -> None:
    closer = Closer()
    ends = [os.pipe() for _ in range(2)]
    with lingering(LONG_S) as slow:
        closer.close("a", [slow.detach(), ends[0][1]])
        closer.close("b", [ends[1][1]])
        assert os.read(ends[1][0], 1) == b""
        until(lambda: closer.count_of("b") == 0)
        assert closer.count_of("a") == 2
    # Now that the other end has gone, nothing is left to linger for.
    assert os.read(ends[0][0], 1) == b""
    until(lambda: closer.count_of("a") == 0)
    for end, _ in ends:
        os.close(end)


@pytest.mark.parametrize("session", [False, True])
def test_the_event_loop_waits_for_no_descriptor_that_a_process_sends(session: bool) -> None:
    """As on a kernel before 6.16, which lets everybody send them: nothing is set on these sockets."""

    async def story() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        closed = asyncio.Event()
        closer = Closer()
        peer = Peer(os.getpid(), 7, frozenset(), os.open("/dev/null", os.O_RDONLY))
        connection = HandleConnection(ours, peer, lambda connection: closed.set(), lambda weight: 0.0, Outboxes(closer))
        connection.welcome(pb.HandleWelcome())
        if session:
            connection.attach(NoSource())
            peer.close()
        with theirs, lingering(LONG_S) as slow:
            for _ in range(3):
                socket.send_fds(theirs, [pb.HandlePull(pull_id=1).SerializeToString()], [slow.fileno()])
            slow.close()
            began_s = time.monotonic()
            await closed.wait()
            assert closer.count_of(7) == 1, "the socket, with what lies in it"
            assert time.monotonic() - began_s < SOON_S

    asyncio.run(story())


class NoSource:
    async def pull(self, runs: list[PageRun]) -> list[int]:
        raise AssertionError
