"""The rows of one batch, as slots of a KVCache."""

from __future__ import annotations

import functools
from contextlib import ExitStack

from vatt.errors import InvalidRequest
from vattention.kvcache import KVCache


class BatchRows:
    """Slots beside each other, so that the batch is one strided view of the KVCache's tensors.

    Invariant: each row has room for `_grown_tokens`, and no layer holds more than that.
    """

    def __init__(self, kv_cache: KVCache) -> None:
        """Who else uses slots of the KVCache has one row only: others would lie between the rows of a batch."""
        self._kv_cache = kv_cache
        self._slots: list[int] = []
        self._grown_tokens = 0

    @property
    def kv_cache(self) -> KVCache:
        return self._kv_cache

    def __len__(self) -> int:
        return len(self._slots)

    def as_slice(self) -> slice:
        """As an index of the KVCache's tensors."""
        return slice(self._slots[0], self._slots[-1] + 1) if self._slots else slice(0, 0)

    def check_open(self) -> None:
        """Raises Closed: what is written to a closed cache has no memory."""
        self._kv_cache.layer(0)

    def make_room(self, batch_size: int, token_count: int) -> None:
        """Back the first `token_count` tokens of every row with pages; all rows get them or none does.

        The first layer of a forward pass grows for all of them: K and V of a token are mapped once for all layers.
        Raises PoolExhausted, or LimitExceeded, before anything of the pass is written.
        """
        self.check_open()
        if self._slots and batch_size != len(self._slots):
            raise InvalidRequest(f"a batch of {batch_size} after one of {len(self._slots)}: reset() comes between them")
        if self._slots and token_count <= self._grown_tokens:
            return
        with ExitStack() as undo:
            new_slots = [] if self._slots else self._acquire(batch_size, undo)
            self._kv_cache.grow_many(dict.fromkeys(self._slots or new_slots, token_count))
            undo.pop_all()
        self._slots = self._slots or new_slots
        self._grown_tokens = token_count

    def extend_to(self, row_count: int) -> None:
        """So many rows at least, with as much room as the others: all of them, or an error and none."""
        self.check_open()
        with ExitStack() as undo:
            added = self._acquire(row_count - len(self._slots), undo)
            if added:
                self._kv_cache.grow_many(dict.fromkeys(added, self._grown_tokens))
            undo.pop_all()
        self._slots += added

    def cut_to(self, row_count: int) -> None:
        """Free all rows but the first `row_count`, the last one first."""
        fence = functools.cache(self._kv_cache.fence)  # once for all rows: if it fails, no row has changed
        while len(self._slots) > row_count:
            self._kv_cache.free_slot(self._slots[-1], fence=fence)
            self._slots.pop()
        if not self._slots:
            self._grown_tokens = 0

    def shorten_to(self, token_count: int) -> None:
        """Give up every row's room past `token_count` tokens."""
        fence = functools.cache(self._kv_cache.fence)
        for slot in self._slots:
            self._kv_cache.shrink(slot, token_count, keep_ahead=True, fence=fence)
        self._grown_tokens = min(self._grown_tokens, token_count)

    def close(self) -> None:
        self._slots, self._grown_tokens = [], 0
        self._kv_cache.close()

    def _acquire(self, count: int, undo: ExitStack) -> list[int]:
        """`count` slots after the last row; freed again by `undo`."""
        wanted, limit = len(self._slots) + count, self._kv_cache.spec.max_batch_size
        if wanted > limit:
            raise InvalidRequest(f"a batch of {wanted} rows (beams count too), and max_batch_size is {limit}")
        slots: list[int] = []
        for _ in range(count):
            slots.append(self._kv_cache.acquire_slot())
            undo.callback(self._kv_cache.free_slot, slots[-1])
        everyone = self._slots + slots
        if everyone != list(range(everyone[0], everyone[0] + len(everyone))):
            raise InvalidRequest("the KVCache has slots in use by others: a VattCache needs one of its own")
        return slots
