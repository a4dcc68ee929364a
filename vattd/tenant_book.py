"""What is set for which tenant: by the configuration file, or by an operator's command, which comes before it.

A change is checked as a whole, written, and only then in force.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial

from vatt.errors import InvalidRequest, Overcommitted, TenantUnknown, VattError
from vatt.names import check_tenant_name
from vatt.sizes import format_size
from vattd.guarantee import Access, MinMode
from vattd.pool import Pool
from vattd.reservation import Reservation, check_all
from vattd.state_file import State, StateFile

log = logging.getLogger(__name__)

# After a reservation whose time is over could not be ended.
TRY_AGAIN_S = 60.0


class Source(enum.Enum):
    CONFIG = "config"
    COMMAND = "command"


@dataclass(frozen=True, slots=True)
class Change:
    """What `reserve` sets: None stays as it was."""

    min_bytes: int | None = None
    max_bytes: int | None = None  # 0: without any max
    weight: int | None = None
    mode: MinMode | None = None
    access: Access | None = None
    until_s: float | None = None  # wall clock; infinity: for good


def read_state(
    state_file: StateFile, configured: Mapping[str, Reservation], page_size_bytes: int, pool_bytes: int, now_s: float
) -> State:
    """What the file says and is not over, if it fits the pool with what the configuration says.

    Raises InvalidRequest, Overcommitted."""
    read = state_file.read()
    # What ended while no vattd ran must not stand in the way of the others.
    living = {name: one for name, one in read.reservations.items() if one.until_s is None or one.until_s > now_s}
    try:
        check_all({**configured, **living}, page_size_bytes, pool_bytes)
    except Overcommitted as error:
        raise Overcommitted(
            f"{error}. What `vattctl reserve` set is kept in {state_file.path}: start with a larger --pool-max and "
            "unreserve some, or move the file away"
        ) from error
    return State(read.revision, living)


class TenantBook:
    """Reservations by tenant, kept in step with the pool and the state file.

    Invariant: the pool has configured just what `in_force` says; the mins of all that fit the pool. Changes come one
    after the other, and a disk that takes its time keeps nobody else from the event loop.
    """

    def __init__(
        self,
        pool: Pool,
        state_file: StateFile,
        configured: Mapping[str, Reservation],
        own_uid: int,
        on_change: Callable[[str], None],
        now_s: float = 0.0,
    ) -> None:
        """Puts in force what the file and the configuration say. `own_uid` may use what nobody else is allowed to;
        `on_change` is told a tenant's name. Raises InvalidRequest, Overcommitted."""
        self._pool, self._file, self._configured = pool, state_file, dict(configured)
        self._own_uid, self._on_change = own_uid, on_change
        self._changing = asyncio.Lock()
        self._not_before_s: dict[str, float] = {}  # to try again: reservations that could not be ended
        page = pool.ledger.page_size_bytes
        self._state = read_state(state_file, configured, page, pool.ledger.stock.max_pages * page, now_s)
        for name in self._state.reservations.keys() & self._configured.keys():
            log.warning(
                "tenant %s has what a command set, not what the configuration file says; `unreserve` ends that", name
            )
        for name, reservation in self._all(self._state).items():
            self._apply(name, reservation)

    @property
    def revision(self) -> int:
        """Of the last change."""
        return self._state.revision

    def in_force(self, name: str) -> tuple[Reservation, Source] | None:
        """None: nobody set anything for this tenant."""
        if name in self._state.reservations:
            return self._state.reservations[name], Source.COMMAND
        if name in self._configured:
            return self._configured[name], Source.CONFIG
        return None

    async def reserve(self, name: str, change: Change) -> Reservation:
        """Set what the change names, keep the rest. Raises InvalidRequest, Overcommitted, SystemLimit."""
        check_tenant_name(name)

        def after() -> State:
            reservation = self._changed(name, change)
            return State(reservation.revision, {**self._state.reservations, name: reservation})

        await self._change(name, after)
        return self._state.reservations[name]

    async def unreserve(self, name: str) -> None:
        """Take back what a command set. Raises TenantUnknown, SystemLimit, Overcommitted."""
        await self._change(name, partial(self._without, name))

    async def expire(self, now_s: float) -> None:
        """End reservations whose time is over, by the wall clock."""
        for name, end_s in self._ends_s().items():
            if now_s < end_s:
                continue
            try:
                await self._change(name, partial(self._without, name))
            except VattError as error:  # it goes on, and we try again later
                log.error("the reservation of tenant %s could not be ended: %s", name, error)
                self._not_before_s[name] = now_s + TRY_AGAIN_S
            else:
                log.info("the reservation of tenant %s has ended: its time is over", name)

    def next_end_s(self) -> float | None:
        """When the next reservation is to be ended, by the wall clock."""
        return min(self._ends_s().values(), default=None)

    def _ends_s(self) -> dict[str, float]:
        return {
            name: max(one.until_s, self._not_before_s.get(name, one.until_s))
            for name, one in self._state.reservations.items()
            if one.until_s is not None
        }

    def _changed(self, name: str, change: Change) -> Reservation:
        found = self.in_force(name)
        before = found[0] if found is not None else Reservation(self._first_access(name))
        return replace(
            before,
            access=change.access or before.access,
            min_bytes=before.min_bytes if change.min_bytes is None else change.min_bytes,
            max_bytes=before.max_bytes if change.max_bytes is None else change.max_bytes or None,
            weight=before.weight if change.weight is None else change.weight,
            mode=change.mode or before.mode,
            until_s=_until(before.until_s if change.until_s is None else change.until_s),
            revision=self._state.revision + 1,
        )

    def _without(self, name: str) -> State:
        if name not in self._state.reservations:
            if name in self._configured:
                raise InvalidRequest(f"tenant {name} is in the configuration file: change it there and restart vattd")
            raise TenantUnknown(f"nothing is reserved for a tenant {name[:80]!r}: see `vattctl tenants`")
        rest = {other: one for other, one in self._state.reservations.items() if other != name}
        return State(self._state.revision + 1, rest)

    def _first_access(self, name: str) -> Access:
        """Who named it first keeps it; else whoever runs vattd."""
        tenant = self._pool.ledger.tenant(name)
        owner_uid = tenant.owner_uid if tenant is not None else None
        return Access(frozenset([self._own_uid if owner_uid is None else owner_uid]))

    def _all(self, state: State) -> dict[str, Reservation]:
        return {**self._configured, **state.reservations}

    def _check(self, state: State) -> None:
        page = self._pool.ledger.page_size_bytes
        check_all(self._all(state), page, self._pool.ledger.stock.max_pages * page)

    async def _change(self, name: str, after: Callable[[], State]) -> None:
        """All of it, or an error and everything as it was. Whoever goes away meanwhile does not stop it half-way."""
        await asyncio.shield(asyncio.ensure_future(self._carry_out(name, after)))

    async def _carry_out(self, name: str, after: Callable[[], State]) -> None:
        async with self._changing:
            state = after()
            self._check(state)
            await asyncio.to_thread(self._file.write, state)
            try:
                self._apply(name, self._all(state).get(name))
            except BaseException:
                await asyncio.to_thread(self._file.write, self._state)
                raise
            self._state = state
            self._not_before_s.pop(name, None)
            found = self.in_force(name)
            log.info("tenant %s: %s, revision %d", name, _words(found[0]) if found else "no guarantee", state.revision)
            self._on_change(name)

    def _apply(self, name: str, reservation: Reservation | None) -> None:
        if reservation is None:
            self._pool.unconfigure(name)
        else:
            guarantee = reservation.guarantee(self._pool.ledger.page_size_bytes)
            self._pool.configure(name, guarantee, reservation.access)


def _until(time_s: float | None) -> float | None:
    return None if time_s == math.inf else time_s


def _words(one: Reservation) -> str:
    most = "the pool" if one.max_bytes is None else format_size(one.max_bytes)
    return f"{one.mode.value} min {format_size(one.min_bytes)}, max {most}, weight {one.weight}, for {one.access}"
