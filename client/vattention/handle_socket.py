"""The engine's end of the handle socket: the token that a session is born with, then file descriptors.

One serialized message a packet (SOCK_SEQPACKET); descriptors ride beside a HandleDelivery as SCM_RIGHTS.
"""

from __future__ import annotations

import array
import itertools
import os
import resource
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from vatt.errors import DaemonUnreachable, SystemLimit, VattError, from_wire
from vatt.protocol import MAX_FDS_PER_PACKET, MAX_HANDLE_PACKET_BYTES
from vatt.sockets import Sockets, start_command
from vatt.v1 import vatt_pb2
from vattention.vmm.limits import open_fd_count

TIMEOUT_S = 10.0
# Descriptors left to the rest of the process when we open many.
_SPARE_FDS = 16
_FD_BYTES = array.array("i").itemsize
_T = TypeVar("_T")


class HandleConnection:
    """A connection to handles.sock. While it is open the token is good. Thread-safe: one pull at a time."""

    def __init__(self, connection: socket.socket) -> None:
        """Takes over a connected socket and reads vattd's welcome from it."""
        self._socket = connection
        self._lock = threading.Lock()
        self._pull_ids = itertools.count(1)
        connection.settimeout(TIMEOUT_S)
        self.welcome = vatt_pb2.HandleWelcome()
        for fd in self._receive(self.welcome):
            os.close(fd)
        if self.welcome.HasField("error"):
            raise _refusal(self.welcome.error)

    @classmethod
    def connect(cls, path: Path) -> HandleConnection:
        with ExitStack() as undo:
            connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            undo.callback(connection.close)
            connection.settimeout(TIMEOUT_S)
            try:
                connection.connect(str(path))
            except OSError as error:
                start = start_command(Sockets(path.parent))
                raise DaemonUnreachable(
                    f"no vattd answers at {path} ({error.strerror or error}): start it with `{start}`"
                ) from error
            handles = cls(connection)
            undo.pop_all()
        return handles

    def pull(self, runs: Sequence[vatt_pb2.PageRun]) -> list[int]:
        """The file descriptors of these pages, in their order; the caller closes them. At most 253 pages in all."""
        page_count = sum(run.page_count for run in runs)
        with self._lock:
            pull = vatt_pb2.HandlePull(pull_id=next(self._pull_ids), runs=runs)
            self._call(lambda: self._socket.send(pull.SerializeToString()))
            with ExitStack() as undo:
                delivery = vatt_pb2.HandleDelivery()
                # An answer to a pull that somebody gave up on may still lie in the socket.
                while delivery.pull_id != pull.pull_id:
                    undo.close()
                    fds = self._receive(delivery)
                    for fd in fds:
                        undo.callback(os.close, fd)
                if delivery.HasField("error"):
                    raise _refusal(delivery.error)
                if not len(fds) == delivery.page_count == page_count:
                    raise VattError(
                        f"asked for {page_count} descriptors, told of {delivery.page_count}, got {len(fds)}"
                    )
                undo.pop_all()
            return fds

    def offer(self, slabs: Mapping[int, int]) -> None:
        """Bring an earlier vattd's slabs to this one, before Attach: descriptors by zone, which stay the caller's.

        Only if the welcome says that some are awaited: else they may be refused, or end the connection.
        """
        zones = list(slabs)
        with self._lock:
            for at in range(0, len(zones), MAX_FDS_PER_PACKET):
                batch = zones[at : at + MAX_FDS_PER_PACKET]
                offer = vatt_pb2.HandlePull(pull_id=next(self._pull_ids), offered_zones=batch)
                packet, fds = offer.SerializeToString(), [slabs[zone] for zone in batch]
                self._call(lambda: socket.send_fds(self._socket, [packet], fds))  # noqa: B023  called at once
                delivery = vatt_pb2.HandleDelivery()
                for fd in self._receive(delivery):
                    os.close(fd)
                if delivery.HasField("error"):
                    raise _refusal(delivery.error)

    def close(self) -> None:
        """Idempotent."""
        self._socket.close()

    def _receive(self, message: Message) -> list[int]:
        """Read one packet into `message`; the descriptors that came with it belong to the caller."""
        data, controls, flags, _ = self._call(
            lambda: self._socket.recvmsg(
                MAX_HANDLE_PACKET_BYTES, socket.CMSG_SPACE(MAX_FDS_PER_PACKET * _FD_BYTES), socket.MSG_CMSG_CLOEXEC
            )
        )
        fds = array.array("i")
        for level, kind, content in controls:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(content[: len(content) - len(content) % _FD_BYTES])
        with ExitStack() as undo:
            for fd in fds:
                undo.callback(os.close, fd)
            if flags & socket.MSG_CTRUNC:
                raise SystemLimit(f"the kernel dropped descriptors that vattd sent: {_limit_text()}")
            if not data:
                raise DaemonUnreachable("vattd closed the handle socket: see `vattctl status`, or re-attach")
            if flags & socket.MSG_TRUNC:
                raise VattError(f"a packet of more than {MAX_HANDLE_PACKET_BYTES} bytes on the handle socket")
            try:
                message.ParseFromString(data)
            except DecodeError as error:
                raise VattError("what answers at the handle socket does not speak vattd's protocol") from error
            undo.pop_all()
        return list(fds)

    def _call(self, step: Callable[[], _T]) -> _T:
        try:
            return step()
        except OSError as error:  # a timeout is one too
            raise DaemonUnreachable(f"the handle socket failed: {error}") from error


def room_for_fds() -> int:
    """How many descriptors this process may open at a time for a pull, with a few to spare.

    Past the limit the kernel would drop them silently on their way. Raises SystemLimit if there is room for none.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    room = MAX_FDS_PER_PACKET
    if limit != resource.RLIM_INFINITY:
        room = min(room, limit - open_fd_count() - _SPARE_FDS)
    if room < 1:
        raise SystemLimit(f"no file descriptors left to receive pages with: {_limit_text()}")
    return room


def _limit_text() -> str:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return f"RLIMIT_NOFILE is {limit} (`ulimit -n {hard}` raises it)"


def _refusal(error: vatt_pb2.HandleError) -> VattError:
    return from_wire(error.reason, error.message, {})
