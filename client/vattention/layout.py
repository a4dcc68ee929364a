"""How a KV cache's bytes lie in virtual memory: arithmetic only.

A *column* is one contiguous range that every slot has a row in. `per_layer` has 2 L columns (K of every layer, then V),
`fused` has one, in which a token's K and V of all layers lie beside each other. Rows start on a page, so that no page
is shared by two slots. Needs are counted in bytes: a page seldom holds a whole number of tokens.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vatt.errors import InvalidRequest

if TYPE_CHECKING:
    import torch

# The most pages that a growth step takes ahead for one column.
MAX_PAGES_AHEAD = 4


class Layout(enum.Enum):
    """Which bytes are neighbours, and so how much a growth step takes."""

    PER_LAYER = "per_layer"  # 2 L tensors of [B, T, H, D]: best locality, 2 L pages a growth step
    FUSED = "fused"  # one tensor [B, T, L, 2, H, D]: one page a growth step, each layer a strided view

    @classmethod
    def default_for(cls, backend: str) -> Layout:
        """`fused` where pages are large (CUDA), `per_layer` where they are small (host)."""
        return cls.FUSED if backend == "cuda" else cls.PER_LAYER


@dataclass(frozen=True, slots=True)
class KVCacheSpec:
    """The shape of a model's KV cache on one device."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    dtype: torch.dtype
    max_batch_size: int  # slots
    max_context_length: int  # tokens a slot may ever hold
    layout: Layout | None = None  # None: the backend's default

    def __post_init__(self) -> None:
        for name in ("num_layers", "num_kv_heads", "head_size", "max_batch_size", "max_context_length"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise InvalidRequest(f"{name} must be an integer of at least 1, not {value!r}")
        itemsize = getattr(self.dtype, "itemsize", None)
        if not isinstance(itemsize, int) or itemsize < 1:
            raise InvalidRequest(f"dtype must be a torch.dtype, not {self.dtype!r}")
        if not self.dtype.is_floating_point:
            raise InvalidRequest(f"keys and values are floating-point numbers, and {self.dtype} holds none")
        if self.layout is not None and not isinstance(self.layout, Layout):
            raise InvalidRequest(f"layout must be a Layout or None, not {self.layout!r}")

    @property
    def token_bytes(self) -> int:
        """K and V of one token in all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_size * self.dtype.itemsize

    @property
    def static_reservation_bytes(self) -> int:
        """What a cache without paging holds from the start: every slot at its longest."""
        return self.max_batch_size * self.max_context_length * self.token_bytes


@dataclass(frozen=True, slots=True)
class Geometry:
    """A spec laid out in pages of one size."""

    spec: KVCacheSpec
    layout: Layout
    page_size_bytes: int

    def __post_init__(self) -> None:
        if self.page_size_bytes < 1 or self.page_size_bytes % self.spec.dtype.itemsize:
            raise InvalidRequest(
                f"a page of {self.page_size_bytes} bytes does not hold whole {self.spec.dtype} elements"
            )

    @classmethod
    def of(cls, spec: KVCacheSpec, backend: str, page_size_bytes: int) -> Geometry:
        return cls(spec, spec.layout or Layout.default_for(backend), page_size_bytes)

    @property
    def column_count(self) -> int:
        return 2 * self.spec.num_layers if self.layout is Layout.PER_LAYER else 1

    @property
    def token_bytes(self) -> int:
        """Of one token in one column."""
        return self.spec.token_bytes // self.column_count

    @property
    def pages_per_row(self) -> int:
        return self.pages_for(self.spec.max_context_length)

    @property
    def row_bytes(self) -> int:
        """From one slot's row to the next in a column."""
        return self.pages_per_row * self.page_size_bytes

    @property
    def column_bytes(self) -> int:
        return self.spec.max_batch_size * self.row_bytes

    @property
    def virtual_bytes(self) -> int:
        return self.column_count * self.column_bytes

    def pages_for(self, token_count: int) -> int:
        """Pages of one column that hold the first `token_count` tokens of a row."""
        return -(-token_count * self.token_bytes // self.page_size_bytes)

    def tokens_in(self, page_count: int) -> int:
        """Whole tokens that `page_count` pages of a row hold."""
        return min(self.spec.max_context_length, page_count * self.page_size_bytes // self.token_bytes)

    def offset_bytes(self, column: int, slot: int, page: int = 0) -> int:
        """Of a page of a slot's row, from the start of the whole range."""
        return column * self.column_bytes + slot * self.row_bytes + page * self.page_size_bytes

    def step_pages(self, mapped_pages: int) -> int:
        """What a column of so many pages takes at its next growth by one token, while its row has room."""
        room = self.pages_per_row - mapped_pages
        return min(room, max(self.pages_for(1), pages_ahead(mapped_pages)))

    def growth_pages(self, mapped_pages: int, token_count: int) -> int:
        """Pages to map next in each column so that `token_count` tokens fit; 0 if they do.

        A column that has pages takes a few more than it needs, a run of up to `MAX_PAGES_AHEAD`, but never more than
        half of what it has: runs become one kernel mapping each, single pages of many columns dealt in turn never
        would. A new row takes what it needs and no more.
        """
        missing = self.pages_for(token_count) - mapped_pages
        if missing <= 0:
            return 0
        return max(missing, min(pages_ahead(mapped_pages), self.pages_per_row - mapped_pages))


def pages_ahead(mapped_pages: int) -> int:
    """The length of a growth run in a column that has `mapped_pages`."""
    return max(1, min(MAX_PAGES_AHEAD, mapped_pages // 2)) if mapped_pages else 0
