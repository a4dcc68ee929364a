"""What becomes of leases, and of asks for pages: told as it happens, and counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vatt.errors import VattError
from vattd.happenings import Happenings, Kind
from vattd.ledger import Ledger
from vattd.reclaim import Ask, ReclaimCounts, Request
from vattd.tallies import PurposeTally
from vattd.wish import Purpose, Waiting


class PoolRecord:
    """`tallies` are of leases that were granted; the others' are their tenants'. Belongs to the event loop."""

    def __init__(self, ledger: Ledger, reclaim_counts: ReclaimCounts, happenings: Happenings) -> None:
        self.tallies = {purpose: PurposeTally() for purpose in Purpose}
        self._ledger, self._reclaim_counts, self._happenings = ledger, reclaim_counts, happenings

    def granted(self, entry: Waiting, page_count: int, took_s: float) -> None:
        """Of a wish, once, however many calls wait for it."""
        self.tallies[entry.wish.purpose].grant(page_count, took_s)
        self._happenings.note(
            Kind.LEASE_GRANTED,
            tenant=entry.party.name,
            session_id=entry.wish.session_id,
            page_count=page_count,
            waited_s=took_s,
        )

    def refused(self, session_id: str, page_count: int, error: VattError) -> None:
        """A call for a lease was answered with this error."""
        tenant = self._ledger.find_tenant_of(session_id)
        if tenant is not None:
            tenant.tally.refusals[error.reason] += 1
        self._happenings.note(
            Kind.LEASE_REFUSED,
            tenant="" if tenant is None else tenant.name,
            session_id=session_id,
            page_count=page_count,
            reason=error.reason,
            message=str(error),
        )

    def asked(self, request: Request) -> None:
        """A session was told what is wanted of it."""
        self._note_ask(Kind.RECLAIM_ASKED, request)

    def ignored(self, ask: Ask) -> None:
        """The time for an ask went by."""
        self._note_ask(Kind.RECLAIM_IGNORED, ask)

    @contextmanager
    def answers_of(self, session_id: str) -> Iterator[None]:
        """What is done inside may meet an ask, by word or by pages."""
        before = self._reclaim_counts.answered
        yield
        if self._reclaim_counts.answered > before:
            tenant = self._tenant_name(session_id)
            self._happenings.note(Kind.RECLAIM_ANSWERED, tenant=tenant, session_id=session_id)

    def _note_ask(self, kind: Kind, ask: Request | Ask) -> None:
        self._happenings.note(
            kind,
            tenant=self._tenant_name(ask.session_id),
            session_id=ask.session_id,
            page_count=ask.page_count,
            reason=ask.reason.name.lower(),
            message=ask.reason.value,
        )

    def _tenant_name(self, session_id: str) -> str:
        tenant = self._ledger.find_tenant_of(session_id)
        return "" if tenant is None else tenant.name
