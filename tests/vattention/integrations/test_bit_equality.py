"""Families of models, kinds of attention, dtypes and layouts: tokens and logits are DynamicCache's, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.vattention.integrations.comparison import assert_same_run, generate
from tests.vattention.integrations.tiny_models import left_padded_batch, tiny_model
from vattention.integrations.transformers import VattCache
from vattention.layout import Layout
from vattention.session import Session

FAMILIES = ["llama", "phi", "gpt_neox", "qwen2", "gemma", "gemma3", "qwen2_sliding", "mistral"]
KINDS = [*((family, attention) for family in FAMILIES for attention in ("sdpa", "eager")), ("gemma2", "eager")]
NEW_TOKENS = 12
BATCHES = [[37, 5, 120], [40]]  # lengths of prompts; windows of 16 tokens pass on within the first ones


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize(("family", "attention"), KINDS)
def test_left_padded_batches_give_the_bits_of_dynamic_cache(
    session: Session, family: str, attention: str, dtype: torch.dtype
) -> None:
    model = tiny_model(family, dtype=dtype, attention=attention)
    runs: list[tuple[dict[str, torch.Tensor], Any]] = []
    for lengths in BATCHES:
        inputs = left_padded_batch(lengths)
        theirs = generate(model, inputs, DynamicCache(config=model.config), max_new_tokens=NEW_TOKENS)
        runs.append((inputs, theirs))
    for layout in (Layout.PER_LAYER, Layout.PER_HEAD, Layout.FUSED):
        with VattCache.for_model(model, session, layout=layout, max_batch_size=3) as cache:
            for inputs, theirs in runs:
                assert_same_run(generate(model, inputs, cache, max_new_tokens=NEW_TOKENS), theirs)
                cache.reset()


def test_megacache_gives_the_bits_of_dynamic_cache(session: Session) -> None:
    for family, attention in (("llama", "sdpa"), ("phi", "eager")):
        model = tiny_model(family, attention=attention)
        inputs = left_padded_batch([37, 5, 120])
        theirs = generate(model, inputs, DynamicCache(config=model.config))
        with VattCache.for_model(model, session, layout=Layout.MEGACACHE, max_batch_size=3) as cache:
            assert_same_run(generate(model, inputs, cache), theirs)
