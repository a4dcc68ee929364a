"""Where engines get pages: vattd's pool as far as its decisions go, and a plain first-come pool to compare with."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from benchmarks.tenancy.account import Account, Accounts
from vatt.errors import PoolExhausted, WaitHopeless
from vattd.policy import Policy
from vattd.pressure import Pressure
from vattd.reclaim import Reclaims
from vattd.wish import Purpose, Timing, Waiting, Wish

# As `vattd start` has it.
RECLAIM_WITHIN_S = 1.0


@dataclass(slots=True, eq=False)
class Ask:
    """Pages for a new request. Once granted they are the account's."""

    account: Account
    page_count: int
    granted: bool = False
    entry: Waiting | None = None  # what the policy has of it; None: refused as hopeless, to be asked again


class Pool(Protocol):
    accounts: Accounts

    def grow(self, account: Account, page_count: int, now_s: float) -> bool:
        """Pages for what runs already: all of them at once, or none."""

    def ask(self, account: Account, page_count: int, now_s: float) -> Ask:
        """Queue for pages for a new request."""

    def withdraw(self, ask: Ask) -> None:
        """Leave the queue."""

    def give_back(self, account: Account, page_count: int, now_s: float) -> None: ...
    def answer(self, account: Account, now_s: float) -> None:
        """What was asked back has come, or all that there was."""

    def serve(self, now_s: float) -> None:
        """Grant what can be granted now."""


class VattdPool:
    """The real Policy, Pressure and Reclaims, without the driver: pages are ready when they are awarded.

    Follows vattd.pool.Pool: award, grant, then look whom to ask for pages back.
    """

    def __init__(self, capacity_pages: int, accounts: Iterable[Account], timing: Timing) -> None:
        self.accounts = Accounts(capacity_pages, accounts)
        self.policy = Policy(self.accounts, timing)
        self.reclaims = Reclaims(RECLAIM_WITHIN_S, kill_after_s=None)
        self._pressure = Pressure(self.accounts, self.policy, self.reclaims, lambda _: True)
        self._asks: dict[str, Ask] = {}  # by request id
        self._hopeless: list[Ask] = []
        self._told: dict[str, int] = {}  # by account: the last request to give pages back
        self._request_ids = (str(number) for number in itertools.count())

    def grow(self, account: Account, page_count: int, now_s: float) -> bool:
        try:
            entry = self._add(account, page_count, Purpose.GROW, now_s)
        except PoolExhausted:
            return False
        self.policy.remove(entry)
        self.accounts.lend(account, page_count)
        return True

    def ask(self, account: Account, page_count: int, now_s: float) -> Ask:
        ask = Ask(account, page_count)
        self._queue(ask, now_s)
        return ask

    def withdraw(self, ask: Ask) -> None:
        if ask.entry is None:
            self._hopeless.remove(ask)
        else:
            del self._asks[ask.entry.wish.request_id]
            self.policy.remove(ask.entry)

    def give_back(self, account: Account, page_count: int, now_s: float) -> None:
        self.accounts.take_back(account, page_count)
        if self.reclaims:
            self.reclaims.returned(account.name, page_count)

    def answer(self, account: Account, now_s: float) -> None:
        account.wanted_pages = 0
        self.reclaims.answered(account.name, self._told[account.name], now_s)

    def serve(self, now_s: float) -> None:
        if self._hopeless:
            again, self._hopeless = self._hopeless, []
            for ask in again:
                self._queue(ask, now_s)
        if self.policy.wishes.has_queue:
            self.policy.award(now_s)
            for entry in self.policy.wishes.awarded:
                ask = self._asks.pop(entry.wish.request_id)
                self.policy.remove(entry)
                self.accounts.lend(ask.account, ask.page_count)
                ask.granted = True
        # For a wish that waits its turn only idle pages would be asked for, and there are none here.
        if self.reclaims or self.policy.promise_gap(now_s):
            self._press(now_s)

    def _queue(self, ask: Ask, now_s: float) -> None:
        try:
            ask.entry = self._add(ask.account, ask.page_count, Purpose.ADMIT, now_s)
            self._asks[ask.entry.wish.request_id] = ask
        except WaitHopeless:
            self._hopeless.append(ask)

    def _add(self, account: Account, page_count: int, purpose: Purpose, now_s: float) -> Waiting:
        wish = Wish(account.name, next(self._request_ids), page_count, page_count, purpose, math.inf)
        return self.policy.add(wish, account, now_s)

    def _press(self, now_s: float) -> None:
        for request in self._pressure.review(now_s).requests:
            self.accounts.tenant_of(request.session_id).wanted_pages = request.page_count
            self._told[request.session_id] = request.reclaim_id


class FirstComePool:
    """Whatever fits is granted, in order of arrival; who does not fit is passed by.

    Within a tenant the order stays: an engine begins its requests as they came.
    """

    def __init__(self, capacity_pages: int, accounts: Iterable[Account]) -> None:
        self.accounts = Accounts(capacity_pages, accounts)
        self._queue: list[Ask] = []

    def grow(self, account: Account, page_count: int, now_s: float) -> bool:
        if page_count > self._free_pages:
            return False
        self.accounts.lend(account, page_count)
        return True

    def ask(self, account: Account, page_count: int, now_s: float) -> Ask:
        ask = Ask(account, page_count)
        self._queue.append(ask)
        return ask

    def withdraw(self, ask: Ask) -> None:
        self._queue.remove(ask)

    def give_back(self, account: Account, page_count: int, now_s: float) -> None:
        self.accounts.take_back(account, page_count)

    def answer(self, account: Account, now_s: float) -> None:
        """Nothing is ever asked back."""

    def serve(self, now_s: float) -> None:
        passed_by: set[str] = set()
        for ask in list(self._queue):
            if ask.account.name in passed_by:
                continue
            if ask.page_count > self._free_pages:
                passed_by.add(ask.account.name)
                continue
            self._queue.remove(ask)
            self.accounts.lend(ask.account, ask.page_count)
            ask.granted = True

    @property
    def _free_pages(self) -> int:
        return self.accounts.capacity_pages - self.accounts.lent_pages
