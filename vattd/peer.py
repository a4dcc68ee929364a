"""Who is at the other end of a Unix socket, as the kernel says it."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from vatt.errors import InvalidRequest, SystemLimit

SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module yet
SO_PEERGROUPS = 59
_GROUP = struct.Struct("I")
_GROUPS_BUFFER_BYTES = 1024  # the most that Python asks for
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """A process at the other end. Owns `pidfd`, which names the process even after its pid is used again."""

    pid: int
    uid: int
    gids: frozenset[int]  # its own and its supplementary ones
    pidfd: int

    def has_exited(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def start_ticks(self) -> int:
        """When it began, in the kernel's ticks since boot. With the pid, that names it also to a later vattd.

        Raises InvalidRequest where that cannot be seen: another process could then pass for it.
        """
        ticks = start_ticks_of(self.pid)
        if self.has_exited():  # then they may be another's
            raise InvalidRequest(f"process {self.pid} has ended")
        if not ticks:
            raise InvalidRequest(
                f"vattd cannot see when process {self.pid} began, and would not know it again after a restart: run "
                "vattd as root, or let its group see all of /proc (mount option gid=, or no hidepid)"
            )
        return ticks

    def close(self) -> None:
        os.close(self.pidfd)


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected. Raises InvalidRequest if it cannot be watched, since it then could never be ended."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid == 0:
        raise InvalidRequest(
            "the process at the other end is in a pid namespace that this one cannot see, so nor could it see its end: "
            "share the host's pid namespace (docker: --pid=host; Kubernetes: hostPID: true)"
        )
    with ExitStack() as undo:
        try:
            pidfd = _pidfd_of(connection, pid, uid)
        except OSError as error:
            raise InvalidRequest(f"cannot watch process {pid}: {error}") from error
        undo.callback(os.close, pidfd)
        os.set_inheritable(pidfd, False)
        gids = frozenset([gid, *_groups_of(connection)])
        undo.pop_all()
    return Peer(pid, uid, gids, pidfd)


def peer_of_pid(pid: int, uid: int, start_ticks: int) -> Peer | None:
    """The process that had this pid, and began then, if it still lives. Raises SystemLimit."""
    try:
        pidfd = os.pidfd_open(pid)
    except (ProcessLookupError, OverflowError):  # the latter: never a pid at all
        return None
    except OSError as error:
        if error.errno == errno.EINVAL:  # 0
            return None
        raise SystemLimit(f"cannot watch process {pid}: {error}") from error
    peer = Peer(pid, uid, frozenset(), pidfd)
    # While the pidfd says that it lives, the pid is its own.
    if began_at(pid, start_ticks) and not peer.has_exited():
        return peer
    peer.close()
    return None


def start_ticks_of(pid: int) -> int:
    """When a process began, in the kernel's ticks since boot; 0 where that cannot be seen."""
    return int(_stat_of(pid)[19])


def began_at(pid: int, start_ticks: int) -> bool:
    """Is this the process that had the pid then? 0 is no time, and equals nothing."""
    return start_ticks != 0 and start_ticks_of(pid) == start_ticks


def is_stopped(pid: int) -> bool:
    """By SIGSTOP, or a debugger; no where that cannot be seen."""
    return _stat_of(pid)[0] in (b"T", b"t")


def _stat_of(pid: int) -> list[bytes]:
    """The fields of /proc/PID/stat from the state on; zeros where they cannot be seen, or it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        fields = []
    return fields if len(fields) >= 20 else [b"0"] * 20


def _groups_of(connection: socket.socket) -> list[int]:
    """Its supplementary groups. Of a process in more than fit, none count: better too few rights than too many."""
    try:
        groups = connection.getsockopt(socket.SOL_SOCKET, SO_PEERGROUPS, _GROUPS_BUFFER_BYTES)
    except OSError as error:
        if error.errno != errno.ERANGE:
            raise
        return []
    return [gid for (gid,) in _GROUP.iter_unpack(groups)]


def _pidfd_of(connection: socket.socket, pid: int, uid: int) -> int:
    try:
        return connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
    except OSError as error:
        if error.errno != errno.ENOPROTOOPT:
            raise
    # Before Linux 6.5. If the process that connected has died and a child of it holds the socket, the pid may have been
    # used again: by another user's process we see that, by the same user's we do not.
    with ExitStack() as undo:
        pidfd = os.pidfd_open(pid)
        undo.callback(os.close, pidfd)
        if os.stat(f"/proc/{pid}").st_uid != uid:
            raise ProcessLookupError(errno.ESRCH, "it has ended, and its pid is another user's now")
        undo.pop_all()
    return pidfd
