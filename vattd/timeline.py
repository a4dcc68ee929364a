"""How the pool went lately: a ring of samples, each of one instant. Pure: time is an argument."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

# A tenant costs a row in each sample that it has something in, and anybody may name tenants.
MOST_TENANTS_A_SAMPLE = 32


@dataclass(frozen=True, slots=True)
class Amounts:
    """What a tenant has and wants, in bytes."""

    leased_bytes: int = 0
    mapped_bytes: int = 0
    waiting_bytes: int = 0

    @classmethod
    def total(cls, several: Iterable[Amounts]) -> Amounts:
        rows = [(one.leased_bytes, one.mapped_bytes, one.waiting_bytes) for one in several]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else NOTHING

    @property
    def size(self) -> int:
        """How much of a picture it is."""
        return max(self.leased_bytes, self.mapped_bytes, self.waiting_bytes)


NOTHING = Amounts()


@dataclass(frozen=True, slots=True)
class Sample:
    """One instant. `others` is what tenants have that are not named, together."""

    taken_s: float
    tenants: Mapping[str, Amounts]
    others: Amounts
    free_bytes: int | None  # of the device; None: it did not say in time


def sample(taken_s: float, tenants: Mapping[str, Amounts], free_bytes: int | None) -> Sample:
    """With the largest tenants by name, and those alone that have something."""
    named, others = _split(tenants, MOST_TENANTS_A_SAMPLE)
    return Sample(taken_s, named, others, free_bytes)


@dataclass(frozen=True, slots=True)
class Picture:
    """The same times for all. For each time, the tenants' amounts and the others' sum to what all tenants have."""

    ages_s: tuple[float, ...]  # the oldest first
    tenants: Mapping[str, tuple[Amounts, ...]]  # by name
    others: tuple[Amounts, ...]
    free_bytes: tuple[int | None, ...]


class Timeline:
    """The last samples.

    Invariant: they are at most `most`, in the order of their times; none older than `reach_s` is drawn.
    """

    def __init__(self, reach_s: float, every_s: float) -> None:
        if not 0 < every_s <= reach_s:
            raise ValueError(f"not a timeline: {reach_s=} {every_s=}")
        self.reach_s, self.every_s = reach_s, every_s
        self.most = int(reach_s / every_s) + 1
        self._samples: deque[Sample] = deque(maxlen=self.most)

    def add(self, new: Sample) -> None:
        if self._samples and new.taken_s < self._samples[-1].taken_s:
            raise ValueError(f"a sample of {new.taken_s} after one of {self._samples[-1].taken_s}")
        self._samples.append(new)

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self, now_s: float) -> list[Sample]:
        """Those within reach: what is drawn of them needs no more of this."""
        return [one for one in self._samples if now_s - one.taken_s <= self.reach_s]


def draw(samples: Sequence[Sample], now_s: float, most_tenants: int) -> Picture:
    """Those tenants by name that were largest at any time of it; all others together."""
    peaks: dict[str, int] = {}
    for one in samples:
        for name, amounts in one.tenants.items():
            peaks[name] = max(peaks.get(name, 0), amounts.size)
    names = sorted(_largest(peaks, most_tenants, lambda name: peaks[name]))
    return Picture(
        ages_s=tuple(now_s - one.taken_s for one in samples),
        tenants={name: tuple(one.tenants.get(name, NOTHING) for one in samples) for name in names},
        others=tuple(_without(one, names) for one in samples),
        free_bytes=tuple(one.free_bytes for one in samples),
    )


def _without(one: Sample, names: Iterable[str]) -> Amounts:
    named = set(names)
    return Amounts.total([one.others, *(amounts for name, amounts in one.tenants.items() if name not in named)])


def _split(tenants: Mapping[str, Amounts], most: int) -> tuple[dict[str, Amounts], Amounts]:
    """The largest, and the sum of the others."""
    names = set(_largest((name for name, amounts in tenants.items() if amounts.size), most, lambda n: tenants[n].size))
    others = (amounts for name, amounts in tenants.items() if name not in names)
    return {name: amounts for name, amounts in tenants.items() if name in names}, Amounts.total(others)


def _largest(names: Iterable[str], most: int, size: Callable[[str], int]) -> list[str]:
    """By name where they are as large."""
    return sorted(names, key=lambda name: (-size(name), name))[:most]
