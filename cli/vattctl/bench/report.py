"""All that a bench found out, and as plain values for programs."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vattctl.bench.environment import Environment
from vattctl.bench.leases import Leases
from vattctl.bench.plan import Part, Plan
from vattctl.bench.published import SOURCES
from vattctl.bench.steps import Steps
from vattctl.bench.stopwatch import Line
from vattctl.bench.summary import Summary

SCHEMA = "vattd-bench/1"


@dataclass(frozen=True, slots=True)
class Overheads:
    """What is in every time, and not taken off: the stopwatch, and the driver call that does least, made in the same
    way as the others."""

    stopwatch_us: Summary
    least_call: str
    least_call_us: Summary


@dataclass(frozen=True, slots=True)
class PoolFacts:
    """The vattd that pages were leased from, as far as it may be asked."""

    is_private: bool
    vattd_version: str | None
    page_size_bytes: int
    min_bytes: int | None
    max_bytes: int | None
    scrub: str | None
    other_sessions: int | None
    created_pages: int | None  # while leases were timed: 0, or they were not of ready pages


@dataclass(frozen=True, slots=True)
class Report:
    """What was not measured is None, or empty; `left_out` says why, and is True of what failed."""

    environment: Environment
    plan: Plan
    overheads: Overheads
    calls: Sequence[Line]
    leases: Leases | None
    steps: Steps | None
    pool: PoolFacts | None
    left_out: Mapping[Part, LeftOut]

    @property
    def failed(self) -> bool:
        return any(why.is_failure for why in self.left_out.values())

    @property
    def is_simulated(self) -> bool:
        gpu = self.environment.gpu
        return gpu is not None and gpu.is_simulated

    def drifts(self) -> list[float]:
        """Of all that was timed: how far apart its two halves are."""
        lines = [*self.calls, *(self.leases.lines if self.leases else ())]
        steps = self.steps.lines if self.steps else ()
        return [*(line.round_us.drift for line in lines), *(line.step_us.drift for line in steps)]

    def to_plain(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "schema": SCHEMA,
            "environment": _plain(self.environment),
            "settings": {
                "page_size_bytes": plan.page_size_bytes,
                "page_counts": list(plan.page_counts),
                "memory_bytes": plan.memory_bytes,
                "parts": sorted(part.value for part in plan.parts),
                "seconds": {part.value: plan.seconds[part] for part in Part},
            },
            "pool": _plain(self.pool),
            "overheads": _plain(self.overheads),
            "calls": [_plain_line(line) for line in self.calls],
            "leases": None
            if self.leases is None
            else {
                "message_us": _plain(self.leases.message_us),
                "lines": [_plain_line(line) for line in self.leases.lines],
            },
            "steps": _plain(self.steps),
            "published": [_plain(source) for source in SOURCES],
            "left_out": {part.value: _plain(why) for part, why in self.left_out.items()},
        }


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Why a part was not measured, in words that name nobody's machine."""

    words: str
    is_failure: bool


def _plain(value: Any) -> Any:
    """Fields by their names; an enum by its own."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, enum.Enum):
        return value.name.lower()
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


def _plain_line(line: Line) -> dict[str, Any]:
    return {**_plain(line), "page_us": line.page_us, "calls_a_round": line.calls_a_round}
