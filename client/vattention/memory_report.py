"""What paging saves, as the figures that reports and benchmarks show."""

from __future__ import annotations

from dataclasses import dataclass

from vatt.usage import Usage

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """What a KV cache holds against what others would, measured; sizes in MiB (2**20 bytes).

    Where a baseline takes nothing, the percentage saved against it is 0, whatever is mapped; where nothing is mapped,
    `utilization` is 0. So every figure is finite.
    """

    baseline_memory_mb: float  # static reservation of the named context
    optimized_memory_mb: float  # physical bytes mapped
    memory_saved_mb: float  # baseline - optimized; negative if the baseline takes less
    memory_savings_percent: float  # of the baseline
    utilization: float  # token bytes / mapped bytes, 0 to 1
    paged16_memory_mb: float  # PagedAttention in blocks of 16 tokens, for the same lengths
    paged256_memory_mb: float  # and of 256
    saved_vs_paged16_percent: float  # negative when PagedAttention would take less
    saved_vs_paged256_percent: float
    baseline: str  # the static reservation in words: "static reservation of 64 slots x 32768 tokens"

    @classmethod
    def of(cls, usage: Usage, page_size_bytes: int, baseline: str) -> MemoryReport:
        """Raises ValueError for a page of no size, and for tokens that fill more than is mapped."""
        mapped_bytes = usage.mapped_pages * page_size_bytes
        if page_size_bytes < 1 or usage.token_bytes > mapped_bytes:
            raise ValueError(f"tokens cannot fill more than is mapped: {usage} in pages of {page_size_bytes} bytes")
        return cls(
            baseline_memory_mb=usage.static_reservation_bytes / MIB,
            optimized_memory_mb=mapped_bytes / MIB,
            memory_saved_mb=(usage.static_reservation_bytes - mapped_bytes) / MIB,
            memory_savings_percent=_saved_percent(usage.static_reservation_bytes, mapped_bytes),
            utilization=usage.token_bytes / mapped_bytes if mapped_bytes else 0.0,
            paged16_memory_mb=usage.paged16_bytes / MIB,
            paged256_memory_mb=usage.paged256_bytes / MIB,
            saved_vs_paged16_percent=_saved_percent(usage.paged16_bytes, mapped_bytes),
            saved_vs_paged256_percent=_saved_percent(usage.paged256_bytes, mapped_bytes),
            baseline=baseline,
        )


def _saved_percent(baseline_bytes: int, mapped_bytes: int) -> float:
    return 100 * (baseline_bytes - mapped_bytes) / baseline_bytes if baseline_bytes else 0.0
