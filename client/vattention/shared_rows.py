"""Rows that hold the same pages: forks of a slot, and pages common to all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
import torch

from vatt.errors import InvalidRequest
from vatt.pages import Extent
from vattention.layout import Counts, Geometry
from vattention.page_cache import PageCache
from vattention.row_pages import Stretch
from vattention.rows import SHORT, Rows


class SharedRows:
    """Shares pages between rows, and sees to it that nobody writes to one that others hold.

    Who calls it holds `Rows.mapping`, unless the method says otherwise. Invariants: `table.shared` of a row is at least
    its leading pages that another row holds; a row that is not `common` ends past them; a free row that has any is
    `spoilt`, and emptied before it is used again.
    """

    def __init__(
        self, rows: Rows, geometry: Geometry, pages: PageCache, memory: Callable[[int, int], torch.Tensor]
    ) -> None:
        """`memory` looks at bytes of the whole range: offset and size."""
        self._rows = rows
        self._table = rows.table
        self._behind = rows.behind
        self._arithmetic = rows.arithmetic
        self._bands = geometry.bands
        self._page_size_bytes = geometry.page_size_bytes
        self._pages = pages
        self._memory = memory

    def fork(self, source: int, target: int, token_count: int, check_target: Callable[[], None]) -> None:
        """Have `target`, which is empty, hold the first tokens of `source`: whole pages are shared, the last copied.

        `check_target` raises, with `state` held, if somebody has ended the use of `target` meanwhile.
        """
        arithmetic, table = self._arithmetic, self._table
        whole, needed = arithmetic.whole_pages(token_count), arithmetic.pages(token_count)
        rows = np.array([target])
        if table.mapped[target].any():
            raise InvalidRequest(f"slot {target} was grown while it was being forked to")
        with ExitStack() as undo:
            with self._rows.state:
                if table.length[table.check_used(source)] < token_count:
                    raise InvalidRequest(f"slot {source} holds fewer than {token_count} tokens by now")
                undo.callback(table.shared.__setitem__, source, table.shared[source].copy())
                # From here on it is emptied before anybody else gets it, even if it is freed meanwhile.
                table.shared[source] = np.maximum(table.shared[source], whole)
            shared = [Stretch(target, band, 0, count) for band, count in enumerate(whole.tolist()) if count]
            self._behind.alias(shared, source)
            undo.callback(lambda: self._pages.put(self._behind.unmap(shared)))
            with self._rows.state:
                table.set_mapped(rows, whole[None])
            undo.callback(table.set_mapped, rows, np.zeros_like(whole)[None])
            missing = (needed - whole)[None]
            if missing.any():
                wanted = {target: token_count, source: token_count}
                extra = self._rows.extend_or_reclaim(rows, missing, missing, wanted)
                undo.callback(self._rows.take_back, rows, whole[None], extra)
                self._copy_ends(source, target, token_count)
            with self._rows.state:
                check_target()  # a free row holds no tokens
                table.set_mapped(rows, needed[None])
                table.shared[target] = whole
                table.length[target] = token_count
            undo.pop_all()
        self._rows.announce_growth()

    def map_common(self, token_count: int) -> None:
        """Map the pages for so many tokens at the end of every row, the same ones in all of them.

        The rows must be equally long so far, or the shared pages would hold other tokens in each; who wants that for
        a measurement gets it all the same.
        """
        table = self._table
        extra = self._arithmetic.pages(token_count)
        if (table.mapped + extra > [band.pages_per_row for band in self._bands]).any():
            raise InvalidRequest(f"pages for {token_count} more tokens do not fit in every row")
        if not extra.any():
            return
        while True:
            try:
                self._behind.map_common(
                    [self._rows.stretches_after([row], extra[None]) for row in range(table.slot_count)]
                )
                break
            except SHORT:
                offering = self._rows.reclaim(int(self._arithmetic.pool_pages(extra).sum()), {}, finished_only=True)
                if not offering:
                    raise
                self._pages.put(offering)
        with self._rows.state:
            table.set_mapped(np.arange(table.slot_count), table.mapped + extra)
            table.shared[:] = table.mapped
            table.common[:] = True

    def own_frontier(self, row: int, token_count: int) -> None:
        """Give a row that is to end at `token_count` a page of its own there, if others share the one it has.

        Nothing looks different after it; `drop_shared` comes next, once the row does end there.
        """
        whole, needed = self._arithmetic.whole_pages(token_count), self._arithmetic.pages(token_count)
        for band, page in enumerate(whole.tolist()):
            if page < self._table.shared[row, band] and page < needed[band]:
                self._make_private(Stretch(row, band, page, 1))

    def _make_private(self, stretch: Stretch) -> None:
        def make(offering: Sequence[Extent]) -> None:
            self._behind.make_private(stretch, self._memory, offering)

        self._rows.reclaiming(self._behind.pool_pages([stretch]), {}, make)

    def drop_shared(self, row: int, token_count: int) -> None:
        """End a row at `token_count` tokens and unmap what it shares past them: other tokens are to come there."""
        self._pages.put(self._rows.cut(row, self._arithmetic.pages(token_count), token_count))
        with self._rows.state:
            self._table.shared[row] = np.minimum(self._table.shared[row], self._arithmetic.whole_pages(token_count))

    def cuts_into_shared(self, token_counts: Counts) -> npt.NDArray[np.bool_]:
        """Which rows in use would end within pages that others hold too, where they must not write."""
        table = self._table
        is_within = token_counts < self._arithmetic.tokens_through(table.shared)
        return table.in_use & ~table.common & (token_counts > 0) & is_within

    def _copy_ends(self, source: int, target: int, token_count: int) -> None:
        """Copy what lies past the last whole page of a row's first tokens."""
        whole = self._arithmetic.whole_pages(token_count)
        for band, page in enumerate(whole.tolist()):
            start = page * self._page_size_bytes
            size = token_count * self._bands[band].token_bytes - start
            for column in range(self._bands[band].column_count if size else 0):
                from_offset = self._behind.offset_bytes(source, band, column, start)
                to_offset = self._behind.offset_bytes(target, band, column, start)
                self._memory(to_offset, size).copy_(self._memory(from_offset, size))

    # Counting

    def needed_pool_pages(self, token_counts: Counts) -> int:
        """The pool's pages that so many tokens of each row need, those behind several rows counted once.

        Where rows share pages it takes `mapping`, so the caller holds no lock.
        """
        total = int(self._arithmetic.pool_pages(self._arithmetic.pages(token_counts)).sum())
        if not self._table.shared.any():
            return total
        with self._rows.mapping(), self._rows.state:
            return total - self.shared_twice(token_counts)

    def shared_twice(self, token_counts: Counts) -> int:
        """How many pages too many the sum over rows of so many tokens counts. Both locks are held if rows share any."""
        needed = self._arithmetic.pages(token_counts)
        sharing = np.flatnonzero(self._table.shared.any(axis=1) & needed.any(axis=1) & ~self._table.spoilt)
        total = 0
        aliased = np.minimum(needed[sharing], self._table.shared[sharing])
        for band, place in enumerate(self._bands):
            ids = [
                page_id
                for row, count in zip(sharing.tolist(), aliased[:, band].tolist(), strict=True)
                for page_id in self._behind.page_ids(row, band, count)
            ]
            total += (len(ids) - len(set(ids))) * place.column_count
        return total
