"""Where conversations keep their keys and values: in pages that vattd lends, or in tensors of transformers' own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from vatt.usage import Usage
from vattention.integrations.transformers import VattCache
from vattention.layout import Layout
from vattention.memory_report import MemoryReport
from vattention.session import Session


class Memory(Protocol):
    """Slots for `slot_count` conversations at a time, of `max_context_length` tokens each. One thread uses it."""

    slot_count: int
    max_context_length: int

    def new_cache(self) -> Cache:
        """A cache for one row, which takes a slot when the first token comes."""

    def holds_slot(self, cache: Cache) -> bool: ...

    def emptied(self, cache: Cache) -> Cache:
        """Give up the cache's slot; a cache to go on with, which holds nothing."""

    def make_room(self, cache: Cache, token_count: int) -> None:
        """Have memory for so many tokens in all, or raise PoolExhausted, LimitExceeded or OutOfMemory and change
        nothing."""

    def check_admits(self) -> None:
        """Raises Draining or SessionEvicted where an operator wants no new requests."""

    def idle_pages(self) -> int:
        """Pages that could be given back now, since no conversation holds them."""

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        """What these hold, all caches there are, against a static reservation of the same slots."""

    def close(self) -> None: ...


class LentMemory:
    """Slots of one KVCache, so that all conversations share its addresses and its one background thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        session: Session,
        slot_count: int,
        max_context_length: int,
        layout: Layout | None = None,
    ) -> None:
        self.slot_count = slot_count
        self.max_context_length = max_context_length
        self._session = session
        # It owns the KVCache and never takes a slot itself.
        self._owner = VattCache.for_model(
            model, session, max_batch_size=slot_count, max_context_length=max_context_length, layout=layout
        )

    def new_cache(self) -> VattCache:
        return self._owner.beside()

    def holds_slot(self, cache: Cache) -> bool:
        return _vatt(cache).batch_size > 0

    def emptied(self, cache: Cache) -> Cache:
        _vatt(cache).reset()
        return cache

    def make_room(self, cache: Cache, token_count: int) -> None:
        _vatt(cache).make_room(1, token_count)

    def check_admits(self) -> None:
        self._session.check_admits()

    def idle_pages(self) -> int:
        return self._owner.kv_cache.idle_pages() + self._session.pages.page_count

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        return self._owner.kv_cache.memory_report()

    def close(self) -> None:
        self._owner.close()


class OwnMemory:
    """transformers' DynamicCache, for comparison: as many slots, of memory that nobody else can have."""

    def __init__(self, model: PreTrainedModel, slot_count: int, max_context_length: int) -> None:
        self.slot_count = slot_count
        self.max_context_length = max_context_length
        self._config = model.config
        self._token_bytes = _measured_token_bytes(model)

    def new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._config)

    def holds_slot(self, cache: Cache) -> bool:
        return cache.get_seq_length() > 0

    def emptied(self, cache: Cache) -> Cache:
        return self.new_cache()

    def make_room(self, cache: Cache, token_count: int) -> None:
        """The allocator's memory has no end that could be asked for."""

    def check_admits(self) -> None:
        """Nobody else decides."""

    def idle_pages(self) -> int:
        return 0

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        held_bytes = token_bytes = paged16_bytes = paged256_bytes = 0
        for cache in caches:
            length = cache.get_seq_length()
            held_bytes += sum(tensor.untyped_storage().nbytes() for tensor in _tensors(cache))
            token_bytes += sum(tensor.nbytes for tensor in _tensors(cache))
            paged16_bytes += -(-length // 16) * 16 * self._token_bytes
            paged256_bytes += -(-length // 256) * 256 * self._token_bytes
        usage = Usage(
            mapped_pages=held_bytes,  # in pages of a byte
            token_bytes=token_bytes,
            static_reservation_bytes=self.slot_count * self.max_context_length * self._token_bytes,
            paged16_bytes=paged16_bytes,
            paged256_bytes=paged256_bytes,
        )
        baseline = f"static reservation of {self.slot_count} slots x {self.max_context_length} tokens"
        return MemoryReport.of(usage, 1, baseline)

    def close(self) -> None:
        """The tensors end with their caches."""


def _measured_token_bytes(model: PreTrainedModel) -> int:
    """What one token takes in a DynamicCache of this model, found by computing one."""
    cache = DynamicCache(config=model.config)
    with torch.inference_mode():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=cache)
    return sum(tensor.nbytes for tensor in _tensors(cache))


def _tensors(cache: Cache) -> list[torch.Tensor]:
    pairs = ((getattr(layer, "keys", None), getattr(layer, "values", None)) for layer in cache.layers)
    return [tensor for pair in pairs for tensor in pair if tensor is not None]


def _vatt(cache: Cache) -> VattCache:
    if not isinstance(cache, VattCache):
        raise TypeError(f"not a cache of this memory: {type(cache).__name__}")
    return cache
