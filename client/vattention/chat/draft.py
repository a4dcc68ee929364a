"""One answer under way."""

from __future__ import annotations

import torch

from vattention.chat.answer import Answer, Ending, Finish, FinishReason, TokenCounts
from vattention.chat.language_model import LanguageModel
from vattention.chat.memory import Memory
from vattention.chat.prefix import Prefix
from vattention.chat.prompt import Written
from vattention.chat.sampling import Sampler, Sampling
from vattention.chat.text_pieces import TextPieces

# Tokens of a prompt computed at a time: the others' next tokens wait for no more than that.
PREFILL_TOKENS = 256


class Draft:
    """An answer while it is written: a chunk of the prompt or a token each step, until there is a reason to finish.

    A step that raises has changed nothing but the prefix, which is then to be given up: what the cache lacks of the
    prompt and the answer so far is computed by the next steps.
    """

    def __init__(
        self, number: int, prompt: Written, sampling: Sampling, model: LanguageModel, memory: Memory, answer: Answer
    ) -> None:
        """`number` grows with each draft: the lower of two came first."""
        self.number = number
        self.answer = answer
        self.prefix: Prefix | None = None  # while it runs
        self._model = model
        self._memory = memory
        self._prompt = prompt
        self._token_ids = list(prompt.token_ids)
        self._reused = self._prefilled = 0
        self._max_tokens = sampling.max_tokens
        self._sampler = Sampler(sampling, model.device)
        stop = (*sampling.stop, *model.format.stop)
        self._pieces = TextPieces(model.tokenizer, stop, strip=not model.format.has_template)

    @property
    def prompt_token_ids(self) -> tuple[int, ...]:
        return self._prompt.token_ids

    @property
    def generated(self) -> int:
        """Tokens of the answer so far, without one that says that it ends."""
        return len(self._token_ids) - self._prompt.length

    def enter(self, prefix: Prefix) -> None:
        """Go on from what the prefix holds of the prompt and the answer."""
        self.prefix = prefix
        kept = prefix.keep_common(self._token_ids)
        if not self._prefilled:
            self._reused = kept

    def leave(self) -> None:
        """Run no more for now, or for good."""
        self.prefix = None

    def step(self) -> Finish | None:
        """Compute what one forward pass does, and tell the answer; the reason to finish, if there is one.

        Raises what Memory.make_room does, before anything is computed.
        """
        prefix = self.prefix
        if prefix is None:
            raise RuntimeError("a step of a draft that does not run")
        missing = self._token_ids[prefix.length :]
        self._memory.make_room(prefix.cache, len(self._token_ids))
        chunk = missing[:PREFILL_TOKENS]
        logits = self._model.logits_after(chunk, prefix.cache)
        prefix.token_ids += chunk
        if not self.generated or len(missing) > 1:
            self._prefilled += len(chunk)
        return self._choose(logits) if len(chunk) == len(missing) else None

    def _choose(self, logits: torch.Tensor) -> Finish | None:
        """Write the next token, chosen from these logits."""
        token_id = self._sampler.choose(logits)
        if token_id in self._model.end_tokens:
            return Finish(FinishReason.STOP)
        self._token_ids.append(token_id)
        self.answer.add(self._pieces.add(token_id))
        if self._pieces.is_stopped:
            return Finish(FinishReason.STOP)
        if self.generated == self._max_tokens:
            return Finish(FinishReason.LENGTH, f"max_tokens: {self._max_tokens}")
        if len(self._token_ids) == self._memory.max_context_length:
            return Finish(FinishReason.LENGTH, f"the context is full: {len(self._token_ids)} tokens")
        return None

    def end(self, finish: Finish) -> None:
        """Show what was held back, and tell the answer: whoever reads it waits for that."""
        try:
            self.answer.add(self._pieces.finish())
        except Exception as error:  # noqa: BLE001  a tokenizer that cannot read what the model wrote
            if finish.reason is not FinishReason.FAILED:
                finish = Finish(FinishReason.FAILED, str(error), error)
        counts = TokenCounts(
            prompt=self._prompt.length,
            reused=self._reused,
            prefilled=self._prefilled,
            generated=self.generated,
        )
        self.answer.end(Ending(finish, counts, self._written()))

    def _written(self) -> Written | None:
        spelled = self._pieces.spelled()
        if spelled is None:
            return None
        text, token_count = spelled
        return Written(self._prompt.text + text, tuple(self._token_ids[: self._prompt.length + token_count]))
