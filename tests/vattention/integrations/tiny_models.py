"""Random models small enough to run in milliseconds: what they say is nonsense, and the same nonsense every time."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PhiConfig, PhiForCausalLM, PreTrainedModel

VOCABULARY = 128
CONTEXT_LENGTH = 512
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


def tiny_model(family: str, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> PreTrainedModel:
    """`llama` (two heads share a KV head) or `phi` (none do)."""
    torch.manual_seed(7)
    shape = {**SHAPE, "attn_implementation": attention}
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2))
    else:
        model = PhiForCausalLM(PhiConfig(**shape))
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
