"""Chat models small enough to run in milliseconds, as folders that transformers loads.

Each byte of a text is a token, so any text can be said, and what the random weights answer is mostly no valid text.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import (
    AutoModelForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    PreTrainedTokenizerFast,
)

from vattention.chat import Answer

CONTEXT_LENGTH = 512
WINDOW = 16  # tokens
SPECIAL = ["<|end|>", "<|turn|>"]
TEMPLATE = (
    "{% for message in messages %}<|turn|>{{ message.role }}: {{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant: {% endif %}"
)


def save_tokenizer(folder: Path, *, template: str | None) -> Any:
    """One token a byte, and two special ones."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: at for at, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    make: Any = PreTrainedTokenizerFast
    made = make(tokenizer_object=tokenizer, eos_token=SPECIAL[0], extra_special_tokens=SPECIAL[1:])
    made.chat_template = template
    made.save_pretrained(folder)
    return made


def save_model(folder: Path, family: str) -> Path:
    """`llama`, with a chat template; `phi`, phi-2's architecture (part of each head is rotated), without one;
    `mistral`, with one, which looks back through a window of 16 tokens; `gemma3`, with one, in which one layer of three
    looks back at every token."""
    torch.manual_seed(3)
    tokenizer = save_tokenizer(folder, template=None if family == "phi" else TEMPLATE)
    shape: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": CONTEXT_LENGTH,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "initializer_range": 0.2,
    }
    model: Any
    if family == "llama":
        model = LlamaForCausalLM(LlamaConfig(**shape, num_key_value_heads=2))
    elif family == "mistral":
        model = MistralForCausalLM(MistralConfig(**shape, num_key_value_heads=2, sliding_window=WINDOW))
    elif family == "gemma3":
        kinds = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": WINDOW}
        model = Gemma3ForCausalLM(
            Gemma3TextConfig(**{**shape, **kinds, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16})
        )
    else:
        model = PhiForCausalLM(PhiConfig(**{**shape, "partial_rotary_factor": 0.5}))
    model.save_pretrained(folder)
    return folder


def alone(folder: Path, token_ids: Sequence[int], new_tokens: int) -> list[int]:
    """What transformers' own generate() answers to these tokens, greedily, with its own cache."""
    model = _loaded(folder)
    ids = torch.tensor([token_ids])
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, pad_token_id=0
    )
    answer: list[int] = made[0, len(token_ids) :].tolist()
    return answer[:-1] if answer and answer[-1] == model.config.eos_token_id else answer


def likeliest(folder: Path, token_ids: Sequence[int], answered: Sequence[int]) -> list[int]:
    """In one pass: the model's token after the prompt, and after each of the answer's but the last.

    It is the answer if that is greedy: each token is the likeliest after those before it. Faster than `alone`.
    """
    with torch.inference_mode():
        logits = _loaded(folder)(torch.tensor([[*token_ids, *answered[:-1]]])).logits[0, len(token_ids) - 1 :]
    found: list[int] = logits.argmax(dim=-1).tolist()
    return found


def assert_answered_as_alone(folder: Path, answer: Answer) -> None:
    """Waits for the answer."""
    answer.wait()
    assert answer.ending is not None
    written, prompt_length = answer.ending.written, answer.counts.prompt
    assert written is not None
    prompt, answered = list(written.token_ids[:prompt_length]), list(written.token_ids[prompt_length:])
    assert answered == alone(folder, prompt, len(answered))
    assert len(answered) == answer.counts.generated > 0


@functools.cache
def _loaded(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder)
