"""Descriptors whose closing takes long hold up nobody but who made them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import time
from collections.abc import Callable

import pytest

from tests.vattd.lingering import lingering
from vatt.protocol import MAX_FDS_PER_PACKET
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


def test_a_close_that_is_told_to_have_failed_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    close = os.close

    def failing(fd: int) -> None:
        close(fd)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    reading, writing = os.pipe()
    closer = Closer()
    with monkeypatch.context() as patched:
        patched.setattr(os, "close", failing)
        closer.close("a", [os.dup(reading), writing])
        assert os.read(reading, 1) == b""
        until(lambda: closer.count_of("a") == 0)
    close(reading)


def test_a_connection_with_nothing_in_it_waits_for_no_thread() -> None:
    closer = Closer()
    with lingering(LONG_S) as slow:
        closer.close("a", [slow.detach()])
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        closer.close_connection("a", ours)
        assert closer.count_of("a") == 1
        with theirs:
            assert theirs.recv(1) == b""
    until(lambda: closer.count_of("a") == 0)


def test_who_has_brought_much_that_does_not_close_may_bring_no_more() -> None:
    class Missed:
        def expects(self, pid: int) -> bool:
            return True

        def wants(self, zone: int, fd: int) -> bool:
            return False

    async def story() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        closed = asyncio.Event()
        closer = Closer()
        outboxes = Outboxes(closer)
        peer = Peer(os.getpid(), 7, frozenset(), os.open("/dev/null", os.O_RDONLY))
        connection = HandleConnection(ours, peer, lambda connection: closed.set(), lambda weight: 0.0, outboxes)
        connection.slabs = Missed()
        connection.welcome(pb.HandleWelcome())
        with theirs, lingering(LONG_S) as slow:
            theirs.setblocking(False)
            assert pb.HandleWelcome.FromString(theirs.recv(1 << 16)).awaits_slabs
            bring(theirs, [slow.fileno()])
            slow.close()
            await served(theirs)
            bring(theirs, [0] * MAX_FDS_PER_PACKET)
            await served(theirs)
            assert closer.count_of(7) == 1 + MAX_FDS_PER_PACKET
            bring(theirs, [0])
            await closed.wait()
            assert closer.count_of(7) == 2 + MAX_FDS_PER_PACKET, "its connection, with what lies in it"
        outboxes.close()

    def bring(theirs: socket.socket, fds: list[int]) -> None:
        offer = pb.HandlePull(pull_id=1, offered_zones=range(len(fds)))
        socket.send_fds(theirs, [offer.SerializeToString()], fds)

    async def served(theirs: socket.socket) -> None:
        answer = await asyncio.get_running_loop().sock_recv(theirs, 1 << 16)
        assert not pb.HandleDelivery.FromString(answer).HasField("error")

    asyncio.run(story())
