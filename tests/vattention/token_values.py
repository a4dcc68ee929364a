"""Known K and V for every token, written through a cache's views and read back."""

from __future__ import annotations

import dataclasses
from functools import lru_cache

import torch

from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout

# A token takes 96 bytes a column in per_layer, 48 in per_head, 288 in megacache and 576 in fused: none divides a page
# of 4096.
SPEC = KVCacheSpec(3, 2, 12, torch.float32, max_batch_size=4, max_context_length=1000)


def spec_of(layout: Layout, **changes: object) -> KVCacheSpec:
    return dataclasses.replace(SPEC, layout=layout, **changes)  # type: ignore[arg-type]


@lru_cache(maxsize=256)
def tokens(spec: KVCacheSpec, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What K and V hold: [layers, tokens, heads, size]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (spec.num_layers, spec.max_context_length, spec.num_kv_heads)
    key, value = (
        torch.rand((*shape, size), generator=generator).to(spec.dtype) for size in (spec.head_size, spec.value_size)
    )
    return key, value


def write(cache: KVCache, slot: int, seed: int, start: int, end: int) -> None:
    for layer in range(cache.spec.num_layers):
        for view, value in zip(cache.layer(layer), tokens(cache.spec, seed), strict=True):
            view[slot, start:end] = value[layer, start:end]


def check(cache: KVCache, slot: int, seed: int, count: int, start: int = 0) -> None:
    for layer in range(cache.spec.num_layers):
        for view, value in zip(cache.layer(layer), tokens(cache.spec, seed), strict=True):
            assert same_bytes(view[slot, start:count], value[layer, start:count]), f"slot {slot}, layer {layer}"


def same_bytes(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whatever the type: fp8 knows no comparison."""
    return one.numel() == other.numel() == 0 or torch.equal(one.view(torch.uint8), other.view(torch.uint8))
