"""How much memory several tenants need: in parts of their own, and in one pool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from benchmarks.tenancy.pool import FirstComePool, VattdPool
from benchmarks.tenancy.replay import MakePool, TooManyDelayed, replay
from benchmarks.tenancy.workload import Workload, load
from vattd.guarantee import NO_GUARANTEE, Guarantee
from vattd.wish import Timing

# Sizes are found to this part of the most that is used: near it, a page more or less is chance.
PRECISION = 1 / 200
# Where to begin looking: this part of the peak of one tenant, and of the split's size.
LIKELY_PART, LIKELY_RATIO = 0.9, 0.75
# Of the pool, where tenants have mins in proportion to their peaks.
PROMISED_PART = 0.5


@dataclass(frozen=True, slots=True)
class Mix:
    """Tenants at the same time: the first minutes of an hour each."""

    names: tuple[str, ...]
    seed: int
    minutes: float

    def workloads(self) -> list[Workload]:
        return [_part(name, self.seed, self.minutes) for name in self.names]


@dataclass(frozen=True, slots=True)
class Sizes:
    """The least memory with which each tenant of a mix has few enough of its requests delayed."""

    split_pages: int  # of a static split in proportion to the tenants' own peaks
    first_come_pages: int
    vattd_pages: int
    with_mins_pages: int


def first_come(capacity_pages: int) -> MakePool:
    return lambda accounts: FirstComePool(capacity_pages, accounts)


def vattd(capacity_pages: int) -> MakePool:
    return lambda accounts: VattdPool(capacity_pages, accounts, Timing())


def sizes_of(mix: Mix) -> Sizes:
    workloads = mix.workloads()
    peaks = [_peak_pages(name, mix.seed, mix.minutes) for name in mix.names]
    least = max(workload.largest_pages for workload in workloads)

    # Of a split of S pages tenant t has S * peak_t / sum(peaks), and needs what it needs alone.
    alone = [pages_alone(name, mix.seed, mix.minutes) for name in mix.names]
    split_pages = max(-(-pages * sum(peaks) // peak) for pages, peak in zip(alone, peaks, strict=True))
    precision = max(1, int(split_pages * PRECISION))

    def smallest(make_pool: Callable[[int], MakePool], guess: int, promised_part: float = 0.0) -> int:
        return smallest_pages(
            lambda size: _suffices(workloads, make_pool(size), shares_of(int(size * promised_part), peaks)),
            least,
            guess,
            precision,
        )

    first_come_pages = smallest(first_come, int(split_pages * LIKELY_RATIO))
    vattd_pages = smallest(vattd, first_come_pages)
    return Sizes(split_pages, first_come_pages, vattd_pages, smallest(vattd, vattd_pages, PROMISED_PART))


@cache
def pages_alone(name: str, seed: int, minutes: float) -> int:
    """What a tenant needs to itself. Alone it has the same from either pool, and the plain one is faster."""
    workload, peak = _part(name, seed, minutes), _peak_pages(name, seed, minutes)
    return smallest_pages(
        lambda size: _suffices([workload], first_come(size), [NO_GUARANTEE]),
        workload.largest_pages,
        int(peak * LIKELY_PART),
        max(1, int(peak * PRECISION)),
    )


def shares_of(promised_pages: int, peaks: Sequence[int]) -> list[Guarantee]:
    """Soft mins of so many pages in all, in proportion to the tenants' peaks."""
    return [Guarantee(min_pages=promised_pages * peak // sum(peaks)) for peak in peaks]


def smallest_pages(suffices: Callable[[int], bool], least: int, guess: int, precision: int) -> int:
    """The smallest size, from `least` on, that suffices, to `precision`; found fast if `guess` is close to it.

    What suffices is found in strides that double, then by halving. Were it to come and go with the size, then a size
    is found that suffices and has one that does not, or `least`, right below it.
    """
    size, stride = max(least, guess), precision
    if suffices(size):
        short, enough = least - 1, size
        while enough - stride > short and suffices(enough - stride):
            enough, stride = enough - stride, stride * 2
        short = max(short, enough - stride)
    else:
        short, enough = size, size + stride
        while not suffices(enough):
            stride *= 2
            short, enough = enough, enough + stride
    while enough - short > precision:
        middle = (short + enough) // 2
        if suffices(middle):
            enough = middle
        else:
            short = middle
    return enough


def _suffices(workloads: Sequence[Workload], make_pool: MakePool, guarantees: Sequence[Guarantee]) -> bool:
    try:
        replay(workloads, make_pool, guarantees, stop_early=True)
    except TooManyDelayed:
        return False
    return True


@cache
def _part(name: str, seed: int, minutes: float) -> Workload:
    return load(name, seed).first(minutes * 60)


@cache
def _peak_pages(name: str, seed: int, minutes: float) -> int:
    return _part(name, seed, minutes).peak_pages
