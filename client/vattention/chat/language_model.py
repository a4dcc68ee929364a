"""A causal language model with its tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel
from transformers.cache_utils import Cache

from vatt.errors import InvalidRequest
from vattention.chat.prompt import ChatFormat


class LanguageModel:
    """What turns tokens into the logits of the next one. One thread uses it."""

    def __init__(self, name: str, model: Any, tokenizer: Any, device: torch.device) -> None:
        self.name = name
        self.device = device
        self.model: PreTrainedModel = model
        self.tokenizer = tokenizer
        self.format = ChatFormat(tokenizer)
        self.end_tokens = _end_tokens(model, tokenizer)
        self._keeps_logits = "logits_to_keep" if model._supports_logits_to_keep() else None

    @classmethod
    def load(cls, name: str, device: torch.device, dtype: torch.dtype | None) -> LanguageModel:
        """By a hub name or a folder; `dtype` None: that of its file. Raises InvalidRequest if it cannot be had."""
        try:
            tokenizer = AutoTokenizer.from_pretrained(name)
            model: Any = AutoModelForCausalLM.from_pretrained(name, dtype=dtype if dtype is not None else "auto")
        except (OSError, ValueError, ImportError, SafetensorError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise InvalidRequest(
                f"model {name}: {reason}: give a folder with config.json and weights, or a name on the Hugging Face Hub"
            ) from error
        name = Path(name).resolve().name if Path(name).is_dir() else name
        return cls(name, model.to(device).eval(), tokenizer, device)

    @property
    def context_length(self) -> int | None:
        """Tokens that the model was made for; None where it does not say."""
        length: int | None = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        return length

    def logits_after(self, token_ids: Sequence[int], cache: Cache) -> torch.Tensor:
        """Compute these tokens after those that the cache holds; logits of the next one, [vocabulary]."""
        input_ids = torch.tensor([token_ids], dtype=torch.long, device=self.device)
        options = {self._keeps_logits: 1} if self._keeps_logits else {}
        with torch.inference_mode():
            output: Any = self.model(input_ids=input_ids, past_key_values=cache, use_cache=True, **options)
            logits: torch.Tensor = output.logits[0, -1]
        return logits


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    """The generation config's, which may name several, and the tokenizer's."""
    configured = getattr(model.generation_config, "eos_token_id", None)
    found = configured if isinstance(configured, list) else [configured]
    return frozenset(token for token in [*found, tokenizer.eos_token_id] if token is not None)
