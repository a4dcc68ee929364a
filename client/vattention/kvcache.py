"""A KV cache whose rows grow page by page under ordinary tensors."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

import torch

from vatt.errors import Closed, InvalidRequest, LimitExceeded, OutOfMemory, PoolExhausted
from vatt.pages import Extent
from vattention import fork_guard
from vattention.device_fence import Fence, default_fence
from vattention.integers import as_integer
from vattention.layout import Geometry, KVCacheSpec, Layout, pages_ahead
from vattention.mapper import AddressRange, Mapper
from vattention.page_cache import PageCache
from vattention.slots import Slot, SlotTable
from vattention.tensors import tensor_from_address


class Closeable(Protocol):
    def close(self) -> None: ...


class PageHome(Protocol):
    """What a KV cache needs of a session."""

    @property
    def mapper(self) -> Mapper: ...
    @property
    def pages(self) -> PageCache: ...
    @property
    def leased_pages(self) -> int: ...
    def close_first(self, dependent: Closeable) -> None:
        """Close `dependent` before the session closes its own parts."""


@dataclass(frozen=True, slots=True)
class KVCacheStats:
    """What a cache holds now."""

    mapped_bytes: int  # pages behind this cache's rows
    token_bytes: int  # of them, bytes that tokens fill; the rest are ends of pages and pages mapped ahead
    cached_bytes: int  # the session's pages that are mapped nowhere, kept for the next growth step
    leased_bytes: int  # all the session's pages, of all its caches
    virtual_bytes: int  # addresses, no memory
    static_reservation_bytes: int  # what the same cache without paging would hold
    kernel_run_count: int  # stretches of consecutive pages: on the host, the kernel mappings they need


class KVCache:
    """K and V of every layer for `max_batch_size` slots, mapped as far as the slots have grown.

    Tokens past a slot's capacity have no memory: touching them is a segmentation fault on the host and a fatal error on
    a GPU. The tensors do not keep their memory: neither they nor their views may be used after close().
    Pages come zeroed only from another tenant; a row may hold what an earlier request of this tenant left.

    Invariant: a slot's pages are mapped from the start of its row without a hole, equally many in each column. An
    operation that raises has changed nothing. Thread-safe.
    """

    def __init__(self, session: PageHome, spec: KVCacheSpec, *, fence: Fence | None = None) -> None:
        self._mapper = session.mapper
        self._pages = session.pages
        self._home = session
        self._birth = fork_guard.Birth()
        self._lock = threading.RLock()
        self._slots = SlotTable(spec.max_batch_size)
        self._closed = False
        device = self._mapper.device
        self.spec = spec
        self.geometry = Geometry.of(spec, device.backend, self._mapper.page_size_bytes)
        self.device = torch.device("cuda", device.ordinal) if device.backend == "cuda" else torch.device("cpu")
        self.fence = fence if fence is not None else default_fence(self.device)
        self._range = self._mapper.reserve(self.geometry.virtual_bytes)
        with ExitStack() as undo:
            undo.callback(self._mapper.free, self._range)
            self._layers = _views(self.geometry, self._range, self.device)
            undo.pop_all()
        session.close_first(self)

    @property
    def layout(self) -> Layout:
        return self.geometry.layout

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer, each [max_batch_size, max_context_length, num_kv_heads, head_size].

        Strides are not those of a contiguous tensor: rows start on pages, and in `fused` tokens lie a whole layer
        stack apart.
        """
        self._check_open()
        index = as_integer(index, "the layer's index")
        if not 0 <= index < self.spec.num_layers:
            raise InvalidRequest(f"layer {index} of {self.spec.num_layers}")
        return self._layers[index]

    def acquire_slot(self) -> int:
        """The lowest free slot, empty. Raises InvalidRequest if all are in use."""
        with self._lock_open():
            number = self._slots.acquire()
            self._announce_growth()
            return number

    def free_slot(self, number: int, *, fence: Fence | None = None) -> None:
        """Give the slot and its pages back. `fence` stands in for the cache's own, for this call."""
        with self._lock_open():
            self._unmap_past(self._slots.use(number), number, 0, fence)
            self._slots.release(number)
            self._announce_growth()

    def grow(self, number: int, token_count: int) -> None:
        """Let the slot hold `token_count` tokens in all. Never shrinks it."""
        self.grow_many({number: token_count})

    def grow_many(self, token_counts: Mapping[int, int]) -> None:
        """Let each slot hold so many tokens in all: every one of them, or an error and none.

        Raises InvalidRequest past max_context_length; PoolExhausted, LimitExceeded or OutOfMemory for want of pages.
        """
        with self._lock_open():
            slots = [
                (number, self._slots.use(number), self._checked_token_count(count))
                for number, count in token_counts.items()
            ]
            if any(self.geometry.pages_for(count) > slot.mapped_pages for _, slot, count in slots):
                self._map_more(slots)
            for _, slot, count in slots:
                slot.token_count = max(slot.token_count, count)

    def shrink(self, number: int, token_count: int, *, keep_ahead: bool = False, fence: Fence | None = None) -> None:
        """Forget the slot's tokens past `token_count` and unmap the pages that only they filled.

        With `keep_ahead`, the few pages that the next growth step would map again stay: for a decoder that takes back
        tokens all the time.
        """
        with self._lock_open():
            slot = self._slots.use(number)
            token_count = self._checked_token_count(token_count)
            if token_count > slot.token_count:
                raise InvalidRequest(f"slot {number} holds {slot.token_count} tokens, fewer than {token_count}")
            keep_pages = self.geometry.pages_for(token_count)
            self._unmap_past(slot, number, keep_pages + (pages_ahead(keep_pages) if keep_ahead else 0), fence)
            slot.token_count = token_count

    def length(self, number: int) -> int:
        """Tokens that the slot holds, as told by grow and shrink."""
        with self._lock_open():
            return self._slots.use(number).token_count

    def capacity(self, number: int) -> int:
        """Tokens that fit in the slot's mapped pages."""
        with self._lock_open():
            return self.geometry.tokens_in(self._slots.use(number).mapped_pages)

    def stats(self) -> KVCacheStats:
        with self._lock_open():
            page_size_bytes = self.geometry.page_size_bytes
            return KVCacheStats(
                mapped_bytes=self._slots.mapped_pages * self.geometry.column_count * page_size_bytes,
                token_bytes=self._slots.token_count * self.spec.token_bytes,
                cached_bytes=self._pages.page_count * page_size_bytes,
                leased_bytes=self._home.leased_pages * page_size_bytes,
                virtual_bytes=self.geometry.virtual_bytes,
                static_reservation_bytes=self.spec.static_reservation_bytes,
                kernel_run_count=self._mapper.run_count(self._range),
            )

    def close(self) -> None:
        """Unmap everything and give the pages back. No tensor of the cache may be used any more.

        Idempotent; in a forked child it does nothing.
        """
        if not self._birth.is_here:
            return
        with self._lock:
            if self._closed:
                return
            for number in self._slots.numbers:
                self.free_slot(number)
            self._closed = True
            self._layers = []
            self._pages.set_growth_step(self, 0)
            self._mapper.free(self._range)

    def __enter__(self) -> KVCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        self._birth.check()
        if self._closed:
            raise Closed("the KV cache is closed")

    @contextmanager
    def _lock_open(self) -> Iterator[None]:
        self._birth.check()
        with self._lock:
            self._check_open()
            yield

    def _checked_token_count(self, token_count: int) -> int:
        token_count = as_integer(token_count, "a slot's token count")
        if not 0 <= token_count <= self.spec.max_context_length:
            raise InvalidRequest(f"{token_count} tokens: a slot holds 0 to {self.spec.max_context_length}")
        return token_count

    def _announce_growth(self) -> None:
        """Tell the page cache what one growth step of every slot would take."""
        column_pages = sum(self.geometry.step_pages(slot.mapped_pages) for slot in self._slots)
        self._pages.set_growth_step(self, column_pages * self.geometry.column_count)

    def _map_more(self, slots: Sequence[tuple[int, Slot, int]]) -> None:
        geometry = self.geometry
        ahead = [geometry.growth_pages(slot.mapped_pages, count) for _, slot, count in slots]
        exact = [max(0, geometry.pages_for(count) - slot.mapped_pages) for _, slot, count in slots]
        try:
            self._map_runs(slots, ahead)
        except (PoolExhausted, LimitExceeded, OutOfMemory):
            if ahead == exact:
                raise
            self._map_runs(slots, exact)

    def _map_runs(self, slots: Sequence[tuple[int, Slot, int]], page_counts: Sequence[int]) -> None:
        """Map so many more pages in every column of each slot."""
        places = [
            (self._address(column, number, slot.mapped_pages), page_count)
            for (number, slot, _), page_count in zip(slots, page_counts, strict=True)
            if page_count
            for column in range(self.geometry.column_count)
        ]
        with ExitStack() as undo:
            dealt = self._pages.take([page_count for _, page_count in places])
            undo.callback(self._pages.put, [extent for extents in dealt for extent in extents])
            for (address, page_count), extents in zip(places, dealt, strict=True):
                self._mapper.map(address, extents)
                undo.callback(self._mapper.unmap, address, page_count)
            undo.pop_all()
        for (_, slot, _), page_count in zip(slots, page_counts, strict=True):
            slot.mapped_pages += page_count
        self._announce_growth()

    def _unmap_past(self, slot: Slot, number: int, keep_pages: int, fence: Fence | None) -> None:
        page_count = slot.mapped_pages - keep_pages
        if page_count <= 0:
            return
        (fence or self.fence)()
        freed: list[Extent] = []
        with ExitStack() as undo:
            for column in range(self.geometry.column_count):
                address = self._address(column, number, keep_pages)
                extents = self._mapper.unmap(address, page_count)
                undo.callback(self._mapper.map, address, extents)
                freed += extents
            undo.pop_all()
        slot.mapped_pages = keep_pages
        self._pages.put(freed)

    def _address(self, column: int, number: int, page: int) -> int:
        return self._range.address + self.geometry.offset_bytes(column, number, page)


def _views(geometry: Geometry, reserved: AddressRange, device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Every layer's K and V."""
    spec = geometry.spec
    itemsize = spec.dtype.itemsize
    shape = (spec.max_batch_size, spec.max_context_length, spec.num_kv_heads, spec.head_size)
    stride = (geometry.row_bytes // itemsize, geometry.token_bytes // itemsize, spec.head_size, 1)
    layer_elements = spec.num_kv_heads * spec.head_size

    def view(column: int, offset_elements: int) -> torch.Tensor:
        address = reserved.address + column * geometry.column_bytes
        return tensor_from_address(address, geometry.column_bytes, spec.dtype, shape, stride, device, offset_elements)

    if geometry.layout is Layout.PER_LAYER:
        return [(view(layer, 0), view(spec.num_layers + layer, 0)) for layer in range(spec.num_layers)]
    return [
        (view(0, 2 * layer * layer_elements), view(0, (2 * layer + 1) * layer_elements))
        for layer in range(spec.num_layers)
    ]
