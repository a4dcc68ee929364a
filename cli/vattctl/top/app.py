"""The terminal around frames: asks, draws, and reads keys."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import Static

from vatt.errors import VattError
from vatt.sockets import Sockets
from vattctl.top import page_map
from vattctl.top.canvas import Canvas
from vattctl.top.frame import Frame, frame
from vattctl.top.history import History
from vattctl.top.keys import help_text, key_line
from vattctl.top.shape import FEWEST_MAP_LINES
from vattctl.top.source import Source
from vattctl.top.view import View

FindAll = Callable[[], Sequence[Sockets]]


class Help(ModalScreen[None]):
    """Any key ends it."""

    CSS = """
    Help { align: center middle; background: ansi_default; }
    Help Static { width: auto; max-width: 100%; max-height: 100%; border: round ansi_default; padding: 0 1; }
    """

    def compose(self) -> ComposeResult:
        yield Static(help_text())

    def on_key(self, event: events.Key) -> None:
        event.stop()
        if self.is_active:  # of two keys at once the second comes when it is gone already
            self.dismiss()


class Top(App[None]):
    """`find_all` says which vattds there are, whenever somebody goes to another one; `found` are those at first."""

    TITLE = "vattctl top"
    ENABLE_COMMAND_PALETTE = False
    # The terminal's own background; the colours are those of `marks`.
    CSS = "Screen, Canvas { background: ansi_default; color: ansi_default; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("q", "quit"),
        Binding("ctrl+c", "quit", priority=True),
        Binding("question_mark,h", "help"),
        Binding("tab", "other_table", priority=True),
        Binding("s", "sort(1)"),
        Binding("S", "sort(-1)"),
        Binding("r", "reverse"),
        Binding("down,j", "scroll(1)"),
        Binding("up,k", "scroll(-1)"),
        Binding("pagedown", "page(1)"),
        Binding("pageup", "page(-1)"),
        Binding("home", "page(-1000)"),
        Binding("end", "page(1000)"),
        Binding("l", "letters"),
        Binding("g", "vattd(1)"),
        Binding("G", "vattd(-1)"),
        Binding("space", "pause"),
        Binding("ctrl+z", "suspend_process", priority=True),
    ]

    def __init__(
        self,
        find_all: FindAll,
        found: Sequence[Sockets],
        interval_s: float,
        *,
        letters: bool,
        source_of: Callable[[Sockets], Source] = Source,
    ) -> None:
        super().__init__(ansi_color=True)
        self.canvas = Canvas()
        self.view = View(letters=letters)
        self._find_all, self._found, self._interval_s = find_all, list(found), interval_s
        self._source_of = source_of
        self._source = source_of(self._found[0])
        self._histories: dict[Path, History] = {}
        self._trouble = ""
        self._drawn: Frame | None = None
        self._now_s = time.time()
        self._wake = asyncio.Event()

    def compose(self) -> ComposeResult:
        yield self.canvas

    def on_mount(self) -> None:
        if self.console.color_system in (None, "standard"):  # too few colours to tell tenants apart
            self.view = replace(self.view, letters=True)
        self.app_resume_signal.subscribe(self, lambda _: self.canvas.refresh())  # the shell has cleared all of it
        self.run_worker(self._watch())

    def on_unmount(self) -> None:
        self._source.close()  # else an ask that vattd does not answer would be waited for

    def on_canvas_sized(self) -> None:
        self._ask_now()  # for a map of the new size
        self._draw()

    def action_help(self) -> None:
        self.push_screen(Help())

    def action_other_table(self) -> None:
        self._look(self.view.with_other_table())

    def action_sort(self, step: int) -> None:
        if self._drawn is not None and self._drawn.titles:
            order = self.view.orders[self.view.focus].next(self._drawn.titles[self.view.focus], step)
            self._look(self.view.with_order(order))

    def action_reverse(self) -> None:
        self._look(self.view.with_order(self.view.orders[self.view.focus].turned()))

    def action_scroll(self, rows: int) -> None:
        if self._drawn is not None:
            focus = self.view.focus
            self._look(self.view.scrolled(rows, self._drawn.in_all[focus], self._drawn.shown[focus]))

    def action_page(self, pages: int) -> None:
        if self._drawn is not None:
            self.action_scroll(pages * max(1, self._drawn.shown[self.view.focus]))

    def action_letters(self) -> None:
        self._look(replace(self.view, letters=not self.view.letters))
        self._ask_now()  # a place holds one letter, or two colours

    def action_pause(self) -> None:
        self._look(replace(self.view, is_paused=not self.view.is_paused))
        self._ask_now()

    def action_vattd(self, step: int) -> None:
        """The next one that there is now; the one that is shown stays, even if it is gone."""
        now = self._source.sockets
        self._found = sorted({now, *self._find_all()}, key=lambda one: one.directory)
        self._source.close()
        self._source = self._source_of(self._found[(self._found.index(now) + step) % len(self._found)])
        self._trouble = ""
        self._draw()
        self._ask_now()

    def _look(self, view: View) -> None:
        self.view = view
        self._draw()

    def _ask_now(self) -> None:
        self._wake.set()

    async def _watch(self) -> None:
        while True:
            self._wake.clear()
            begin_s = time.monotonic()
            if not self.view.is_paused and self.canvas.size:  # it has none until it is laid out
                await self._ask()
            with suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._wake.wait(), max(0.0, begin_s + self._interval_s - time.monotonic()))

    async def _ask(self) -> None:
        source = self._source
        try:
            reading = await asyncio.to_thread(source.read, self._cell_count())
        except VattError as error:
            trouble = f"{error}. Asked again every {self._interval_s:g} s."
        else:
            trouble = ""
            self._history(source).add(reading)
        if source is self._source:  # nobody went to another one meanwhile
            self._trouble, self._now_s = trouble, time.time()
            self._draw()

    def _history(self, source: Source) -> History:
        return self._histories.setdefault(source.sockets.directory, History(self._interval_s))

    def _cell_count(self) -> int:
        lines = self._drawn.map_lines if self._drawn is not None else 0
        return page_map.capacity(self.canvas.size.width, max(FEWEST_MAP_LINES, lines), letters=self.view.letters)

    def _draw(self) -> None:
        width, height = self.canvas.size
        if width < 1 or height < 1:
            return
        history = self._history(self._source)
        drawn = frame(history, self.view, width, height - 1, self._now_s, self._right_words(), self._trouble)
        self._drawn = drawn
        fill = [Text()] * (height - 1 - len(drawn.lines))
        self.canvas.show([*drawn.lines, *fill, key_line(several=len(self._found) > 1)])

    def _right_words(self) -> str:
        parts = ["paused"] if self.view.is_paused else []
        if len(self._found) > 1:
            parts.append(f"{self._found.index(self._source.sockets) + 1} of {len(self._found)}")
        return "  ".join(
            [*parts, f"every {self._interval_s:g} s", time.strftime("%H:%M:%S", time.localtime(self._now_s))]
        )
