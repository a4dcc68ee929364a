"""Where the bytes of a paged cache's blocks lie, and which pages they need. Arithmetic only."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from vatt.errors import InvalidRequest

PageNumbers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, order=True)
class Stripe:
    """A part of every block: block b's is `size_bytes` long and begins at `offset_bytes + b * stride_bytes`."""

    offset_bytes: int
    stride_bytes: int
    size_bytes: int

    def __post_init__(self) -> None:
        if self.offset_bytes < 0 or not 0 < self.size_bytes <= self.stride_bytes:
            raise InvalidRequest(f"not a stripe: {self}")


def joined(stripes: Iterable[Stripe]) -> tuple[Stripe, ...]:
    """The same bytes in fewer stripes: those that overlap or follow each other in every block are one."""
    parts: list[Stripe] = []
    for stripe in sorted(set(stripes), key=lambda each: (each.stride_bytes, each)):
        last = parts[-1] if parts else None
        if last is not None and last.stride_bytes == stripe.stride_bytes:
            end = max(last.offset_bytes + last.size_bytes, stripe.offset_bytes + stripe.size_bytes)
            touches = stripe.offset_bytes <= last.offset_bytes + last.size_bytes
            if touches and end - last.offset_bytes <= last.stride_bytes:
                parts[-1] = Stripe(last.offset_bytes, last.stride_bytes, end - last.offset_bytes)
                continue
        parts.append(stripe)
    return tuple(parts)


@dataclass(frozen=True)
class BlockGeometry:
    """Blocks 0, 1, ... of one flat range of addresses.

    Blocks may share pages with their neighbours: where a page holds several, or they do not end where pages do. A
    *cluster* is the fewest consecutive blocks that end where a page does, in every stripe that begins where one does;
    memory is counted in clusters where it is promised, and in pages where it is mapped.
    """

    block_count: int
    stripes: tuple[Stripe, ...]
    page_size_bytes: int

    def __post_init__(self) -> None:
        if self.block_count < 1 or not self.stripes or self.page_size_bytes < 1:
            raise InvalidRequest(f"not a geometry of blocks: {self}")

    @property
    def virtual_bytes(self) -> int:
        """The whole range, in whole pages."""
        return self.page_count * self.page_size_bytes

    @cached_property
    def page_count(self) -> int:
        """Pages of the range, had all of it memory behind it."""
        last = self.block_count - 1
        end = max(stripe.offset_bytes + last * stripe.stride_bytes + stripe.size_bytes for stripe in self.stripes)
        return -(-end // self.page_size_bytes)

    @cached_property
    def block_bytes(self) -> int:
        return sum(stripe.size_bytes for stripe in self.stripes)

    @cached_property
    def cluster_blocks(self) -> int:
        """Blocks of a cluster; the last one may have fewer."""
        size = self.page_size_bytes
        return min(self.block_count, math.lcm(*(size // math.gcd(size, each.stride_bytes) for each in self.stripes)))

    @cached_property
    def cluster_pages(self) -> int:
        """Pages that a cluster needs at most, those at its ends included that it shares with the next one.

        From cluster to cluster, stripes of one stride move by as many whole pages: what they need together is the same
        for all. Those of another stride move by others, and may meet them in a page of one cluster and not of the next.
        """
        first = np.arange(self.cluster_blocks)
        strides = {stripe.stride_bytes for stripe in self.stripes}
        return sum(len(np.unique(self._page_uses(first, self._of_stride(stride)))) for stride in strides)

    def cluster_of(self, block: int) -> int:
        return block // self.cluster_blocks

    def blocks_of(self, cluster: int) -> range:
        first = cluster * self.cluster_blocks
        return range(first, min(first + self.cluster_blocks, self.block_count))

    def pages(self, blocks: Iterable[int]) -> PageNumbers:
        """The pages of the range, by number, that any of these blocks needs: sorted, each once."""
        return np.unique(self.page_uses(blocks))

    def page_uses(self, blocks: Iterable[int]) -> PageNumbers:
        """A page number for each block and page of it: as many as there are blocks that need the page."""
        numbers = np.fromiter(blocks, dtype=np.int64)
        wrong = numbers[(numbers < 0) | (numbers >= self.block_count)]
        if len(wrong):
            raise InvalidRequest(f"block {wrong[0]} of {self.block_count}")
        return self._page_uses(numbers, self.stripes)

    def _page_uses(self, blocks: PageNumbers, stripes: Sequence[Stripe]) -> PageNumbers:
        pages = np.concatenate([self._stripe_pages(stripe, blocks) for stripe in stripes], axis=1)
        pages.sort(axis=1)
        counts = pages >= 0
        counts[:, 1:] &= pages[:, 1:] != pages[:, :-1]  # stripes of one block may meet in a page, which it needs once
        used: PageNumbers = pages[counts]
        return used

    def _of_stride(self, stride_bytes: int) -> list[Stripe]:
        return [stripe for stripe in self.stripes if stripe.stride_bytes == stride_bytes]

    def _stripe_pages(self, stripe: Stripe, blocks: PageNumbers) -> PageNumbers:
        """[blocks, pages of one at most]: page numbers, -1 where a block has fewer."""
        begin = stripe.offset_bytes + blocks * stripe.stride_bytes
        first = begin // self.page_size_bytes
        last = (begin + stripe.size_bytes - 1) // self.page_size_bytes
        width = int((last - first).max()) + 1 if len(blocks) else 1
        pages: PageNumbers = first[:, None] + np.arange(width)
        pages[pages > last[:, None]] = -1
        return pages
