"""When free pages are gathered for a wish that lacks some, and when others may have them."""

from __future__ import annotations

import math


def gathering_phase(since_s: float, now_s: float, hold_s: float) -> tuple[bool, float]:
    """Are pages gathered now, for a wish for which that began at `since_s`, and until when is that so?

    The first time for `hold_s`, then longer by as much each time, with a recess as long as the time before it. So
    others may pass in half of the time, and however slowly pages come back, one time is long enough.
    """
    if hold_s == 0:
        return False, math.inf

    def begin_s(number: int) -> float:  # of that time: after 0, 2, 6, 12, ... holds
        return since_s + hold_s * number * (number - 1)

    number = int((1 + math.sqrt(1 + 4 * (now_s - since_s) / hold_s)) / 2)
    number += begin_s(number + 1) <= now_s  # lest rounding gives a time that is over
    end_s = begin_s(number) + number * hold_s
    return (True, end_s) if now_s < end_s else (False, begin_s(number + 1))
