"""Sarathi's two schedulers: who runs in an iteration, and who is preempted for want of blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from tests.vattention.sarathi.block_space_manager import BlockSpaceManager
from tests.vattention.sarathi.sequence import Scheduled, Sequence


@dataclass(slots=True)
class Schedule:
    scheduled: list[Scheduled] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)


class Scheduler(ABC):
    """First come, first served: the last in `running` is preempted first, and goes to the head of `waiting`, to start
    over."""

    def __init__(self, block_manager: BlockSpaceManager, max_num_seqs: int, max_tokens: int) -> None:
        """`max_tokens` of an iteration: chunk_size of one scheduler, max_num_batched_tokens of the other."""
        self.block_manager = block_manager
        self._max_num_seqs = max_num_seqs
        self._max_tokens = max_tokens
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []

    @abstractmethod
    def schedule(self) -> Schedule:
        """Who runs in the coming iteration, and who was preempted for it."""

    def decode_what_fits(self, candidates: list[Sequence], schedule: Schedule) -> list[Sequence]:
        """Those of the candidates that have their next token scheduled, or are not ready to; the rest is preempted."""
        kept = []
        while candidates:
            sequence = candidates.pop(0)
            if not sequence.is_prefilled:
                kept.append(sequence)
                continue
            while not self.block_manager.can_append_slot(sequence):
                victim = candidates.pop() if candidates else sequence
                self.preempt(victim, schedule)
                if victim is sequence:
                    break
            else:
                self.block_manager.append_slot(sequence)
                schedule.scheduled.append(Scheduled(sequence, 0))
                kept.append(sequence)
        return kept

    def preempt(self, sequence: Sequence, schedule: Schedule) -> None:
        self.block_manager.free(sequence)
        sequence.reset_for_recompute()
        schedule.preempted.append(sequence)
        self.waiting.insert(0, sequence)

    def admit(self) -> Sequence:
        sequence = self.waiting.pop(0)
        self.block_manager.allocate(sequence)
        self.running.append(sequence)
        return sequence


class SarathiScheduler(Scheduler):
    """Prompts in chunks, one prompt an iteration, beside the decodes."""

    def schedule(self) -> Schedule:
        schedule = Schedule()
        self.block_manager.begin_schedule(self.running)
        self.running = self.decode_what_fits(self.running, schedule)
        tokens = len(schedule.scheduled)
        prefilling = next((sequence for sequence in self.running if not sequence.is_prefilled), None)
        if tokens >= self._max_tokens:
            return schedule
        if prefilling is None and self._admits():
            prefilling = self.admit()
        if prefilling is not None:
            lacking = prefilling.prompt_len - prefilling.prompt_tokens_processed
            schedule.scheduled.append(Scheduled(prefilling, min(lacking, self._max_tokens - tokens)))
        return schedule

    def _admits(self) -> bool:
        return (
            bool(self.waiting)
            and len(self.running) < self._max_num_seqs
            and self.block_manager.can_allocate(self.waiting[0])
        )


class VLLMScheduler(Scheduler):
    """Whole prompts, and decodes only in iterations in which none comes."""

    def schedule(self) -> Schedule:
        schedule = Schedule()
        self.block_manager.begin_schedule(self.running)
        tokens = 0
        while self.waiting and len(self.running) < self._max_num_seqs:
            tokens += self.waiting[0].prompt_len
            if tokens > self._max_tokens or not self.block_manager.can_allocate(self.waiting[0]):
                break
            sequence = self.admit()
            schedule.scheduled.append(Scheduled(sequence, sequence.prompt_len))
        if not schedule.scheduled:
            self.running = self.decode_what_fits(self.running, schedule)
        return schedule
