"""Sessions: attached engine processes, from the token to the process's exit."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

from vatt.errors import (
    InvalidRequest,
    KillRefused,
    MpsRefused,
    SessionFenced,
    SessionUnknown,
    ShuttingDown,
    SystemLimit,
    TokenRefused,
    VersionUnsupported,
)
from vatt.names import check_tenant_name
from vatt.protocol import MAX_VERSION, MIN_VERSION
from vatt.v1 import vatt_pb2 as pb
from vattd.engine_session import EngineSession, digest_of
from vattd.handles import HandleConnection, parse_run
from vattd.happenings import EndCause, Happenings, Kind
from vattd.journal import Journal, SessionFacts
from vattd.mailbox import Mailbox
from vattd.messages import reclaim_message
from vattd.pool import Pool
from vattd.reclaim import Request
from vattd.recovery import Recovery, Survivor

log = logging.getLogger(__name__)

DRAINING = pb.Notice(
    kind=pb.Notice.KIND_DRAINING,
    message="an operator has vattd drained: let running requests end, begin no others",
)
EVICTED = pb.Notice(
    kind=pb.Notice.KIND_EVICTED, message="an operator asks this session to leave: it gets no more pages"
)
DISPUTED = pb.Notice(
    kind=pb.Notice.KIND_CLAIM_DISPUTED,
    message="another session claims pages that this one has claimed: neither holds them from now on",
)
MAX_CLIENT_NAME = 256
# An engine needs one a device; each costs descriptors of the daemon's.
MAX_SESSIONS_PER_PROCESS = 64
# So that one user or tenant cannot take all places there are.
MAX_SESSIONS_PER_USER = 1024
MAX_SESSIONS_PER_TENANT = 1024


@dataclass(frozen=True, slots=True)
class Attachment:
    """A session's new stream."""

    session: EngineSession
    mailbox: Mailbox


class Sessions:
    """All sessions, and the connections whose token is still good. For the pool, they are its Engines.

    `greeting` is what a process is told of this vattd before it attaches, `guarantee_of` gives what a session of a
    tenant is told of its guarantee. With `allow_mps` sessions may use the device through an MPS server.
    """

    def __init__(
        self,
        pool: Pool,
        greeting: pb.HandleWelcome,
        guarantee_of: Callable[[str], pb.Guarantee],
        journal: Journal,
        recovery: Recovery,
        *,
        allow_mps: bool = False,
    ) -> None:
        self._pool, self._journal, self._recovery = pool, journal, recovery
        self._guarantee_of = guarantee_of
        self._greeting, self._allow_mps = greeting, allow_mps
        self._waiting: dict[bytes, HandleConnection] = {}
        self._sessions: dict[str, EngineSession] = {}
        self._opened = 0
        self._closing = False

    @property
    def _happenings(self) -> Happenings:
        return self._pool.happenings

    def __iter__(self) -> Iterator[EngineSession]:
        return iter(list(self._sessions.values()))

    def __len__(self) -> int:
        return len(self._sessions)

    def count_of(self, pid: int) -> int:
        """Sessions of one process."""
        return sum(session.peer.pid == pid for session in self._sessions.values())

    # The handle socket's side

    def welcome(self, connection: HandleConnection) -> None:
        """Say who is here, and hand out the connection's token."""
        connection.slabs = self._recovery
        self._waiting[connection.token] = connection
        connection.welcome(self._greeting)

    def disconnected(self, connection: HandleConnection) -> None:
        """A connection closed. A session whose process lives is fenced by it, since it can pull no more handles."""
        self._waiting.pop(connection.token, None)
        source = connection.source
        if isinstance(source, EngineSession) and source.connection is connection:
            self.fence(source)

    # The engine service's side

    def restore(self, survivor: Survivor) -> None:
        """A session of an earlier vattd, which may re-attach; the pool and the journal have it already."""
        facts = survivor.facts
        session = EngineSession(facts, survivor.peer, MAX_VERSION, self._pool, None, fenced=True, evicted=facts.evicted)
        self._keep(session)
        number = facts.session_id.rpartition("-")[2]
        self._opened = max(self._opened, int(number) if number.isdecimal() else 0)

    async def attach(self, request: pb.AttachRequest, now_s: float) -> Attachment:
        """A session for the process that the token was handed to: a new one, or the one to resume. Not to be cancelled.

        Raises InvalidRequest, VersionUnsupported, TokenRefused, TenantDenied, SessionUnknown, Draining, SystemLimit,
        MpsRefused, ShuttingDown.
        """
        self._check_not_closing()
        version = _common_version(request)
        check_tenant_name(request.tenant)
        if len(request.client_name) > MAX_CLIENT_NAME or not request.client_name.isprintable():
            raise InvalidRequest(f"client_name holds at most {MAX_CLIENT_NAME} characters, all printable")
        connection = self._waiting.get(bytes(request.token))
        if connection is None:
            raise TokenRefused("not a token of this vattd, or used already: connect to the handle socket anew")
        if request.HasField("resume"):
            session = self._find_to_resume(request, connection)
            if self._recovery.awaits(session.session_id):
                await self._claim(session, request.claims, connection)
                self._check_not_closing()
            self._resume(session, connection, version)
        else:
            session = self._open(request, connection, version, now_s)
        self._waiting.pop(connection.token, None)  # good once
        session.mailbox.put(self._guarantee_of(session.tenant))
        # The letters that this stream reads: a later stream has others.
        return Attachment(session, session.mailbox)

    def _check_not_closing(self) -> None:
        """Who comes back between the end of the streams and that of the sockets belongs to the next vattd: here its
        leases would be refused, and its stream not end before the sockets do."""
        if self._closing:
            raise ShuttingDown("vattd is stopping: attach to the next one")

    def user_of(self, token: bytes) -> int | None:
        """The uid of the process that the token was handed to; None if it is no good (any more)."""
        connection = self._waiting.get(token)
        return None if connection is None else connection.peer.uid

    def find(self, key: pb.SessionKey) -> EngineSession:
        """Raises SessionUnknown, whether the id or the secret is wrong."""
        session = self._sessions.get(key.session_id)
        if session is None or not session.knows(key.secret):
            raise SessionUnknown(f"no session {key.session_id[:80]!r} with this secret: attach again")
        return session

    def fence(self, session: EngineSession) -> None:
        """The session keeps its pages and gets no new ones until it re-attaches."""
        if self._closing or session.fenced or session.session_id not in self._sessions:
            return
        if not session.peer.has_exited():
            session.fenced = True
            session.mailbox.close()  # a stream that is up yet ends, so that the engine hears of it
            self._pool.fence(session.session_id)
            log.info("session %s fenced: its stream broke and its process lives", session.session_id)
            self._note(Kind.SESSION_FENCED, session, "its stream broke and its process lives")

    def end(self, session: EngineSession, *, unmapped: bool) -> int:
        """Forget a session whose process exited, or that detaches (`unmapped`, by its own word), and take its pages
        back. Returns how many there were."""
        if self._sessions.pop(session.session_id, None) is None:
            return 0
        cause = self._end_cause(session, unmapped=unmapped)
        page_count = self._pool.end_session(session.session_id, unmapped=unmapped)
        self._recovery.ended(session.session_id)
        self._journal.drop(session.session_id)
        asyncio.get_running_loop().remove_reader(session.peer.pidfd)
        session.peer.close()
        session.mailbox.close()
        if session.connection is not None:
            session.connection.close()
        words = (session.session_id, session.tenant, cause.value, page_count)
        log.info("session %s of %s ended (%s): %d pages back", *words)
        self._happenings.note_end(cause, tenant=session.tenant, session_id=session.session_id, page_count=page_count)
        return page_count

    def _end_cause(self, session: EngineSession, *, unmapped: bool) -> EndCause:
        if self._recovery.awaits(session.session_id):
            return EndCause.LOST
        if session.killed:
            return EndCause.KILLED
        if session.evicted:
            return EndCause.EVICTED
        return EndCause.DETACHED if unmapped else EndCause.EXITED

    def _note(self, kind: Kind, session: EngineSession, message: str = "") -> None:
        self._happenings.note(kind, tenant=session.tenant, session_id=session.session_id, message=message)

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
        session.killed = True
        log.warning("session %s of %s is killed: %s", session_id, session.tenant, cause)
        self._note(Kind.SESSION_KILLED, session, cause)

    # The operator's side

    def get(self, session_id: str) -> EngineSession:
        """Raises SessionUnknown."""
        try:
            return self._sessions[session_id]
        except KeyError:
            raise SessionUnknown(f"no session {session_id[:80]!r}: see `vattctl status`") from None

    def evict(self, session: EngineSession) -> None:
        """Ask the session to leave: it gets no more pages, and is asked for all that it has."""
        if not session.evicted:
            self._note(Kind.SESSION_EVICTED, session)
        session.evicted = True
        facts = replace(session.facts, evicted=True)
        with suppress(SystemLimit):  # then a vattd that comes after this one does not know
            self._journal.change(facts, self._pool.ledger.noted_pages(session.session_id))
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

    def state_of(self, session: EngineSession) -> str:
        """In a word, as status shows it."""
        if self._recovery.awaits(session.session_id):
            is_late = self._recovery.is_final(asyncio.get_running_loop().time())
            return "silent" if is_late else "recovering"
        return "fenced" if session.fenced else "evicted" if session.evicted else "attached"

    def close(self) -> None:
        """End every stream; engines keep their pages."""
        self._closing = True
        for session in self._sessions.values():
            session.mailbox.close()

    def _open(
        self, request: pb.AttachRequest, connection: HandleConnection, version: int, now_s: float
    ) -> EngineSession:
        if self.count_of(connection.peer.pid) >= MAX_SESSIONS_PER_PROCESS:
            raise InvalidRequest(f"a process has at most {MAX_SESSIONS_PER_PROCESS} sessions: close some")
        self._check_room(connection.peer.uid, request.tenant)
        if request.uses_mps and not self._allow_mps:
            raise _mps_refusal(connection.peer.pid, self._greeting.device.uuid)
        peer, secret = connection.peer, secrets.token_bytes(16)
        facts = SessionFacts(
            session_id=f"{peer.pid}-{self._opened + 1}",
            secret_digest=digest_of(secret),
            tenant=request.tenant,
            pid=peer.pid,
            start_ticks=peer.start_ticks(),
            uid=peer.uid,
            client_name=request.client_name,
            attach_time_s=now_s,
        )
        session = EngineSession(facts, peer, version, self._pool, connection, secret=secret)
        with ExitStack() as undo:
            self._pool.open_session(session.session_id, session.tenant, peer.uid, peer.gids)
            undo.callback(self._pool.end_session, session.session_id, unmapped=True)
            self._journal.add_session(facts)
            undo.pop_all()
        self._opened += 1
        connection.attach(session)
        self._keep(session)
        log.info("session %s of %s attached: pid %d", session.session_id, session.tenant, session.peer.pid)
        self._note(Kind.SESSION_ATTACHED, session, f"pid {session.peer.pid} {session.facts.client_name}".rstrip())
        return session

    def _check_room(self, uid: int, tenant: str) -> None:
        """For a new session. Raises InvalidRequest."""
        if sum(session.peer.uid == uid for session in self._sessions.values()) >= MAX_SESSIONS_PER_USER:
            raise InvalidRequest(f"uid {uid} has {MAX_SESSIONS_PER_USER} sessions, the most it can")
        if sum(session.tenant == tenant for session in self._sessions.values()) >= MAX_SESSIONS_PER_TENANT:
            raise InvalidRequest(f"tenant {tenant} has {MAX_SESSIONS_PER_TENANT} sessions, the most it can")

    def _keep(self, session: EngineSession) -> None:
        self._sessions[session.session_id] = session
        asyncio.get_running_loop().add_reader(session.peer.pidfd, self._exited, session)

    async def _claim(self, session: EngineSession, claims: Iterable[pb.PageRun], connection: HandleConnection) -> None:
        """A session of an earlier vattd says what it holds."""
        runs = [parse_run(run) for run in claims]
        slabs = connection.take_offers()
        try:
            claimed = await self._recovery.claim(session.session_id, runs, slabs)
        finally:
            for fd in slabs.values():
                os.close(fd)
        for loser_id in claimed.losers:
            loser = self._sessions.get(loser_id)
            if loser is not None:
                loser.mailbox.put(DISPUTED)
        pages = sum(run.extent.page_count for run in claimed.runs)
        log.info("session %s of an earlier vattd holds %d pages", session.session_id, pages)
        if claimed.refused:
            log.error("session %s claims what another session claims too: %s", session.session_id, claimed.refused)
        session.refused_claims = claimed.refused

    def _find_to_resume(self, request: pb.AttachRequest, connection: HandleConnection) -> EngineSession:
        session = self.find(request.resume)
        # While the session's pidfd says that its process lives, the pid cannot be another's.
        if session.peer.has_exited() or session.peer.pid != connection.peer.pid or session.tenant != request.tenant:
            raise SessionUnknown(f"session {session.session_id} is another process's or another tenant's")
        # It keeps what it holds, and gets no more, if its user may not use the tenant any more.
        self._pool.ledger.check_access(session.tenant, connection.peer.uid, connection.peer.gids)
        return session

    def _resume(self, session: EngineSession, connection: HandleConnection, version: int) -> None:
        if session.session_id not in self._sessions:
            raise SessionUnknown(f"session {session.session_id} ended meanwhile")
        if connection.is_closed or connection.source is not None:
            raise SessionFenced(f"session {session.session_id}: its connection ended meanwhile; re-attach")
        old_connection, old_mailbox = session.connection, session.mailbox
        connection.peer.close()  # the session has its own pidfd of this process
        connection.attach(session)
        session.connection, session.mailbox, session.fenced = connection, Mailbox(), False
        session.protocol_version = version  # since its birth, vattd may have become another
        old_mailbox.close()
        if old_connection is not None:
            old_connection.close()
        self._pool.ask_again(session.session_id)  # what it was asked while nobody listened
        if self._pool.draining:
            session.mailbox.put(DRAINING)
        if session.evicted:
            self.evict(session)
        log.info("session %s re-attached", session.session_id)
        self._note(Kind.SESSION_RESUMED, session)

    def _exited(self, session: EngineSession) -> None:
        self.end(session, unmapped=False)


def _mps_refusal(pid: int, uuid: str) -> MpsRefused:
    return MpsRefused(
        f"process {pid} reaches {uuid} through an MPS server, where its end does not prove that its kernels ended: run "
        "it with CUDA_MPS_PIPE_DIRECTORY set to an empty directory, or start vattd with --allow-mps"
    )


def _common_version(request: pb.AttachRequest) -> int:
    version = min(request.max_protocol_version, MAX_VERSION)
    if version < max(request.min_protocol_version, MIN_VERSION):
        raise VersionUnsupported(
            f"the client speaks versions {request.min_protocol_version} to {request.max_protocol_version} of the wire, "
            f"this vattd {MIN_VERSION} to {MAX_VERSION}: update the older of the two"
        )
    return version
