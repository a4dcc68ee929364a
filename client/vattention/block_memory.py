"""The memory of a paged cache: numbered blocks of one flat tensor, with pages behind those that are in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from vatt.errors import Closed, InvalidRequest, LimitExceeded, PoolExhausted
from vatt.pages import Extent
from vattention.block_geometry import BlockGeometry, PageNumbers
from vattention.device_fence import DONE, Fence, Proof, default_fence
from vattention.mapper import Mapper
from vattention.tensors import tensor_from_address, torch_device


class PageStore(Protocol):
    """Leased pages that are mapped nowhere."""

    def take(self, runs: Sequence[int], after: Sequence[int | None] | None = None) -> list[list[Extent]]:
        """Extents for each run length asked, going on from the pages named in `after` where those are free: all of
        them, or an error (PoolExhausted, LimitExceeded)."""

    def put(self, extents: Sequence[Extent]) -> None:
        """Take pages in that are mapped nowhere any more."""


@dataclass(slots=True)
class _Drop:
    """Pages that were let go together. `kept_pages` of them are kept on account of this drop, and of no other."""

    proof: Proof
    pages: PageNumbers
    kept_pages: int


class BlockMemory:
    """Maps pages behind blocks of `geometry` and unmaps them again.

    A block that was dropped keeps its pages until they are wanted for another one, or `trim` unmaps them: to use it
    again costs nothing then. Pages are unmapped once the proof that was taken when they were dropped is done.
    Touching a block that has not been backed is a segmentation fault on the host and a fatal error on a GPU.

    Invariants: a page of the range is mapped if a backed block needs it (`_uses` says how many do) or it is kept, on
    account of one drop (`_drop_of` says which); `mapped_pages` counts both, `kept_pages` the latter. Not thread-safe.
    """

    def __init__(
        self, mapper: Mapper, pages: PageStore, geometry: BlockGeometry, *, fence: Fence | None = None
    ) -> None:
        self.geometry = geometry
        self.device = torch_device(mapper.device)
        self._mapper = mapper
        self._pages = pages
        self._fence = fence if fence is not None else default_fence(self.device)
        self._range = mapper.reserve(geometry.virtual_bytes)
        self._backed = np.zeros(geometry.block_count, dtype=bool)
        self._uses = np.zeros(geometry.page_count, dtype=np.int32)
        self._is_mapped = np.zeros(geometry.page_count, dtype=bool)
        # By number, from 1 on, the longest dropped first; a drop on whose account nothing is kept is forgotten.
        self._drops: dict[int, _Drop] = {}
        self._last_drop = 0
        self._drop_of = np.zeros(geometry.page_count, dtype=np.int64)
        self.mapped_pages = self.kept_pages = 0
        self._closed = self._freed = False

    @property
    def tensor(self) -> torch.Tensor:
        """All bytes of the range: [virtual_bytes], uint8. It does not keep the memory: not to be used after close()."""
        size_bytes = self.geometry.virtual_bytes
        return tensor_from_address(self._range.address, size_bytes, torch.uint8, (size_bytes,), (1,), self.device)

    def is_backed(self, block: int) -> bool:
        return bool(self._backed[block])

    def back(self, blocks: Sequence[int]) -> None:
        """Put memory behind blocks that have none: all of them, or an error and none.

        Pages that are wanting come from the store and then from the kept ones. Raises what `PageStore.take` and
        `Mapper.map` raise; what was mapped by then is kept, for the next try or to be trimmed.
        """
        self._check(blocks, backed=False)
        uses = self.geometry.page_uses(blocks)
        pages = np.unique(uses)
        missing = pages[~self._is_mapped[pages]]
        np.add.at(self._uses, uses, 1)  # first, so that none of these pages is trimmed to make room for the others
        try:
            self._map(missing)
        except BaseException:
            np.subtract.at(self._uses, uses, 1)
            self._keep(missing[self._is_mapped[missing]], DONE)
            raise
        self._forget_drops_of(pages)
        self._backed[list(blocks)] = True

    def drop(self, blocks: Sequence[int]) -> None:
        """End the use of backed blocks. What they hold may be lost from now on; the device may still be using it."""
        self._check(blocks, backed=True)
        uses = self.geometry.page_uses(blocks)
        proof = self._fence() or DONE  # may fail: nothing has changed then
        np.subtract.at(self._uses, uses, 1)
        self._backed[list(blocks)] = False
        pages = np.unique(uses)
        self._keep(pages[self._uses[pages] == 0], proof)

    def trim(self, page_count: int, *, wait: bool = False) -> int:
        """Unmap kept pages, the longest dropped first, and put them into the store: so many, or as many as the device
        is done with. How many. With `wait`, the device is waited for."""
        trimmed = 0
        for number, drop in list(self._drops.items()):
            if trimmed >= page_count:
                break
            # A block that is being backed may have use for some of them.
            kept = drop.pages[(self._drop_of[drop.pages] == number) & (self._uses[drop.pages] == 0)]
            if len(kept) and not drop.proof.done():
                if not wait:
                    break
                drop.proof.wait()
            part = kept[: page_count - trimmed]
            for run in _runs(part):
                self._unmap(run)
            trimmed += len(part)
        return trimmed

    def close(self) -> None:
        """Unmap everything, put the pages into the store and give the addresses up. Idempotent.

        Waits for what the device may still use. If it raises, nothing of what is left is lost: call it again.
        """
        if self._freed:
            return
        self._closed = True
        (self._fence() or DONE).wait()
        for run in _runs(np.flatnonzero(self._is_mapped)):
            self._unmap(run)
        self._mapper.free(self._range)
        self._freed = True

    def _check(self, blocks: Sequence[int], *, backed: bool) -> None:
        if self._closed:
            raise Closed("the memory of the blocks is closed")
        if len(set(blocks)) != len(blocks):
            raise InvalidRequest("a block is named twice")
        for block in blocks:
            if not 0 <= block < self.geometry.block_count:
                raise InvalidRequest(f"block {block} of {self.geometry.block_count}")
            if self._backed[block] != backed:
                raise InvalidRequest(f"block {block} has {'no memory' if backed else 'memory already'}")

    def _map(self, missing: PageNumbers) -> None:
        """Put memory behind these pages of the range, run by run; where one fails, behind those before it."""
        runs = list(_runs(missing))
        dealt = self._take(runs) if runs else []
        for at, run in enumerate(runs):
            try:
                self._mapper.map(self._address(int(run[0])), dealt[at])
            except BaseException:
                self._pages.put([extent for extents in dealt[at:] for extent in extents])
                raise
            self._is_mapped[run] = True
            self.mapped_pages += len(run)

    def _take(self, runs: Sequence[PageNumbers]) -> list[list[Extent]]:
        """Pages for these runs; where the store is short, kept ones are used."""
        lengths, after = [len(run) for run in runs], [self._page_before(int(run[0])) for run in runs]
        try:
            return self._pages.take(lengths, after)
        except (PoolExhausted, LimitExceeded):
            if not self.trim(sum(lengths), wait=True):
                raise
        return self._pages.take(lengths)

    def _unmap(self, run: PageNumbers) -> None:
        extents = self._mapper.unmap(self._address(int(run[0])), len(run))
        self._is_mapped[run] = False
        self.mapped_pages -= len(run)
        self._forget_drops_of(run)
        self._pages.put(extents)

    def _keep(self, pages: PageNumbers, proof: Proof) -> None:
        """Keep mapped pages that no backed block needs any more. The device is done with them when `proof` is."""
        if len(pages):
            self._last_drop += 1
            self._drops[self._last_drop] = _Drop(proof, pages, len(pages))
            self._drop_of[pages] = self._last_drop
            self.kept_pages += len(pages)

    def _forget_drops_of(self, pages: PageNumbers) -> None:
        """These pages are not kept any more, if they were."""
        numbers, counts = np.unique(self._drop_of[pages], return_counts=True)
        for number, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            if number:
                self._drops[number].kept_pages -= count
                self.kept_pages -= count
                if not self._drops[number].kept_pages:
                    del self._drops[number]
        self._drop_of[pages] = 0

    def _page_before(self, page: int) -> int | None:
        """The pool's page that the mapping would go on from: pages in a row are one kernel mapping."""
        if page == 0 or not self._is_mapped[page - 1]:
            return None
        return self._mapper.pages_at(self._address(page - 1), 1)[-1].first

    def _address(self, page: int) -> int:
        return self._range.address + page * self.geometry.page_size_bytes


def _runs(pages: PageNumbers) -> Iterator[PageNumbers]:
    """Sorted page numbers, parted where they are not consecutive."""
    if len(pages):
        yield from np.split(pages, np.flatnonzero(np.diff(pages) != 1) + 1)
