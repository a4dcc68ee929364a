"""What others measured and published, by driver call. Their hardware, their driver, and calls for one page each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Source:
    """Figures of one publication, in microseconds a call, by the names that `tables` gives to ours."""

    name: str
    reference: str
    hardware: str
    statistic: str
    page_size_bytes: int
    call_us: Mapping[str, float]


# By a transcription of that table, not from the paper itself. Its cuMemRelease is taken to be of the last handle.
VATTENTION = Source(
    name="vAttention",
    reference="arXiv 2405.04437v3, table 3",
    hardware="GPU not named beside the table",
    statistic="no statistic named",
    page_size_bytes=2 << 20,
    call_us={
        "reserve": 2.0,
        "create": 29.0,
        "map": 2.0,
        "set-access each": 38.0,
        "unmap each": 34.0,
        "destroy": 23.0,
        "free": 1.0,
    },
)
# Each call is cut to whole microseconds before it is averaged, so that short ones are up to 1 us longer.
KVCACHED = Source(
    name="kvcached",
    reference="github.com/ovg-project/kvcached, benchmarks/bench_vmm, 32b7578",
    hardware="A100, one thread, 4096 pages",
    statistic="averages of whole microseconds",
    page_size_bytes=2 << 20,
    call_us={
        "reserve": 19.0,
        "create": 193.32,
        "map": 1.45,
        "set-access each": 35.99,
        "unmap each": 25.63,
    },
)
SOURCES: Sequence[Source] = (VATTENTION, KVCACHED)
