"""One attached engine process."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass, field

from vatt.errors import SessionEvicted, SessionFenced
from vattd.handles import HandleConnection
from vattd.journal import SessionFacts
from vattd.mailbox import Mailbox
from vattd.page_run import PageRun
from vattd.peer import Peer
from vattd.pool import Pool


@dataclass(slots=True, eq=False)
class EngineSession:
    """One attached process. It ends when the process does, or by its own Detach; never by a timer."""

    facts: SessionFacts
    peer: Peer
    protocol_version: int
    pool: Pool
    connection: HandleConnection | None  # None: an earlier vattd's, and not re-attached yet
    mailbox: Mailbox = field(default_factory=Mailbox)
    fenced: bool = False
    evicted: bool = False  # an operator asked it to leave
    killed: bool = False  # vattd has sent SIGKILL
    secret: bytes = b""  # known where the session was born
    refused_claims: Sequence[PageRun] = ()  # what another session claims as well: told whenever it attaches

    @property
    def session_id(self) -> str:
        return self.facts.session_id

    @property
    def tenant(self) -> str:
        return self.facts.tenant

    def knows(self, secret: bytes) -> bool:
        """Is this the session's secret?"""
        return hmac.compare_digest(digest_of(secret), self.facts.secret_digest)

    async def pull(self, runs: list[PageRun]) -> list[int]:
        """The handle socket's side: new file descriptors of pages that this session leases."""
        self.check_not_fenced()
        return await self.pool.exports.pull(self.session_id, runs, self.peer.uid)

    def check_not_fenced(self) -> None:
        if self.fenced:
            raise SessionFenced(f"session {self.session_id}: its stream broke; re-attach to go on")

    def check_may_lease(self, *, is_repeat: bool) -> None:
        """What was granted before is told again also to who gets no more: it would not know what it holds."""
        self.check_not_fenced()
        if self.evicted and not is_repeat:
            raise SessionEvicted(f"session {self.session_id}: an operator asked it to leave; it gets no more pages")


def digest_of(secret: bytes) -> str:
    """What is kept of a secret."""
    return hashlib.sha256(secret).hexdigest()
