"""top as somebody types at it: textual's pilot, canned answers, and a real vattd that goes and comes back."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from textual.events import Key
from textual.pilot import Pilot

from tests.daemon import Vattd
from tests.raw_engine import RawEngine, in_thread
from tests.vattctl.top.answers import page_map, session, status, tenant
from vatt.errors import DaemonUnreachable, VattError
from vatt.sockets import Sockets, find_daemons
from vattctl.daemon import ANSWER_WITHIN_S
from vattctl.top.app import Top
from vattctl.top.reading import Reading
from vattctl.top.source import Source

WITHIN_S = 20.0
# Asked only when a key or a new size has it asked.
NEVER_S = 3600.0

Act = Callable[[Top, Pilot[None]], Coroutine[Any, Any, None]]
HERE, THERE = Sockets(Path("/run/vattd/GPU-here")), Sockets(Path("/run/vattd/GPU-there"))


class Canned(Source):
    """Says what a test wants: a vattd with as many tenants as its device's name has letters."""

    asked_cells: list[int] = []  # noqa: RUF012 - emptied by each test
    trouble: VattError | None = None

    def read(self, cell_count: int) -> Reading:
        Canned.asked_cells.append(cell_count)
        if Canned.trouble is not None:
            raise Canned.trouble
        names = [f"{self.sockets.device}-{number}" for number in range(5)]
        tenants = [tenant(name, 10 + number, mapped_bytes=(5 - number) << 20) for number, name in enumerate(names)]
        sessions = [session(f"9-{number}", names[number % 5], number) for number in range(64)]
        answer = status(tenants, sessions)
        answer.device.uuid = answer.device.name = self.sockets.device
        return Reading(time.monotonic(), answer, page_map([("leased", 1)] * 900, names))


@pytest.fixture(autouse=True)
def _is_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal with colours."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "256")
    Canned.asked_cells, Canned.trouble = [], None


def drive(act: Act, *found: Sockets, size: tuple[int, int] = (80, 24), letters: bool = True) -> Top:
    sockets = list(found or [HERE])
    top = Top(lambda: sockets, sockets, NEVER_S, letters=letters, source_of=Canned)

    async def run() -> None:
        async with top.run_test(size=size) as pilot:
            await until(top, pilot, "TENANT")
            await act(top, pilot)

    asyncio.run(run())
    return top


async def until(top: Top, pilot: Pilot[None], words: str) -> str:
    """What is seen, once the words are."""
    deadline_s = time.monotonic() + WITHIN_S
    while words not in top.canvas.text:
        assert time.monotonic() < deadline_s, f"no {words!r} in\n{top.canvas.text}"
        await pilot.pause(0.01)
    return top.canvas.text


def first_row(text: str, title: str) -> str:
    lines = text.splitlines()
    return lines[next(at for at, line in enumerate(lines) if line.startswith(title)) + 1]


def test_keys_sort_the_table_in_focus() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        assert "E GPU-here-4" in first_row(top.canvas.text, "TENANT")
        await pilot.press("r")
        assert "A GPU-here-0" in first_row(top.canvas.text, "TENANT")
        await pilot.press("s")
        assert "MAPPED▾" in top.canvas.text
        await pilot.press("S", "S")
        assert "TENANT▴" in top.canvas.text
        await pilot.press("tab", "r")
        assert "9-0" in first_row(top.canvas.text, "SESSION")
        assert "A GPU-here-0" in first_row(top.canvas.text, "TENANT"), "the other one stays as it was"

    drive(act)


def test_a_table_scrolls_to_both_ends() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("tab", "down", "j")
        assert "9-61" in first_row(top.canvas.text, "SESSION")
        assert "SESSION 3-" in top.canvas.text
        await pilot.press("end")
        assert "/64" in top.canvas.text
        assert "-64/64" in top.canvas.text
        await pilot.press("pageup", "home", "k")
        assert "9-63" in first_row(top.canvas.text, "SESSION")

    drive(act)


def test_help_is_there_until_a_key_and_the_letter_l_draws_colours() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("question_mark")
        assert len(top.screen_stack) == 2
        await pilot.press("q")
        assert len(top.screen_stack) == 1, "q ended the help, not top"
        await pilot.press("question_mark")
        for _ in range(3):  # typed faster than it is read
            top.screen.post_message(Key("x", "x"))
        await pilot.pause()
        assert len(top.screen_stack) == 1
        assert "AAAAAAAA" in top.canvas.text
        await pilot.press("l")
        assert "AAAAAAAA" not in top.canvas.text

    drive(act)


def test_a_new_size_is_drawn_and_a_map_of_it_is_asked_for() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        for size, map_lines in (((200, 50), 8), ((30, 8), 3), ((1, 1), 3), ((80, 24), 3)):
            await pilot.resize_terminal(*size)
            while Canned.asked_cells[-1] != size[0] * map_lines:
                await pilot.pause(0.01)
            lines = top.canvas.text.split("\n")
            assert len(lines) == size[1]
            assert max(len(line) for line in lines) <= size[0]

    drive(act)


def test_a_place_of_a_coloured_map_holds_two_cells() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        for cells in (2 * 3 * 80, 3 * 80):
            while Canned.asked_cells[-1] != cells:
                await pilot.pause(0.01)
            await pilot.press("l")

    drive(act, letters=False)


def test_few_colours_begin_with_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("textual.constants.COLOR_SYSTEM", "standard")

    async def act(top: Top, pilot: Pilot[None]) -> None:
        assert "AAAAAAAA" in top.canvas.text

    drive(act, letters=False)


def test_paused_nothing_is_asked_and_keys_still_work() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        await pilot.press("space")
        assert "paused" in top.canvas.text
        count = len(Canned.asked_cells)
        await pilot.press("l", "r", "l")
        assert "A GPU-here-0" in first_row(top.canvas.text, "TENANT")
        assert len(Canned.asked_cells) == count
        await pilot.press("space")
        while len(Canned.asked_cells) == count:
            await pilot.pause(0.01)
        assert "paused" not in top.canvas.text

    drive(act)


def test_g_goes_to_the_next_vattd_and_back() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        assert "1 of 2" in top.canvas.text
        await pilot.press("g")
        text = await until(top, pilot, "E GPU-there-4")
        assert "2 of 2" in text
        assert "GPU-here" not in text
        await pilot.press("g")
        assert "E GPU-here-4" in top.canvas.text, "what it said last is still known"

    drive(act, HERE, THERE)


def test_g_finds_those_that_started_since() -> None:
    found = [HERE]

    async def act(top: Top, pilot: Pilot[None]) -> None:
        assert " of " not in top.canvas.text.splitlines()[0]
        found.append(THERE)
        await pilot.press("g")
        assert "2 of 2" in await until(top, pilot, "E GPU-there-4")

    top = Top(lambda: found, [HERE], NEVER_S, letters=True, source_of=Canned)

    async def run() -> None:
        async with top.run_test(size=(80, 24)) as pilot:
            await until(top, pilot, "TENANT")
            await act(top, pilot)

    asyncio.run(run())


def test_where_vattd_does_not_answer_any_more_what_to_type_is_said_until_it_does() -> None:
    async def act(top: Top, pilot: Pilot[None]) -> None:
        Canned.trouble = DaemonUnreachable("no vattd answers: start one with `vattd start`")
        await pilot.press("l")
        text = await until(top, pilot, "no answer")
        assert "no vattd answers: start one with `vattd start`. Asked again every 3600 s." in text
        assert "E GPU-here-4" in text, "with what it said last"
        Canned.trouble = None
        await pilot.press("l")
        assert "no vattd answers" not in await until(top, pilot, "serving")

    drive(act)


def test_a_vattd_that_is_killed_and_comes_back_is_seen_again() -> None:
    with ExitStack() as stack:
        vattd = stack.enter_context(Vattd("--pool-max", "64MiB"))
        engine = stack.enter_context(RawEngine(vattd.sockets, "chat"))
        engine.lease(32)
        top = Top(lambda: find_daemons([vattd.socket_dir]), [vattd.sockets], 0.05, letters=True)

        async def run() -> None:
            async with top.run_test(size=(120, 30)) as pilot:
                assert f"pid {vattd.pid}" in await until(top, pilot, "A chat")
                assert "AAAA" in top.canvas.text, "the page map"
                vattd.stop(signal.SIGKILL)
                assert "`vattd start --gpu host" in await until(top, pilot, "no vattd answers at")
                await asyncio.to_thread(vattd.start)
                assert "no vattd answers" not in await until(top, pilot, f"pid {vattd.pid}")

        asyncio.run(run())


class Hanging(Canned):
    """Its second answer never comes, until it is closed."""

    def __init__(self, sockets: Sockets) -> None:
        super().__init__(sockets)
        self.is_asked, self.is_closed = threading.Event(), threading.Event()

    def read(self, cell_count: int) -> Reading:
        if Canned.asked_cells:
            self.is_asked.set()
            self.is_closed.wait()
            raise DaemonUnreachable("closed")
        return super().read(cell_count)

    def close(self) -> None:
        self.is_closed.set()


@pytest.mark.parametrize("key", ["q", "g"])
def test_a_vattd_that_hangs_keeps_nobody_from_going_away(key: str) -> None:
    hanging: list[Hanging] = []

    def source_of(sockets: Sockets) -> Source:
        if hanging:
            return Canned(sockets)
        hanging.append(Hanging(sockets))
        return hanging[0]

    async def run() -> None:
        top = Top(lambda: [HERE, THERE], [HERE, THERE], NEVER_S, letters=True, source_of=source_of)
        async with top.run_test(size=(80, 24)) as pilot:
            await until(top, pilot, "TENANT")
            await pilot.press("l")
            await asyncio.to_thread(hanging[0].is_asked.wait)
            await pilot.press(key)
            if key == "g":
                await until(top, pilot, "E GPU-there-4")

    asyncio.run(run())
    assert hanging[0].is_closed.is_set()


def test_a_source_that_is_closed_from_another_thread_ends_its_ask() -> None:
    with Vattd("--pool-max", "64MiB") as vattd:
        source = Source(vattd.sockets)
        assert source.read(10).status.device.backend == "host"
        vattd.process.send_signal(signal.SIGSTOP)
        try:
            begin_s = time.monotonic()
            thread, outcome = in_thread(lambda: source.read(10))
            while thread.is_alive():  # over and over: it may not have begun yet
                source.close()
                thread.join(0.05)
            assert time.monotonic() - begin_s < ANSWER_WITHIN_S
        finally:
            vattd.process.send_signal(signal.SIGCONT)
        assert isinstance(outcome[0], DaemonUnreachable)
