"""A layer that looks back through a window: its keys and values are in memory of their own."""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicSlidingWindowLayer

from vatt.errors import InvalidRequest
from vattention.integrations.transformers.batch_layer import BatchLayer
from vattention.integrations.transformers.batch_rows import BatchRows


class WindowLayer(BatchLayer, DynamicSlidingWindowLayer):
    """The last tokens of the batch, as transformers' own layer holds them: at most a window less one a row.

    Pages would save nothing here: what such a layer needs is bounded and soon reached. While `record_past` is set (as
    assisted decoding does) it holds what came since the last `crop` as well.
    """

    def __init__(self, rows: BatchRows, sliding_window: int) -> None:
        """`sliding_window` in tokens, the one that looks back included."""
        super().__init__(sliding_window)  # type: ignore[no-untyped-call]
        self._rows = rows

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append [batch, heads, tokens, head size] and return what attention sees."""
        # For the other layers: what is refused must be refused before the first layer of a pass is written.
        self._rows.make_room(key_states.shape[0], self.cumulative_length + key_states.shape[2])
        states: tuple[torch.Tensor, torch.Tensor] = super().update(key_states, value_states, *args, **kwargs)
        return states

    def check_can_keep(self, length: int) -> None:
        if self._held_of(length) < min(length, self.sliding_window - 1):
            raise InvalidRequest(
                f"a window of {self.sliding_window} tokens has passed on: it cannot be brought back to token {length}. "
                "Call cache.activate_past_recording() before the tokens that are to be cropped"
            )

    def keep_tokens(self, length: int) -> None:
        end = self._held_of(length)
        if length and self.keys is not None and self.values is not None:
            window = slice(max(0, end - self.sliding_window + 1), end)
            self.keys, self.values = self.keys[:, :, window], self.values[:, :, window]
        else:
            self.keys = self.values = None
            self.is_initialized = False
        self.cumulative_length = length

    def keep_rows(self) -> None:
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[: len(self._rows)], self.values[: len(self._rows)]

    def gather(self, indices: torch.Tensor) -> None:
        if self.keys is not None and self.values is not None:
            indices = indices.to(self.keys.device)
            self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)

    def _held_of(self, length: int) -> int:
        """How many of the first `length` tokens it still holds: the last of them."""
        held = self.keys.shape[2] if self.keys is not None else 0
        return int(max(0, held - (self.cumulative_length - length)))
