"""How fast a client may speak: beyond a generous rate what it says waits, while somebody else speaks too.

Who is alone may use all of the daemon. As soon as others are there, each has a share that leaves room for them; what it
says beyond that is answered later, not refused, so that its own calls under way hold it up. Pure: time is an argument.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

# Others are there while one of them spoke in the last second.
OTHERS_WITHIN_S = 1.0
# Buckets that have filled again are swept out when there are this many, and twice as many as were left the last time.
SWEEP_AFTER = 256


@dataclass(frozen=True, slots=True)
class Rate:
    """Messages a second in the long run, and at once."""

    per_s: float
    burst: float

    def __post_init__(self) -> None:
        if self.per_s <= 0 or self.burst < 1:
            raise ValueError(f"not a rate: {self}")


# Measured: one vattd serves about 3,500 messages a second on one slow core; four engines that do nothing else send
# 900 each, and one at work less than 300. Six of a user's engines at work stay below its rate beside others. It and the
# strangers' part must leave a slower core room: at 2,400 both together were all that one could serve.
OF_SESSION = Rate(per_s=1_000, burst=2_000)
OF_USER = Rate(per_s=1_800, burst=2_400)
# Nobody is put off for longer: clients wait for two seconds. Its rate holds all the same for who has no more waiting at
# a time than the rate grants in that time, and the service sees to that.
MAX_DELAY_S = 1.5
# All calls without a session count as one user's, an Attach without a good token too: nobody knows whose they are.
STRANGERS = -1
STRANGERS_WEIGHT = 4.0  # and they may have less
ATTACH_WEIGHT = 4.0  # it costs more than others, and is logged
RUNS_A_MESSAGE = 64.0  # a return of so many runs, or a pull of so many pages, counts as a message more


class Rates:
    """Token buckets of those who speak, by key.

    Invariants: nobody whose messages wait for at most MAX_DELAY_S * per_s together is ever granted more than `burst +
    per_s * t` messages in any time t in which others spoke; who stays below the rate, or is alone, never waits.
    """

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._free_s: dict[Hashable, float] = {}  # when the bucket would be full again
        self._sweep_after = SWEEP_AFTER
        self._last: tuple[Hashable, float] = (None, -1e9)  # who spoke last, and when
        self._before: tuple[Hashable, float] = (None, -1e9)  # the last one who is not that one

    def __len__(self) -> int:
        return len(self._free_s)

    def delay_s(self, key: Hashable, now_s: float, weight: float = 1.0) -> float:
        """How long this message, as heavy as so many, is to wait."""
        if key != self._last[0]:
            self._before = self._last
        self._last = (key, now_s)
        rate = self._rate
        free_s = max(self._free_s.get(key, 0.0), now_s) + weight / rate.per_s
        most_s = now_s + rate.burst / rate.per_s
        if self._before[0] is None or now_s - self._before[1] > OTHERS_WITHIN_S:
            free_s = min(free_s, most_s)  # alone: it may have used up what it may, but owes nothing
        free_s = min(free_s, most_s + MAX_DELAY_S)
        self._free_s[key] = free_s
        if len(self._free_s) > self._sweep_after:
            self._sweep(now_s)
        return max(0.0, free_s - most_s)

    def _sweep(self, now_s: float) -> None:
        """Forget full buckets; a new one is full as well."""
        full = [key for key, free_s in self._free_s.items() if free_s <= now_s]
        for key in full:
            del self._free_s[key]
        self._sweep_after = max(SWEEP_AFTER, 2 * len(self._free_s))
