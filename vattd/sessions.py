"""Sessions: attached engine processes, from the token to the process's exit."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from vatt.errors import (
    InvalidRequest,
    KillRefused,
    SessionEvicted,
    SessionFenced,
    SessionUnknown,
    TokenRefused,
    VersionUnsupported,
)
from vatt.names import check_tenant_name
from vatt.protocol import MAX_VERSION, MIN_VERSION
from vatt.v1 import vatt_pb2 as pb
from vattd.handles import HandleConnection
from vattd.ledger import PageRun
from vattd.mailbox import Mailbox
from vattd.messages import reclaim_message
from vattd.peer import Peer
from vattd.pool import Pool
from vattd.reclaim import Request

log = logging.getLogger(__name__)

DRAINING = pb.Notice(
    kind=pb.Notice.KIND_DRAINING,
    message="an operator has vattd drained: let running requests end, begin no others",
)
EVICTED = pb.Notice(
    kind=pb.Notice.KIND_EVICTED, message="an operator asks this session to leave: it gets no more pages"
)
MAX_CLIENT_NAME = 256
# An engine needs one a device; each costs descriptors of the daemon's.
MAX_SESSIONS_PER_PROCESS = 64


@dataclass(slots=True, eq=False)
class EngineSession:
    """One attached process. It ends when the process does, or by its own Detach; never by a timer."""

    session_id: str
    secret: bytes
    tenant: str
    peer: Peer
    client_name: str
    attach_time_s: float
    protocol_version: int
    pool: Pool
    connection: HandleConnection
    mailbox: Mailbox = field(default_factory=Mailbox)
    fenced: bool = False
    evicted: bool = False  # an operator asked it to leave

    async def pull(self, runs: list[PageRun]) -> list[int]:
        """The handle socket's side: new file descriptors of pages that this session leases."""
        self.check_not_fenced()
        return await self.pool.export(self.session_id, runs)

    def check_not_fenced(self) -> None:
        if self.fenced:
            raise SessionFenced(f"session {self.session_id}: its stream broke; re-attach to go on")

    def check_may_lease(self, *, is_repeat: bool) -> None:
        """What was granted before is told again also to who gets no more: it would not know what it holds."""
        self.check_not_fenced()
        if self.evicted and not is_repeat:
            raise SessionEvicted(f"session {self.session_id}: an operator asked it to leave; it gets no more pages")


class Sessions:
    """All sessions, and the connections whose token is still good. For the pool, they are its Engines.

    `guarantee_of` gives what a session of a tenant is told of its guarantee.
    """

    def __init__(self, pool: Pool, incarnation: int, guarantee_of: Callable[[str], pb.Guarantee]) -> None:
        self._pool = pool
        self._guarantee_of = guarantee_of
        self._incarnation = incarnation
        self._waiting: dict[bytes, HandleConnection] = {}
        self._sessions: dict[str, EngineSession] = {}
        self._opened = 0
        self._closing = False

    def __iter__(self) -> Iterator[EngineSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def count_of(self, pid: int) -> int:
        """Sessions of one process."""
        return sum(session.peer.pid == pid for session in self._sessions.values())

    # The handle socket's side

    def welcome(self, connection: HandleConnection) -> None:
        """Hand out the connection's token."""
        self._waiting[connection.token] = connection
        connection.welcome(self._incarnation)

    def disconnected(self, connection: HandleConnection) -> None:
        """A connection closed. A session whose process lives is fenced by it, since it can pull no more handles."""
        self._waiting.pop(connection.token, None)
        source = connection.source
        if isinstance(source, EngineSession) and source.connection is connection:
            self.fence(source)

    # The engine service's side

    def attach(self, request: pb.AttachRequest, now_s: float) -> EngineSession:
        """A session for the process that the token was handed to: a new one, or the one to resume.

        Raises InvalidRequest, VersionUnsupported, TokenRefused, TenantDenied, SessionUnknown.
        """
        version = _common_version(request)
        check_tenant_name(request.tenant)
        if len(request.client_name) > MAX_CLIENT_NAME or not request.client_name.isprintable():
            raise InvalidRequest(f"client_name holds at most {MAX_CLIENT_NAME} characters, all printable")
        connection = self._waiting.get(bytes(request.token))
        if connection is None:
            raise TokenRefused("not a token of this vattd, or used already: connect to the handle socket anew")
        if request.HasField("resume"):
            session = self._resume(request, connection)
        else:
            session = self._open(request, connection, version, now_s)
        del self._waiting[connection.token]  # good once
        session.mailbox.put(self._guarantee_of(session.tenant))
        return session

    def find(self, key: pb.SessionKey) -> EngineSession:
        """Raises SessionUnknown, whether the id or the secret is wrong."""
        session = self._sessions.get(key.session_id)
        if session is None or not hmac.compare_digest(session.secret, key.secret):
            raise SessionUnknown(f"no session {key.session_id[:80]!r} with this secret: attach again")
        return session

    def fence(self, session: EngineSession) -> None:
        """The session keeps its pages and gets no new ones until it re-attaches."""
        if self._closing or session.fenced or session.session_id not in self._sessions:
            return
        if not session.peer.has_exited():
            session.fenced = True
            self._pool.fence(session.session_id)
            log.info("session %s fenced: its stream broke and its process lives", session.session_id)

    def end(self, session: EngineSession, *, unmapped: bool, cause: str) -> int:
        """Forget a session and take its pages back. Returns how many there were."""
        if self._sessions.pop(session.session_id, None) is None:
            return 0
        page_count = self._pool.end_session(session.session_id, unmapped=unmapped)
        asyncio.get_running_loop().remove_reader(session.peer.pidfd)
        session.peer.close()
        session.mailbox.close()
        session.connection.close()
        log.info("session %s of %s ended (%s): %d pages back", session.session_id, session.tenant, cause, page_count)
        return page_count

    # The pool's side

    def listens(self, session_id: str) -> bool:
        session = self._sessions.get(session_id)
        return session is not None and not session.fenced

    def ask_back(self, request: Request) -> None:
        session = self._sessions.get(request.session_id)
        if session is not None:
            session.mailbox.put(reclaim_message(request))

    def kill(self, session_id: str, cause: str) -> None:
        """SIGKILL by pidfd, which can hit nobody else. The session ends when the kernel says that the process has.

        Raises KillRefused.
        """
        session = self._sessions.get(session_id)
        if session is None:
            return
        try:
            signal.pidfd_send_signal(session.peer.pidfd, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return
        except OSError as error:
            peer = session.peer
            raise KillRefused(
                f"process {peer.pid} of session {session_id} is uid {peer.uid}'s, and vattd (uid {os.geteuid()}) may "
                f"not kill it ({error.strerror}): `sudo kill -9 {peer.pid}` does"
            ) from error
        log.warning("session %s of %s is killed: %s", session_id, session.tenant, cause)

    # The operator's side

    def get(self, session_id: str) -> EngineSession:
        """Raises SessionUnknown."""
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionUnknown(f"no session {session_id[:80]!r}: see `vattctl status`") from None

    def evict(self, session: EngineSession) -> None:
        """Ask the session to leave: it gets no more pages, and is asked for all that it has."""
        session.evicted = True
        session.mailbox.put(EVICTED)
        self._pool.evict(session.session_id)

    def tell_tenant(self, tenant: str) -> None:
        """Its guarantee is another now."""
        guarantee = self._guarantee_of(tenant)
        for session in self._sessions.values():
            if session.tenant == tenant:
                session.mailbox.put(guarantee)

    def tell_all(self, notice: pb.Notice) -> None:
        for session in self._sessions.values():
            session.mailbox.put(notice)

    def close(self) -> None:
        """End every stream; engines keep their pages."""
        self._closing = True
        for session in self._sessions.values():
            session.mailbox.close()

    def _open(
        self, request: pb.AttachRequest, connection: HandleConnection, version: int, now_s: float
    ) -> EngineSession:
        if self.count_of(connection.peer.pid) >= MAX_SESSIONS_PER_PROCESS:
            raise InvalidRequest(f"a process has at most {MAX_SESSIONS_PER_PROCESS} sessions: detach some")
        session = EngineSession(
            session_id=f"{connection.peer.pid}-{self._opened + 1}",
            secret=secrets.token_bytes(16),
            tenant=request.tenant,
            peer=connection.peer,
            client_name=request.client_name,
            attach_time_s=now_s,
            protocol_version=version,
            pool=self._pool,
            connection=connection,
        )
        peer = session.peer
        self._pool.open_session(session.session_id, session.tenant, peer.uid, peer.gids)
        self._opened += 1
        connection.attach(session)
        self._sessions[session.session_id] = session
        asyncio.get_running_loop().add_reader(session.peer.pidfd, self._exited, session)
        log.info("session %s of %s attached: pid %d", session.session_id, session.tenant, session.peer.pid)
        return session

    def _resume(self, request: pb.AttachRequest, connection: HandleConnection) -> EngineSession:
        session = self.find(request.resume)
        # While the session's pidfd says that its process lives, the pid cannot be another's.
        if session.peer.has_exited() or session.peer.pid != connection.peer.pid or session.tenant != request.tenant:
            raise SessionUnknown(f"session {session.session_id} is another process's or another tenant's")
        # It keeps what it holds, and gets no more, if its user may not use the tenant any more.
        self._pool.ledger.check_access(session.tenant, connection.peer.uid, connection.peer.gids)
        old_connection, old_mailbox = session.connection, session.mailbox
        connection.peer.close()  # the session has its own pidfd of this process
        connection.attach(session)
        session.connection, session.mailbox, session.fenced = connection, Mailbox(), False
        old_mailbox.close()
        old_connection.close()
        self._pool.ask_again(session.session_id)  # what it was asked while nobody listened
        if self._pool.draining:
            session.mailbox.put(DRAINING)
        if session.evicted:
            self.evict(session)
        log.info("session %s re-attached", session.session_id)
        return session

    def _exited(self, session: EngineSession) -> None:
        self.end(session, unmapped=False, cause="its process exited")


def _common_version(request: pb.AttachRequest) -> int:
    version = min(request.max_protocol_version, MAX_VERSION)
    if version < max(request.min_protocol_version, MIN_VERSION):
        raise VersionUnsupported(
            f"the client speaks versions {request.min_protocol_version} to {request.max_protocol_version} of the wire, "
            f"this vattd {MIN_VERSION} to {MAX_VERSION}: update the older of the two"
        )
    return version
