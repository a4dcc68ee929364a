"""What the ledger looks like at one instant. Metrics, RPC and vattctl read this and nothing else."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass

from vatt.usage import Usage
from vattd.guarantee import Access, Guarantee
from vattd.tallies import TenantTally


class PageState(enum.Enum):
    """Every page of the pool is in exactly one of these."""

    UNBACKED = "unbacked"  # within the pool's limit, but no memory behind it
    CREATING = "creating"
    CLEAN = "clean"  # zeros (with `--scrub never`, anything); may be lent to any tenant of its zone
    LEASED = "leased"
    DIRTY = "dirty"  # holds a tenant's data (may be lent to that tenant), or unknown data (to nobody)
    SCRUBBING = "scrubbing"
    DESTROYING = "destroying"
    QUARANTINED = "quarantined"  # somebody may still write to it; never lent as it is


@dataclass(frozen=True, slots=True)
class TenantView:
    name: str
    owner_uid: int | None
    access: Access | None  # None: the owner alone
    guarantee: Guarantee
    session_count: int
    leased_pages: int
    usage: Usage  # summed over its sessions
    tally: TenantTally  # of its leases; a copy


@dataclass(frozen=True, slots=True)
class SessionView:
    session_id: str
    tenant: str
    leased_pages: int
    usage: Usage  # by the session's own word


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All numbers are of the same instant. The sum of `pages_by_state` is the pool's limit."""

    page_size_bytes: int
    max_pages: int
    pages_by_state: Mapping[PageState, int]
    peak_leased_pages: int
    peak_mapped_pages: int
    created_pages_total: int
    scrubbed_pages_total: int
    destroyed_pages_total: int
    recycled_pages_total: int  # lent that had been lent before, without being created in between
    tenants: tuple[TenantView, ...]
    sessions: tuple[SessionView, ...]

    @property
    def backed_pages(self) -> int:
        """Pages with memory behind them, or on their way there or back."""
        return self.max_pages - self.pages_by_state[PageState.UNBACKED]
