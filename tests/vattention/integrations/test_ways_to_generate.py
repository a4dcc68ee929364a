"""What `generate` does besides greedy search, on models whose layers are all paged and on such as have windows."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import DynamicCache

from tests.vattention.integrations.comparison import assert_same_run, generate
from tests.vattention.integrations.conftest import MakeCache
from tests.vattention.integrations.tiny_models import left_padded_batch, tiny_model
from vattention.layout import Layout

MODELS = pytest.mark.parametrize("family", ["llama", "gemma3"])
LAYOUTS = pytest.mark.parametrize("layout", [Layout.PER_LAYER, Layout.FUSED], ids=lambda layout: layout.value)
pytestmark = [MODELS, LAYOUTS]


def repeating_prompt() -> dict[str, torch.Tensor]:
    """Prompt lookup finds candidates in it, and some are refused and cropped."""
    tokens = torch.arange(2, 26).repeat(4)[None]
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({"num_beams": 3}, id="beam_search"),
        pytest.param({"num_beams": 3, "num_return_sequences": 2}, id="several_beams_returned"),
        pytest.param({"do_sample": True, "num_return_sequences": 3}, id="several_samples"),
        pytest.param({"do_sample": True, "num_beams": 2}, id="sampled_beams"),
        pytest.param({"prefill_chunk_size": 16}, id="prefill_in_chunks"),
        pytest.param({"prompt_lookup_num_tokens": 4}, id="prompt_lookup_crops"),
    ],
)
def test_tokens_are_those_of_dynamic_cache(make_cache: MakeCache, family: str, options: dict[str, Any]) -> None:
    model = tiny_model(family)
    torch.manual_seed(3)
    theirs = generate(model, repeating_prompt(), DynamicCache(config=model.config), **options)
    torch.manual_seed(3)
    mine = generate(model, repeating_prompt(), make_cache(model), **options)
    assert torch.equal(mine.sequences, theirs.sequences)


def test_beams_of_several_padded_prompts_are_those_of_dynamic_cache(make_cache: MakeCache, family: str) -> None:
    model = tiny_model(family)
    inputs = left_padded_batch([40, 9])
    theirs = generate(model, inputs, DynamicCache(config=model.config), num_beams=2)
    assert_same_run(generate(model, inputs, make_cache(model), num_beams=2), theirs)


@pytest.mark.parametrize("seed", [7, 8], ids=["draft_often_right", "draft_mostly_wrong"])
def test_a_draft_model_assists_as_it_does_with_dynamic_cache(make_cache: MakeCache, family: str, seed: int) -> None:
    model = tiny_model(family)
    cropped: list[int] = []
    mine, theirs = make_cache(model), DynamicCache(config=model.config)
    crop = mine.crop

    def noted(tokens_to_remove: int) -> None:
        cropped.append(tokens_to_remove)
        crop(tokens_to_remove)

    mine.crop = noted  # type: ignore[method-assign]
    runs = []
    for cache in (theirs, mine):
        draft = tiny_model(family, seed=seed)
        draft.generation_config.num_assistant_tokens = 4
        draft.generation_config.assistant_confidence_threshold = 0.0
        runs.append(generate(model, repeating_prompt(), cache, assistant_model=draft))
    assert_same_run(*runs)
    plain = generate(model, repeating_prompt(), DynamicCache(config=model.config))
    assert torch.equal(runs[0].sequences, plain.sequences)
    assert len(cropped) > 1
    assert (min(cropped) < 0) == (seed == 8)


def test_a_conversation_goes_on_in_the_same_cache(make_cache: MakeCache, family: str) -> None:
    model = tiny_model(family)
    mine, theirs = make_cache(model), DynamicCache(config=model.config)
    prompt = left_padded_batch([30, 30])["input_ids"]
    for _turn in range(3):
        inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
        run, their_run = generate(model, inputs, mine), generate(model, inputs, theirs)
        assert_same_run(run, their_run)
        prompt = torch.cat([run.sequences, torch.full((2, 3), 9)], dim=1)


def test_a_cache_implementation_beside_the_cache_is_refused_by_transformers(make_cache: MakeCache, family: str) -> None:
    model = tiny_model(family)
    with pytest.raises(ValueError, match="Passing both `cache_implementation`"):
        generate(model, repeating_prompt(), make_cache(model), cache_implementation="static")


def test_a_cache_that_was_initialized_early_gives_the_same(make_cache: MakeCache, family: str) -> None:
    model = tiny_model(family)
    cache = make_cache(model)
    heads, head_size = cache.kv_cache.spec.num_kv_heads, cache.kv_cache.spec.head_size
    cache.early_initialization(1, heads, head_size, model.dtype, model.device)
    assert cache.is_initialized
    assert (cache.batch_size, cache.kv_cache.stats().mapped_bytes) == (-1, 0)
    theirs = generate(model, repeating_prompt(), DynamicCache(config=model.config))
    assert_same_run(generate(model, repeating_prompt(), cache), theirs)
