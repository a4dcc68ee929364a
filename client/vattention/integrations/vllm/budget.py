"""What the scheduler may use of the pool: pages that every rank holds for it."""

from __future__ import annotations

from vatt.usage import Usage
from vattention.block_geometry import BlockGeometry
from vattention.integrations.vllm.clusters import Clusters
from vattention.integrations.vllm.messages import Orders

NULL_BLOCK = 0


class Budget:
    """The account of one engine: pages that its ranks have leased, and the blocks that they are promised to.

    Invariants: every rank holds `credit_pages` at least once it has carried out all orders, so that a block that was
    taken can always be backed; the null block is always taken. Pure; who calls holds the scheduler's lock.
    """

    def __init__(self, geometry: BlockGeometry, credit_pages: int) -> None:
        self.credit_pages = credit_pages
        self.cluster_pages = geometry.cluster_pages
        self._cluster_blocks = geometry.cluster_blocks
        self._clusters = Clusters(geometry.block_count, geometry.cluster_blocks)
        self._back: dict[int, None] = {}
        self._drop: dict[int, None] = {}
        self._give_back_pages = 0
        self._answered = self._ordered_answer = 0
        if self._clusters.take() != NULL_BLOCK:  # the ranks have backed it before anything else
            raise AssertionError("the first block taken is the null block")

    @property
    def promised_pages(self) -> int:
        return self._clusters.open_count * self.cluster_pages

    @property
    def free_pages(self) -> int:
        """Pages of the credit that are promised to no block."""
        return self.credit_pages - self.promised_pages

    @property
    def taken_blocks(self) -> int:
        return self._clusters.taken_count

    @property
    def bare_blocks(self) -> int:
        """Blocks without memory, whether there is credit for them or not."""
        return self._clusters.bare_count

    def is_taken(self, block: int) -> bool:
        """Is there memory behind it, once all orders are carried out?"""
        return self._clusters.is_taken(block)

    def room(self) -> int:
        """Bare blocks that the credit is enough for."""
        return self._clusters.room(max(0, self.free_pages) // self.cluster_pages)

    def pages_for(self, block_count: int) -> int:
        """Pages to lease so that there is room for so many more blocks than now; 0 if there are not so many blocks."""
        if block_count > self.bare_blocks - self.room():
            return 0
        clusters = max(0, self.free_pages) // self.cluster_pages + -(-block_count // self._cluster_blocks)
        return clusters * self.cluster_pages - self.free_pages

    def take(self) -> int:
        """A bare block, to be backed before the next step."""
        block = self._clusters.take()
        if block in self._drop:
            del self._drop[block]
        else:
            self._back[block] = None
        return block

    def drop(self, block: int) -> None:
        """A taken block's memory is promised to nobody any more."""
        self._clusters.drop(block)
        if block in self._back:
            del self._back[block]
        else:
            self._drop[block] = None

    def lend(self, page_count: int) -> None:
        """Every rank has leased so many more."""
        self.credit_pages += page_count

    def give_up(self, page_count: int) -> int:
        """Have the ranks return up to so many of the free pages; how many."""
        given = max(0, min(page_count, self.free_pages))
        self.credit_pages -= given
        self._give_back_pages += given
        return given

    def answer(self, number: int) -> None:
        """What vattd wanted back, by this number and those before, has been looked after."""
        self._answered = max(self._answered, number)

    @property
    def has_orders(self) -> bool:
        return bool(self._back or self._drop or self._give_back_pages or self._answered != self._ordered_answer)

    def orders(self, idle_pages: int, usage: Usage) -> Orders:
        """What the ranks have to do now; asked for once, and then to be carried out."""
        orders = Orders(
            drop=tuple(self._drop),
            back=tuple(self._back),
            give_back_pages=self._give_back_pages,
            idle_pages=idle_pages,
            usage=usage,
            answered=self._answered,
        )
        self._back, self._drop, self._give_back_pages = {}, {}, 0
        self._ordered_answer = self._answered
        return orders
