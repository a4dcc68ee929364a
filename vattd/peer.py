"""Who is at the other end of a Unix socket, as the kernel says it."""

from __future__ import annotations

import os
import select
import socket
import struct
from contextlib import ExitStack
from dataclasses import dataclass

from vatt.errors import InvalidRequest

SO_PEERPIDFD = 77  # Linux 6.5; not in the socket module yet
_UCRED = struct.Struct("3i")


@dataclass(frozen=True, slots=True)
class Peer:
    """A process at the other end. Owns `pidfd`, which names the process even after its pid is used again."""

    pid: int
    uid: int
    gid: int
    pidfd: int

    def has_exited(self) -> bool:
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return bool(poll.poll(0))

    def close(self) -> None:
        os.close(self.pidfd)


def peer_of(connection: socket.socket) -> Peer:
    """The process that connected. Raises InvalidRequest if it cannot be watched, since it then could never be ended."""
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if pid == 0:
        raise InvalidRequest(
            "your process is in a pid namespace that vattd cannot see, so vattd could not tell when it ends: "
            "share the host's pid namespace (docker: --pid=host; Kubernetes: hostPID: true)"
        )
    with ExitStack() as undo:
        try:
            pidfd = connection.getsockopt(socket.SOL_SOCKET, SO_PEERPIDFD)
        except OSError:
            # Before Linux 6.5. The pid may have been used again since; the second look at the socket's peer cannot
            # tell, but a process that died has closed its end, which the caller sees as an end of file at once.
            try:
                pidfd = os.pidfd_open(pid)
            except OSError as error:
                raise InvalidRequest(f"cannot watch process {pid}: {error}") from error
        undo.callback(os.close, pidfd)
        os.set_inheritable(pidfd, False)
        undo.pop_all()
    return Peer(pid, uid, gid, pidfd)
