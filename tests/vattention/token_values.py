"""Known K and V for every token, written through a cache's views and read back."""

from __future__ import annotations

import torch

from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec

# A token takes 96 bytes a column in per_layer and 576 in fused: neither divides a page of 4096.
SPEC = KVCacheSpec(3, 2, 12, torch.float32, max_batch_size=4, max_context_length=1000)


def tokens(seed: int, count: int) -> torch.Tensor:
    """What K and V of every layer hold for `count` tokens: [L, 2, count, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (SPEC.max_context_length, SPEC.num_layers, 2, SPEC.num_kv_heads, SPEC.head_size)
    return torch.rand(shape, generator=generator)[:count].permute(1, 2, 0, 3, 4)


def write(cache: KVCache, slot: int, seed: int, start: int, end: int) -> None:
    values = tokens(seed, end)
    for layer in range(SPEC.num_layers):
        for view, value in zip(cache.layer(layer), values[layer], strict=True):
            view[slot, start:end] = value[start:]


def check(cache: KVCache, slot: int, seed: int, count: int) -> None:
    values = tokens(seed, count)
    for layer in range(SPEC.num_layers):
        for view, value in zip(cache.layer(layer), values[layer], strict=True):
            assert torch.equal(view[slot, :count], value)
