"""Random models small enough to run in milliseconds: what they say is nonsense, and the same nonsense every time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GemmaConfig,
    GemmaForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

VOCABULARY = 128
CONTEXT_LENGTH = 512
WINDOW = 16  # tokens
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": None,
}
SHARED: dict[str, Any] = {"num_key_value_heads": 2}  # two heads share a KV head
WIDE: dict[str, Any] = {**SHARED, "head_dim": 32}  # heads are wider than their part of the hidden size
HYBRID: dict[str, Any] = {
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, Callable[..., Any]] = {
    "llama": lambda **shape: LlamaForCausalLM(LlamaConfig(**shape, **SHARED)),
    "phi": lambda **shape: PhiForCausalLM(PhiConfig(**shape)),
    "gpt_neox": lambda **shape: GPTNeoXForCausalLM(GPTNeoXConfig(**shape)),
    "qwen2": lambda **shape: Qwen2ForCausalLM(Qwen2Config(**shape, **SHARED)),
    "gemma": lambda **shape: GemmaForCausalLM(GemmaConfig(**{**WIDE, **shape})),
    "gemma2": lambda **shape: Gemma2ForCausalLM(Gemma2Config(**{**WIDE, **HYBRID, **shape})),
    "gemma3": lambda **shape: Gemma3ForCausalLM(Gemma3TextConfig(**{**WIDE, **HYBRID, **shape})),
    "qwen2_sliding": lambda **shape: Qwen2ForCausalLM(
        Qwen2Config(**shape, **SHARED, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1)
    ),
    "mistral": lambda **shape: MistralForCausalLM(MistralConfig(**shape, **SHARED, sliding_window=None)),
    "mistral_sliding": lambda **shape: MistralForCausalLM(MistralConfig(**shape, **SHARED, sliding_window=WINDOW)),
}


def tiny_model(
    family: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa", seed: int = 7, **shape: Any
) -> PreTrainedModel:
    """`shape` goes over that of all families."""
    torch.manual_seed(seed)
    model = FAMILIES[family](**{**SHAPE, "attn_implementation": attention, **shape})
    made: PreTrainedModel = model.to(dtype).eval()
    return made


def left_padded_batch(lengths: list[int]) -> dict[str, torch.Tensor]:
    """Random prompts of these lengths, padded on the left to the longest."""
    torch.manual_seed(11)
    longest = max(lengths)
    tokens = torch.zeros(len(lengths), longest, dtype=torch.long)
    mask = torch.zeros_like(tokens)
    for row, length in enumerate(lengths):
        tokens[row, longest - length :] = torch.randint(2, VOCABULARY, (length,))
        mask[row, longest - length :] = 1
    return {"input_ids": tokens, "attention_mask": mask}
