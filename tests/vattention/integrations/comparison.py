"""VattCache beside DynamicCache: the same inputs in both, and what must be equal."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Cache, DynamicCache, PreTrainedModel

from vattention.integrations.transformers import VattCache
from vattention.integrations.transformers.model_shape import kv_shape

NEW_TOKENS = 24


def generate(model: Any, inputs: dict[str, torch.Tensor], cache: Any, **options: Any) -> Any:
    """Tokens, greedy unless asked otherwise, and the logits they were chosen from."""
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, **options}
    return model.generate(**inputs, past_key_values=cache, return_dict_in_generate=True, output_logits=True, **options)


def assert_same_run(mine: Any, theirs: Any) -> None:
    assert torch.equal(mine.sequences, theirs.sequences)
    assert len(mine.logits) == len(theirs.logits)
    assert all(torch.equal(a, b) for a, b in zip(mine.logits, theirs.logits, strict=True))


def random_states(model: PreTrainedModel, batch_size: int, token_count: int) -> tuple[torch.Tensor, torch.Tensor]:
    heads, size = kv_shape(model.config)
    shape = (batch_size, heads, token_count, size)
    return torch.randn(shape, dtype=model.dtype), torch.randn(shape, dtype=model.dtype)


def append_to_both(model: PreTrainedModel, mine: Cache, theirs: Cache, batch_size: int, token_count: int) -> None:
    """The same random keys and values, as a forward pass would write them; what attention is given is the same."""
    for layer in range(model.config.num_hidden_layers):
        states = random_states(model, batch_size, token_count)
        seen, seen_there = mine.update(*states, layer), theirs.update(*states, layer)
        assert all(torch.equal(a, b) for a, b in zip(seen, seen_there, strict=True))


def fill_both(model: PreTrainedModel, mine: VattCache, batch_size: int, token_count: int) -> DynamicCache:
    """The same random keys and values in `mine` and in a DynamicCache."""
    theirs = DynamicCache(config=model.config)
    append_to_both(model, mine, theirs, batch_size, token_count)
    return theirs


def content(cache: Cache) -> list[torch.Tensor]:
    """Keys and values of each layer."""
    tensors: list[Any] = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values)]  # type: ignore[union-attr]
    return tensors


def assert_same_content(mine: Cache, theirs: Cache) -> None:
    layers = range(len(theirs))
    assert [mine.get_seq_length(layer) for layer in layers] == [theirs.get_seq_length(layer) for layer in layers]
    for query_length in (1, 5):
        for layer in layers:
            assert mine.get_mask_sizes(query_length, layer) == theirs.get_mask_sizes(query_length, layer)
    assert all(torch.equal(a, b) for a, b in zip(content(mine), content(theirs), strict=True))
