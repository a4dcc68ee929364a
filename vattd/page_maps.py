"""The page map for whoever looks: drawn off the event loop, and not more often than it can be afforded."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from vattd.ledger import Ledger
from vattd.page_map import PageMap, Patch, draw

# Who looks more often sees the same again.
FRESH_FOR_S = 0.5
# To copy the page ids of a large pool takes the event loop some milliseconds: no more than this part of its time.
LOOP_SHARE = 0.02
# To draw them takes a thread up to seconds, in which the loop has to wait for the interpreter again and again.
THREAD_SHARE = 0.1
MAX_SIZES = 8  # that one look is kept in


class PageMaps:
    """Belongs to the event loop. One map is drawn at a time."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._patches: Sequence[Patch] = ()
        self._drawn: dict[int, PageMap] = {}  # of these patches, by how many cells were wanted
        self._looked_s = self._fresh_until_s = float("-inf")
        self._one_draws = asyncio.Lock()

    async def draw(self, cell_count: int) -> PageMap:
        """The pool in at most so many cells, as it was a moment ago."""
        async with self._one_draws:
            self._look()
            found = self._drawn.get(cell_count)
            return found if found is not None else await self._draw(cell_count)

    def _look(self) -> None:
        now = asyncio.get_running_loop().time
        began_s = now()
        if began_s >= self._fresh_until_s:
            self._patches = list(self._ledger.patches())
            self._drawn.clear()
            self._looked_s = began_s
            self._fresh_until_s = began_s + max(FRESH_FOR_S, (now() - began_s) / LOOP_SHARE)

    async def _draw(self, cell_count: int) -> PageMap:
        now = asyncio.get_running_loop().time
        began_s = now()
        drawn = await asyncio.to_thread(draw, self._patches, self._ledger.max_pages, cell_count)
        self._fresh_until_s = max(self._fresh_until_s, self._looked_s + (now() - began_s) / THREAD_SHARE)
        if len(self._drawn) == MAX_SIZES:
            self._drawn.clear()
        self._drawn[cell_count] = drawn
        return drawn
