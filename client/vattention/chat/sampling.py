"""How the next token is chosen from the model's logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from vatt.errors import InvalidRequest

MOST_SEED = 2**63 - 1


class InvalidSampling(InvalidRequest):
    """A value without a meaning; `field` is its name in Sampling."""

    def __init__(self, field: str, value: object, hint: str) -> None:
        super().__init__(f"{field} is {value!r}: {hint}")
        self.field = field


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an answer's tokens are chosen, and where it ends. Raises InvalidSampling."""

    temperature: float = 0.0  # 0: the likeliest token each time, and then top_p and seed play no part
    top_p: float = 1.0  # choose among the likeliest tokens that together have this probability
    seed: int | None = None  # None: another answer each time
    max_tokens: int | None = None  # None: until the model ends its answer, or the context is full
    stop: tuple[str, ...] = ()  # the answer ends before any of these

    def __post_init__(self) -> None:
        if not 0 <= self.temperature <= 100:
            raise InvalidSampling("temperature", self.temperature, "give 0 (always the likeliest token) to 100")
        if not 0 < self.top_p <= 1:
            raise InvalidSampling("top_p", self.top_p, "give a probability above 0 and up to 1")
        if self.seed is not None and not 0 <= self.seed <= MOST_SEED:
            raise InvalidSampling("seed", self.seed, "give a whole number from 0 to 2**63 - 1")
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidSampling("max_tokens", self.max_tokens, "give 1 or more")
        if isinstance(self.stop, str) or not all(isinstance(one, str) and one for one in self.stop):
            raise InvalidSampling("stop", self.stop, "give strings that are not empty")


class Sampler:
    """Chooses one answer's tokens. With a seed the same logits give the same tokens, whatever else is generated."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._is_greedy = sampling.temperature == 0
        self._warpers = LogitsProcessorList()
        if self._is_greedy:
            return
        if sampling.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(sampling.top_p))
        self._generator = torch.Generator(device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> int:
        """A token's id from logits of shape [vocabulary]."""
        if self._is_greedy:
            return int(logits.argmax())
        no_tokens: Any = torch.empty((1, 0), dtype=torch.long)  # these warpers look at scores only
        scores = self._warpers(no_tokens, cast(Any, logits.float()[None]))
        return int(torch.multinomial(scores.softmax(dim=-1)[0], 1, generator=self._generator))
