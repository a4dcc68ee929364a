"""What layers hold whose keys and values are tensors of transformers' own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache

from vatt.usage import Usage


@dataclass(frozen=True, slots=True)
class LayerCost:
    """Of one layer: bytes a token, and the window that it looks back through, in tokens; None: at every token."""

    token_bytes: int
    window: int | None

    def bytes_of(self, token_count: int) -> int:
        """What it keeps of a conversation of so many tokens."""
        return self.token_bytes * (token_count if self.window is None else min(token_count, self.window))


class TensorLayers:
    """Some of a model's layers, by their number."""

    def __init__(self, costs: Mapping[int, LayerCost]) -> None:
        self._costs = costs

    @classmethod
    def of(cls, model: PreTrainedModel, *, only_windows: bool = False) -> TensorLayers:
        """All layers, or those with a window. Found by computing one token."""
        cache = DynamicCache(config=model.config)
        with torch.inference_mode():
            model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=cache)
        costs = {
            number: LayerCost(
                sum(tensor.nbytes for tensor in _tensors(cache, number)), getattr(layer, "sliding_window", None)
            )
            for number, layer in enumerate(cache.layers)
        }
        return cls({number: cost for number, cost in costs.items() if cost.window is not None or not only_windows})

    def usage(self, caches: Iterable[Cache], slot_count: int, max_context_length: int) -> Usage:
        """What they hold of these caches, in pages of a byte, and a static reservation of so many slots."""
        row_bytes = sum(cost.bytes_of(max_context_length) for cost in self._costs.values())
        held_bytes = token_bytes = paged16_bytes = paged256_bytes = 0
        for cache in caches:
            length = cache.get_seq_length()
            for number, cost in self._costs.items():
                tensors = _tensors(cache, number)
                held_bytes += sum(tensor.untyped_storage().nbytes() for tensor in tensors)
                token_bytes += sum(tensor.nbytes for tensor in tensors)
                paged16_bytes += cost.bytes_of(-(-length // 16) * 16)
                paged256_bytes += cost.bytes_of(-(-length // 256) * 256)
        return Usage(
            mapped_pages=held_bytes,
            token_bytes=token_bytes,
            static_reservation_bytes=slot_count * row_bytes,
            paged16_bytes=paged16_bytes,
            paged256_bytes=paged256_bytes,
        )


def _tensors(cache: Cache, number: int) -> list[torch.Tensor]:
    layer = cache.layers[number]
    return [tensor for tensor in (getattr(layer, "keys", None), getattr(layer, "values", None)) if tensor is not None]
