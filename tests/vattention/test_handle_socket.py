"""The handle connection against a peer that misbehaves."""

from __future__ import annotations

import os
import resource
import socket
import threading
from collections.abc import Iterator

import pytest

from vatt.errors import DaemonUnreachable, SystemLimit, TenantDenied, VattError
from vatt.v1 import vatt_pb2
from vattention.handle_socket import HandleConnection, room_for_fds

WELCOME = vatt_pb2.HandleWelcome(token=b"t", min_protocol_version=1, max_protocol_version=1)
RUN = vatt_pb2.PageRun(first_page_id=5, page_count=2, generation=1)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def connected(ours: socket.socket, theirs: socket.socket) -> HandleConnection:
    theirs.send(WELCOME.SerializeToString())
    return HandleConnection(ours)


def deliver(theirs: socket.socket, fd_count: int, delivery: vatt_pb2.HandleDelivery) -> None:
    read_fd, write_fd = os.pipe()
    try:
        socket.send_fds(theirs, [delivery.SerializeToString()], [read_fd] * fd_count)
    finally:
        os.close(read_fd)
        os.close(write_fd)


def answer(theirs: socket.socket, *deliveries: tuple[int, vatt_pb2.HandleDelivery]) -> vatt_pb2.HandlePull:
    """Read a pull and answer it."""
    pull = vatt_pb2.HandlePull.FromString(theirs.recv(16 << 10))
    for fd_count, delivery in deliveries:
        deliver(theirs, fd_count, delivery)
    return pull


def test_descriptors_come_in_the_order_asked_and_are_not_inherited(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    handles = connected(*ends)
    assert handles.welcome.token == b"t"
    deliver(ends[1], 2, vatt_pb2.HandleDelivery(pull_id=1, page_count=2))
    fds = handles.pull([RUN])
    assert len(fds) == 2
    assert not any(os.get_inheritable(fd) for fd in fds)
    pull = vatt_pb2.HandlePull.FromString(ends[1].recv(16 << 10))
    assert (pull.pull_id, list(pull.runs)) == (1, [RUN])
    for fd in fds:
        os.close(fd)


@pytest.mark.parametrize(
    ("fd_count", "delivery"),
    [
        (1, vatt_pb2.HandleDelivery(pull_id=1, page_count=2)),
        (3, vatt_pb2.HandleDelivery(pull_id=1, page_count=3)),
        (2, vatt_pb2.HandleDelivery(pull_id=1, page_count=1)),
    ],
)
def test_a_wrong_number_of_descriptors_is_refused_and_all_are_closed(
    ends: tuple[socket.socket, socket.socket], fd_count: int, delivery: vatt_pb2.HandleDelivery
) -> None:
    handles = connected(*ends)
    before = open_fds()
    deliver(ends[1], fd_count, delivery)
    with pytest.raises(VattError, match="descriptors"):
        handles.pull([RUN])
    assert open_fds() == before


def test_a_refused_pull_raises_what_vattd_said(ends: tuple[socket.socket, socket.socket]) -> None:
    handles = connected(*ends)
    error = vatt_pb2.HandleError(reason="TENANT_DENIED", message="not yours")
    ends[1].send(vatt_pb2.HandleDelivery(pull_id=1, error=error).SerializeToString())
    with pytest.raises(TenantDenied, match="not yours"):
        handles.pull([RUN])


def test_a_late_answer_to_an_earlier_pull_is_passed_over(ends: tuple[socket.socket, socket.socket]) -> None:
    handles = connected(*ends)
    ends[0].settimeout(0.01)
    with pytest.raises(DaemonUnreachable):
        handles.pull([RUN])
    before = open_fds()
    deliver(ends[1], 2, vatt_pb2.HandleDelivery(pull_id=1, page_count=2))
    deliver(ends[1], 2, vatt_pb2.HandleDelivery(pull_id=2, page_count=2))
    fds = handles.pull([RUN])
    assert open_fds() == before + 2
    for fd in fds:
        os.close(fd)


def test_a_refused_peer_is_told_why(ends: tuple[socket.socket, socket.socket]) -> None:
    error = vatt_pb2.HandleError(reason="TENANT_DENIED", message="pid 0")
    ends[1].send(vatt_pb2.HandleWelcome(error=error).SerializeToString())
    with pytest.raises(TenantDenied, match="pid 0"):
        HandleConnection(ends[0])


@pytest.mark.parametrize("packet", [b"\xff" * 40, b"x" * 20_000])
def test_noise_is_refused(ends: tuple[socket.socket, socket.socket], packet: bytes) -> None:
    ends[1].send(packet)
    with pytest.raises(VattError):
        HandleConnection(ends[0])


def test_a_closed_socket_is_an_unreachable_daemon(ends: tuple[socket.socket, socket.socket]) -> None:
    handles = connected(*ends)
    ends[1].close()
    with pytest.raises(DaemonUnreachable):
        handles.pull([RUN])


def test_descriptors_past_the_limit_are_noticed_and_the_rest_closed(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    handles = connected(*ends)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    run = vatt_pb2.PageRun(first_page_id=5, page_count=40, generation=1)
    deliver(ends[1], 40, vatt_pb2.HandleDelivery(pull_id=1, page_count=40))
    # The lowest free number decides, not how many are open.
    lowest = os.dup(0)
    os.close(lowest)
    before = open_fds()
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 10, hard))
    try:
        with pytest.raises(SystemLimit, match="ulimit -n"):
            handles.pull([run])
        with pytest.raises(SystemLimit, match="ulimit -n"):
            room_for_fds()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert open_fds() == before


def test_pulls_of_several_threads_do_not_mix(ends: tuple[socket.socket, socket.socket]) -> None:
    handles = connected(*ends)
    pulled: list[int] = []

    def pull() -> None:
        fds = handles.pull([RUN])
        pulled.append(len(fds))
        for fd in fds:
            os.close(fd)

    threads = [threading.Thread(target=pull) for _ in range(4)]
    for thread in threads:
        thread.start()
    for pull_id in range(1, 5):
        answered = answer(ends[1], (2, vatt_pb2.HandleDelivery(pull_id=pull_id, page_count=2)))
        assert answered.pull_id == pull_id
    for thread in threads:
        thread.join()
    assert pulled == [2, 2, 2, 2]
