"""Sarathi's iteration, with every token of every running request read back at its end."""

from __future__ import annotations

from collections.abc import Callable

from tests.vattention.sarathi.attention import AttentionWrapper
from tests.vattention.sarathi.cache_engine import CacheEngine
from tests.vattention.sarathi.scheduler import Schedule, Scheduler
from tests.vattention.sarathi.sequence import Sequence

OutOfMemoryHook = Callable[[list[int]], None]


class Engine:
    """Serves requests to the end.

    In two things it is not sarathi-lean. A preempted request's row is freed before the iteration that may run it anew;
    there it is freed in the next, and if it was admitted at once its first chunk is lost with the old row, on any
    module. And where a step finds no memory, which ends sarathi's worker, `on_short` is told of the lengths that the
    step was to back, the last request is preempted, and the step is tried once more.
    """

    def __init__(
        self, scheduler: Scheduler, cache_engine: CacheEngine, on_short: OutOfMemoryHook, *, checks: bool = True
    ) -> None:
        self._scheduler = scheduler
        self._cache_engine = cache_engine
        self._attention = AttentionWrapper(cache_engine.kv_cache)
        self._on_short = on_short
        self._checks = checks
        self.finished: list[Sequence] = []
        self.preempted_count = self.step_count = 0

    @property
    def is_busy(self) -> bool:
        return bool(self._scheduler.waiting or self._scheduler.running)

    @property
    def running(self) -> list[Sequence]:
        return self._scheduler.running

    def add(self, sequence: Sequence) -> None:
        self._scheduler.waiting.append(sequence)

    def step(self) -> None:
        self.step_count += 1
        self._scheduler.block_manager.set_free_blocks(self._cache_engine.num_free_blocks())
        schedule = self._scheduler.schedule()
        self._free(schedule)
        if not schedule.scheduled:
            return
        self._map(schedule)
        self._attention.forward(schedule.scheduled, self._cache_engine.seq_to_batch_idx)
        self._complete(schedule)
        if self._checks:
            self.check()

    def _free(self, schedule: Schedule) -> None:
        for sequence in schedule.preempted:
            self.preempted_count += 1
            self._cache_engine.free_request(sequence)

    def _map(self, schedule: Schedule) -> None:
        while True:
            try:
                self._cache_engine.step(schedule.scheduled)
                return
            except RuntimeError:
                self._on_short(list(self._cache_engine.curr_seq_lens))
                victim = self._scheduler.running.pop()
                schedule.scheduled = [entry for entry in schedule.scheduled if entry.sequence is not victim]
                schedule.preempted = []
                self._scheduler.preempt(victim, schedule)
                self._free(schedule)

    def _complete(self, schedule: Schedule) -> None:
        for entry in schedule.scheduled:
            sequence = entry.sequence
            if entry.chunk_len:
                sequence.prompt_tokens_processed += entry.chunk_len
            else:
                sequence.output_len += 1
            if sequence.is_prefilled and sequence.is_finished:
                assert self._holds(sequence)
                self._cache_engine.free_request(sequence)
                self._scheduler.running.remove(sequence)
                self.finished.append(sequence)

    def check(self) -> None:
        """Fails unless every running request's tokens are as they were written."""
        for sequence in self._scheduler.running:
            assert self._holds(sequence), f"step {self.step_count}: {sequence} reads what it did not write"

    def _holds(self, sequence: Sequence) -> bool:
        row = self._cache_engine.seq_to_batch_idx.get(sequence.seq_id)
        if row is None:
            return sequence.resident_tokens == 0
        return self._attention.holds(sequence.marker, row, sequence.resident_tokens)
