"""Several engines with one pool, in virtual time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.tenancy.account import Account
from benchmarks.tenancy.engine import DELAY_S, Engine
from benchmarks.tenancy.pool import Pool
from benchmarks.tenancy.workload import STEP_S, Workload
from vattd.guarantee import NO_GUARANTEE, Guarantee

# At most this part of each tenant's requests may be delayed.
DELAYED_FRACTION = 0.01

MakePool = Callable[[Sequence[Account]], Pool]


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of one tenant. Extra waits are those for memory: from the first step after a request's arrival until
    the step in which its pages are there, and as long again each time that it was preempted."""

    name: str
    waits_s: npt.NDArray[np.float64]  # of each request
    finished: int
    preemptions: int

    @property
    def delayed_fraction(self) -> float:
        return float(np.mean(self.waits_s > DELAY_S))

    @property
    def p99_s(self) -> float:
        return float(np.percentile(self.waits_s, 99))


class TooManyDelayed(Exception):
    """A tenant misses the criterion already."""


def replay(
    workloads: Sequence[Workload],
    make_pool: MakePool,
    guarantees: Sequence[Guarantee] | None = None,
    *,
    stop_early: bool = False,
) -> list[Outcome]:
    """Until every request is done. With `stop_early`, raises TooManyDelayed when a tenant misses the criterion."""
    guarantees = guarantees or [NO_GUARANTEE] * len(workloads)
    accounts = [Account(w.name, g) for w, g in zip(workloads, guarantees, strict=True)]
    pool = make_pool(accounts)
    engines = [Engine(w, account, pool) for w, account in zip(workloads, accounts, strict=True)]
    allowed = [int(len(w) * DELAYED_FRACTION) if stop_early else len(w) for w in workloads]
    phase_s = STEP_S / len(engines)  # engines step one after the other
    step = 0
    while True:
        for number, engine in enumerate(engines):
            engine.step(step, step * STEP_S + number * phase_s)
            if engine.delayed > allowed[number]:
                raise TooManyDelayed(engine.account.name)
        following = [next_step for engine in engines if (next_step := engine.next_step(step + 1)) is not None]
        if not following:
            break
        if any(engine.is_queueing for engine in engines):
            pool.serve((step + 1) * STEP_S)  # what changes by time alone
        step = min(following)
    return [Outcome(e.account.name, np.array(e.waits_s), e.finished, e.preemptions) for e in engines]
