"""The tensors of a worker's KV cache, on memory of ours."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.v1.kv_cache_interface import FullAttentionSpec, SlidingWindowSpec

from vatt.errors import InvalidRequest
from vattention.block_geometry import Stripe
from vattention.integrations.vllm.worker import geometry_of, moved, refuse_windows

SHAPE = {"block_size": 16, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float16}
FULL, WINDOW = FullAttentionSpec(**SHAPE), SlidingWindowSpec(**SHAPE, sliding_window=64)
BLOCK = FULL.page_size_bytes


def config(*specs: Any, stride: int, layer_stride: int) -> Any:
    """A KV cache of ten blocks, one layer for each spec, as vLLM describes it."""
    names = [f"layer.{number}" for number in range(len(specs))]
    groups = [SimpleNamespace(layer_names=[name], kv_cache_spec=spec) for name, spec in zip(names, specs, strict=True)]
    tensor = SimpleNamespace(layers=names, layer_stride=layer_stride, block_stride=stride, offset=0)
    return SimpleNamespace(num_blocks=10, kv_cache_tensors=[tensor], kv_cache_groups=groups, num_blocks_of=lambda _: 10)


def test_layers_beside_each_other_are_one_stripe_and_layers_after_each_other_one_each() -> None:
    together = geometry_of(config(FULL, FULL, stride=2 * BLOCK, layer_stride=BLOCK), 4096)
    assert together.stripes == (Stripe(0, 2 * BLOCK, 2 * BLOCK),)
    apart = geometry_of(config(FULL, FULL, stride=BLOCK, layer_stride=10 * BLOCK), 4096)
    assert apart.stripes == (Stripe(0, BLOCK, BLOCK), Stripe(10 * BLOCK, BLOCK, BLOCK))
    assert together.block_bytes == apart.block_bytes == 2 * BLOCK


def test_sliding_windows_are_refused_where_kernels_read_before_them() -> None:
    refuse_windows(config(FULL, FULL, stride=BLOCK, layer_stride=10 * BLOCK))
    with pytest.raises(InvalidRequest, match="--disable-hybrid-kv-cache-manager"):
        refuse_windows(config(FULL, WINDOW, stride=BLOCK, layer_stride=10 * BLOCK))


def test_a_view_without_data_becomes_the_same_bytes_of_our_memory() -> None:
    memory = torch.arange(256, dtype=torch.uint8)
    plain = memory.clone().view(torch.int16)[4:100].view(4, 24)[:, ::2].t()
    empty = torch.empty(256, dtype=torch.uint8, device="meta").view(torch.int16)[4:100].view(4, 24)[:, ::2].t()
    view = moved(empty, memory)
    assert torch.equal(view, plain)
    assert view.stride() == plain.stride()
    view.zero_()
    assert int((memory == 0).sum()) > 90  # and it is that memory, no copy
