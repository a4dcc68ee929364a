"""The simulator's engines against a plain loop that goes through every request in every step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from benchmarks.tenancy.replay import replay
from benchmarks.tenancy.sizing import first_come
from benchmarks.tenancy.workload import PAGE_TOKENS, STEP_S, Workload, load

SECONDS = 240.0


@dataclass
class Life:
    """One request: its tokens so far, those to be made, and since when it waits."""

    number: int
    tokens: int
    left: int
    since: int

    @property
    def pages(self) -> int:
        return -(-self.tokens // PAGE_TOKENS)

    @property
    def grows(self) -> bool:
        return self.tokens % PAGE_TOKENS == 0


@dataclass
class Tenant:
    workload: Workload
    arriving: deque[Life]
    waiting: deque[Life] = field(default_factory=deque)
    running: list[Life] = field(default_factory=list)  # the youngest last
    is_granted: bool = False  # the first that waits has its pages
    waited: dict[int, int] = field(default_factory=dict)  # steps, by request


class PlainLoop:
    """Tenants with a first-come pool, a step of each after the other."""

    def __init__(self, workloads: Sequence[Workload], free_pages: int) -> None:
        self.free_pages = free_pages
        self.asking: list[Tenant] = []  # for the first that waits, in the order of asking
        self.tenants = [Tenant(w, deque(self._lives(w))) for w in workloads]

    @staticmethod
    def _lives(workload: Workload) -> list[Life]:
        columns = (workload.prompt_tokens, workload.output_tokens, workload.begin_steps)
        return [Life(number, *map(int, row)) for number, row in enumerate(zip(*columns, strict=True))]

    def run(self) -> None:
        step = 0
        while any(t.arriving or t.waiting or t.running for t in self.tenants):
            for tenant in self.tenants:
                self._go_on(tenant, step)
                self._begin(tenant, step)
            step += 1

    def _go_on(self, tenant: Tenant, step: int) -> None:
        done = [life for life in tenant.running if life.left == 0]
        tenant.running = [life for life in tenant.running if life.left]
        spare = sum(life.pages for life in done) - sum(life.grows for life in tenant.running)
        while spare < 0 and -spare > self.free_pages:
            if tenant in self.asking:
                self.asking.remove(tenant)
            if tenant.is_granted:
                tenant.is_granted = False
                spare += tenant.waiting[0].pages
                continue
            life = tenant.running.pop()
            spare += life.pages + life.grows
            tenant.waiting.appendleft(Life(life.number, life.tokens + 1, life.left, step))
        self.free_pages += spare
        self._grant()
        for life in tenant.running:
            life.tokens, life.left = life.tokens + 1, life.left - 1

    def _begin(self, tenant: Tenant, step: int) -> None:
        while tenant.arriving and tenant.arriving[0].since <= step:
            tenant.waiting.append(tenant.arriving.popleft())
        while tenant.waiting:
            if not tenant.is_granted and tenant not in self.asking:
                self.asking.append(tenant)
                self._grant()
            if not tenant.is_granted:
                return
            tenant.is_granted = False
            life = tenant.waiting.popleft()
            tenant.waited[life.number] = tenant.waited.get(life.number, 0) + step - life.since
            life.left -= 1
            tenant.running.append(life)

    def _grant(self) -> None:
        for tenant in list(self.asking):
            if tenant.waiting[0].pages <= self.free_pages:
                self.free_pages -= tenant.waiting[0].pages
                self.asking.remove(tenant)
                tenant.is_granted = True


@pytest.mark.parametrize("part", [0.45, 0.6, 0.8])
@pytest.mark.parametrize("names", [("azure_conv",), ("azure_conv", "azure_code"), ("azure_code", "mooncake_conv")])
def test_engines_do_what_a_plain_loop_over_all_requests_does(names: tuple[str, ...], part: float) -> None:
    workloads = [load(name, seed=0).first(SECONDS) for name in names]
    # A page more than the largest request takes: what begins must be able to end.
    size = max(int(part * sum(w.peak_pages for w in workloads)), *(w.largest_pages + 1 for w in workloads), 1)
    plain = PlainLoop(workloads, size)
    plain.run()
    for tenant, outcome in zip(plain.tenants, replay(workloads, first_come(size)), strict=True):
        waits_s = np.array([tenant.waited[number] for number in range(len(tenant.workload))]) * STEP_S
        assert outcome.waits_s == pytest.approx(waits_s)
    assert plain.free_pages == size
