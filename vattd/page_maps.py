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


class PageMaps:
    """Belongs to the event loop."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._patches: Sequence[Patch] = ()
        self._fresh_until_s = float("-inf")

    async def draw(self, cell_count: int) -> PageMap:
        """The pool in at most so many cells, as it was a moment ago."""
        return await asyncio.to_thread(draw, self._seen(), self._ledger.max_pages, cell_count)

    def _seen(self) -> Sequence[Patch]:
        now = asyncio.get_running_loop().time
        began_s = now()
        if began_s >= self._fresh_until_s:
            self._patches = list(self._ledger.patches())
            took_s = now() - began_s
            self._fresh_until_s = began_s + max(FRESH_FOR_S, took_s / LOOP_SHARE)
        return self._patches
