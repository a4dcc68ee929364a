"""What a chat engine holds and has done."""

from __future__ import annotations

from dataclasses import dataclass

from vattention.chat.scheduler import Totals
from vattention.memory_report import MemoryReport


@dataclass(frozen=True, slots=True)
class ChatStats:
    """Counted now, from what is mapped and from the conversations' lengths. Sizes are in MiB (2**20 bytes).

    Memory that finished conversations left mapped for the next ones counts as held. Tensors, which is all that
    "DynamicCache" has, and where layers with a sliding window are, count as their storage.
    """

    baseline: str  # what is compared with, in words
    baseline_memory_mb: float  # what that takes
    optimized_memory_mb: float  # keys and values of all conversations: pages mapped, and tensors
    memory_saved_mb: float  # baseline - optimized
    memory_savings_percent: float  # of the baseline
    utilization: float  # the part of what is held that tokens fill, 0 to 1; 0 where nothing is held

    cache: str  # "vattention" or "DynamicCache"
    slot_count: int  # conversations that can hold memory at a time
    slots_held: int  # that do
    cached_tokens: int  # tokens whose keys and values those hold
    running: int  # answers that are being written
    waiting: int  # answers that wait for their turn, or for memory

    # Since the engine began; tokens of ended answers.
    answers_total: int
    prompt_tokens_total: int
    reused_tokens_total: int  # of the prompts', those that were mapped already
    prefilled_tokens_total: int
    generated_tokens_total: int
    given_up_total: int  # times that a conversation's slot was given up for others

    @classmethod
    def of(
        cls,
        report: MemoryReport,
        totals: Totals,
        *,
        cache: str,
        slot_count: int,
        prefix_lengths: list[int],
        running: int,
        waiting: int,
    ) -> ChatStats:
        """`prefix_lengths`: of the conversations that hold a slot, in tokens."""
        return cls(
            baseline=report.baseline,
            baseline_memory_mb=report.baseline_memory_mb,
            optimized_memory_mb=report.optimized_memory_mb,
            memory_saved_mb=report.memory_saved_mb,
            memory_savings_percent=report.memory_savings_percent,
            utilization=report.utilization,
            cache=cache,
            slot_count=slot_count,
            slots_held=len(prefix_lengths),
            cached_tokens=sum(prefix_lengths),
            running=running,
            waiting=waiting,
            answers_total=totals.answers,
            prompt_tokens_total=totals.prompt_tokens,
            reused_tokens_total=totals.reused_tokens,
            prefilled_tokens_total=totals.prefilled_tokens,
            generated_tokens_total=totals.generated_tokens,
            given_up_total=totals.given_up,
        )
