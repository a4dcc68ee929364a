"""vLLM's scheduler, for which memory is what vattd lends.

Block ids are plenty: as many as the pool could ever hold. What is scarce are pages, and the block pool says how many
blocks there are pages for. The scheduler leases more when a request needs them, and preempts or queues requests as it
does without vattd when it gets none.
"""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable
from typing import Any

from vllm.v1.core import kv_cache_coordinator
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from vatt.errors import InvalidRequest
from vatt.usage import Usage
from vattention.integrations.rebinding import rebound
from vattention.integrations.vllm.admission_queue import AdmissionQueue
from vattention.integrations.vllm.block_pool import PagedBlockPool
from vattention.integrations.vllm.budget import Budget
from vattention.integrations.vllm.channel import socket_path
from vattention.integrations.vllm.leasing import Leasing
from vattention.integrations.vllm.messages import Depth, Orders, Wanted
from vattention.integrations.vllm.options import Options
from vattention.integrations.vllm.ranks import Ranks
from vattention.integrations.vllm.upkeep import Upkeep
from vattention.integrations.vllm.usage import UsageMeter

# The attribute of SchedulerOutput that carries orders to the workers.
ORDERS = "vattd_orders"
# With nothing to run, a step waits so long for memory.
STARVED_WAIT_S = 0.01
USAGE_EVERY_S = 1.0


class VattScheduler(Scheduler):
    """For engines that schedule a step when the one before is over, as on CPUs.

    A lock is held by every method that touches blocks: the upkeep's thread evicts cached prefixes too, and may not do
    so between the moment when vLLM finds one and the moment when it takes it into use.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        vllm_config, kv_cache_config = named["vllm_config"], named["kv_cache_config"]
        self._vattd = Options.of(vllm_config)
        parallel = vllm_config.parallel_config
        paths = [
            socket_path(vllm_config.instance_id, parallel.data_parallel_index, rank)
            for rank in range(parallel.world_size)
        ]
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        # A line for each thread: this one leases while the upkeep sends orders.
        self._ranks, self._order_ranks, queue_ranks, ahead_ranks, tidings_ranks = (Ranks(paths) for _ in range(5))
        facts = self._ranks.attach()
        if facts.geometry.block_count != kv_cache_config.num_blocks:
            raise InvalidRequest(
                f"the workers have {facts.geometry.block_count} blocks and the scheduler {kv_cache_config.num_blocks}"
            )
        self._budget = Budget(facts.geometry, facts.credit_pages)
        # vLLM's coordinator makes the pool, by a name of its module: there is no switch for another class.
        with rebound(kv_cache_coordinator, BlockPool=functools.partial(PagedBlockPool, self._budget)):
            super().__init__(*arguments, **named)
        self._pool: PagedBlockPool = self.kv_cache_manager.block_pool
        self._managers = self.kv_cache_manager.coordinator.single_type_managers
        self._rank_count, self._block_bytes = len(paths), facts.geometry.block_bytes
        reserved_tokens = self.max_num_running_reqs * self.max_model_len
        self._meter = UsageMeter(self._managers, self._block_bytes, reserved_tokens, USAGE_EVERY_S)
        self._wanted_blocks = 0
        self._copied_blocks: list[Any] = []
        self._steps_under_way = 0
        self._withdrawn_pages = 0  # that vattd wants, although requests use them
        self._watch_allocations()
        self._queue = AdmissionQueue(self._budget, self._changed, queue_ranks)
        self._leasing = Leasing(self._budget, self._ranks, self._queue)
        self._upkeep = Upkeep(
            self._budget,
            self,
            self._changed,
            ahead_ranks,
            tidings_ranks.subscribe(),
            pool_pages=facts.pool_pages,
            step_pages=self._budget.cluster_pages * self.max_num_running_reqs,
        )

    # What vLLM's engine calls

    def schedule(self, *arguments: Any, **named: Any) -> SchedulerOutput:
        with self._lock:
            self._preempt_for_vattd()
            promised_pages = self._budget.promised_pages
            output = super().schedule(*arguments, **named)
            self._upkeep.note_taken(max(0, self._budget.promised_pages - promised_pages))
            self._keep_cache_budget()
            if self._budget.has_orders:
                setattr(output, ORDERS, self._orders())
            self._steps_under_way += 1
            if not output.total_num_scheduled_tokens and self.is_short:
                self._changed.wait(STARVED_WAIT_S)
            return output

    def update_from_output(self, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            self._steps_under_way -= 1
            self._free_copied_blocks()
            outputs = super().update_from_output(*arguments, **named)
            if not self._steps_under_way and not self.has_requests():
                self._upkeep.wake()
            self._forget_wish_of_nobody()
            return outputs

    def finish_requests(self, *arguments: Any, **named: Any) -> Any:
        with self._lock:
            ended = super().finish_requests(*arguments, **named)
            self._forget_wish_of_nobody()
            return ended

    def reset_prefix_cache(self, *arguments: Any, **named: Any) -> bool:
        with self._lock:
            self._free_copied_blocks()
            done: bool = super().reset_prefix_cache(*arguments, **named)
            return done

    def shutdown(self) -> None:
        self._queue.close()
        self._upkeep.close()
        with self._lock:
            self._ranks.close()
            self._order_ranks.close()
        super().shutdown()

    # What vLLM's scheduler calls of its own

    def _get_new_block_ids_to_zero(self) -> list[int] | None:
        """Not those of a request that the same step began and preempted: there is no memory behind them."""
        blocks = super()._get_new_block_ids_to_zero() or []
        return [block for block in blocks if self._budget.is_taken(block)] or None

    def _free_cow_retained_blocks(self, blocks: list[Any], fence_seq: int) -> None:
        """The step that is being scheduled copies these blocks after it has carried out its orders: free them later."""
        self._copied_blocks += blocks

    def _free_copied_blocks(self) -> None:
        blocks, self._copied_blocks = self._copied_blocks, []
        self._pool.free_blocks(blocks)

    # What the upkeep calls

    @property
    def is_short(self) -> bool:
        return self._queue.is_waiting

    def give_up(self, wanted: Wanted) -> None:
        missing = wanted.page_count - self._budget.give_up(wanted.page_count)
        if missing > 0:
            self._pool.evict_idle(missing)
            missing -= self._budget.give_up(missing)
        if missing > 0 and wanted.depth is Depth.RUNNING:
            self._withdrawn_pages = missing
        self._budget.answer(wanted.number)

    def flush(self) -> None:
        if self._steps_under_way:
            return  # the workers are not where the orders are for: a coming step takes them along
        told = self._meter.last
        if self._measured_usage() != told or self._budget.has_orders:
            self._order_ranks.carry_out(self._orders())

    # Inside

    def _watch_allocations(self) -> None:
        """Ask vattd for pages where vLLM finds too few blocks, and let it try again. What it counted last before it
        gave up is what it lacks."""
        manager, coordinator = self.kv_cache_manager, self.kv_cache_manager.coordinator
        stock_allocate: Callable[..., Any] = manager.allocate_slots
        stock_count: Callable[..., int] = coordinator.get_num_blocks_to_allocate

        @functools.wraps(stock_count)
        def count(*arguments: Any, **named: Any) -> int:
            self._wanted_blocks = stock_count(*arguments, **named)
            return self._wanted_blocks

        @functools.wraps(stock_allocate)
        def allocate(request: Request, *arguments: Any, **named: Any) -> Any:
            blocks = stock_allocate(request, *arguments, **named)
            if blocks is None and self._lease_for(request, **named):
                blocks = stock_allocate(request, *arguments, **named)
            if blocks is not None and request.status is not RequestStatus.RUNNING:
                self._queue.forget()
            return blocks

        manager.allocate_slots, coordinator.get_num_blocks_to_allocate = allocate, count

    def _lease_for(
        self, request: Request, *, reserved_blocks: int = 0, has_scheduled_reqs: bool = True, **_: Any
    ) -> bool:
        """Lease what the request lacks that vLLM has just refused; did it come? The named arguments are vLLM's."""
        missing = self._wanted_blocks + reserved_blocks - self._pool.get_num_free_blocks()
        if request.status is RequestStatus.RUNNING:
            return missing > 0 and self._leasing.for_running(missing, self.current_step)
        if has_scheduled_reqs:
            missing += self.kv_cache_manager.watermark_blocks
        return missing > 0 and self._leasing.for_new(missing)

    def _forget_wish_of_nobody(self) -> None:
        if not self.waiting and not self.kv_holding_waiting:
            self._queue.forget()

    def _preempt_for_vattd(self) -> None:
        """Preempt requests, the latest first, until what vattd wants of running ones is free; and give it back."""
        missing, self._withdrawn_pages = self._withdrawn_pages, 0
        missing -= self._budget.give_up(missing)
        while missing > 0 and (self._pool.idle_count or self.running):
            if self._pool.idle_count:
                self._pool.evict_idle(missing)
            else:
                request = self._latest_running()
                self.running.remove(request)
                self._preempt_request(request, time.monotonic(), drop_stale_output=self.requires_kv_delivery)
                # It may be resumed by the step that is scheduled now: to the workers it is a new one then.
                self.prev_step_scheduled_req_ids.discard(request.request_id)
            missing -= self._budget.give_up(missing)

    def _latest_running(self) -> Request:
        """Whom vLLM would preempt."""
        if self.policy is SchedulingPolicy.PRIORITY:
            return max(self.running, key=lambda request: (request.priority, request.arrival_time))
        return self.running[-1]

    def _keep_cache_budget(self) -> None:
        if self._vattd.prefix_cache_bytes is not None:
            self._pool.keep_idle(self._vattd.prefix_cache_bytes // (self._block_bytes * self._rank_count))

    def _orders(self) -> Orders:
        idle_pages = self._budget.free_pages + self._pool.idle_count * self._budget.cluster_pages
        return self._budget.orders(max(0, idle_pages), self._measured_usage())

    def _measured_usage(self) -> Usage:
        return self._meter.measure(
            lambda: {name: request.num_computed_tokens for name, request in self.requests.items()}, time.monotonic()
        )


class VattAsyncScheduler(VattScheduler, AsyncScheduler):
    """For engines that schedule the next step while one runs."""
