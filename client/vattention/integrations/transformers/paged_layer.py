"""A layer that looks back at every token: its keys and values are in vattd's pages."""

from __future__ import annotations

from typing import Any

import torch

from vatt.errors import InvalidRequest
from vattention.integrations.transformers.batch_layer import BatchLayer
from vattention.integrations.transformers.batch_rows import BatchRows


class PagedLayer(BatchLayer):
    """One layer's view of the KVCache: how many tokens it holds, and where they are."""

    is_compileable = False  # static attention reads the whole context, mapped or not
    is_croppable = True
    is_sliding = False

    def __init__(self, rows: BatchRows, index: int, *, contiguous_keys: bool) -> None:
        """`index` counts the KVCache's layers. `contiguous_keys`: hand attention a copy of the keys, not a view."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._rows = rows
        self._contiguous_keys = contiguous_keys
        self._length = 0
        # [slots, heads, tokens, head size]
        self._all_keys, self._all_values = (tensor.transpose(1, 2) for tensor in rows.kv_cache.layer(index))

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Refuse what would not fit: a copy into the cache would cast or broadcast it without a word."""
        for given, kept in ((key_states, self._all_keys), (value_states, self._all_values)):
            shapes = (given.shape[1], given.shape[3]), (kept.shape[1], kept.shape[3])
            if shapes[0] != shapes[1] or given.dtype != kept.dtype or given.device != kept.device:
                raise InvalidRequest(
                    f"the model writes {given.dtype} heads x size {shapes[0]} on {given.device}, and the cache is for "
                    f"{kept.dtype} {shapes[1]} on {kept.device}: make it with VattCache.for_model, or use DynamicCache"
                )
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [batch, heads, tokens, head size] and return all that the layer holds, as views of the same form."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, end = self._length, self._length + key_states.shape[2]
        self._rows.make_room(key_states.shape[0], end)
        keys, values = self._first(end)
        keys[:, :, start:].copy_(key_states)
        values[:, :, start:].copy_(value_states)
        self._hold(end, keys, values)
        return (keys.contiguous() if self._contiguous_keys else keys), values

    def check_can_keep(self, length: int) -> None:
        """It has every token."""

    def keep_tokens(self, length: int) -> None:
        self._hold(length, *self._first(length))

    def keep_rows(self) -> None:
        self.keep_tokens(self._length)

    def gather(self, indices: torch.Tensor) -> None:
        if not self._length:
            return
        for held in self._first(self._length):
            held[: indices.numel()] = held.index_select(0, indices.to(held.device))

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Called before `update`: keys that attention will see, and the position of the first."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        return int(self._all_keys.shape[2])

    def _first(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of the first tokens of the batch's rows: [batch, heads, length, head size]."""
        rows = self._rows.as_slice()
        return self._all_keys[rows, :, :length], self._all_values[rows, :, :length]

    def _hold(self, length: int, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._length = length
        self.is_initialized = length > 0
        self.keys, self.values = (keys, values) if length else (None, None)
