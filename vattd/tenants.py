"""Tenants: named budgets, what each was promised, and who may use it. Pure; counts are pages."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from vatt.errors import InvalidRequest, TenantDenied
from vattd.guarantee import NO_GUARANTEE, Access, Guarantee
from vattd.shelf import Shelf
from vattd.stock import Stock
from vattd.tallies import TenantTally

# Anybody may name a new tenant, so their number is bounded.
MAX_TENANTS = 4096
# Of those that nobody configured: one user cannot use up all names.
MAX_TENANTS_PER_UID = 256


@dataclass(slots=True, eq=False)
class Tenant:
    """A named budget. `access` is None until somebody configures it: then only its owner may use it."""

    name: str
    owner_uid: int | None  # whose first session named it; None before that
    shelf: Shelf
    guarantee: Guarantee = NO_GUARANTEE
    access: Access | None = None
    session_count: int = 0
    tally: TenantTally = field(default_factory=TenantTally)  # of its leases

    @property
    def held_pages(self) -> int:
        """Leased by its sessions."""
        return self.shelf.lent_pages

    @property
    def is_configured(self) -> bool:
        return self.access is not None


class Tenants:
    """All that are known: those with a session, a page or a guarantee.

    Invariants: `sessionless`, `promised` and `limited` are those without a session, with a min, with a max, by name;
    `promised_pages` is the sum of the mins; the stock keeps what is hard of them.
    """

    def __init__(self, stock: Stock) -> None:
        self._stock = stock
        self._tenants: dict[str, Tenant] = {}
        self.sessionless: dict[str, Tenant] = {}
        self.promised: dict[str, Tenant] = {}
        self.limited: dict[str, Tenant] = {}
        self.promised_pages = 0

    def __iter__(self) -> Iterator[Tenant]:
        return iter(self._tenants.values())

    def get(self, name: str) -> Tenant | None:
        return self._tenants.get(name)

    @property
    def attached_count(self) -> int:
        """How many have a session."""
        return len(self._tenants) - len(self.sessionless)

    def find_or_open(self, name: str, uid: int | None = None) -> Tenant:
        """`uid` names it, or the operator does, or it was there before. Raises InvalidRequest if there are too many."""
        found = self._tenants.get(name)
        if found is not None:
            return found
        if len(self._tenants) >= MAX_TENANTS:
            raise InvalidRequest(f"there are {MAX_TENANTS} tenants already, the most there can be")
        if uid is not None:
            own = sum(one.owner_uid == uid and not one.is_configured for one in self._tenants.values())
            if own >= MAX_TENANTS_PER_UID:
                raise InvalidRequest(
                    f"uid {uid} has named {MAX_TENANTS_PER_UID} tenants already, the most it can: "
                    f"`vattctl reserve {name} --allow {uid}` makes one more"
                )
        tenant = self._tenants[name] = Tenant(name, None, self._stock.open_shelf())
        self.sessionless[name] = tenant
        return tenant

    def set(self, tenant: Tenant, guarantee: Guarantee, access: Access | None) -> None:
        """`access` None: nobody configures it any more."""
        self.promised_pages += guarantee.min_pages - tenant.guarantee.min_pages
        tenant.guarantee, tenant.access = guarantee, access
        self._stock.keep_for(tenant.shelf, guarantee.hard_pages)
        for those, belongs in (
            (self.promised, guarantee.min_pages > 0),
            (self.limited, guarantee.max_pages is not None),
        ):
            those.pop(tenant.name, None)
            if belongs:
                those[tenant.name] = tenant

    def check_access(self, tenant: str, uid: int, gids: Iterable[int]) -> None:
        """Raises TenantDenied if the user may not use the tenant."""
        found = self._tenants.get(tenant)
        if found is None:
            return
        if found.access is not None and not found.access.allows(uid, gids):
            raise TenantDenied(
                f"tenant {tenant!r} is for {found.access}, not for uid {uid}: `vattctl reserve {tenant} --allow ...` "
                "says who may use it, all of them"
            )
        if found.access is None and found.owner_uid not in (None, uid):
            raise TenantDenied(
                f"tenant {tenant!r} belongs to uid {found.owner_uid}, not to uid {uid}: `vattctl reserve {tenant} "
                f"--allow {found.owner_uid} --allow {uid}` lets both use it"
            )

    def join(self, tenant: Tenant, uid: int) -> None:
        """A session more, of this user, who owns the tenant if nobody does."""
        if tenant.owner_uid is None:
            tenant.owner_uid = uid
        tenant.session_count += 1
        self.sessionless.pop(tenant.name, None)

    def leave(self, tenant: Tenant) -> None:
        """A session less."""
        tenant.session_count -= 1
        if not tenant.session_count:
            self.sessionless[tenant.name] = tenant

    def forget_empty(self) -> list[int]:
        """Forget those without a session, a page and a guarantee. Returns the zones that nothing is left of."""
        zones = []
        for tenant in list(self.sessionless.values()):
            if not tenant.is_configured and self._stock.is_bare(tenant.shelf):
                del self._tenants[tenant.name], self.sessionless[tenant.name]
                zones += self._stock.close_shelf(tenant.shelf)
        return zones
