"""Round trips with vattd: an empty message, leases of so many pages, and their return."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from vatt.usage import Usage
from vattctl.bench.calls import LEAST_TURNS, rounds_a_turn
from vattctl.bench.stopwatch import Line, PhaseTimes
from vattctl.bench.summary import Summary
from vattctl.bench.turns import Tick, turns
from vattention.session import Session

MESSAGES_A_TURN = 16
# Between two messages to a vattd that others use: an engine at work speaks less often.
POLITE_REST_S = 0.005


@dataclass(frozen=True, slots=True)
class Leases:
    """`message_us`: the least that a round trip takes. Lines of the phases "lease", which includes that the pages'
    descriptors travel and are imported, and "return", which includes that the imports are let go of."""

    message_us: Summary
    lines: Sequence[Line]


def measure_leases(
    session: Session, page_counts: Sequence[int], seconds: float, tick: Tick, *, is_polite: bool
) -> Leases:
    """Every lease is returned before the next one. With `is_polite` it leaves others the time to be heard."""
    messages, leases = PhaseTimes(), PhaseTimes()

    def turn() -> None:
        for _ in range(MESSAGES_A_TURN):
            messages.run("message", session.report_usage, Usage())
            messages.end_round(1)
            _rest(is_polite)
        for page_count, rounds in rounds_a_turn(page_counts).items():
            for _ in range(rounds):
                extents = leases.run("lease", session.lease, page_count)
                leases.run("return", session.give_back, extents)
                leases.end_round(page_count)
                _rest(is_polite)

    turn()  # the first lease of the largest count makes all the pages
    messages.forget()
    leases.forget()
    for _ in turns(seconds, LEAST_TURNS, tick):
        turn()
    [message] = messages.lines()
    return Leases(message.call_us, leases.lines())


def _rest(is_polite: bool) -> None:
    if is_polite:
        time.sleep(POLITE_REST_S)
