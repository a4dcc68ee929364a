"""Keys and values of a batch: rows that all layers share, and the layers."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NoReturn

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from vatt.errors import InvalidRequest
from vattention.integrations.transformers.batch_layer import BatchLayer, refuse
from vattention.integrations.transformers.batch_rows import BatchRows
from vattention.integrations.transformers.model_shape import ModelShape
from vattention.integrations.transformers.paged_layer import PagedLayer
from vattention.integrations.transformers.window_layer import WindowLayer
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.session import Session


class VattCache(Cache):
    """Keys and values of one batch at a time, in the slots of a KVCache that this cache owns.

    `reset()` lets go of the batch's pages and makes room for the next one; `close()` also gives up the addresses.
    Layers with a sliding window are beside it in memory of their own, one window a row at most (see WindowLayer).
    """

    def __init__(
        self, kv_cache: KVCache, *, windows: Sequence[int | None] | None = None, contiguous_keys: bool = False
    ) -> None:
        """Takes over `kv_cache`, which holds the layers without a window.

        `windows`: for each layer of the model, its sliding window in tokens or None; left out, no layer has one.
        `contiguous_keys`: hand attention a copy of the keys instead of a view (see ModelShape).
        """
        paged_count = kv_cache.spec.num_layers
        windows = [None] * paged_count if windows is None else windows
        if sum(window is None for window in windows) != paged_count:
            raise InvalidRequest(f"the KVCache has {paged_count} layers, not one for each None of windows={windows}")
        self._windows, self._contiguous_keys = tuple(windows), contiguous_keys
        self._rows = BatchRows(kv_cache)
        self._own_layers: list[BatchLayer] = []
        paged = iter(range(paged_count))
        for window in windows:
            self._own_layers.append(
                PagedLayer(self._rows, next(paged), contiguous_keys=contiguous_keys)
                if window is None
                else WindowLayer(self._rows, window)
            )
        super().__init__(layers=list(self._own_layers))

    @classmethod
    def for_model(
        cls,
        model: PreTrainedModel,
        session: Session,
        *,
        max_batch_size: int,
        max_context_length: int | None = None,
        layout: Layout | None = None,
    ) -> VattCache:
        """A cache of the model's shape and dtype. `max_context_length` in tokens; None: the model's own.

        It costs addresses, not memory: pages come with tokens, one a tensor and row at least (see Layout). Raises
        InvalidRequest, and says what to use instead, for a model with other layers than full and sliding attention.
        """
        shape = ModelShape.of(model.config)
        if max_context_length is None:
            max_context_length = shape.max_context_length
        if max_context_length is None:
            raise InvalidRequest(
                f"{model.config.model_type} does not say how long its context is: give max_context_length"
            )
        spec = KVCacheSpec(
            num_layers=shape.windows.count(None),
            num_kv_heads=shape.num_kv_heads,
            head_size=shape.head_size,
            dtype=model.dtype,
            max_batch_size=max_batch_size,
            max_context_length=max_context_length,
            layout=layout,
        )
        with ExitStack() as undo:
            kv_cache = KVCache(session, spec)
            undo.callback(kv_cache.close)
            if model.device != kv_cache.device:
                raise InvalidRequest(
                    f"the model is on {model.device} and vattd's pages are on {kv_cache.device}: "
                    f"model.to('{kv_cache.device}')"
                )
            cache = cls(kv_cache, windows=shape.windows, contiguous_keys=shape.needs_contiguous_keys)
            undo.pop_all()
        return cache

    def beside(self) -> VattCache:
        """A cache for another batch, of one row, in slots of the same KVCache, which stays this one's to close.

        `reset()` gives its slot back for others. One thread uses all of them.
        """
        return VattCache(self.kv_cache, windows=self._windows, contiguous_keys=self._contiguous_keys)

    def make_room(self, batch_size: int, token_count: int) -> None:
        """Back the first `token_count` tokens of every row with pages, as the first layer of a pass does.

        Raises PoolExhausted, LimitExceeded or OutOfMemory, and changes nothing then.
        """
        self._rows.make_room(batch_size, token_count)

    @property
    def kv_cache(self) -> KVCache:
        return self._rows.kv_cache

    @property
    def batch_size(self) -> int:
        """Rows of the batch that is under way; -1 before its first token, as transformers has it."""
        return len(self._rows) or -1

    def reset(self) -> None:
        """Forget the batch; its pages are kept for the next one, or go back to vattd.

        After an error the rows that are left are whole; repeat it.
        """
        self._cut_to(0)
        self._keep_tokens(0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row; `tokens_to_remove` is negative, as transformers has it since 5.23.

        A layer with a sliding window takes back only what it was told to remember: `activate_past_recording()`.
        """
        if tokens_to_remove > 0:
            raise InvalidRequest(f"crop({tokens_to_remove}): say with a negative number how many tokens to remove")
        length = max(0, self.get_seq_length() + tokens_to_remove)
        for layer in self._own_layers:
            layer.check_can_keep(length)
        self._rows.shorten_to(length)
        self._keep_tokens(length)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._gather(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._gather(torch.arange(len(self._rows)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._gather(torch.arange(len(self._rows))[indices.cpu()])

    def close(self) -> None:
        """Give every page and the addresses back. No tensor of the cache may be used afterwards. Idempotent."""
        self._keep_tokens(0)
        self._rows.close()

    def __enter__(self) -> VattCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Not copied and not pickled: a copy of the layers would look at the same pages."""
        refuse("copy")

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> NoReturn:
        refuse("offloading")

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> NoReturn:
        refuse("offloading")

    def _keep_tokens(self, length: int) -> None:
        for layer in self._own_layers:
            layer.keep_tokens(min(length, layer.get_seq_length()))

    def _gather(self, indices: torch.Tensor) -> None:
        """Make row i what row `indices[i]` was, in place, with more or fewer rows than before."""
        if not len(self._rows):
            return
        count = indices.numel()
        if count < 1:
            raise InvalidRequest("a batch keeps at least one row: reset() forgets it")
        self._rows.extend_to(count)
        for layer in self._own_layers:
            layer.gather(indices)
        self._cut_to(count)

    def _cut_to(self, row_count: int) -> None:
        """Free all rows but the first `row_count`. No layer looks at a row that is gone, after an error either."""
        try:
            self._rows.cut_to(row_count)
        finally:
            for layer in self._own_layers:
                layer.keep_rows()
