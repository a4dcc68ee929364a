"""Where conversations keep their keys and values: in pages that vattd lends, or in tensors of transformers' own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Protocol

from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from vatt.errors import InvalidRequest
from vattention.chat.tensor_layers import TensorLayers
from vattention.integrations.transformers import ModelShape, VattCache
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

    @property
    def is_draining(self) -> bool:
        """Does an operator want all back that no answer under way needs?"""

    def idle_pages(self) -> int:
        """Pages that could be given back now, since no conversation holds them."""

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        """What these hold, all caches there are, against a static reservation of the same slots."""

    def close(self) -> None: ...


class LentMemory:
    """Slots of one KVCache, so that all conversations share its addresses and its one background thread.

    Layers with a sliding window are beside it, in tensors that each conversation has of its own.
    """

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
        try:
            ModelShape.of(model.config)
        except InvalidRequest as error:
            raise InvalidRequest(f"{error}: here, --no-vattention or vattention_enabled=False") from error
        # It owns the KVCache and never takes a slot itself.
        self._owner = VattCache.for_model(
            model, session, max_batch_size=slot_count, max_context_length=max_context_length, layout=layout
        )
        has_windows = any(self._owner.is_sliding)
        self._windows = TensorLayers.of(model, only_windows=True) if has_windows else TensorLayers({})

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

    @property
    def is_draining(self) -> bool:
        return self._session.draining

    def idle_pages(self) -> int:
        return self._owner.kv_cache.idle_pages() + self._session.pages.page_count

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        paged = self._owner.kv_cache.usage()
        in_bytes = replace(paged, mapped_pages=paged.mapped_pages * self._session.page_size_bytes)
        windows = self._windows.usage(caches, self.slot_count, self.max_context_length)
        return MemoryReport.of(in_bytes + windows, 1, _baseline(self))

    def close(self) -> None:
        self._owner.close()


class OwnMemory:
    """transformers' DynamicCache, for comparison: as many slots, of memory that nobody else can have."""

    def __init__(self, model: PreTrainedModel, slot_count: int, max_context_length: int) -> None:
        self.slot_count = slot_count
        self.max_context_length = max_context_length
        self._config = model.config
        self._layers = TensorLayers.of(model)

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

    @property
    def is_draining(self) -> bool:
        return False

    def idle_pages(self) -> int:
        return 0

    def report(self, caches: Iterable[Cache]) -> MemoryReport:
        usage = self._layers.usage(caches, self.slot_count, self.max_context_length)
        return MemoryReport.of(usage, 1, _baseline(self))

    def close(self) -> None:
        """The tensors end with their caches."""


def _baseline(memory: Memory) -> str:
    return f"static reservation of {memory.slot_count} slots x {memory.max_context_length} tokens"


def _vatt(cache: Cache) -> VattCache:
    if not isinstance(cache, VattCache):
        raise TypeError(f"not a cache of this memory: {type(cache).__name__}")
    return cache
