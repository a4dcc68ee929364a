"""How a KV cache's bytes lie in virtual memory: arithmetic only.

A *column* is one contiguous range that every slot has a row in: `per_layer` has 2 L columns (K of every layer, then
V), `per_head` 2 L H (one for each KV head of those), `megacache` two (K of all layers, V of all layers), and `fused`
one, in which a token's K and V of all layers lie beside each other. Rows start on a page, so that no page is shared by
two slots. Columns whose tokens take equally many bytes form a *band*: a row has equally many pages in each of them.
There are two bands where K and V differ in size, else one.

Needs are counted in bytes, since a page seldom holds a whole number of tokens. Where a function takes token counts,
they may be one integer or an array of one per slot.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from vatt.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

Counts = npt.NDArray[np.int64]

# A row that grows takes a few pages more than it needs, in one run: at most so many, and this part of what it has.
MAX_RUN_AHEAD = 32
RUN_AHEAD_DIVISOR = 128
# With a column for every layer or head, small pages dealt in turn would each be a kernel mapping of their own.
MAX_RUN_AHEAD_PER_LAYER = 4


class Layout(enum.Enum):
    """Which bytes are neighbours, and so how much a growth step takes: pages of L layers."""

    PER_LAYER = "per_layer"  # 2 L tensors [B, T, H, D]: 2 L pages a growth step
    PER_HEAD = (
        "per_head"  # 2 L H columns [B, T, D], each layer a strided view: best locality, 2 L H pages a growth step
    )
    MEGACACHE = "megacache"  # K and V, each [B, T, L, H, D]: 2 pages a growth step, each layer a strided view
    FUSED = "fused"  # one tensor [B, T, L, K and V, H, D]: one page a growth step, each layer's K and V strided views

    @classmethod
    def default_for(cls, backend: str) -> Layout:
        """`fused` where pages are large (CUDA), `per_layer` where they are small (host)."""
        return cls.FUSED if backend == "cuda" else cls.PER_LAYER


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """The shape of a model's KV cache on one device.

    `value_head_size`: of V where it differs from K's; 0 where a token has one latent vector (MLA), of `head_size`.
    `page_size_bytes`: rows grow by this; a multiple of the pool's page size, which is the default.
    """

    num_layers: int
    num_kv_heads: int
    head_size: int  # of K; with value_head_size=0, of the one latent vector that a token has (MLA)
    dtype: torch.dtype
    max_batch_size: int  # slots
    max_context_length: int  # tokens a slot may ever hold
    layout: Layout | None = None  # None: the backend's default
    value_head_size: int | None = None  # of V. None: that of K; 0: no V at all
    page_size_bytes: int | None = None  # how a row grows: a multiple of the pool's page size. None: just that

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_size", "max_batch_size", "max_context_length"):
            self._check_integer(name, least=1)
        for name, least in (("value_head_size", 0), ("page_size_bytes", 1)):
            if getattr(self, name) is not None:
                self._check_integer(name, least)
        itemsize = getattr(self.dtype, "itemsize", None)
        if not isinstance(itemsize, int) or itemsize < 1:
            raise InvalidRequest(f"dtype must be a torch.dtype, not {self.dtype!r}")
        if not self.dtype.is_floating_point:
            raise InvalidRequest(f"keys and values are floating-point numbers, and {self.dtype} holds none")
        if self.layout is not None and not isinstance(self.layout, Layout):
            names = ", ".join(f"Layout.{layout.name}" for layout in Layout)
            raise InvalidRequest(f"layout must be {names} or None, not {self.layout!r}")

    def _check_integer(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise InvalidRequest(f"{name} must be an integer of at least {least}, not {value!r}")

    @property
    def value_size(self) -> int:
        """Elements of V a head; 0 if there is no V."""
        return self.head_size if self.value_head_size is None else self.value_head_size

    @property
    def key_bytes(self) -> int:
        """K of one token in one layer."""
        return self.num_kv_heads * self.head_size * self.dtype.itemsize

    @property
    def value_bytes(self) -> int:
        """V of one token in one layer."""
        return self.num_kv_heads * self.value_size * self.dtype.itemsize

    @property
    def token_bytes(self) -> int:
        """K and V of one token in all layers."""
        return self.num_layers * (self.key_bytes + self.value_bytes)

    @property
    def static_reservation_bytes(self) -> int:
        """What a cache without paging holds from the start: every slot at its longest."""
        return self.max_batch_size * self.max_context_length * self.token_bytes


@dataclass(frozen=True, slots=True)
class Band:
    """Columns beside each other whose tokens take equally many bytes."""

    column_count: int
    token_bytes: int  # of one token in one column
    pages_per_row: int
    offset_bytes: int  # of the first column, from the start of the whole range
    row_bytes: int  # from one slot's row to the next
    column_bytes: int  # from one column to the next


@dataclass(frozen=True, slots=True)
class Geometry:
    """A spec laid out in pages of one size."""

    spec: KVCacheSpec
    layout: Layout
    page_size_bytes: int
    pool_pages_per_page: int  # the pool's pages that make up one of ours
    keeps_runs: bool  # on the host, where the kernel merges pages that follow each other into one mapping

    def __post_init__(self) -> None:
        if self.page_size_bytes < 1 or self.page_size_bytes % self.spec.dtype.itemsize:
            raise InvalidRequest(
                f"a page of {self.page_size_bytes} bytes does not hold whole {self.spec.dtype} elements"
            )

    @classmethod
    def of(cls, spec: KVCacheSpec, backend: str, pool_page_size_bytes: int) -> Geometry:
        """Raises InvalidRequest if the spec asks for pages that the pool's do not add up to."""
        page_size_bytes = spec.page_size_bytes or pool_page_size_bytes
        if page_size_bytes % pool_page_size_bytes:
            raise InvalidRequest(_no_such_page(page_size_bytes, pool_page_size_bytes, backend))
        return cls(
            spec,
            spec.layout or Layout.default_for(backend),
            page_size_bytes,
            page_size_bytes // pool_page_size_bytes,
            keeps_runs=backend == "host",
        )

    @property
    def bands(self) -> tuple[Band, ...]:
        spec, bands = self.spec, []
        offset_bytes = 0
        for column_count, token_bytes in self._columns():
            pages_per_row = -(-spec.max_context_length * token_bytes // self.page_size_bytes)
            row_bytes = pages_per_row * self.page_size_bytes
            column_bytes = spec.max_batch_size * row_bytes
            bands.append(Band(column_count, token_bytes, pages_per_row, offset_bytes, row_bytes, column_bytes))
            offset_bytes += column_count * column_bytes
        return tuple(bands)

    def _columns(self) -> Iterator[tuple[int, int]]:
        """Count and bytes a token of each band's columns."""
        spec = self.spec
        if self.layout is Layout.FUSED:
            yield 1, spec.token_bytes
            return
        count = self.columns_per_layer * spec.num_layers if self.columns_per_layer else 1
        key_bytes, value_bytes = (spec.num_layers * size // count for size in (spec.key_bytes, spec.value_bytes))
        if key_bytes == value_bytes:
            yield 2 * count, key_bytes
            return
        yield count, key_bytes
        if value_bytes:
            yield count, value_bytes

    @property
    def columns_per_layer(self) -> int:
        """Columns of a layer's K, and of its V; 0 where layers share a column."""
        return {Layout.PER_LAYER: 1, Layout.PER_HEAD: self.spec.num_kv_heads}.get(self.layout, 0)

    @property
    def virtual_bytes(self) -> int:
        return sum(band.column_count * band.column_bytes for band in self.bands)


class RowArithmetic:
    """A geometry's sums for many rows at once. Arrays are [slots, bands] for pages and [slots] for the rest."""

    def __init__(self, geometry: Geometry) -> None:
        bands = geometry.bands
        self._page_size_bytes = geometry.page_size_bytes
        self._max_context_length = geometry.spec.max_context_length
        self._keeps_short_runs = geometry.keeps_runs and geometry.columns_per_layer > 0
        self._token_bytes = _counts(band.token_bytes for band in bands)
        self._pages_per_row = _counts(band.pages_per_row for band in bands)
        self._weights = _counts(band.column_count * geometry.pool_pages_per_page for band in bands)

    def pages(self, token_counts: Counts | int) -> Counts:
        """Pages of each band's columns that hold the first `token_counts` tokens of rows: [..., bands]."""
        tokens = np.asarray(token_counts, dtype=np.int64)[..., None]
        return -(-tokens * self._token_bytes // self._page_size_bytes)

    def whole_pages(self, token_counts: Counts | int) -> Counts:
        """Pages of them that those tokens fill to the end."""
        tokens = np.asarray(token_counts, dtype=np.int64)[..., None]
        return tokens * self._token_bytes // self._page_size_bytes

    def capacity(self, pages: Counts) -> Counts:
        """Whole tokens that fit in rows of so many pages."""
        tokens: Counts = (pages * self._page_size_bytes // self._token_bytes).min(axis=-1)
        return np.minimum(tokens, self._max_context_length)

    def tokens_through(self, pages: Counts) -> Counts:
        """The fewest tokens that leave no part of so many pages empty."""
        tokens: Counts = (-(-pages * self._page_size_bytes // self._token_bytes)).max(axis=-1)
        return tokens

    def pool_pages(self, pages: Counts) -> Counts:
        """The pool's pages behind so many of each band's columns: one number a row."""
        summed: Counts = pages @ self._weights
        return summed

    def run_ahead(self, mapped: Counts) -> Counts:
        """Pages that rows of so many (a column) take at once when they grow, at least.

        Runs become one kernel mapping each, and one access call on a GPU; single pages of many rows dealt in turn
        never would. A new row takes what it needs and no more, and none takes more than it has room for.
        """
        ahead = np.minimum(mapped // RUN_AHEAD_DIVISOR, MAX_RUN_AHEAD)
        if self._keeps_short_runs:
            ahead = np.maximum(ahead, np.minimum(mapped // 2, MAX_RUN_AHEAD_PER_LAYER))
        ahead = np.where(mapped > 0, np.maximum(ahead, 1), 0)
        room: Counts = self._pages_per_row - mapped
        return np.minimum(ahead, room)


def _counts(numbers: Iterable[int]) -> Counts:
    return np.fromiter(numbers, dtype=np.int64)


def _no_such_page(page_size_bytes: int, pool_page_size_bytes: int, backend: str) -> str:
    text = (
        f"pages of {page_size_bytes} bytes: vattd's are {pool_page_size_bytes}, and a cache's are those or a multiple. "
    )
    if backend == "cuda":
        return text + (
            "A GPU's smallest page is the driver's granularity, 2 MiB as a rule; for fewer tokens a page use the fused "
            "layout, which puts all layers into one"
        )
    if page_size_bytes >= 4096 and page_size_bytes & (page_size_bytes - 1) == 0:
        return text + f"Start it with `vattd start --page-size {page_size_bytes}`"
    return text + f"Ask for {pool_page_size_bytes} bytes, or leave it out"
