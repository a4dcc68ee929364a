"""What the status page shows, read at one instant; and sampled, for its time lines."""

from __future__ import annotations

import asyncio
import logging

from vatt.errors import VattError
from vattd.page_maps import PageMaps
from vattd.pool import Pool
from vattd.status import NO_MEMORY, Status
from vattd.status_json import Reading
from vattd.timeline import Amounts, Timeline, sample

log = logging.getLogger(__name__)

REACH_S, EVERY_S = 900.0, 5.0
MAP_CELLS = 2048
MOST_EVENTS = 60
# A driver that hangs must not hide everything else: the last figures are shown then, with their age.
MEMORY_WITHIN_S = 1.0


class StatusReader:
    """Belongs to the event loop."""

    def __init__(self, status: Status, pool: Pool, maps: PageMaps) -> None:
        self._status, self._pool, self._maps = status, pool, maps
        self.timeline = Timeline(REACH_S, EVERY_S)
        self._asked: asyncio.Task[None] | None = None
        self._memory = NO_MEMORY
        self._memory_s: float | None = None  # when the driver said so; None: never yet

    async def read(self) -> Reading:
        page_map = await self._maps.draw(MAP_CELLS)
        await self._look_at_memory()
        # From here on there is no await: all is of one instant.
        return Reading(
            instant=self._status.instant(self._memory),
            memory_s=self._memory_s,
            page_map=page_map,
            happenings=self._pool.happenings.latest(MOST_EVENTS),
            samples=self.timeline.samples(self._now()),
        )

    async def keep_sampling(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._look_at_memory()
                self.sample(self._now())
            except Exception:  # a gap, and no more
                log.exception("the pool could not be sampled")
            await asyncio.sleep(EVERY_S)

    def sample(self, now_s: float) -> None:
        """Keep what there is at this instant."""
        snapshot, wishes = self._pool.ledger.snapshot(), self._pool.policy.wishes
        page, tenants = snapshot.page_size_bytes, {}
        for view in snapshot.tenants:
            tenant = self._pool.ledger.tenant(view.name)
            waiting_pages = wishes.queued_pages(tenant) if tenant is not None else 0
            tenants[view.name] = Amounts(view.leased_pages * page, view.usage.mapped_pages * page, waiting_pages * page)
        is_new = self._memory_s is not None and now_s - self._memory_s < EVERY_S
        self.timeline.add(sample(now_s, tenants, self._memory.free_bytes if is_new else None))

    async def _look_at_memory(self) -> None:
        """Waits a bounded time. Of a driver that hangs nothing is asked twice."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(self._ask_for_memory())
        await asyncio.wait([self._asked], timeout=MEMORY_WITHIN_S)

    async def _ask_for_memory(self) -> None:
        try:
            self._memory = await self._pool.memory()
        except VattError as error:
            log.debug("the driver does not say what memory the device has: %s", error)
        else:
            self._memory_s = self._now()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()
