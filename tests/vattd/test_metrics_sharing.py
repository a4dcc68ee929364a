"""However many scrape, the text is made by one thread at a time, and the event loop keeps most of the interpreter."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from vattd import loop_call, metrics
from vattd.metrics import MAX_REST_S, OTHERS_SHARE, Metrics
from vattd.site import Unanswered

SCRAPERS = 8


class Clock:
    """In place of `time`: goes on with each look, so that no two are at the same time, and by what is slept."""

    def __init__(self, cpu_s: float) -> None:
        self._cpu_s = cpu_s  # of each text
        self._turns = itertools.count()
        self._looked = threading.Condition()
        self.looks = 0
        self.slept_s: list[float] = []

    def monotonic(self) -> float:
        with self._looked:
            self.looks += 1
            self._looked.notify_all()
            return self.looks * 1e-9

    def thread_time(self) -> float:
        return self._cpu_s * next(self._turns)

    def sleep(self, length_s: float) -> None:
        self.slept_s.append(length_s)

    def wait_for(self, looks: int) -> None:
        with self._looked:
            assert self._looked.wait_for(lambda: self.looks >= looks, timeout=20)


class Readings:
    """Numbers its readings, and gives them when it may."""

    def __init__(self) -> None:
        self.count = 0
        self.may_answer = threading.Event()

    async def read(self) -> int:
        self.count += 1
        number = self.count
        await asyncio.to_thread(self.may_answer.wait)
        return number


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield loop
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> Readings:
    """Whose text is the reading's number."""
    monkeypatch.setattr(metrics, "families_of", lambda number: [number])
    monkeypatch.setattr(metrics, "process_families", list)
    monkeypatch.setattr(metrics, "text_of", lambda families: "".join(map(str, families)))
    return Readings()


def test_those_that_come_while_a_text_is_made_share_the_next(
    loop: asyncio.AbstractEventLoop, readings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(cpu_s=0.0)
    monkeypatch.setattr(metrics, "time", clock)
    made = Metrics(loop, readings)
    with ThreadPoolExecutor(SCRAPERS) as scrapers:
        first = scrapers.submit(made.text)
        clock.wait_for(3)  # it came, it looked whether to rest, it began
        others = [scrapers.submit(made.text) for _ in range(SCRAPERS - 1)]
        clock.wait_for(3 + len(others))
        readings.may_answer.set()
        assert first.result() == "1", "of an instant after it came"
        assert {other.result() for other in others} == {"2"}


@pytest.mark.parametrize(("cpu_s", "rest_s"), [(0.01, 0.01 * OTHERS_SHARE), (30.0, MAX_REST_S)])
def test_after_a_text_others_have_the_interpreter_for_a_while(
    cpu_s: float, rest_s: float, loop: asyncio.AbstractEventLoop, readings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(cpu_s)
    monkeypatch.setattr(metrics, "time", clock)
    readings.may_answer.set()
    made = Metrics(loop, readings)
    assert [made.text(), made.text()] == ["1", "2"]
    assert clock.slept_s == [0.0, pytest.approx(rest_s, abs=1e-6)]


def test_a_loop_that_hangs_or_is_closed_is_told_as_that(
    loop: asyncio.AbstractEventLoop, readings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_call, "ANSWER_WITHIN_S", 0.01)
    made = Metrics(loop, readings)
    with pytest.raises(Unanswered, match="has not answered"):
        made.text()
    readings.may_answer.set()
    monkeypatch.setattr(loop_call, "ANSWER_WITHIN_S", 20.0)
    assert made.text() == "2"
    closed = asyncio.new_event_loop()
    closed.close()
    with pytest.raises(Unanswered, match="ending"):
        Metrics(closed, readings).text()
