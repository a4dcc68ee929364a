"""Which process is at the other end, also where the kernel shows little of it."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from typing import Any

import pytest

from vatt.errors import InvalidRequest
from vattd import peer as peers
from vattd.peer import SO_PEERGROUPS, SO_PEERPIDFD, Peer, peer_of, peer_of_pid, start_ticks_of


class OldKernel:
    """A connection whose peer this process is, where some options are not to be had."""

    def __init__(self, *missing: int) -> None:
        self._socket, self._other = socket.socketpair()
        self._missing = missing

    def getsockopt(self, level: int, option: int, *size_bytes: int) -> Any:
        if option in self._missing:
            raise OSError(errno.ENOPROTOOPT, os.strerror(errno.ENOPROTOOPT))
        return self._socket.getsockopt(level, option, *size_bytes)

    def close(self) -> None:
        self._socket.close()
        self._other.close()


def open_fds() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def hide_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As `hidepid` does."""
    monkeypatch.setattr(peers, "start_ticks_of", lambda pid: 0)


def test_a_process_is_known_again_by_its_pid_and_when_it_began() -> None:
    ticks = start_ticks_of(os.getpid())
    peer = peer_of_pid(os.getpid(), os.getuid(), ticks)
    assert peer is not None
    assert peer.start_ticks() == ticks
    peer.close()
    assert peer_of_pid(os.getpid(), os.getuid(), ticks + 1) is None, "another that had the same pid"


def test_where_proc_is_hidden_no_process_passes_for_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    hide_proc(monkeypatch)
    assert peer_of_pid(os.getpid(), os.getuid(), 0) is None


def test_a_process_that_could_not_be_known_again_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = Peer(os.getpid(), os.getuid(), frozenset(), os.pidfd_open(os.getpid()))
    with monkeypatch.context() as patched:
        hide_proc(patched)
        with pytest.raises(InvalidRequest, match=r"cannot see when process .* began.*hidepid"):
            peer.start_ticks()
    peer.close()
    with subprocess.Popen(["true"]) as ended:  # its pid is not free before it is waited for
        peer = Peer(ended.pid, os.getuid(), frozenset(), os.pidfd_open(ended.pid))
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(InvalidRequest):
            peer.start_ticks()
        peer.close()


def test_a_peer_that_ends_while_it_is_looked_at_leaves_no_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = OldKernel(SO_PEERPIDFD)
    peer_of(connection).close()
    before = open_fds()
    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", lambda path: os.lstat("/nowhere"))
        with pytest.raises(InvalidRequest, match="cannot watch process"):
            peer_of(connection)
    assert open_fds() == before
    connection.close()


def test_a_peer_whose_groups_are_not_told_leaves_no_descriptor() -> None:
    connection: Any = OldKernel(SO_PEERGROUPS)
    before = open_fds()
    with pytest.raises(OSError, match=os.strerror(errno.ENOPROTOOPT)):
        peer_of(connection)
    assert open_fds() == before
    connection.close()
