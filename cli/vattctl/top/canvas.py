"""The part of the terminal that frames are drawn on."""

from __future__ import annotations

from collections.abc import Sequence

from rich.segment import Segment
from rich.text import Text
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget


class Canvas(Widget):
    """Sends only what differs from the frame before: over ssh that is most of the cost."""

    DEFAULT_CSS = "Canvas { width: 1fr; height: 1fr; }"

    def __init__(self) -> None:
        super().__init__()
        self._strips: list[Strip] = []

    class Sized(Message):
        """It has another size: what it shows was made for the one before."""

    def on_resize(self) -> None:
        self.post_message(self.Sized())

    def show(self, lines: Sequence[Text]) -> None:
        width = self.size.width
        strips = [Strip(line.render(self.app.console)).adjust_cell_length(width) for line in lines]
        before, self._strips = self._strips, strips
        if len(before) != len(strips):
            self.refresh()
            return
        pairs = enumerate(zip(before, strips, strict=True))
        regions = [changed for y, (old, new) in pairs if (changed := _changed(old, new, y))]
        if regions:
            self.refresh(*regions)

    def render_line(self, y: int) -> Strip:
        return self._strips[y] if y < len(self._strips) else Strip.blank(self.size.width)

    @property
    def text(self) -> str:
        return "\n".join(strip.text.rstrip() for strip in self._strips)


def _changed(old: Strip, new: Strip, y: int) -> Region | None:
    """From the first segment that differs to the last one."""
    if old.cell_length != new.cell_length:
        return Region(0, y, max(old.cell_length, new.cell_length), 1)
    before, after = list(old), list(new)
    if before == after:
        return None
    left = _equal_cells(before, after)
    right = _equal_cells(before[::-1], after[::-1])
    return Region(left, y, new.cell_length - left - right, 1)


def _equal_cells(before: Sequence[Segment], after: Sequence[Segment]) -> int:
    cells = 0
    for old, new in zip(before, after, strict=False):
        if old != new:
            break
        cells += new.cell_length
    return cells
