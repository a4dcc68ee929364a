"""What is counted of the calls that the driver thread makes. Pure: times are arguments."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from vatt.errors import DriverError, SystemLimit
from vattd.tallies import Histogram


@dataclass(slots=True)
class DriverCalls:
    """By call: how long each took, those that failed too; and how many failed, by the driver's own code."""

    times: dict[str, Histogram] = field(default_factory=dict)
    errors: Counter[tuple[str, str]] = field(default_factory=Counter)

    def note(self, call: str, took_s: float, error: BaseException | None) -> None:
        self.times.setdefault(call, Histogram()).note(took_s)
        if isinstance(error, (DriverError, SystemLimit)):  # others are not the driver's: a claim that cannot be, say
            code = error.code if isinstance(error, DriverError) else ""
            self.errors[call, code or error.reason] += 1

    def copy(self) -> DriverCalls:
        return DriverCalls({call: times.copy() for call, times in self.times.items()}, Counter(self.errors))
