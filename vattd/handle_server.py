"""The handle socket's listener."""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from pathlib import Path

from vatt.errors import VattError
from vatt.v1 import vatt_pb2 as pb
from vattd.closer import Closer
from vattd.doorkeeper import pass_descriptors
from vattd.handles import HandleConnection
from vattd.outbox import Outboxes
from vattd.peer import Peer, peer_of
from vattd.rates import Rates
from vattd.sessions import Sessions

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 4096
# As many as a process may have sessions, and some that are on their way.
MAX_CONNECTIONS_PER_PROCESS = 80
# A user's processes together leave room for others'; those that have not attached yet hold theirs for a minute.
MAX_CONNECTIONS_PER_USER = 1280
MAX_UNATTACHED_PER_USER = 256
# After the process ran out of file descriptors, try to accept again this much later.
ACCEPT_RETRY_S = 0.1


class HandleServer:
    """Accepts processes, and refuses those that cannot be watched. `users` is how fast each user may speak."""

    def __init__(self, sessions: Sessions, users: Rates) -> None:
        self._sessions, self._users = sessions, users
        self._closer = Closer()
        self._outboxes = Outboxes(self._closer)
        self._loop = asyncio.get_running_loop()
        self._connections: set[HandleConnection] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)

    def listen(self, path: Path) -> None:
        """Until `close`."""
        try:
            self._listener.bind(str(path))
            pass_descriptors(self._listener, False)
            self._listener.listen(128)
        except BaseException:
            self._listener.close()
            self._outboxes.close()
            raise
        self._loop.add_reader(self._listener, self._accept)

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        self._closer.close(None, [self._listener.detach()])
        for connection in list(self._connections):
            connection.close()
        self._outboxes.close()

    def _accept(self) -> None:
        try:
            accepted, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.warning("cannot accept: %s", error)
            self._loop.remove_reader(self._listener)
            self._loop.call_later(ACCEPT_RETRY_S, self._listen_again)
            return
        accepted.setblocking(False)
        try:
            peer = peer_of(accepted)
        except VattError as error:
            log.warning("a peer was refused: %s", error)
            self._refuse(accepted, error, None)
            return
        try:
            self._check_room(peer)
        except VattError as error:
            peer.close()
            self._refuse(accepted, error, peer.uid)
            return
        connection = HandleConnection(accepted, peer, self._closed, partial(self._delay_s, peer.uid), self._outboxes)
        self._connections.add(connection)
        connection.in_turn(1.0, partial(self._welcome, connection))

    def _delay_s(self, uid: int, weight: float) -> float:
        return self._users.delay_s(uid, self._loop.time(), weight)

    def _welcome(self, connection: HandleConnection) -> None:
        try:
            self._sessions.welcome(connection)
        except OSError:  # it has gone already
            connection.close()

    def _check_room(self, peer: Peer) -> None:
        """Sessions count even when their connection has gone: they keep a descriptor open."""
        of_peer = sum(connection.peer.pid == peer.pid for connection in self._connections)
        if max(of_peer, self._sessions.count_of(peer.pid)) >= MAX_CONNECTIONS_PER_PROCESS:
            raise VattError(f"this process has {MAX_CONNECTIONS_PER_PROCESS} connections already, the most it can")
        of_user = [connection for connection in self._connections if connection.peer.uid == peer.uid]
        if len(of_user) + self._closer.count_of(peer.uid) >= MAX_CONNECTIONS_PER_USER:
            raise VattError(f"uid {peer.uid} has {MAX_CONNECTIONS_PER_USER} connections already, the most it can")
        if sum(connection.source is None for connection in of_user) >= MAX_UNATTACHED_PER_USER:
            raise VattError(
                f"uid {peer.uid} has {MAX_UNATTACHED_PER_USER} connections that have not attached, the most it can"
            )
        if max(len(self._connections), len(self._sessions)) >= MAX_CONNECTIONS:
            raise VattError(f"{MAX_CONNECTIONS} connections are open already, the most there can be")

    def _listen_again(self) -> None:
        if self._listener.fileno() >= 0:
            self._loop.add_reader(self._listener, self._accept)

    def _closed(self, connection: HandleConnection) -> None:
        self._connections.discard(connection)
        self._sessions.disconnected(connection)

    def _refuse(self, accepted: socket.socket, error: VattError, uid: int | None) -> None:
        failure = pb.HandleError(reason=error.reason, message=str(error))
        with suppress(OSError):  # it has gone already
            accepted.send(pb.HandleWelcome(error=failure).SerializeToString())
        self._closer.close_connection(uid, accepted)
