"""What a model's configuration asks of the cache, and which models are refused, with what to use instead."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    BartConfig,
    BloomConfig,
    BloomForCausalLM,
    DynamicCache,
    FalconConfig,
    Gemma3Config,
    Gemma3TextConfig,
    JambaConfig,
    Llama4TextConfig,
    LlamaConfig,
    MambaConfig,
    MptConfig,
    Qwen3NextConfig,
)

from tests.vattention.integrations.comparison import assert_same_run, generate
from tests.vattention.integrations.conftest import MakeCache
from tests.vattention.integrations.tiny_models import (
    CONTEXT_LENGTH,
    HYBRID,
    SHAPE,
    VOCABULARY,
    WIDE,
    WINDOW,
    left_padded_batch,
    tiny_model,
)
from vatt.errors import InvalidRequest
from vattention.integrations.transformers import ModelShape, VattCache
from vattention.session import Session


def test_the_model_says_the_shape(make_cache: MakeCache) -> None:
    spec = make_cache(tiny_model("phi", dtype=torch.bfloat16)).kv_cache.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_size) == (3, 4, 16)
    assert (spec.dtype, spec.max_context_length) == (torch.bfloat16, CONTEXT_LENGTH)


def test_layers_with_a_window_are_none_of_the_pages(make_cache: MakeCache) -> None:
    cache = make_cache(tiny_model("gemma3"))
    spec = cache.kv_cache.spec
    assert (spec.num_layers, spec.num_kv_heads, spec.head_size) == (1, 2, 32)
    assert cache.is_sliding == [True, False, True]
    assert [cache.get_max_length(layer) for layer in range(3)] == [WINDOW, CONTEXT_LENGTH, WINDOW]


def test_the_decoder_of_a_model_of_several_kinds_of_input_is_what_counts() -> None:
    text = Gemma3TextConfig(**SHAPE, **WIDE, **HYBRID)
    assert ModelShape.of(Gemma3Config(text_config=text)).windows == (WINDOW, None, WINDOW)


def test_a_model_that_slides_in_every_layer_is_refused_since_nothing_of_it_grows(session: Session) -> None:
    with pytest.raises(InvalidRequest, match=r"mistral looks back 16 tokens at most.*use transformers\.DynamicCache"):
        VattCache.for_model(tiny_model("mistral_sliding"), session, max_batch_size=1)


@pytest.mark.parametrize(
    ("config", "why"),
    [
        pytest.param(
            Qwen3NextConfig(num_hidden_layers=4), "qwen3_next has layers of type linear_attention", id="gated"
        ),
        pytest.param(JambaConfig(num_hidden_layers=4), "jamba has layers of type linear_attention", id="jamba"),
        pytest.param(MambaConfig(num_hidden_layers=4), "mamba has layers of type linear_attention", id="mamba"),
        pytest.param(FalconConfig(num_hidden_layers=4), "falcon says in words of its own", id="falcon"),
        pytest.param(MptConfig(n_layers=4), "mpt gives the cache its whole input again", id="mpt"),
        pytest.param(Llama4TextConfig(num_hidden_layers=4), "llama4_text has layers of type chunked", id="chunked"),
    ],
)
def test_other_kinds_of_states_are_refused_by_name(config: Any, why: str) -> None:
    with pytest.raises(InvalidRequest, match=rf"{why}.*use transformers\.DynamicCache"):
        ModelShape.of(config)


def with_four_kv_heads_in(layer: int) -> dict[str, Any]:
    return {"per_layer_config": {layer: {"num_key_value_heads": 4}}}


def test_layers_of_different_shapes_are_refused_by_number() -> None:
    config = LlamaConfig(**SHAPE, num_key_value_heads=2, **with_four_kv_heads_in(1))
    with pytest.raises(InvalidRequest, match=r"\(2, 16\) in layer 0 and \(4, 16\) in layer 1.*DynamicCache"):
        ModelShape.of(config)


def test_the_shape_of_layers_with_a_window_does_not_matter() -> None:
    config = Gemma3TextConfig(**SHAPE, **WIDE, **HYBRID, **with_four_kv_heads_in(0))
    shape = ModelShape.of(config)
    assert (shape.num_kv_heads, shape.head_size) == (2, 32)


def test_an_encoder_with_a_decoder_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"bart is an encoder with a decoder.*EncoderDecoderCache"):
        ModelShape.of(BartConfig())


def test_a_model_that_does_not_say_how_long_its_context_is_is_given_a_length(session: Session) -> None:
    torch.manual_seed(7)
    model: Any = BloomForCausalLM(BloomConfig(vocab_size=VOCABULARY, hidden_size=64, n_layer=2, n_head=4))
    model.eval()
    inputs = left_padded_batch([20, 7])
    with pytest.raises(InvalidRequest, match="bloom does not say how long its context is: give max_context_length"):
        VattCache.for_model(model, session, max_batch_size=2)
    with VattCache.for_model(model, session, max_batch_size=2, max_context_length=64) as cache:
        theirs = generate(model, inputs, DynamicCache(config=model.config))
        assert_same_run(generate(model, inputs, cache), theirs)
