"""All that the metrics show, read in one go: values and copies, which any thread may turn into text."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace

from vatt.errors import DriverError, SystemLimit
from vattd.driver_calls import DriverCalls
from vattd.happenings import EndCause, Kind
from vattd.pool import Pool
from vattd.pressure import PromiseView
from vattd.reclaim import ReclaimCounts
from vattd.recovery import Recovery
from vattd.rpc_calls import RpcCalls
from vattd.sessions import Sessions
from vattd.snapshot import Snapshot, TenantView
from vattd.tallies import PurposeTally
from vattd.wish import Purpose
from vattention.vmm.driver import Device, DeviceMemory

# Whoever reaches the address may read the metrics as often as it likes, and a look at the device keeps leases from the
# driver thread: it is taken once in so long. Prometheus comes less often, so to it the figures are of its own instant.
MEMORY_MAX_AGE_S = 1.0
# A driver that hangs must not take all other figures with it.
MEMORY_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True)
class TenantReading:
    """What the snapshot does not say of a tenant."""

    view: TenantView
    promise: PromiseView
    waiting_pages: int
    waiting_leases: int
    longest_wait_s: float


@dataclass(frozen=True, slots=True)
class RecoveryReading:
    awaited_sessions: int
    unclaimed_pages: int
    recovered_total: int
    lost_total: int
    disputed_total: int


@dataclass(frozen=True, slots=True)
class Reading:
    """One instant. `memory` is None where the device does not say."""

    device: Device
    memory: DeviceMemory | None
    snapshot: Snapshot
    pool_min_bytes: int
    kept_free_pages: int
    context_bytes: int | None
    is_short: bool
    is_lost: bool
    is_draining: bool
    fenced_sessions: int
    tenants: tuple[TenantReading, ...]
    leases: Mapping[Purpose, PurposeTally]
    ends: Mapping[EndCause, int]
    events: Mapping[Kind, int]
    reclaims: ReclaimCounts
    recovery: RecoveryReading
    driver_calls: DriverCalls
    rpc_calls: RpcCalls


class Readings:
    """Makes them. Belongs to the event loop, which a reading keeps for about a millisecond."""

    def __init__(
        self,
        device: Device,
        pool: Pool,
        sessions: Sessions,
        recovery: Recovery,
        driver_calls: DriverCalls,
        rpc_calls: RpcCalls,
    ) -> None:
        self._device, self._pool, self._sessions, self._recovery = device, pool, sessions, recovery
        self._driver_calls, self._rpc_calls = driver_calls, rpc_calls
        self._look: asyncio.Future[DeviceMemory] | None = None
        self._looked_s = 0.0

    async def read(self) -> Reading:
        memory = await self._memory()
        return self._now(memory, asyncio.get_running_loop().time())

    async def _memory(self) -> DeviceMemory | None:
        now_s = asyncio.get_running_loop().time()
        look = self._look
        if look is None or (look.done() and now_s >= self._looked_s + MEMORY_MAX_AGE_S):
            look = self._look = asyncio.ensure_future(self._pool.memory())
            look.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may come when nobody waits
            self._looked_s = now_s
        await asyncio.wait([look], timeout=MEMORY_WITHIN_S)
        try:
            return look.result()
        except (asyncio.InvalidStateError, DriverError, SystemLimit):  # the driver's calls and errors are counted
            return None

    def _now(self, memory: DeviceMemory | None, now_s: float) -> Reading:
        """From here on there is no await: all is of this instant."""
        pool, recovery = self._pool, self._recovery
        snapshot = pool.ledger.snapshot()
        return Reading(
            device=self._device,
            memory=memory,
            snapshot=snapshot,
            pool_min_bytes=pool.limits.min_bytes,
            kept_free_pages=pool.kept_free_pages,
            context_bytes=pool.context_bytes,
            is_short=pool.shortage is not None,
            is_lost=pool.device_lost,
            is_draining=pool.draining,
            fenced_sessions=sum(one.fenced and not recovery.awaits(one.session_id) for one in self._sessions),
            tenants=self._tenants(snapshot, now_s),
            leases={purpose: tally.copy() for purpose, tally in pool.record.tallies.items()},
            ends={cause: pool.happenings.ends[cause] for cause in EndCause},
            events={kind: pool.happenings.counts[kind] for kind in Kind},
            reclaims=replace(pool.pressure.reclaims.counts),
            recovery=self._recovering(snapshot),
            driver_calls=self._driver_calls.copy(),
            rpc_calls=self._rpc_calls.copy(),
        )

    def _tenants(self, snapshot: Snapshot, now_s: float) -> tuple[TenantReading, ...]:
        policy, tenants = self._pool.policy, list(self._pool.ledger.tenants())
        promises = self._pool.pressure.promises_of(tenants, now_s)
        return tuple(
            TenantReading(
                view=view,
                promise=promise,
                waiting_pages=policy.wishes.queued_pages(tenant),
                waiting_leases=policy.wishes.queue_length(tenant),
                longest_wait_s=policy.longest_wait_s(tenant, now_s),
            )
            for view, tenant, promise in zip(snapshot.tenants, tenants, promises, strict=True)
        )

    def _recovering(self, snapshot: Snapshot) -> RecoveryReading:
        recovery = self._recovery
        unclaimed = sum(view.leased_pages for view in snapshot.sessions if recovery.awaits(view.session_id))
        return RecoveryReading(
            awaited_sessions=recovery.awaited_count,
            unclaimed_pages=unclaimed,
            recovered_total=recovery.recovered_total,
            lost_total=recovery.lost_total,
            disputed_total=self._pool.ledger.disputed_total,
        )
