"""What the books have of a tenant, and of all of them: plain counters.

Not vattd's Ledger, which says which pages a tenant has: no decision of the policy depends on that. The Ledger itself
would take little time (measured: 0.15 us a page, half a second for a trace), but what is returned to it is dirty, so
the workshop's part would have to be played as well, and every engine would have to keep page ids for each request.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vatt.usage import Usage
from vattd.guarantee import NO_GUARANTEE, Guarantee
from vattd.snapshot import SessionView

PAGE_SIZE_BYTES = 2 << 20


@dataclass(slots=True, eq=False)
class Account:
    """A tenant with one engine, which is its session, of the same name."""

    name: str
    guarantee: Guarantee = NO_GUARANTEE
    held_pages: int = 0
    wanted_pages: int = 0  # asked back, and not returned yet


class Accounts:
    """All accounts of one pool: vattd.wish.Books for the policy, and vattd.pressure.Holdings.

    Invariant: `lent_pages` is what the accounts hold in all, and never above `capacity_pages`.
    """

    page_size_bytes = PAGE_SIZE_BYTES

    def __init__(self, capacity_pages: int, accounts: Iterable[Account]) -> None:
        self.capacity_pages = self.limit_pages = self.max_pages = capacity_pages
        self.lent_pages = 0
        self._accounts = {account.name: account for account in accounts}
        self._promised = [account for account in self._accounts.values() if account.guarantee.min_pages]
        self.promised_pages = sum(account.guarantee.min_pages for account in self._promised)

    def lend(self, account: Account, page_count: int) -> None:
        account.held_pages += page_count
        self.lent_pages += page_count

    def take_back(self, account: Account, page_count: int) -> None:
        account.held_pages -= page_count
        account.wanted_pages = max(0, account.wanted_pages - page_count)
        self.lent_pages -= page_count

    def promised(self) -> Iterable[Account]:
        return self._promised

    def holding(self) -> Iterable[Account]:
        return [account for account in self._accounts.values() if account.held_pages]

    def limited(self) -> Iterable[Account]:
        """Those with a max: this study has none."""
        return ()

    def tenant_of(self, session_id: str) -> Account:
        return self._accounts[session_id]

    def session_views(self) -> Iterator[SessionView]:
        """Engines return at once what no request uses, so that nothing is idle."""
        for account in self._accounts.values():
            used = Usage(mapped_pages=account.held_pages, token_bytes=account.held_pages * PAGE_SIZE_BYTES)
            yield SessionView(account.name, account.name, account.held_pages, used)
