"""transformers' paged attention cache, on leased pages."""

from __future__ import annotations

import math
from collections import deque
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching import cache
from transformers.generation.continuous_batching.cache import PagedAttentionCache
from transformers.generation.continuous_batching.distributed import DistributedHelper
from transformers.generation.continuous_batching.requests import RequestState, RequestStatus

from vatt.errors import Draining, InvalidRequest
from vatt.pages import Extent
from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry, Stripe
from vattention.block_memory import BlockMemory
from vattention.integrations.continuous_batching.sector_plan import TRASH_SECTORS, SectorPlan
from vattention.integrations.continuous_batching.sector_pool import SectorPages, SectorPool
from vattention.integrations.rebinding import rebound
from vattention.kvcache import PageHome
from vattention.page_source import LeasePurpose

# How long a cache that is being made waits for the pages of its trash sectors.
FIRST_PAGES_WITHIN_S = 60.0
# A request that has nothing yet: no request is called so.
NOBODY = ""


class SectorCache(PagedAttentionCache):
    """A paged attention cache whose tensor is addresses, with pages behind the sectors that requests use.

    Requests are refused room, as if the cache were full, while vattd has too few pages. Used by one thread at a time,
    but for what the session asks.
    """

    pool: SectorPool

    def __init__(
        self,
        session: PageHome,
        *,
        config: PreTrainedConfig,
        continuous_batching_config: ContinuousBatchingConfig,
        device: torch.device,
        distributed_helper: DistributedHelper,
        dtype: torch.dtype,
        model_supports_logits_to_keep: bool,
    ) -> None:
        """As PagedAttentionCache, sized by a SectorPlan. Only one may be made at a time: a name is rebound."""
        if distributed_helper.tp_size > 1:
            raise InvalidRequest("continuous batching on leased pages has no tensor parallelism: load the model whole")
        self._session = session
        self._usage = Usage()
        self._asked: deque[int] = deque()
        plan = partial(SectorPlan, session.pool_pages * session.mapper.page_size_bytes)
        # On `meta` tensors have a shape and no memory: the tensor that the base class makes is replaced below.
        meta = torch.device("meta")
        with rebound(cache, PagedAttentionMemoryHandler=plan):
            super().__init__(
                config, continuous_batching_config, meta, distributed_helper, dtype, model_supports_logits_to_keep
            )
        self.device = device
        self._back_with_pages(session)

    def _back_with_pages(self, session: PageHome) -> None:
        sector_bytes, data_bytes = self.bytes_per_sector, self.num_sectors * self.bytes_per_sector
        sector_count = self.num_sectors + TRASH_SECTORS
        self._geometry = BlockGeometry(
            sector_count, (Stripe(0, sector_bytes, sector_bytes),), session.mapper.page_size_bytes
        )
        self._store = SectorPages(session, self)
        self.memory = BlockMemory(session.mapper, self._store, self._geometry)
        try:
            if self.memory.device != self.device:
                raise InvalidRequest(
                    f"the model is on {self.device} and vattd's pages are on {self.memory.device}: "
                    f"model.to('{self.memory.device}')"
                )
            self._store.wait_s = FIRST_PAGES_WITHIN_S
            self.pool = SectorPool(self.num_sectors, len(self.cache_allocators), self.memory)
            self._store.wait_s = 0.0
            self.cache_tensor = self.memory.tensor[: sector_count * sector_bytes]
            self.cache_tensor[: TRASH_SECTORS * sector_bytes].zero_()  # padding reads zeros there
            for allocator in self.cache_allocators.values():
                allocator.register_cache_tensor(sector_bytes, data_bytes, self.cache_tensor, self.pool)
        except BaseException:
            self.memory.close()
            raise
        session.pages.join(self)

    # What schedulers ask.

    def can_store_request_tokens(self, state: RequestState, request_len: int, dry_run: bool = False) -> bool:
        """As the base class, once there is memory for it. A new request does not pass those of other tenants that wait
        for pages, and does not begin while vattd is drained. A dry run asks what an empty cache could hold."""
        past = state.current_len()
        missing = sum(
            allocator.needs_new_sectors(state.request_id, past, request_len)
            for allocator in self.cache_allocators.values()
        )
        if dry_run:
            return missing <= self._most_sectors
        if missing and not self._find_room(missing, is_new=state.status == RequestStatus.PENDING):
            return False
        return bool(super().can_store_request_tokens(state, request_len))

    def search_prefix_match(self, request_id: str, prompt_ids: list[int]) -> int:
        """As the base class; what matches has begun, and so finds nothing where no request may."""
        return int(super().search_prefix_match(request_id, prompt_ids)) if self._admits_requests() else 0

    def prepare_fork_request(
        self, src_state: RequestState, dst_req_ids: list[str], copy_src_and_dst: dict[str, Any]
    ) -> list[str]:
        """As the base class, child after child: each needs memory of its own."""
        forked: list[str] = []
        for request_id in dst_req_ids:
            missing = 0
            for allocator in self.cache_allocators.values():
                blocks = allocator.count_non_shareable_blocks(src_state.request_id, src_state.current_len())
                short = max(0, blocks - self.pool.count_free_blocks(allocator.index))
                missing += math.ceil(short / allocator.blocks_per_sector)
            self._find_room(missing, is_new=True)
            if not super().prepare_fork_request(src_state, [request_id], copy_src_and_dst):
                break
            forked.append(request_id)
        return forked

    def check_fits(self, token_count: int) -> None:
        """Raises InvalidRequest if a request of so many tokens could not run even alone."""
        sectors = sum(
            math.ceil(allocator.needs_new_blocks(NOBODY, 0, token_count) / allocator.blocks_per_sector)
            for allocator in self.cache_allocators.values()
        )
        if sectors > self.num_sectors:
            raise InvalidRequest(
                f"{token_count} tokens need {sectors} sectors, and the cache has {self.num_sectors}: "
                f"ContinuousBatchingConfig(num_blocks={self.num_blocks}) is too few"
            )
        if sectors > self._most_sectors:
            pages = self._pages_of(sectors)
            raise InvalidRequest(
                f"{token_count} tokens need {pages} pages, and {self._session.pool_pages} may ever be lent: a larger "
                "pool (vattd start --pool-max) or max (vattctl reserve TENANT --max)"
            )

    @property
    def is_over(self) -> bool:
        """Does it hold more than it may? So it is after its tenant's max was lowered, or vattd asked for pages."""
        return self.pool.pages_in_use > self.pool.most_pages

    def begin_round(self) -> None:
        """A batch is about to be scheduled."""
        most_pages = self._session.pool_pages
        if self._asked:
            asked = sum(self._asked.popleft() for _ in range(len(self._asked)))
            most_pages = min(most_pages, self.pool.pages_in_use - asked)
        self.pool.begin_round(max(most_pages, self._pages_of(0)))

    def end_round(self) -> None:
        """A batch was scheduled: what it left is given back."""
        self.pool.give_back()
        free_blocks = sum(
            self.pool.count_free_blocks(allocator.index) * allocator.bytes_per_block
            for allocator in self.cache_allocators.values()
        )
        self._usage = Usage(
            token_bytes=self.pool.sectors_in_use * self.bytes_per_sector - free_blocks,
            static_reservation_bytes=self.cache_tensor.numel(),
        )

    def rest(self) -> None:
        """No request runs or waits: all pages but those of the trash sectors go back, cached prefixes' as well."""
        self.evict_cached_blocks()
        self.end_round()

    def close(self) -> None:
        """Give every page and the addresses back. No tensor of the cache may be used afterwards. Idempotent."""
        self.memory.close()
        self._session.pages.leave(self)

    # What the session asks, from other threads.

    @property
    def is_asked(self) -> bool:
        return bool(self._asked)

    def ask(self, page_count: int) -> None:
        """Have running requests give way for so many pages, before the next batch."""
        self._asked.append(page_count)

    def usage(self) -> Usage:
        return self._usage

    def idle_pages(self, *, finished_only: bool = True) -> int:
        return 0

    def gather_idle(self, page_count: int, *, finished_only: bool = True) -> list[Extent]:
        return []

    def _admits_requests(self) -> bool:
        try:
            self._session.check_admits()
        except Draining:
            return False
        return True

    @property
    def _most_sectors(self) -> int:
        """What a request that runs alone can have: it lies right behind the trash sectors, without a hole."""
        lendable_bytes = self._session.pool_pages * self._geometry.page_size_bytes
        return min(self.num_sectors, lendable_bytes // self.bytes_per_sector - TRASH_SECTORS)

    def _pages_of(self, sectors: int) -> int:
        """Pages behind the first sectors and the trash."""
        return -(-(sectors + TRASH_SECTORS) * self.bytes_per_sector // self._geometry.page_size_bytes)

    def _find_room(self, sectors: int, *, is_new: bool) -> bool:
        """Have memory for so many free sectors; prefixes that nobody uses make room for requests."""
        self._store.purpose = LeasePurpose.ADMIT if is_new else LeasePurpose.GROW
        if is_new and not self._admits_requests():
            return False
        return self.pool.secure(sectors) or (self.evict_cached_blocks() and self.pool.secure(sectors))
