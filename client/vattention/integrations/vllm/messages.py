"""What the scheduler and the workers of one engine tell each other, beside what vLLM carries."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry
from vattention.page_source import LeasePurpose


class Depth(enum.Enum):
    """Where pages that vattd wants back may come from."""

    IDLE = "idle"  # what no request uses: free pages, cached prefixes
    RUNNING = "running"  # requests may be preempted as well


@dataclass(frozen=True, slots=True)
class Attach:
    """The scheduler's first word to a rank: what was backed for warming up is dropped. Answered with Facts."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a rank's memory is like. `credit_pages` are leased already, for the block that is always backed."""

    geometry: BlockGeometry
    pool_pages: int  # the most that the tenant could have
    credit_pages: int


@dataclass(frozen=True, slots=True)
class Lease:
    """Lease pages to the scheduler's account: all of `page_count`, or at least `least_pages`. Answered with Granted."""

    page_count: int
    least_pages: int
    purpose: LeasePurpose
    wait_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Granted:
    """How many pages were leased: 0 if vattd refused, and `refusal` says why."""

    page_count: int
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Unlease:
    """Return so many pages of a Lease that another rank could not have."""

    page_count: int


@dataclass(frozen=True, slots=True)
class Orders:
    """What a rank does before the step that brings them, in this order."""

    drop: tuple[int, ...] = ()
    back: tuple[int, ...] = ()
    give_back_pages: int = 0  # unmapped where they are still mapped, and returned to vattd
    idle_pages: int = 0  # of those that are left, how many no request uses
    usage: Usage = field(default_factory=Usage)
    answered: int = 0  # the highest number of a Wanted that these orders take into account


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Have every Wanted of this rank sent over this connection."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """vattd wants pages back, so many more than were given.

    Orders are the same for every rank, and so is what they answer: `number` is when the rank asked, by the machine's
    monotonic clock in nanoseconds, so that one number stands for all ranks' asking until then.
    """

    number: int
    page_count: int
    depth: Depth

    @classmethod
    def of_all(cls, asked: Sequence[Wanted]) -> Wanted:
        """What meets all of these: every rank gives what one is asked for."""
        return cls(
            max(each.number for each in asked),
            max(each.page_count for each in asked),
            Depth.RUNNING if any(each.depth is Depth.RUNNING for each in asked) else Depth.IDLE,
        )


@dataclass(frozen=True, slots=True)
class Failed:
    """The answer to a message that raised."""

    error: str
