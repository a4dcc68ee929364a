"""The bounds of a pool, and the times by which it shares."""

from __future__ import annotations

from dataclasses import dataclass, field

from vatt.errors import InvalidRequest
from vattd.wish import Timing


@dataclass(frozen=True, slots=True)
class PoolRules:
    """`timing` is the policy's. Who is asked for pages has `reclaim_within_s` to give them back; `kill_after_s` after
    it was asked, a session by which another tenant's promise is broken is killed (None: never). Pages that are idle
    for `idle_after_s` go back to the device."""

    timing: Timing = field(default_factory=Timing)
    reclaim_within_s: float = 1.0
    kill_after_s: float | None = None
    idle_after_s: float = 30.0

    def __post_init__(self) -> None:
        if self.reclaim_within_s <= 0 or self.idle_after_s <= 0:
            raise InvalidRequest("the times to give pages back, and until idle ones go, are more than 0 s")
        if self.kill_after_s is not None and self.kill_after_s < self.reclaim_within_s:
            raise InvalidRequest(
                f"--reclaim-kill-after {self.kill_after_s:g}s is less than --reclaim-within "
                f"{self.reclaim_within_s:g}s, the time that sessions have to give pages back"
            )


@dataclass(frozen=True, slots=True)
class PoolLimits:
    """Bytes of memory the pool keeps backed, may back, and keeps ready for each tenant that has a session."""

    min_bytes: int
    max_bytes: int
    headroom_bytes: int

    def __post_init__(self) -> None:
        if not 0 <= self.min_bytes <= self.max_bytes or self.headroom_bytes < 0:
            raise ValueError(f"not a pool's limits: {self}")
