"""A KV cache whose rows grow page by page under ordinary tensors."""

from __future__ import annotations

import enum
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol

import numpy as np
import torch

from vatt.errors import Closed, InvalidRequest
from vatt.pages import Extent, page_count_of
from vatt.usage import Usage
from vattention import fork_guard
from vattention.admission import Admission, Lender
from vattention.device_fence import DONE, Fence, default_fence
from vattention.integers import as_integer
from vattention.keeper import Keeper
from vattention.layout import Counts, Geometry, KVCacheSpec, Layout
from vattention.mapper import Mapper
from vattention.marks import Mark
from vattention.memory_report import MemoryReport
from vattention.page_cache import PageCache
from vattention.page_source import check_wait
from vattention.row_pages import RowPages
from vattention.rows import RowNumbers, Rows
from vattention.shared_rows import SharedRows
from vattention.tensors import RangeTensors, torch_device

SETTLE_TIMEOUT_S = 60.0


class _Phase(enum.Enum):
    OPEN = enum.auto()
    CLOSING = enum.auto()  # close() is under way: no slot is in use, and none is taken into use any more
    CLOSED = enum.auto()


class Closeable(Protocol):
    def close(self) -> None: ...


class PageHome(Lender, Protocol):
    """What a KV cache needs of a session."""

    @property
    def mapper(self) -> Mapper: ...
    @property
    def pages(self) -> PageCache: ...
    @property
    def leased_pages(self) -> int: ...
    @property
    def pool_pages(self) -> int: ...
    def close_first(self, dependent: Closeable) -> None:
        """Close `dependent` before the session closes its own parts."""


@dataclass(frozen=True, slots=True)
class KVCacheStats:
    """What a cache holds now."""

    mapped_bytes: int  # pages behind this cache's rows, each counted once
    token_bytes: int  # of them, bytes that tokens fill; the rest are ends of pages, pages mapped ahead, and kept ones
    kept_bytes: int  # pages of slots that are not in use, kept for the next requests
    cached_bytes: int  # the session's pages that are mapped nowhere, kept for the next growth step
    leased_bytes: int  # all the session's pages, of all its caches
    virtual_bytes: int  # addresses, no memory
    static_reservation_bytes: int  # what the same cache without paging would hold
    kernel_run_count: int  # stretches of consecutive pages: on the host, the kernel mappings they need
    mapped_pages_total: int  # pages mapped so far
    unmapped_pages_total: int  # pages unmapped so far


class KVCache:
    """K and V of every layer for `max_batch_size` slots, mapped as far as the slots have grown.

    Tokens past a slot's capacity have no memory: touching them is a segmentation fault on the host and a fatal error on
    a GPU. The tensors do not keep their memory: neither they nor their views may be used after close().
    Pages come zeroed only from another tenant; a row may hold what an earlier request of this tenant left.

    A thread of the cache's own maps ahead while the model computes, so that a step rarely finds a page missing, and
    lets go of what finished slots left (see vattention.keeper). Pages are unmapped only when the fence says that the
    device has stopped using them (see vattention.device_fence); a live mapping is never replaced.

    Invariant: a slot's pages are mapped from the start of its row without a hole. An operation that raises has changed
    nothing, save that idle pages may be gone. Thread-safe.
    """

    def __init__(
        self,
        session: PageHome,
        spec: KVCacheSpec,
        *,
        fence: Fence | None = None,
        background: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`fence` stands in for the default one. Without `background`, `settle()` does what the thread would: with a
        `clock` of the caller's, in a time of the caller's."""
        if not isinstance(spec, KVCacheSpec):
            raise InvalidRequest(f"spec must be a KVCacheSpec, not {spec!r}")
        self._mapper = session.mapper
        self._pages = session.pages
        self._home = session
        self._clock = clock
        self._birth = fork_guard.Birth()
        self._lifecycle = threading.RLock()
        self._phase = _Phase.OPEN  # changes under the `state` lock of the rows
        device = self._mapper.device
        self.spec = spec
        self.geometry = Geometry.of(spec, device.backend, self._mapper.page_size_bytes)
        self.device = torch_device(device)
        self.fence = fence if fence is not None else default_fence(self.device)
        self._range = self._mapper.reserve(self.geometry.virtual_bytes)
        with ExitStack() as undo:
            undo.callback(self._mapper.free, self._range)
            self._tensors: RangeTensors | None = RangeTensors(self.geometry, self._range.address, self.device)
            self._behind = RowPages(self.geometry, self._range, self._mapper, self._pages)
            self._rows = Rows(self.geometry, self._behind, self._pages, self, lambda: self.fence(), clock)
            self._shared = SharedRows(self._rows, self.geometry, self._pages, self._memory)
            self._admission = Admission(self._rows, session, self._pages, self, self._check_open, clock)
            self._keeper = Keeper(self._rows, self._pages, lambda: self._share_pages, clock)
            self._pages.join(self)
            undo.pop_all()
        session.close_first(self)
        self._paced_row = 0
        if background:
            self._keeper.start()

    @property
    def layout(self) -> Layout:
        return self.geometry.layout

    @property
    def _share_pages(self) -> int:
        """The pool's pages that this cache may have at most."""
        budget = self._behind.budget_pages
        return self._home.pool_pages if budget is None else min(budget, self._home.pool_pages)

    # Tensors

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """K and V of a layer: [max_batch_size, max_context_length, num_kv_heads, head_size or value_head_size].

        Strides are not those of a contiguous tensor: rows start on pages; in `megacache` and `fused` tokens lie a whole
        layer stack apart, in `per_head` heads a whole column. Where tokens have one latent vector (value_head_size 0),
        V has no elements.
        """
        index = as_integer(index, "the layer's index")
        if not 0 <= index < self.spec.num_layers:
            raise InvalidRequest(f"layer {index} of {self.spec.num_layers}")
        return self._open_tensors().layer(index)

    def tensors(self) -> list[torch.Tensor]:
        """The layout's tensors: `per_layer` K of every layer, then V of every layer; `megacache` K and V, each
        [max_batch_size, max_context_length, num_layers, num_kv_heads, size]; the others as `per_layer`, strided views.
        """
        return self._open_tensors().as_upstream()

    # Slots

    def acquire_slot(self, token_count: int | None = None) -> int:
        """A free slot, empty. Raises InvalidRequest if all are in use.

        With `token_count`, the slot whose kept pages hold so many tokens best, and the rest is mapped from now on in
        the background; without, the lowest.
        """
        expected = 0 if token_count is None else self._checked_token_count(token_count)
        with self._state_open():
            table = self._rows.table
            number = table.lowest_free() if token_count is None else table.best_fit(expected)
            is_spoilt = bool(table.spoilt[number])
            mark = table.claim(number, expected)
        if is_spoilt:
            with self._emptied(number, mark):
                pass
        self._changed()
        return number

    def admit_slot(self, token_count: int, *, wait_s: float = 0.0) -> int:
        """A free slot for a new request, with memory behind `token_count` tokens: it holds them as after `grow`.

        What the kept pages of the slot that fits best and the page cache lack is leased to ADMIT. Where vattd has too
        little, the kept pages of other slots are used, and then the lease queues for up to `wait_s` seconds, while the
        other slots go on. All of it, or an error, and then no slot is taken.

        Raises InvalidRequest if all slots are in use; PoolExhausted (WaitHopeless where waiting does not help),
        LimitExceeded or OutOfMemory for want of pages; Draining and SessionEvicted where an operator wants no new
        requests; and what else Session.lease raises.
        """
        self._birth.check()
        check_wait(wait_s)
        number = self._admission.admit(self._checked_token_count(token_count), wait_s)
        self._changed()
        return number

    def free_slot(self, number: int, *, fence: Fence | None = None) -> None:
        """End the slot's use. Its pages are kept for the next request, or go back to vattd, as the limits say; not
        before the device is done with them. `fence` is called now, in place of the cache's own later."""
        with self._state_open():
            self._rows.table.check_used(number)
        proof = (fence() or DONE) if fence is not None else None  # None: the background asks the cache's, later
        with self._state_open():
            self._rows.table.leave(self._rows.table.check_used(number), proof, self._clock())
        self._changed()

    def fork_slot(self, source: int, token_count: int | None = None) -> int:
        """A new slot that holds the first `token_count` tokens of `source` (None: all of them).

        Both share the pages that those tokens fill; the rest of them is copied (on CUDA in the current stream), so
        each slot goes on by itself. Raises as `grow` does.
        """
        with self._state_open():
            length = int(self._rows.table.length[self._rows.table.check_used(source)])
        token_count = length if token_count is None else self._checked_token_count(token_count)
        if token_count > length:
            raise InvalidRequest(f"slot {source} holds {length} tokens, fewer than {token_count}")
        with self._state_open():
            number = self._rows.table.barest_free()
            mark = self._rows.table.claim(number)

        def check_claimed() -> None:
            if not self._rows.table.is_claimed(number, mark):
                raise InvalidRequest(f"slot {number} was ended while it was being forked to")

        with self._emptied(number, mark):
            self._shared.fork(source, number, token_count, check_claimed)
        self._changed()
        return number

    def length(self, number: int) -> int:
        """Tokens that the slot holds, as told by grow, step and shrink."""
        with self._state_open():
            return int(self._rows.table.length[self._rows.table.check_used(number)])

    def capacity(self, number: int) -> int:
        """Tokens that fit in the slot's mapped pages."""
        with self._state_open():
            return int(self._rows.table.capacity[self._rows.table.check_used(number)])

    # Growing and shrinking

    def grow(self, number: int, token_count: int) -> None:
        """Let the slot hold `token_count` tokens in all. Never shrinks it."""
        self.grow_many({number: token_count})

    def grow_many(self, token_counts: Mapping[int, int]) -> None:
        """Let each slot hold so many tokens in all: every one of them, or an error and none.

        Raises InvalidRequest past max_context_length; PoolExhausted, LimitExceeded or OutOfMemory for want of pages.
        """
        counts = np.array([self._checked_token_count(count) for count in token_counts.values()], dtype=np.int64)
        table = self._rows.table

        def commit() -> None:
            for number in token_counts:  # another thread may have freed it
                table.check_used(number)
            table.length[rows] = np.maximum(table.length[rows], counts)

        with self._state_open():
            rows = np.array([table.check_used(number) for number in token_counts], dtype=np.intp)
            self._note_growth(rows)
            if (counts <= table.capacity[rows]).all():
                commit()
                self._keeper.note_step(jumps=False)
                return
        with self._mapping_open():
            self._rows.reach(rows, counts, commit)
        self._changed()

    def step(self, lengths: Sequence[int] | Counts, *, zero_ends: bool = False) -> None:
        """Let every slot hold as many tokens as `lengths` says, one number for each of max_batch_size slots.

        A length takes a slot into use, acquired or not. 0 after a length ends its use, as free_slot does; 0 for a slot
        that was acquired, forked or grown and has had no length from a step yet leaves it as it is, or ends it too with
        `zero_ends`. A shorter length than before unmaps nothing. All of them, or an error and none; errors as of
        grow_many. What the coming steps need is mapped in the background.
        """
        wanted = self._checked_lengths(lengths)
        rows, table = self._rows, self._rows.table
        with self._state_open():
            rows.pace.note_step(self._clock())
            is_same = bool(((wanted > 0) == table.in_use).all())
            grown = wanted - table.length
            shortened = bool(grown.min() < 0)
            if is_same and not shortened and bool((wanted <= table.capacity).all()):
                table.length[:] = wanted
                table.stepped |= table.in_use
                self._keeper.note_step(jumps=bool(grown.max() > 1))
                return
        self._step_with_changes(wanted, zero_ends=zero_ends)

    def _step_with_changes(self, wanted: Counts, *, zero_ends: bool) -> None:
        rows, table = self._rows, self._rows.table
        given = wanted > 0

        def ending() -> RowNumbers:
            return np.flatnonzero(table.in_use & ~given & (table.stepped | zero_ends))

        def commit() -> None:
            self._check_open()  # close() may have begun since
            for row in ending().tolist():
                table.leave(row, None, self._clock())
            for row in np.flatnonzero(given & ~table.in_use).tolist():
                table.claim(row)
            for row in np.flatnonzero(given & (wanted < table.length)).tolist():
                table.marks[row] = table.marks[row].after_use()
                table.expected[row] = 0
            table.length[given] = wanted[given]
            table.stepped[given] = True

        with self._mapping_open():
            within_shared = np.flatnonzero(self._shared.cuts_into_shared(wanted)).tolist()
            if within_shared:
                (self.fence() or DONE).wait()
            for row in within_shared:
                self._shared.own_frontier(row, int(wanted[row]))
            which = np.flatnonzero(given)
            with rows.state:
                shortened = np.flatnonzero(table.in_use & given & (wanted < table.length))
                lowered = [*shortened.tolist(), *ending().tolist()]
            rows.reach(which, wanted[which], commit, lowered)
            for row in within_shared:
                self._shared.drop_shared(row, int(wanted[row]))
        self._changed()

    def shrink(self, number: int, token_count: int, *, keep_ahead: bool = False, fence: Fence | None = None) -> None:
        """Forget the slot's tokens past `token_count` and unmap the pages that only they filled.

        With `keep_ahead`, the few pages that the next growth step would map again stay: for a decoder that takes back
        tokens all the time.
        """
        token_count = self._checked_token_count(token_count)
        rows = self._rows
        with self._state_open():
            length = int(rows.table.length[rows.table.check_used(number)])
        if token_count > length:
            raise InvalidRequest(f"slot {number} holds {length} tokens, fewer than {token_count}")
        ((fence or self.fence)() or DONE).wait()
        with self._mapping_open():
            rows.table.marks[number].wait()
            wanted = rows.table.length.copy()
            wanted[number] = token_count
            if token_count and self._shared.cuts_into_shared(wanted)[number]:
                self._shared.own_frontier(number, token_count)
                self._shared.drop_shared(number, token_count)
            else:
                keep = rows.arithmetic.pages(token_count)
                ahead = rows.arithmetic.run_ahead(keep) if keep_ahead else 0
                self._pages.put(rows.cut(number, keep + ahead, token_count))
        self._changed()

    def map_common(self, token_count: int) -> None:
        """Map pages for so many tokens at the end of every slot's row, the same pages in all of them (for measurements:
        what one slot writes there, all of them read)."""
        token_count = self._checked_token_count(token_count)
        with self._mapping_open():
            self._shared.map_common(token_count)

    # Keeping and giving up

    def set_budget(self, page_count: int | None) -> None:
        """Map at most so many of the pool's pages behind this cache's rows; None: as many as vattd lends."""
        if page_count is not None and as_integer(page_count, "a budget") < 0:
            raise InvalidRequest(f"a budget of {page_count} pages")
        with self._state_open():
            self._behind.budget_pages = page_count
        self._changed()

    def keep_finished(self, fraction: float) -> None:
        """Keep pages of finished slots up to this part of the pages that the cache may have."""
        if not 0 <= fraction <= 1:
            raise InvalidRequest(f"a part of the pool's pages is 0 to 1, not {fraction!r}")
        self._keeper.set_finished_fraction(fraction)
        self._changed()

    def release_idle(self) -> int:
        """Unmap what free slots keep, all of it, and put it back; the pool's pages that came free."""
        with self._mapping_open():
            return self._empty_free_rows()

    def idle_pages(self, *, finished_only: bool = True) -> int:
        """Pages that finished slots keep or, without `finished_only`, running ones have over what they hold and expect
        too."""
        self._birth.check()
        return self._rows.idle_pages(finished_only=finished_only)

    def gather_idle(self, page_count: int, *, finished_only: bool = True) -> list[Extent]:
        """About so many of the idle pages, unmapped and the caller's from now on: for another cache of the session, or
        for vattd. Waits for no lock, and for the device only if the fence itself does."""
        self._birth.check()
        with self._rows.mapping_if_free() as held:
            if not held or self._phase is _Phase.CLOSED:
                return []
            return self._rows.gather_idle(page_count, finished_only=finished_only)

    def settle(self, timeout_s: float = SETTLE_TIMEOUT_S) -> bool:
        """Wait until the background has nothing left to do; False if that takes longer. For tests and measurements."""
        self._birth.check()
        return self._keeper.settle(timeout_s)

    # Counting

    def needed_pages(self, lengths: Sequence[int] | Counts) -> int:
        """The pool's pages that slots of these lengths need; those that several of them share count once."""
        self._check_open()
        return self._shared.needed_pool_pages(self._checked_lengths(lengths))

    def mapped_pages(self) -> Counts:
        """How many pages of the slots' rows are mapped, in use or not: one number for each slot and each band of the
        geometry."""
        with self._state_open():
            mapped: Counts = self._rows.table.mapped.copy()
        return mapped

    def stats(self) -> KVCacheStats:
        usage = self.usage()
        self._check_open()
        run_count = self._mapper.run_count(self._range)
        with self._state_open():
            table, page_size_bytes = self._rows.table, self._mapper.page_size_bytes
            kept_pages = int(self._rows.arithmetic.pool_pages(table.mapped[~table.in_use]).sum())
            return KVCacheStats(
                mapped_bytes=self._behind.held_pages * page_size_bytes,
                token_bytes=usage.token_bytes,
                kept_bytes=kept_pages * page_size_bytes,
                cached_bytes=self._pages.page_count * page_size_bytes,
                leased_bytes=self._home.leased_pages * page_size_bytes,
                virtual_bytes=self.geometry.virtual_bytes,
                static_reservation_bytes=self.spec.static_reservation_bytes,
                kernel_run_count=run_count,
                mapped_pages_total=self._behind.mapped_total,
                unmapped_pages_total=self._behind.unmapped_total,
            )

    def usage(self) -> Usage:
        """What the cache holds, and what other ways of holding the same tokens would; nothing once it is closed."""
        self._birth.check()
        rows, spec = self._rows, self.spec
        # Where rows share pages, which ones they are must not change meanwhile.
        with rows.mapping() if rows.table.shared.any() else nullcontext(), rows.state:
            if self._phase is _Phase.CLOSED:
                return Usage()
            length, held = rows.table.length.copy(), self._behind.held_pages
            twice_bytes = self._shared.shared_twice(length) * self._mapper.page_size_bytes
        twice_tokens = twice_bytes // spec.token_bytes
        blocks16, blocks256 = (int((-(-length // size)).sum()) - twice_tokens // size for size in (16, 256))
        return Usage(
            mapped_pages=held,
            token_bytes=int(length.sum()) * spec.token_bytes - twice_bytes,
            static_reservation_bytes=spec.static_reservation_bytes,
            paged16_bytes=blocks16 * 16 * spec.token_bytes,
            paged256_bytes=blocks256 * 256 * spec.token_bytes,
        )

    def memory_report(self) -> MemoryReport:
        """What the cache holds against the static reservation of its slots, and against PagedAttention."""
        self._check_open()
        spec = self.spec
        baseline = f"static reservation of {spec.max_batch_size} slots x {spec.max_context_length} tokens"
        return MemoryReport.of(self.usage(), self._mapper.page_size_bytes, baseline)

    # End

    def release(self) -> None:
        """End the use of every slot and give all pages back; the tensors and addresses stay, for new requests."""
        with self._state_open():
            self._end_slots()
        self._changed()
        self.release_idle()

    def close(self) -> None:
        """Unmap everything and give the pages back. No tensor of the cache may be used any more.

        It ends the slots in use; from then on other threads are told Closed. If it raises, because the device does not
        let go of the pages, the cache goes on, without a slot in use, and may be closed again.
        Idempotent; in a forked child it does nothing.
        """
        if not self._birth.is_here:
            return
        with self._lifecycle:
            if self._phase is _Phase.CLOSED:
                return
            try:
                self._unmap_for_good()
            except BaseException:
                with self._rows.state:
                    if self._phase is _Phase.CLOSING:
                        self._phase = _Phase.OPEN
                raise
            self._tensors = None
            self._keeper.stop()
            self._pages.leave(self)

    def _unmap_for_good(self) -> None:
        """Close, as far as that may fail."""
        rows = self._rows
        with rows.state:
            self._phase = _Phase.CLOSING
            self._end_slots()
        self._changed()
        with rows.mapping():  # whoever gets it from now on finds the cache closing, and maps nothing
            self._empty_free_rows()
            with rows.state:
                self._mapper.free(self._range)
                self._phase = _Phase.CLOSED

    def __enter__(self) -> KVCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Inside

    def _check_open(self) -> None:
        """Raises Closed from the moment that close() begins."""
        self._birth.check()
        if self._phase is not _Phase.OPEN:
            raise Closed("the KV cache is closed")

    def _open_tensors(self) -> RangeTensors:
        self._check_open()
        return self._made_tensors()

    def _made_tensors(self) -> RangeTensors:
        if self._tensors is None:
            raise Closed("the KV cache is closed")
        return self._tensors

    def _memory(self, offset_bytes: int, size_bytes: int) -> torch.Tensor:
        """For who holds `mapping`, and so may end what it is at although the cache is to close."""
        return self._made_tensors().memory(offset_bytes, size_bytes)

    def _end_slots(self) -> None:
        """End the use of every slot, in one go with what the caller does under the `state` lock."""
        for number in self._rows.table.used:
            self._rows.table.leave(number, None, self._clock())

    def _empty_free_rows(self) -> int:
        """Unmap what free slots keep and put it back; how many of the pool's pages. `mapping` is held."""
        freed = 0
        for row in np.flatnonzero(~self._rows.table.in_use).tolist():
            pages = self._rows.empty(row)
            self._pages.put(pages)
            freed += page_count_of(pages)
        return freed

    @contextmanager
    def _state_open(self) -> Iterator[None]:
        self._birth.check()
        with self._rows.state:
            self._check_open()
            yield

    @contextmanager
    def _mapping_open(self) -> Iterator[None]:
        self._birth.check()
        with self._rows.mapping():
            self._check_open()
            try:
                yield
            except InvalidRequest as error:
                if self._phase is not _Phase.OPEN:  # close() has ended the slot that is not in use
                    raise Closed("the KV cache was closed meanwhile") from error
                raise

    def _note_growth(self, rows: RowNumbers) -> None:
        """One row stands for all: an engine may grow them one by one, and that is one step."""
        if self._paced_row in rows:
            self._rows.pace.note_step(self._clock())
        elif len(rows) and not self._rows.table.in_use[self._paced_row]:
            self._paced_row = int(rows[0])

    @contextmanager
    def _emptied(self, number: int, mark: Mark) -> Iterator[None]:
        """Hold the right to change mappings, with a claimed slot's old pages unmapped; free again after an error."""
        try:
            with self._mapping_open():
                self._pages.put(self._rows.empty(number))
                yield
        except BaseException:
            with self._rows.state:
                if self._rows.table.is_claimed(number, mark):  # else it is another's by now, or nobody's
                    self._rows.table.leave(number, None, self._clock())
            raise

    def _checked_token_count(self, token_count: int) -> int:
        token_count = as_integer(token_count, "a slot's token count")
        if not 0 <= token_count <= self.spec.max_context_length:
            raise InvalidRequest(f"{token_count} tokens: a slot holds 0 to {self.spec.max_context_length}")
        return token_count

    def _checked_lengths(self, lengths: Any) -> Counts:
        """Token counts of all slots, as an array of our own."""
        try:
            wanted = np.array(lengths)
        except ValueError:  # lists of different lengths
            wanted = np.array(None)
        if wanted.shape != (self.spec.max_batch_size,):
            count = f"{wanted.size} lengths" if wanted.ndim == 1 else "something else"
            raise InvalidRequest(f"a length for each of {self.spec.max_batch_size} slots is wanted, not {count}")
        if wanted.dtype.kind not in "iu":
            raise InvalidRequest(f"lengths are whole numbers of tokens, not {wanted.dtype}")
        wrong = np.flatnonzero((wanted < 0) | (wanted > self.spec.max_context_length))
        if len(wrong):
            raise InvalidRequest(
                f"slot {wrong[0]}: {wanted[wrong[0]]} tokens, and max_context_length is {self.spec.max_context_length}"
            )
        return wanted.astype(np.int64, copy=False)

    def _changed(self) -> None:
        """Which slots are in use, or what they need, is another now."""
        self._rows.announce_growth()
        self._keeper.wake()
