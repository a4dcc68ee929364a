"""transformers' schedulers, taught to wait for pages that others hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers.generation.continuous_batching.requests import RequestState, RequestStatus
from transformers.generation.continuous_batching.scheduler import FIFOScheduler, PrefillFirstScheduler, Scheduler

from vatt.errors import InvalidRequest
from vattention.integrations.continuous_batching.sector_cache import SectorCache

FailRequest = Callable[[Exception, RequestState], None]


class PatientScheduler(Scheduler):
    """Mixed into a scheduler of transformers. Those take a full cache for their own requests' doing: they preempt all
    but one, and if that one finds no room either, generation ends with an error. Here pages may be others', so the last
    one gives way too, which keeps two engines from waiting for each other, and requests wait.

    `fail` ends one request with an error; it is set before the first batch.
    """

    cache: SectorCache
    fail: FailRequest

    def add_waiting_request(self, state: RequestState) -> None:
        """Also one that was preempted; what could not run even alone fails at once."""
        if self._fits_alone(state, len(state.initial_tokens)):
            super().add_waiting_request(state)

    def schedule_batch(self, token_budget: int, cache_budget: int) -> tuple[Any, bool, int, int]:
        """As the scheduler mixed in, but with an empty batch where it would give up."""
        self.cache.begin_round()
        self._give_way()
        batch, fast, query_tokens, tokens_read = super().schedule_batch(token_budget, cache_budget)  # type: ignore[safe-super]
        if batch is None:
            if len(self.active_requests) > 1:
                return None, fast, query_tokens, tokens_read  # the caller preempts
            self._give_up()
            batch = []
        self.cache.end_round()
        return batch, fast, query_tokens, tokens_read

    def _give_way(self) -> None:
        """Preempt, the newest first, until the cache has no more pages than it may."""
        while self.cache.is_over:
            self.cache.end_round()
            preemptible = [state for state in self.active_requests.values() if not self._is_forking(state)]
            if not self.cache.is_over or not preemptible:
                break
            self._preempt(preemptible[-1])
        if not self.active_requests:
            self.block_new_requests = False  # it is until one of them ends

    def _give_up(self) -> None:
        """No request finds room: the last that runs, if one does, begins anew when there is some."""
        for state, request_len in self.starved_requests:
            if self._fits_alone(state, state.current_len() + request_len):
                self._preempt(state)
            else:
                self.finish_request(state.request_id)
        for state in list(self.waiting_requests.values()):
            if not self._fits_alone(state, len(state.initial_tokens)):
                self.waiting_requests.pop(state.request_id)
                self.waiting_requests_order.remove(state.request_id)
        self.block_new_requests = False

    def _preempt(self, state: RequestState) -> None:
        """What OffloadingManager calls a soft reset."""
        again = state.create_equivalent_initial_request()
        state._status = RequestStatus.FINISHED
        self.cache.free_blocks(state.request_id, no_cache=True)
        self.finish_request(state.request_id)
        self.add_waiting_request(again)

    def _is_forking(self, state: RequestState) -> bool:
        return any(state is forking for forking in self._requests_to_fork)

    def _fits_alone(self, state: RequestState, token_count: int) -> bool:
        """Else the request has failed, and the children that it would have been forked into: somebody waits for all."""
        try:
            self.cache.check_fits(token_count)
        except InvalidRequest as error:
            for number in range(state.num_children):
                child = state.create_equivalent_initial_request()
                child.request_id = f"{state.request_id}__child#{number}"
                self.fail(error, child)
            self.fail(error, state)
            return False
        return True


class PatientFIFO(PatientScheduler, FIFOScheduler):
    pass


class PatientPrefillFirst(PatientScheduler, PrefillFirstScheduler):
    pass


# By ContinuousBatchingConfig.scheduler_type, as transformers has it.
PATIENT_SCHEDULERS: dict[str, type[PatientScheduler]] = {
    "fifo": PatientFIFO,
    "prefill_first": PatientPrefillFirst,
}
