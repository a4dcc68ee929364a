"""A cache for `model.generate` whose keys and values live in pages that vattd lends.

    with VattCache.for_model(model, session, max_batch_size=4, max_context_length=8192) as cache:
        model.generate(**inputs, past_key_values=cache)

Tokens and logits are those of `transformers.DynamicCache`, bit for bit. A row of the batch is a slot of the KVCache;
all rows are as long as the batch (a shorter prompt is padded on the left, as for any other cache), and grow together.
"""

from __future__ import annotations

import functools
from contextlib import ExitStack
from types import TracebackType
from typing import Any, NoReturn

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, get_layer_types_and_kwargs

from vatt.errors import Closed, InvalidRequest
from vattention.kvcache import KVCache
from vattention.layout import KVCacheSpec, Layout
from vattention.session import Session

SUPPORTED_LAYER_TYPE = "full_attention"


class VattCache(Cache):
    """Keys and values of one batch at a time, in the slots of a KVCache that this cache owns.

    `reset()` lets go of the batch's pages and makes room for the next one; `close()` also gives up the addresses.
    Invariant: rows are slots beside each other, each with room for `_grown_tokens`, and no layer holds more than that.
    """

    def __init__(self, kv_cache: KVCache, *, contiguous_keys: bool = False) -> None:
        """Takes over `kv_cache`. `contiguous_keys`: hand attention a copy of the keys instead of a view."""
        self._kv_cache = kv_cache
        self._contiguous_keys = contiguous_keys
        self._slots: list[int] = []
        self._grown_tokens = 0
        self._closed = False
        self._own_layers = [VattLayer(self, index) for index in range(kv_cache.spec.num_layers)]
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
        """A cache of the model's shape and dtype. `max_context_length` in tokens; None: the model's own."""
        config = model.config.get_text_config(decoder=True)
        if max_context_length is None:
            max_context_length = config.max_position_embeddings
        num_kv_heads, head_size = _one_shape_for_all_layers(config)
        spec = KVCacheSpec(
            num_layers=config.num_hidden_layers,
            num_kv_heads=num_kv_heads,
            head_size=head_size,
            dtype=model.dtype,
            max_batch_size=max_batch_size,
            max_context_length=max_context_length,
            layout=layout,
        )
        # Without heads that share, eager attention gives keys to torch.matmul as they are. It would copy a view with
        # gaps itself, but into another order, in which sums round otherwise than DynamicCache's.
        eager = config._attn_implementation == "eager"
        contiguous_keys = eager and num_kv_heads == config.num_attention_heads
        with ExitStack() as undo:
            kv_cache = KVCache(session, spec)
            undo.callback(kv_cache.close)
            if model.device != kv_cache.device:
                raise InvalidRequest(
                    f"the model is on {model.device} and vattd's pages are on {kv_cache.device}: "
                    f"model.to('{kv_cache.device}')"
                )
            cache = cls(kv_cache, contiguous_keys=contiguous_keys)
            undo.pop_all()
        return cache

    @property
    def kv_cache(self) -> KVCache:
        return self._kv_cache

    @property
    def contiguous_keys(self) -> bool:
        return self._contiguous_keys

    @property
    def batch_size(self) -> int:
        """Rows of the batch that is under way; -1 before its first token, as transformers has it."""
        return len(self._slots) or -1

    def beside(self) -> VattCache:
        """A cache for another batch, of one row, in slots of the same KVCache, which stays this one's to close.

        `reset()` gives its slot back for others. One thread uses all of them.
        """
        return VattCache(self._kv_cache, contiguous_keys=self._contiguous_keys)

    def make_room(self, batch_size: int, token_count: int) -> None:
        """Back the first `token_count` tokens of every row with pages; all rows get them or none does.

        The first layer of a forward pass grows for all of them: K and V of a token are mapped once for all layers.
        Raises PoolExhausted, or LimitExceeded, before anything of the step is written.
        """
        self._check_open()
        if self._slots and batch_size != len(self._slots):
            raise InvalidRequest(f"a batch of {batch_size} after one of {len(self._slots)}: reset() comes between them")
        if self._slots and token_count <= self._grown_tokens:
            return
        with ExitStack() as undo:
            new_slots = [] if self._slots else self._acquire(batch_size, undo)
            self._kv_cache.grow_many(dict.fromkeys(self._slots or new_slots, token_count))
            undo.pop_all()
        self._slots = self._slots or new_slots
        self._grown_tokens = token_count

    def rows(self) -> slice:
        """The slots of the batch, as an index of the KVCache's tensors."""
        return slice(self._slots[0], self._slots[-1] + 1) if self._slots else slice(0, 0)

    def reset(self) -> None:
        """Forget the batch; its pages are kept for the next one, or go back to vattd.

        After an error the rows that are left are whole; repeat it.
        """
        self._drop_rows(0)
        self._grown_tokens = 0
        for layer in self._own_layers:
            layer.keep(0)

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last tokens of every row; `tokens_to_remove` is negative, as transformers has it since 5.23."""
        if tokens_to_remove > 0:
            raise InvalidRequest(f"crop({tokens_to_remove}): say with a negative number how many tokens to remove")
        length = max(0, self.get_seq_length() + tokens_to_remove)
        fence = functools.cache(self._kv_cache.fence)  # once for all rows: if it fails, no row has changed
        for slot in self._slots:
            self._kv_cache.shrink(slot, length, keep_ahead=True, fence=fence)
        self._grown_tokens = min(self._grown_tokens, length)
        for layer in self._own_layers:
            layer.keep(min(length, layer.get_seq_length()))

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        self._gather(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._gather(torch.arange(len(self._slots)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self._gather(torch.arange(len(self._slots))[indices.cpu()])

    def close(self) -> None:
        """Give every page and the addresses back. No tensor of the cache may be used afterwards. Idempotent."""
        if self._closed:
            return
        self._closed = True
        for layer in self._own_layers:
            layer.keep(0)
        self._slots, self._grown_tokens = [], 0
        self._kv_cache.close()

    def __enter__(self) -> VattCache:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def offload(self, layer_idx: int, only_non_sliding: bool = True) -> NoReturn:
        _refuse("offloading")

    def prefetch(self, layer_idx: int, only_non_sliding: bool = True) -> NoReturn:
        _refuse("offloading")

    def _check_open(self) -> None:
        if self._closed:
            raise Closed("this VattCache is closed: make another one")

    def _acquire(self, count: int, undo: ExitStack) -> list[int]:
        """Slots beside each other, so that the batch is one strided view; freed again by `undo`."""
        wanted, limit = len(self._slots) + count, self._kv_cache.spec.max_batch_size
        if wanted > limit:
            raise InvalidRequest(f"a batch of {wanted} rows (beams count too), and max_batch_size is {limit}")
        slots: list[int] = []
        for _ in range(count):
            slots.append(self._kv_cache.acquire_slot())
            undo.callback(self._kv_cache.free_slot, slots[-1])
        everyone = self._slots + slots
        if everyone != list(range(everyone[0], everyone[0] + len(everyone))):
            raise InvalidRequest("the KVCache has slots in use by others: a VattCache needs one of its own")
        return slots

    def _gather(self, indices: torch.Tensor) -> None:
        """Make row i what row `indices[i]` was, in place, with more or fewer rows than before."""
        if not self._slots:
            return
        self._check_open()
        count = indices.numel()
        if count < 1:
            raise InvalidRequest("a batch keeps at least one row: reset() forgets it")
        with ExitStack() as undo:
            added = self._acquire(count - len(self._slots), undo)
            if added:
                self._kv_cache.grow_many(dict.fromkeys(added, self._grown_tokens))
            undo.pop_all()
        self._slots += added
        for layer in self._own_layers:
            layer.gather(indices)
        self._drop_rows(count)

    def _drop_rows(self, row_count: int) -> None:
        """Free all slots but the first `row_count`, the last one first. No layer looks at a row that is gone."""
        fence = functools.cache(self._kv_cache.fence)  # once for all rows: if it fails, no row has changed
        try:
            while len(self._slots) > row_count:
                self._kv_cache.free_slot(self._slots[-1], fence=fence)
                self._slots.pop()
        finally:
            for layer in self._own_layers:
                layer.keep(layer.get_seq_length())


class VattLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]  # transformers' __init_subclass__
    """One model layer's view of the cache: how many tokens it holds, and where they are.

    Layers of one forward pass are filled in turn, so each counts its own tokens. What changes rows or capacity is for
    all layers at once: those calls belong to VattCache, and are refused here.
    """

    is_compileable = False  # static attention reads the whole context, mapped or not
    is_croppable = True
    is_sliding = False

    def __init__(self, cache: VattCache, index: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._cache = cache
        self._length = 0
        self._all_keys, self._all_values = cache.kv_cache.layer(index)  # [slots, tokens, heads, head size]

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Refuse what would not fit: a copy into the cache would cast or broadcast it without a word."""
        for given, kept in ((key_states, self._all_keys), (value_states, self._all_values)):
            shapes = (given.shape[1], given.shape[3]), tuple(kept.shape[2:])
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
        self._cache.make_room(key_states.shape[0], end)
        rows = self._cache.rows()
        self._all_keys[rows, start:end].copy_(key_states.transpose(1, 2))
        self._all_values[rows, start:end].copy_(value_states.transpose(1, 2))
        keys, values = self.keep(end)
        return (keys.contiguous() if self._cache.contiguous_keys else keys), values

    def keep(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Hold the first `length` tokens of the batch's rows, and look at no others: they may be unmapped."""
        rows = self._cache.rows()
        keys = self._all_keys[rows, :length].transpose(1, 2)
        values = self._all_values[rows, :length].transpose(1, 2)
        self._length = length
        self.is_initialized = length > 0
        self.keys, self.values = (keys, values) if length else (None, None)
        return keys, values

    def gather(self, indices: torch.Tensor) -> None:
        """Write row `indices[i]` over row i. The rows are mapped, as many as the larger of both batches."""
        if not self._length:
            return
        rows = self._cache.rows()
        for everything in (self._all_keys, self._all_values):
            held = everything[rows, : self._length]
            held[: indices.numel()] = held.index_select(0, indices.to(held.device))

    def get_seq_length(self) -> int:
        return self._length

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Called before `update`: keys that attention will see, and the position of the first."""
        return self._length + query_length, 0

    def get_max_length(self) -> int:
        return int(self._all_keys.shape[1])

    def offload(self) -> NoReturn:
        _refuse("offloading")

    def prefetch(self) -> NoReturn:
        _refuse("offloading")

    def reset(self) -> NoReturn:
        _refuse("reset() of a single layer")

    def crop(self, tokens_to_remove: int) -> NoReturn:
        _refuse("crop() of a single layer")

    def reorder_cache(self, beam_idx: torch.Tensor) -> NoReturn:
        _refuse("reorder_cache() of a single layer")

    def batch_repeat_interleave(self, repeats: int) -> NoReturn:
        _refuse("batch_repeat_interleave() of a single layer")

    def batch_select_indices(self, indices: torch.Tensor) -> NoReturn:
        _refuse("batch_select_indices() of a single layer")


def _refuse(what: str) -> NoReturn:
    raise InvalidRequest(
        f"VattCache has no {what}: its rows are pages shared by all layers; use the cache's own methods"
    )


def _one_shape_for_all_layers(config: PreTrainedConfig) -> tuple[int, int]:
    """KV heads and head size. Refuses a model whose layers need different caches."""
    layer_types, _ = get_layer_types_and_kwargs(config)
    others = sorted(set(layer_types) - {SUPPORTED_LAYER_TYPE})
    if others:
        raise InvalidRequest(
            f"{config.model_type} has layers of type {', '.join(others)}, and VattCache holds {SUPPORTED_LAYER_TYPE} "
            "only: use transformers.DynamicCache for this model"
        )
    shapes = {_kv_shape(layer) for layer in config.per_layer_config}
    if len(shapes) != 1:
        raise InvalidRequest(
            f"{config.model_type} has layers of different shapes ({sorted(shapes)}), and VattCache holds one: "
            "use transformers.DynamicCache for this model"
        )
    return shapes.pop()


def _kv_shape(config: PreTrainedConfig) -> tuple[int, int]:
    heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    return num_kv_heads, head_size
