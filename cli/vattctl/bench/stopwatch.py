"""Times taken round by round: of whole phases, or of each driver call within them.

The two are taken in different rounds, since to time every call of a phase makes the phase longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

from vattctl.bench.summary import Summary

_Args = ParamSpec("_Args")
_Result = TypeVar("_Result")
Clock = Callable[[], int]


@dataclass(frozen=True, slots=True)
class Line:
    """What one thing took, done for so many pages in a round."""

    phase: str
    call: str | None  # one of the phase's driver calls; None: the whole phase, with what the library does beside them
    page_count: int
    call_us: Summary  # each time by itself
    round_us: Summary  # all of a round together

    @property
    def page_us(self) -> float:
        """The median round, by page."""
        return self.round_us.median_us / self.page_count

    @property
    def calls_a_round(self) -> float:
        return self.call_us.count / self.round_us.count


@dataclass(slots=True)
class _Times:
    calls_ns: list[int] = field(default_factory=list)
    rounds_ns: list[int] = field(default_factory=list)


class Rounds:
    """Times by phase, call and page count. What a round that failed has taken is not in them: see `end_round`."""

    def __init__(self) -> None:
        self._times: dict[tuple[str, str | None, int], _Times] = {}
        self._open: dict[tuple[str, str | None], list[int]] = {}

    def note(self, phase: str, call: str | None, took_ns: int) -> None:
        self._open.setdefault((phase, call), []).append(took_ns)

    def end_round(self, page_count: int) -> None:
        """All that was noted since the last round was one, for so many pages."""
        for (phase, call), taken_ns in self._open.items():
            times = self._times.setdefault((phase, call, page_count), _Times())
            times.calls_ns += taken_ns
            times.rounds_ns.append(sum(taken_ns))
        self._open = {}

    def forget(self) -> None:
        """It was only to warm up."""
        self._times, self._open = {}, {}

    def lines(self) -> list[Line]:
        return [
            Line(*key, call_us=Summary.of_ns(times.calls_ns), round_us=Summary.of_ns(times.rounds_ns))
            for key, times in self._times.items()
        ]


class PhaseTimes(Rounds):
    """Times what it is given to run."""

    def __init__(self, now_ns: Clock = time.perf_counter_ns) -> None:
        super().__init__()
        self._now_ns = now_ns

    def run(self, phase: str, function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        began_ns = self._now_ns()
        result = function(*args, **kwargs)
        self.note(phase, None, self._now_ns() - began_ns)
        return result


class CallTimes(Rounds):
    """Times each driver call of what it is given to run; `watch` is for vattention.vmm.call_watch."""

    def __init__(self, now_ns: Clock = time.perf_counter_ns) -> None:
        super().__init__()
        self._now_ns = now_ns
        self._phase = ""

    def run(self, phase: str, function: Callable[_Args, _Result], *args: _Args.args, **kwargs: _Args.kwargs) -> _Result:
        self._phase = phase
        return function(*args, **kwargs)

    def watch(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            began_ns = self._now_ns()
            result = function(*args, **kwargs)
            self.note(self._phase, name, self._now_ns() - began_ns)
            return result

        return timed
