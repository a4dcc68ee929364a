"""Conditions that nobody changes at a moment of its own: looked at again and again, and told when they change."""

from __future__ import annotations

from vattd.happenings import Kind
from vattd.pool import Pool
from vattd.pressure import PromiseState
from vattd.recovery import Recovery


class Conditions:
    """What they were when last looked at. Belongs to the event loop."""

    def __init__(self, pool: Pool, recovery: Recovery) -> None:
        self._pool, self._recovery = pool, recovery
        self._broken: set[str] = set()  # tenants whose promise is
        self._is_short = False
        self._quarantined_pages = 0
        self._awaited = recovery.awaited_count

    def look(self, now_s: float) -> None:
        """`now_s` is on the event loop's clock."""
        self._look_at_promises(now_s)
        self._look_at_device()
        awaited = self._recovery.awaited_count
        if self._awaited and not awaited:
            recovery = self._recovery
            message = f"{recovery.recovered_total} sessions are back, {recovery.lost_total} ended before they were"
            self._pool.happenings.note(Kind.RECOVERY_ENDED, message=message)
        self._awaited = awaited

    def _look_at_promises(self, now_s: float) -> None:
        pool, broken = self._pool, set()
        promised = list(pool.ledger.promised())
        for tenant, view in zip(promised, pool.pressure.promises_of(promised, now_s), strict=True):
            if view.state is not PromiseState.BROKEN:
                continue
            broken.add(tenant.name)
            if tenant.name not in self._broken:
                pool.happenings.note(
                    Kind.PROMISE_BROKEN,
                    tenant=tenant.name,
                    page_count=view.missing_pages,
                    message=f"by {', '.join(view.broken_by)}",
                )
        kept = (self._broken - broken) & {tenant.name for tenant in promised}  # not who is promised nothing any more
        for name in sorted(kept):
            pool.happenings.note(Kind.PROMISE_KEPT, tenant=name)
        self._broken = broken

    def _look_at_device(self) -> None:
        pool = self._pool
        is_short = pool.shortage is not None
        if is_short and not self._is_short:
            pool.happenings.note(Kind.SHORTAGE_BEGAN, message=str(pool.shortage))
        elif self._is_short and not is_short:
            pool.happenings.note(Kind.SHORTAGE_ENDED)
        self._is_short = is_short
        lost_pages = pool.ledger.max_pages - pool.ledger.limit_pages
        if lost_pages > self._quarantined_pages:
            pool.happenings.note(
                Kind.PAGES_QUARANTINED,
                page_count=lost_pages - self._quarantined_pages,
                message="the driver refused to let go of them, or two sessions claim them",
            )
        self._quarantined_pages = lost_pages
