"""Models by name, and the small doubles that stand for them on host memory."""

from __future__ import annotations

from dataclasses import dataclass

from vatt.errors import InvalidRequest
from vatt.sizes import format_size

# The kernel's own page: the host maps nothing smaller.
LEAST_PAGE_BYTES = 4096
ELEMENT_BYTES = 2  # fp16 or bf16


@dataclass(frozen=True, slots=True)
class Model:
    """The KV geometry of a model on one GPU."""

    name: str
    num_layers: int
    num_kv_heads: int  # on each GPU
    head_size: int

    @property
    def key_bytes(self) -> int:
        """K of one token in one layer; V takes as much."""
        return self.num_kv_heads * self.head_size * ELEMENT_BYTES

    @property
    def token_bytes(self) -> int:
        """K and V of one token in all layers."""
        return 2 * self.num_layers * self.key_bytes


MODELS = {
    model.name: model
    for model in (
        Model("llama-3-8b", num_layers=32, num_kv_heads=8, head_size=128),
        Model("yi-34b-tp2", num_layers=60, num_kv_heads=4, head_size=128),
        Model("llama-3-70b-tp4", num_layers=80, num_kv_heads=2, head_size=128),
        Model("phi-2", num_layers=32, num_kv_heads=32, head_size=80),
        Model("qwen2-0.5b", num_layers=24, num_kv_heads=2, head_size=64),
    )
}


@dataclass(frozen=True, slots=True)
class Double:
    """A model with pages and tokens smaller by one factor: what is counted in pages or tokens is the model's own."""

    model: Model
    page_size_bytes: int  # the model's
    factor: int

    @classmethod
    def of(cls, model: Model, page_size_bytes: int) -> Double:
        """The smallest one: the greatest power of two that divides both, and leaves pages that the host can map.

        Raises InvalidRequest if there is none.
        """
        if page_size_bytes < LEAST_PAGE_BYTES or page_size_bytes % LEAST_PAGE_BYTES:
            raise InvalidRequest(
                f"pages of {page_size_bytes} bytes: a page is a multiple of {format_size(LEAST_PAGE_BYTES)}"
            )
        factor = 1
        while model.key_bytes % (2 * factor) == 0 and page_size_bytes % (2 * factor * LEAST_PAGE_BYTES) == 0:
            factor *= 2
        return cls(model, page_size_bytes, factor)

    @property
    def small_page_bytes(self) -> int:
        return self.page_size_bytes // self.factor

    @property
    def small_key_bytes(self) -> int:
        return self.model.key_bytes // self.factor
