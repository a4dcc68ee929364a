"""All workers of one engine, as the scheduler speaks to them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from vatt.errors import InvalidRequest
from vattention.integrations.vllm.channel import Line
from vattention.integrations.vllm.messages import Attach, Facts, Granted, Lease, Orders, Unlease
from vattention.page_source import LeasePurpose


class Ranks:
    """One line to each rank, for one thread of the scheduler's process.

    Every rank is told the same: with tensor parallelism each holds its part of every block.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._lines: list[Line] = []
        with ExitStack() as undo:
            for path in paths:
                self._lines.append(Line(path))
                undo.callback(self._lines[-1].close)
            undo.pop_all()

    def attach(self) -> Facts:
        """What the memory of every rank is like. Raises InvalidRequest if they differ."""
        facts: list[Facts] = [line.call(Attach()) for line in self._lines]
        if len({each.geometry for each in facts}) > 1:
            raise InvalidRequest(
                "the workers of this engine hold different KV caches: pipeline parallelism is not supported"
            )
        return Facts(
            facts[0].geometry,
            pool_pages=min(each.pool_pages for each in facts),
            credit_pages=min(each.credit_pages for each in facts),
        )

    def lease(self, page_count: int, least_pages: int, purpose: LeasePurpose, wait_s: float = 0.0) -> Granted:
        """Lease on every rank, as many on each, or on none. Only the first one waits, while none holds any."""
        granted = [self._lines[0].call(Lease(page_count, least_pages, purpose, wait_s))]
        for line in self._lines[1:]:
            if granted[-1].page_count:
                granted.append(line.call(Lease(granted[-1].page_count, least_pages, purpose)))
        common = min(each.page_count for each in granted)
        for line, each in zip(self._lines, granted, strict=False):
            if each.page_count > common:
                line.call(Unlease(each.page_count - common))
        return granted[-1] if common else Granted(0, granted[-1].refusal)

    def carry_out(self, orders: Orders) -> None:
        for line in self._lines:
            line.call(orders)

    def subscribe(self) -> list[Connection]:
        """Turn the lines into connections that Wanted messages come over."""
        return [line.subscribe() for line in self._lines]

    def close(self) -> None:
        for line in self._lines:
            line.close()
